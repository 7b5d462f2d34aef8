//! What each user has at the moment.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use crate::policy::Usage;

/// Usage by user id. Nobody is forgotten while the service runs: a rate that began anew with each connection would
/// be none.
#[derive(Default)]
pub(super) struct Users(RefCell<HashMap<u32, Rc<RefCell<Usage>>>>);

impl Users {
    /// That of a user.
    pub(super) fn of(&self, user: u32) -> Rc<RefCell<Usage>> {
        self.0.borrow_mut().entry(user).or_default().clone()
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
