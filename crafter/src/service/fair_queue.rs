//! Deficit round robin between users, then round robin between the members of a user (M. Shreedhar and G. Varghese,
//! "Efficient Fair Queuing Using Deficit Round Robin", 1995). Pure: no IO, no clock.
//!
//! Each user may spend a quantum in each round, however many members it has. The cost of a turn is known only after it;
//! what exceeds the quantum is a debt, which the user pays in the next rounds, also after all its members have left.

use std::collections::{HashMap, VecDeque};

/// Members that wait for their turns, by user.
pub(super) struct FairQueue<M> {
    /// What a user may spend in a round.
    quantum: u64,
    /// Users with waiting members or debts; the first one has its turn.
    order: VecDeque<u32>,
    users: HashMap<u32, User<M>>,
    /// Waiting members of all users.
    waiting: usize,
}

struct User<M> {
    members: VecDeque<M>,
    /// What the user may still spend in this round; negative: a debt.
    credit: i64,
}

/// A member whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn<M> {
    pub(super) user: u32,
    pub(super) member: M,
}

impl<M> FairQueue<M> {
    pub(super) fn new(quantum: u64) -> Self {
        Self { quantum, order: VecDeque::new(), users: HashMap::new(), waiting: 0 }
    }

    /// Adds a member, which must not be waiting already.
    pub(super) fn push(&mut self, user: u32, member: M) {
        let order = &mut self.order;
        let quantum = self.quantum as i64;
        let own = self.users.entry(user).or_insert_with(|| {
            order.push_back(user);
            User { members: VecDeque::new(), credit: quantum }
        });
        own.members.push_back(member);
        self.waiting += 1;
    }

    /// Whether no member waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// The member whose turn it is. Call [`charge`](Self::charge) with the cost of the turn, and
    /// [`push`](Self::push) if the member has more to do.
    pub(super) fn next(&mut self) -> Option<Turn<M>> {
        if self.waiting == 0 {
            // No member waits, so debts have no effect.
            self.order.clear();
            self.users.clear();
            return None;
        }
        loop {
            let user = *self.order.front()?;
            let own = self.users.get_mut(&user)?;
            if own.credit > 0
                && let Some(member) = own.members.pop_front()
            {
                self.waiting -= 1;
                return Some(Turn { user, member });
            }
            self.order.pop_front();
            if own.credit > 0 {
                // Unused credit does not carry over to the next round.
                self.users.remove(&user);
            } else {
                own.credit += self.quantum as i64;
                self.order.push_back(user);
            }
        }
    }

    /// Charges a user for a turn.
    pub(super) fn charge(&mut self, user: u32, cost: u64) {
        if let Some(own) = self.users.get_mut(&user) {
            own.credit = own.credit.saturating_sub_unsigned(cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTUM: u64 = 1000;

    /// Gives `turns` turns to members that always have more to do; returns what each user has spent.
    fn run(queue: &mut FairQueue<(u32, u64)>, turns: usize) -> HashMap<u32, u64> {
        let mut spent = HashMap::new();
        for _ in 0..turns {
            let Some(Turn { user, member, .. }) = queue.next() else { break };
            queue.charge(user, member.1);
            queue.push(user, member);
            *spent.entry(user).or_default() += member.1;
        }
        spent
    }

    #[test]
    fn many_members_get_no_more_than_one() {
        let mut queue = FairQueue::new(QUANTUM);
        (0..64).for_each(|number| queue.push(1, (number, 100)));
        queue.push(2, (64, 100));
        let spent = run(&mut queue, 2000);
        assert_eq!((spent[&1], spent[&2]), (100_000, 100_000));
    }

    #[test]
    fn members_of_a_user_take_turns() {
        let mut queue = FairQueue::new(QUANTUM);
        (0..3).for_each(|number| queue.push(1, (number, 100)));
        let mut order = Vec::new();
        for _ in 0..6 {
            let turn = queue.next().expect("a turn");
            queue.charge(1, 100);
            order.push(turn.member.0);
            queue.push(1, turn.member);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn large_turns_are_paid_in_later_rounds() {
        let mut queue = FairQueue::new(QUANTUM);
        queue.push(1, (0, 50 * QUANTUM));
        queue.push(2, (1, 100));
        let spent = run(&mut queue, 5000);
        let (large, small) = (spent[&1] as f64, spent[&2] as f64);
        assert!((0.8..1.3).contains(&(large / small)), "{spent:?}");
    }

    #[test]
    fn debt_outlasts_the_members() {
        let mut queue = FairQueue::new(QUANTUM);
        queue.push(2, (9, 100));
        let mut spent = [0, 0];
        // A member leaves after each expensive turn, and is back at once.
        queue.push(1, (0, 0));
        for _ in 0..3000 {
            let turn = queue.next().expect("a turn");
            let cost = if turn.user == 1 { 20 * QUANTUM } else { 100 };
            queue.charge(turn.user, cost);
            spent[turn.user as usize - 1] += cost;
            queue.push(turn.user, turn.member);
        }
        assert!(spent[0] < spent[1] * 13 / 10, "{spent:?}");
    }

    #[test]
    fn newcomer_waits_for_at_most_a_quantum_of_each_user() {
        let mut queue = FairQueue::new(QUANTUM);
        for user in 1..=10 {
            (0..10).for_each(|number| queue.push(user, (number, 100)));
        }
        run(&mut queue, 7);
        queue.push(99, (0, 1));
        let mut cost = 0;
        loop {
            let turn = queue.next().expect("a turn");
            if turn.user == 99 {
                break;
            }
            queue.charge(turn.user, 100);
            cost += 100;
            queue.push(turn.user, turn.member);
        }
        assert!(cost <= 10 * QUANTUM, "{cost}");
    }

    #[test]
    fn empty_queue_forgets_all_users() {
        let mut queue = FairQueue::new(QUANTUM);
        for user in 0..1000 {
            queue.push(user, ());
            let turn = queue.next().expect("a turn");
            queue.charge(turn.user, QUANTUM * 5);
        }
        assert_eq!(queue.next(), None);
        assert_eq!((queue.users.len(), queue.order.len(), queue.is_empty()), (0, 0, true));
    }
}
