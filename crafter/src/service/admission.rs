//! Which control connections the service keeps.
//!
//! - Root and the service's own user have connections of their own, so that `Reload` always finds one.
//! - Users whom a rule names share the others. If all are taken, a user with fewer connections than the one with the
//!   most gets one of those: each of `n` users can have at least an `n`th. Connections without a complete call are
//!   closed first, then the least active ones.
//! - All users without a rule, who may only learn that, share a few; the oldest is closed for a new one.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
    time::Instant,
};

use tokio::sync::Notify;

/// The connections of users whom a rule names, if the process may have enough descriptors.
pub(super) const MOST: usize = 4096;

/// The maximum number of connections of one user whom a rule names.
const MOST_OF_USER: usize = 512;

/// The maximum number of connections of root and the service's own user.
const MOST_TRUSTED: usize = 512;

/// The maximum number of connections of users without a rule together, and of each.
const MOST_UNNAMED: usize = 64;
const MOST_OF_UNNAMED: usize = 8;

/// Who a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Root, or the service's own user.
    Trusted,
    /// A user whom a rule of the policy names.
    Named,
    /// A user without a rule.
    Unnamed,
}

/// The open control connections.
pub(super) struct Connections {
    open: RefCell<BTreeMap<u64, Open>>,
    /// How many each user has, and all of a kind.
    counts: RefCell<HashMap<(Kind, Option<u32>), usize>>,
    next: Cell<u64>,
    most: usize,
}

struct Open {
    user: u32,
    kind: Kind,
    state: Rc<Activity>,
}

/// What a connection does; shared with the connection.
#[derive(Debug)]
pub(super) struct Activity {
    /// When the latest call was complete; `None` before the first one.
    latest: Cell<Option<Instant>>,
    closed: Notify,
}

impl Activity {
    /// Notes a complete call.
    pub(super) fn note_call(&self) {
        self.latest.set(Some(Instant::now()));
    }

    /// Waits until the connection is to be closed for another one.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }
}

/// Counts a connection while it exists.
pub(super) struct Admitted {
    connections: Rc<Connections>,
    number: u64,
    pub(super) activity: Rc<Activity>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.connections.remove(self.number);
    }
}

impl Connections {
    /// No connections, with limits for a process that may have this many descriptors.
    pub(super) fn new(descriptors: u64) -> Rc<Self> {
        let quarter = usize::try_from(descriptors / 4).unwrap_or(MOST);
        Rc::new(Self {
            open: RefCell::default(),
            counts: RefCell::default(),
            next: Cell::new(0),
            most: quarter.clamp(1, MOST),
        })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Admits a connection, and closes another one if necessary. `None` if it must be closed. `is_short`: the process
    /// cannot have more connections than now, except for a few of root.
    pub(super) fn admit(self: &Rc<Self>, user: u32, kind: Kind, is_short: bool) -> Option<Admitted> {
        let (of_kind, own) = (self.count(kind, None), self.count(kind, Some(user)));
        match kind {
            Kind::Trusted if of_kind >= MOST_TRUSTED => return None,
            Kind::Trusted => {}
            Kind::Unnamed if own >= MOST_OF_UNNAMED || is_short => return None,
            Kind::Unnamed if of_kind >= MOST_UNNAMED => self.close_least(|other| other.kind == kind),
            Kind::Unnamed => {}
            Kind::Named if own >= MOST_OF_USER => return None,
            Kind::Named if of_kind >= self.most || is_short => {
                let (most, count) = self.most_connected()?;
                // The user with the most would have fewer than this one.
                if count <= own + 1 {
                    return None;
                }
                self.close_least(|other| other.kind == kind && other.user == most);
            }
            Kind::Named => {}
        }
        let number = self.next.get();
        self.next.set(number + 1);
        let activity = Rc::new(Activity { latest: Cell::new(None), closed: Notify::new() });
        self.open.borrow_mut().insert(number, Open { user, kind, state: activity.clone() });
        for counted in [None, Some(user)] {
            *self.counts.borrow_mut().entry((kind, counted)).or_default() += 1;
        }
        Some(Admitted { connections: self.clone(), number, activity })
    }

    /// Whether a user has as many connections as a rule could allow.
    pub(super) fn has_most(&self, user: u32) -> bool {
        self.count(Kind::Named, Some(user)) >= MOST_OF_USER
    }

    /// Closes a connection of the user with the most, to free a descriptor.
    pub(super) fn close_one(&self) {
        if let Some((most, _)) = self.most_connected() {
            self.close_least(|other| other.kind == Kind::Named && other.user == most);
        }
    }

    fn count(&self, kind: Kind, user: Option<u32>) -> usize {
        self.counts.borrow().get(&(kind, user)).copied().unwrap_or_default()
    }

    /// The user whom a rule names that has the most connections, and how many.
    fn most_connected(&self) -> Option<(u32, usize)> {
        let counts = self.counts.borrow();
        let named =
            counts.iter().filter_map(|(&(kind, user), &count)| Some((user?, count)).filter(|_| kind == Kind::Named));
        named.max_by_key(|&(user, count)| (count, user))
    }

    /// Closes one of the connections for which `fits` is true: one without a complete call, else the least active one.
    fn close_least(&self, fits: impl Fn(&Open) -> bool) {
        let least = {
            let open = self.open.borrow();
            let found = open.iter().filter(|(_, other)| fits(other));
            found.min_by_key(|&(number, other)| (other.state.latest.get(), *number)).map(|(number, _)| *number)
        };
        if let Some(closed) = least.and_then(|number| self.remove(number)) {
            closed.state.closed.notify_one();
        }
    }

    fn remove(&self, number: u64) -> Option<Open> {
        let closed = self.open.borrow_mut().remove(&number)?;
        let mut counts = self.counts.borrow_mut();
        for counted in [None, Some(closed.user)] {
            let key = (closed.kind, counted);
            match counts.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(&key)),
            }
        }
        Some(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(most: u64) -> Rc<Connections> {
        Connections::new(most * 4)
    }

    fn count(connections: &Connections, user: u32) -> usize {
        connections.open.borrow().values().filter(|open| open.user == user).count()
    }

    fn is_closed(admitted: &Admitted) -> bool {
        !admitted.connections.open.borrow().contains_key(&admitted.number)
    }

    #[test]
    fn root_has_connections_of_its_own() {
        let connections = connections(4096);
        let admit = |user| connections.admit(user, Kind::Named, false);
        // All connections that the service may have, from users with the maximum number each.
        let taken: Vec<_> = (0..4096).map(|number| admit(1000 + number / 512).expect("room")).collect();
        assert!(admit(1000).is_none());
        let root: Vec<_> = std::iter::from_fn(|| connections.admit(0, Kind::Trusted, false)).collect();
        assert_eq!(root.len(), MOST_TRUSTED);
        assert!(!taken.iter().any(is_closed));
    }

    #[test]
    fn every_user_gets_a_fair_share() {
        let connections = connections(1000);
        let mut taken = Vec::new();
        for user in [1, 2] {
            taken.extend(std::iter::from_fn(|| connections.admit(user, Kind::Named, false)));
        }
        assert_eq!([1, 2].map(|user| count(&connections, user)), [500, 500]);
        taken.extend(std::iter::from_fn(|| connections.admit(3, Kind::Named, false)));
        let counts = [1, 2, 3].map(|user| count(&connections, user));
        assert!(counts.iter().all(|count| (333..=334).contains(count)), "{counts:?}");
        assert!(connections.admit(1, Kind::Named, false).is_none());
        drop(taken);
        assert!(connections.is_empty());
    }

    #[test]
    fn silent_connections_are_closed_first_then_the_least_active() {
        let connections = connections(3);
        let own: Vec<_> = (0..3).map(|_| connections.admit(1, Kind::Named, false).expect("room")).collect();
        own[0].activity.note_call();
        own[2].activity.note_call();
        let second = connections.admit(2, Kind::Named, false).expect("the silent one's place");
        assert_eq!([&own[0], &own[1], &own[2]].map(is_closed), [false, true, false]);
        second.activity.note_call();
        let _third = connections.admit(3, Kind::Named, false).expect("the least active one's place");
        assert_eq!([&own[0], &own[2], &second].map(is_closed), [true, false, false]);
        assert!(connections.admit(4, Kind::Named, false).is_none(), "each has one");
    }

    #[test]
    fn shortage_of_descriptors_leaves_a_share_to_all() {
        let connections = connections(1000);
        let own: Vec<_> = (0..10).map(|_| connections.admit(1, Kind::Named, false).expect("room")).collect();
        let mut others: Vec<_> = std::iter::from_fn(|| connections.admit(2, Kind::Named, true)).collect();
        assert_eq!([1, 2].map(|user| count(&connections, user)), [5, 5]);
        assert!(is_closed(&own[0]) && connections.admit(3, Kind::Unnamed, true).is_none());
        others.extend(connections.admit(0, Kind::Trusted, true));
        assert_eq!([0, 1, 2].map(|user| count(&connections, user)), [1, 5, 5]);
    }

    #[test]
    fn users_without_a_rule_use_no_connections_of_others() {
        let connections = connections(100);
        let mut taken = Vec::new();
        for user in 0..20 {
            taken.extend(std::iter::from_fn(|| connections.admit(user, Kind::Unnamed, false)));
        }
        assert_eq!(connections.open.borrow().len(), MOST_UNNAMED);
        assert!(is_closed(&taken[0]), "the oldest is closed for a new one");
        let named: Vec<_> = (0..100).map(|_| connections.admit(1000, Kind::Named, false).expect("room")).collect();
        assert!(!named.iter().any(is_closed));
    }
}
