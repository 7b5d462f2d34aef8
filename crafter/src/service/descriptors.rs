//! Shares of the service's descriptors: neither one user nor many users together can take those that others need.
//!
//! Each leased port and each lease costs the service descriptors, of which RLIMIT_NOFILE allows a number. As long as
//! more than a sixteenth of them is free, every user may have more. Of that sixteenth, a user has at most a 256th of
//! all, as long as a 32nd is free; then only the service's own user and root have more, and the last 64th is for
//! connections and interfaces.

use std::{cell::RefCell, collections::HashMap, fmt, rc::Rc};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::Uid,
};

/// The descriptors that leases hold, by user.
pub(super) struct Descriptors {
    limit: u32,
    held: Rc<RefCell<Held>>,
}

#[derive(Default)]
struct Held {
    users: HashMap<u32, u32>,
    all: u32,
}

/// Descriptors of a lease, counted while this exists.
pub(super) struct DescriptorCharge {
    held: Rc<RefCell<Held>>,
    user: u32,
    count: u32,
}

/// The error if a user's share has fewer descriptors left than are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoDescriptors {
    needed: u32,
    own: u32,
}

impl fmt::Display for NoDescriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, own } = self;
        write!(
            f,
            "the lease needs {needed} file descriptors of the service, and your share, of which your leases use {own}, has \
             fewer left; release leases, ask for fewer ports, or have the administrator raise LimitNOFILE"
        )
    }
}

impl Default for Descriptors {
    fn default() -> Self {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        Self::new(limit.try_into().unwrap_or(u32::MAX))
    }
}

impl Descriptors {
    /// Shares of `limit` descriptors.
    fn new(limit: u32) -> Self {
        Self { limit, held: Rc::default() }
    }

    /// Counts descriptors of a user while the result exists.
    ///
    /// # Errors
    /// If the user's share has fewer left.
    pub(super) fn charge(&self, user: u32, count: u32) -> Result<DescriptorCharge, NoDescriptors> {
        let mut held = self.held.borrow_mut();
        let own = held.users.get(&user).copied().unwrap_or(0);
        let free = self.limit.saturating_sub(held.all).checked_sub(count);
        let is_trusted = [0, Uid::effective().as_raw()].contains(&user);
        let may = free.is_some_and(|free| {
            free >= self.limit / 16
                || (free >= self.limit / 32 && own + count <= self.limit / 256)
                || (free >= self.limit / 64 && is_trusted)
        });
        if !may {
            return Err(NoDescriptors { needed: count, own });
        }
        held.all += count;
        *held.users.entry(user).or_default() += count;
        Ok(DescriptorCharge { held: self.held.clone(), user, count })
    }
}

impl Drop for DescriptorCharge {
    fn drop(&mut self) {
        let mut held = self.held.borrow_mut();
        held.all -= self.count;
        if let Some(own) = held.users.get_mut(&self.user) {
            *own -= self.count;
            if *own == 0 {
                held.users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Charges leases of `count` descriptors each to `user` until the share is used up.
    fn fill(shares: &Descriptors, user: u32, count: u32) -> Vec<DescriptorCharge> {
        std::iter::from_fn(|| shares.charge(user, count).ok()).collect()
    }

    #[test]
    fn a_thousand_leases_of_sixty_ports_fit_under_the_units_limit() {
        let shares = Descriptors::new(524_288);
        let leases: Vec<_> = (0..1000).map_while(|_| shares.charge(1000, 62).ok()).collect();
        assert_eq!(leases.len(), 1000);
        assert!(shares.charge(1001, 1024).is_ok(), "and others have room");
    }

    #[test]
    fn user_at_the_limit_leaves_a_minimum_for_every_other_user() {
        let shares = Descriptors::new(524_288);
        let greedy = fill(&shares, 1000, 62);
        assert!(shares.charge(1000, 62).is_err());
        for user in 1001..1009 {
            assert!(!fill(&shares, user, 62).is_empty(), "user {user}");
        }
        drop(greedy);
        assert_eq!(shares.held.borrow().all, 0);
        assert!(shares.held.borrow().users.is_empty());
    }

    #[test]
    fn a_crowd_of_users_leaves_room_for_root_and_connections() {
        let shares = Descriptors::new(20_000);
        let crowd: Vec<_> = (100_000..165_536).map(|user| fill(&shares, user, 3)).collect();
        assert!(shares.charge(1000, 3).is_err());
        let root = fill(&shares, 0, 3);
        assert!(root.len() > 50, "{}", root.len());
        let free = 20_000 - shares.held.borrow().all;
        assert!(free >= 20_000 / 64, "{free} are left for connections");
        drop((crowd, root));
        assert_eq!(shares.held.borrow().all, 0);
    }
}
