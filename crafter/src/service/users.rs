//! What each user has at the moment.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use crate::policy::Usage;

/// Usage by user id. Nobody is forgotten while the service runs: a rate that began anew with each connection would
/// be none.
#[derive(Default)]
pub(super) struct Users {
    usage: RefCell<HashMap<u32, Rc<RefCell<Usage>>>>,
    /// A copy for each control connection, and one.
    connected: RefCell<HashMap<u32, Rc<()>>>,
}

impl Users {
    /// That of a user.
    pub(super) fn of(&self, user: u32) -> Rc<RefCell<Usage>> {
        self.usage.borrow_mut().entry(user).or_default().clone()
    }

    /// One more control connection of a user, which counts as long as what is given exists; `None`: there are `most`.
    pub(super) fn connect(&self, user: u32, most: usize) -> Option<Rc<()>> {
        let mut connected = self.connected.borrow_mut();
        let token = connected.entry(user).or_default();
        (Rc::strong_count(token) <= most).then(|| token.clone())
    }
}

/// One lease and its ports, counted as long as this exists.
pub(super) struct Charge {
    usage: Rc<RefCell<Usage>>,
    ports: u32,
}

impl Charge {
    /// Counts a lease of so many ports.
    pub(super) fn new(usage: Rc<RefCell<Usage>>, ports: u32) -> Self {
        {
            let mut usage = usage.borrow_mut();
            usage.leases += 1;
            usage.ports += ports;
        }
        Self { usage, ports }
    }

    /// That in which it is counted.
    pub(super) fn usage(&self) -> &Rc<RefCell<Usage>> {
        &self.usage
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut usage = self.usage.borrow_mut();
        usage.leases -= 1;
        usage.ports -= self.ports;
    }
}
