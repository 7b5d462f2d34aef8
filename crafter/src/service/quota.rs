//! The resources of each user.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::Path,
    rc::Rc,
};

use nix::unistd::User;

use super::{call::KeptBytes, policy_file, shares::Pools};
use crate::policy::Usage;

/// The maximum number of connections of a user that receive events: each event wakes all of them.
const MOST_MONITORS: usize = 16;

/// Ids that users may take in user namespaces (subuid(5)).
const SUBORDINATES: &str = "/etc/subuid";

/// The owners of subordinate ids: first id, number, owner.
pub(super) type Owners = Vec<(u32, u32, u32)>;

/// Reads the owners of subordinate ids. There are none without the file.
pub(super) fn read_owners() -> Owners {
    policy_file::read(Path::new(SUBORDINATES)).map(|text| parse_owners(&text, user_id)).unwrap_or_default()
}

fn user_id(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

/// Lines of `NAME:FIRST:NUMBER` or `UID:FIRST:NUMBER`; others are ignored.
fn parse_owners(text: &str, id: impl Fn(&str) -> Option<u32>) -> Owners {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let (name, first, number) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        Some((first, number, name.parse().ok().or_else(|| id(name))?))
    };
    text.lines().filter_map(parse).collect()
}

/// Usage by user. Entries are never removed: otherwise a reconnecting user would get a new burst.
#[derive(Default)]
pub(super) struct Users {
    usage: RefCell<HashMap<u32, Rc<RefCell<Usage>>>>,
    kept: RefCell<HashMap<u32, KeptBytes>>,
    /// The strong count is the number of monitors + 1.
    monitors: RefCell<HashMap<u32, Rc<()>>>,
    owners: RefCell<Owners>,
    pub(super) pools: Pools,
}

impl Users {
    /// Replaces the owners of subordinate ids.
    pub(super) fn set_owners(&self, owners: Owners) {
        self.owners.replace(owners);
    }

    /// The user to whom resources of `user` are charged: the owner of a subordinate id, who can become any of these
    /// (usually 65,536) users in a user namespace; otherwise `user`.
    pub(super) fn account(&self, user: u32) -> u32 {
        let owners = self.owners.borrow();
        let owns = |(first, number, _): &&(u32, u32, u32)| user.checked_sub(*first).is_some_and(|at| at < *number);
        match owners.iter().find(owns) {
            None => user,
            Some(_) if user == 0 => user,
            // Ids that belong to root, such as those of containers that root started, are charged to the first id of
            // their range, not to root.
            Some((first, _, 0)) => *first,
            Some((.., owner)) => *owner,
        }
    }

    /// The usage of a user.
    pub(super) fn of(&self, user: u32) -> Rc<RefCell<Usage>> {
        self.usage.borrow_mut().entry(self.account(user)).or_default().clone()
    }

    /// The bytes of the control connections of an account.
    pub(super) fn kept_bytes(&self, account: u32) -> KeptBytes {
        self.kept.borrow_mut().entry(account).or_insert_with(|| Rc::new(Cell::new(0))).clone()
    }

    /// Counts a monitor of an account while the returned token exists. `None` if there are [`MOST_MONITORS`] already.
    pub(super) fn monitor(&self, account: u32) -> Option<Rc<()>> {
        let mut monitors = self.monitors.borrow_mut();
        let token = monitors.entry(account).or_default();
        (Rc::strong_count(token) <= MOST_MONITORS).then(|| token.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_charged_to_their_owner() {
        let text = "alice:100000:65536\n1001:165536:65536\n\nroot:300000:9\nnobody-of-it:400000:5\nmalformed\nbob:x:1\nbob:1:-1\n";
        let id =
            |name: &str| [("alice", 1000), ("root", 0)].iter().find(|(known, _)| *known == name).map(|(_, id)| *id);
        let owners = parse_owners(text, id);
        assert_eq!(owners, [(100_000, 65_536, 1000), (165_536, 65_536, 1001), (300_000, 9, 0)]);
        let users = Users::default();
        assert_eq!(users.account(100_000), 100_000);
        users.set_owners(owners);
        let accounts = [0, 1000, 99_999, 100_000, 165_535, 165_536, 231_071, 231_072].map(|user| users.account(user));
        assert_eq!(accounts, [0, 1000, 99_999, 1000, 1000, 1001, 1001, 231_072]);
        assert_eq!([300_000, 300_008].map(|user| users.account(user)), [300_000; 2]);
        users.of(100_007).borrow_mut().leases = 3;
        assert_eq!(users.of(1000).borrow().leases, 3);
    }

    #[test]
    fn monitors_of_a_user_are_bounded() {
        let users = Users::default();
        let mut held: Vec<_> = std::iter::from_fn(|| users.monitor(1)).collect();
        assert_eq!(held.len(), MOST_MONITORS);
        assert!(users.monitor(2).is_some());
        held.pop();
        assert!(users.monitor(1).is_some());
    }
}
