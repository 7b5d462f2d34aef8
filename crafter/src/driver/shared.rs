//! What a [`Crafter`](super::Crafter), its leases, its streams and the driver task share.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use tokio::{sync::Notify, task::AbortHandle};

use super::{core::Core, routes::Routes};
use crate::{
    datapath::{interface::Interface, program::Report},
    protocol::Control,
};

/// The state, and what does not change with it.
pub(crate) struct Shared {
    pub(super) core: Mutex<Core>,
    /// As it was when it was opened.
    pub(super) interface: Interface,
    /// Its name now.
    pub(super) name: Mutex<Arc<str>>,
    pub(super) report: Report,
    pub(super) routes: Routes,
    /// Wakes the driver when a deadline came nearer.
    pub(super) rearm: Arc<Notify>,
    /// Yield while busy-polling: clients of the service may share this CPU.
    pub(super) yields: bool,
    /// The driver task, which ends with this.
    pub(super) driver: OnceLock<AbortHandle>,
}

impl Shared {
    /// The state. A panic elsewhere while it was held leaves counters at worst one behind.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked(Some(self.core.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The interface's name, which may have changed.
    pub(super) fn name(&self) -> Arc<str> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The network has changed: these are the host's addresses, and this the interface, if it is there.
    pub(super) fn handle_change(&self, addresses: &[IpAddr], interface: Option<&Interface>) {
        if let Some(interface) = interface {
            *self.name.lock().unwrap_or_else(PoisonError::into_inner) = interface.name.as_str().into();
        }
        self.routes.forget();
        self.lock().handle_addresses(Instant::now(), addresses, interface.map(|interface| interface.mtu));
    }

    /// The service, where it is used.
    pub(super) fn control(&self) -> Option<Arc<Control>> {
        self.lock().service().map(|service| service.control().clone())
    }

    /// Whether a lease was closed so lately that the service may not know it yet.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().service().is_some_and(|service| service.is_closing())
    }

    /// Whether the driver task runs, which handles deadlines and what no other task waits for.
    pub(super) fn is_driven(&self) -> bool {
        self.driver.get().is_some_and(|driver| !driver.is_finished())
    }

    /// Tells the driver if `core` now has a deadline before the one it sleeps for.
    pub(super) fn rearm_if_nearer(&self, core: &Core) {
        if core.nearer_than_armed() {
            self.rearm.notify_one();
        }
    }
}

/// The state, locked. What finished streams kept alive is dropped behind the lock, which it may want
/// itself: the last holder of a lease gives its ports back.
pub(super) struct Locked<'a>(Option<MutexGuard<'a, Core>>);

impl std::ops::Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.0.as_deref().expect("locked until dropped")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.0.as_deref_mut().expect("locked until dropped")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let released = self.take_released();
        self.0 = None;
        drop(released);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.get() {
            driver.abort();
        }
    }
}
