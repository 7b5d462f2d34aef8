//! State that a [`Crafter`](super::Crafter), its leases, its streams and the driver task share.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use tokio::{sync::Notify, task::AbortHandle};

use super::{core::Core, routes::Routes};
use crate::{
    datapath::{interface::Interface, program::Report},
    packet::Transport,
    protocol::Control,
};

/// The state behind the lock, and constants.
pub(crate) struct Shared {
    pub(super) core: Mutex<Core>,
    /// The interface as it was when it was opened.
    pub(super) interface: Interface,
    /// The current name.
    pub(super) name: Mutex<Arc<str>>,
    pub(super) report: Report,
    pub(super) routes: Routes,
    /// Wakes the driver task for a nearer deadline.
    pub(super) rearm: Arc<Notify>,
    /// Yield while busy-polling: clients of the service may share this CPU.
    pub(super) yields: bool,
    /// The driver task; dropping this state ends it.
    pub(super) driver: OnceLock<AbortHandle>,
}

impl Shared {
    /// Locks the state. A panic under the lock leaves at worst a counter one behind, so poisoning is ignored.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked(Some(self.core.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The interface's current name.
    pub(super) fn name(&self) -> Arc<str> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Handles a change of the network: the host's new addresses, and the interface, unless it was removed.
    pub(super) fn handle_change(&self, addresses: &[IpAddr], interface: Option<&Interface>) {
        if let Some(interface) = interface {
            *self.name.lock().unwrap_or_else(PoisonError::into_inner) = interface.name.as_str().into();
        }
        self.routes.forget();
        if let Some(interface) = interface {
            self.lock().backend.set_link(interface);
        }
        self.lock().handle_addresses(Instant::now(), addresses, interface.map(|interface| interface.mtu));
    }

    /// Whether a lease of this process has `port` on `address`, or on any address if either is unspecified. The kernel
    /// does not reserve ICMP identifiers for every user.
    pub(super) fn is_leased(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        self.lock().table.is_leased(transport, address, port)
    }

    /// The connection to the service, if one is used.
    pub(super) fn control(&self) -> Option<Arc<Control>> {
        self.lock().service().map(|service| service.control().clone())
    }

    /// Whether a lease was closed so recently that the service may not have noticed yet.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().service().is_some_and(|service| service.is_closing())
    }

    /// Whether the driver task runs, which handles deadlines and all replies that no task waits for.
    pub(super) fn is_driven(&self) -> bool {
        self.driver.get().is_some_and(|driver| !driver.is_finished())
    }

    /// Wakes the driver task if `core` now has a deadline before the one that the task sleeps for.
    pub(super) fn rearm_if_nearer(&self, core: &Core) {
        if core.nearer_than_armed() {
            self.rearm.notify_one();
        }
    }
}

/// The locked state. Leases of finished streams are dropped after unlocking: the last reference to a lease takes the
/// lock to return its ports.
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
