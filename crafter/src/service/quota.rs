//! The resources of each user.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use super::descriptors::DescriptorCharge;
use crate::policy::Usage;

/// Usage by user id. Entries are never removed: otherwise a reconnecting user would get a new burst.
#[derive(Default)]
pub(super) struct Users {
    usage: RefCell<HashMap<u32, Rc<RefCell<Usage>>>>,
    /// The strong count is the number of open connections + 1.
    connected: RefCell<HashMap<u32, Rc<()>>>,
}

impl Users {
    /// The usage of a user.
    pub(super) fn of(&self, user: u32) -> Rc<RefCell<Usage>> {
        self.usage.borrow_mut().entry(user).or_default().clone()
    }

    /// Counts a control connection of a user while the returned token exists. `None` if the user has `most` already.
    pub(super) fn connect(&self, user: u32, most: usize) -> Option<Rc<()>> {
        let mut connected = self.connected.borrow_mut();
        let token = connected.entry(user).or_default();
        (Rc::strong_count(token) <= most).then(|| token.clone())
    }
}

/// Counts a lease and its ports while it exists.
pub(super) struct Charge {
    usage: Rc<RefCell<Usage>>,
    ports: u32,
    _descriptors: Option<DescriptorCharge>,
}

impl Charge {
    /// Counts a lease with `ports` ports.
    pub(super) fn new(usage: Rc<RefCell<Usage>>, ports: u32) -> Self {
        {
            let mut usage = usage.borrow_mut();
            usage.leases += 1;
            usage.ports += ports;
        }
        Self { usage, ports, _descriptors: None }
    }

    /// Counts these descriptors too.
    pub(super) fn with(mut self, descriptors: DescriptorCharge) -> Self {
        self._descriptors = Some(descriptors);
        self
    }

    /// The usage that includes it.
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
