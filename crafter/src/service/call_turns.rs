//! Shares the time of the service's thread fairly among users.
//!
//! Time is divided into rounds. Between two rounds other tasks of the thread run: packets, new connections, timers. In
//! a round each user may spend [`BUDGET`] of the thread's time on calls; further calls of the user wait in order. What
//! exceeds the budget counts in the next rounds. So neither a client that sends thousands of calls without a pause nor
//! a user with many connections delays others by more than a budget and one call.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    pin::pin,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

/// The time that a user may spend in one round.
const BUDGET: Duration = Duration::from_micros(500);

/// Cost of a call, or of a piece of a call, in addition to its time; so a user has at most four in a round.
const EACH: Duration = Duration::from_micros(125);

/// The maximum debt that is charged to later rounds: the measured time of a call includes times when the process was
/// preempted.
const MOST_DEBT: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(super) struct CallTurns {
    users: RefCell<HashMap<u32, User>>,
    /// Notified when a user has spent something.
    spent: Notify,
}

#[derive(Default)]
struct User {
    spent: Duration,
    waiting: VecDeque<oneshot::Sender<()>>,
}

impl CallTurns {
    /// Waits until the user may make a call, and counts it.
    pub(super) async fn begin(&self, user: u32) {
        if let Some(turn) = self.try_begin(user) {
            // The sender is dropped only with the service.
            let _ = turn.await;
        }
    }

    /// Counts a call; `None` if it may be made in this round.
    fn try_begin(&self, user: u32) -> Option<oneshot::Receiver<()>> {
        let mut users = self.users.borrow_mut();
        let own = users.entry(user).or_default();
        self.spent.notify_one();
        if own.waiting.is_empty() && own.spent < BUDGET {
            own.spent += EACH;
            return None;
        }
        let (sender, turn) = oneshot::channel();
        own.waiting.push_back(sender);
        Some(turn)
    }

    /// Runs the work of a user, and counts the time that the thread spends on it.
    pub(super) async fn charged<T>(&self, user: u32, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            let began = Instant::now();
            let result = work.as_mut().poll(context);
            self.charge(user, began.elapsed());
            result
        })
        .await
    }

    /// Counts time of a user.
    fn charge(&self, user: u32, time: Duration) {
        let mut users = self.users.borrow_mut();
        let own = users.entry(user).or_default();
        own.spent = (own.spent + time).min(BUDGET + MOST_DEBT);
        self.spent.notify_one();
    }

    /// Begins one round after the other while a user waits or has spent something. Never returns.
    pub(super) async fn run(&self) {
        loop {
            self.spent.notified().await;
            while !self.users.borrow().is_empty() {
                // The other tasks run, and the event loop polls the sockets.
                tokio::task::yield_now().await;
                self.next_round();
            }
        }
    }

    fn next_round(&self) {
        self.users.borrow_mut().retain(|_, user| {
            user.spent = user.spent.saturating_sub(BUDGET);
            while user.spent < BUDGET
                && let Some(waiting) = user.waiting.pop_front()
            {
                // Fails if the connection has ended meanwhile.
                if waiting.send(()).is_ok() {
                    user.spent += EACH;
                }
            }
            user.spent > Duration::ZERO || !user.waiting.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn began(turns: &mut Vec<oneshot::Receiver<()>>) -> usize {
        let before = turns.len();
        turns.retain_mut(|turn| turn.try_recv().is_err());
        before - turns.len()
    }

    #[test]
    fn each_user_makes_four_calls_in_a_round() {
        let turns = CallTurns::default();
        // A thousand connections of one user have the turns of one user.
        let mut many: Vec<_> = (0..1000).filter_map(|_| turns.try_begin(1)).collect();
        assert_eq!(many.len(), 996);
        // Another user does not wait for any of them.
        assert!(turns.try_begin(2).is_none());
        for _ in 0..249 {
            turns.next_round();
            assert_eq!(began(&mut many), 4);
            assert!(turns.try_begin(2).is_none());
        }
        assert!(many.is_empty());
        turns.next_round();
        turns.next_round();
        assert!(turns.users.borrow().is_empty());
    }

    #[test]
    fn long_call_counts_in_later_rounds() {
        let turns = CallTurns::default();
        assert!(turns.try_begin(1).is_none());
        turns.charge(1, BUDGET * 10);
        let mut next = vec![turns.try_begin(1).expect("a wait")];
        let rounds = (1..).find(|_| {
            turns.next_round();
            began(&mut next) == 1
        });
        assert_eq!(rounds, Some(10));
        // A pause of the process causes a debt of at most [`MOST_DEBT`].
        turns.charge(1, Duration::from_secs(60));
        let mut next = vec![turns.try_begin(1).expect("a wait")];
        let rounds = (1..).find(|_| {
            turns.next_round();
            began(&mut next) == 1
        });
        assert!(rounds < Some(50), "{rounds:?}");
    }

    #[test]
    fn call_of_an_ended_connection_takes_no_turn() {
        let turns = CallTurns::default();
        let mut many: Vec<_> = (0..9).filter_map(|_| turns.try_begin(1)).collect();
        many.truncate(1);
        let mut last = vec![turns.try_begin(1).expect("a wait")];
        turns.next_round();
        assert_eq!((began(&mut many), began(&mut last)), (1, 1));
    }
}
