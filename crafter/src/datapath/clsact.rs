//! Classifiers on kernels before 6.6, which have no tcx: filters under a clsact qdisc.
//!
//! Such a filter belongs to the device, not to a file descriptor, and so outlives its owner; a [`guard`] removes it.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use aya::programs::{
    TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcError, TcHandle, qdisc_add_clsact},
};
use nix::net::if_::if_nametoindex;

use super::{failure::os_error, guard, interface::Interface, lock};
use crate::error::{Error, Result};

/// Filters of ours under clsact on one device, and their guard.
pub struct Clsact {
    /// Identifies this owner to the guard.
    owner: u64,
    /// The device, in the form that `tc` accepts.
    device: String,
    guard: guard::Shared,
    links: Vec<SchedClassifierLink>,
}

impl Clsact {
    /// Announces the device to the guard, and adds the qdisc if the device has none.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_NET_ADMIN; [`Error::Io`] without the program `tc`.
    pub fn open(interface: &Interface) -> Result<Self> {
        let name = &interface.name;
        // By its index, which does not change when the device is renamed. `tc` accepts `ifINDEX` as a name unless a
        // device has that name.
        let by_index = format!("if{}", interface.ifindex);
        let device = if if_nametoindex(by_index.as_str()).is_ok() { name.clone() } else { by_index };
        static OWNERS: AtomicU64 = AtomicU64::new(0);
        let owner = OWNERS.fetch_add(1, Ordering::Relaxed);
        let guard = guard::guard()?;
        lock(&guard).open(owner, &device)?;
        // The guard records the filter first, so that a process killed between the two steps leaves nothing behind.
        // Dropping `opened` makes it clean up after an error, too.
        let opened = Self { owner, device, guard, links: Vec::new() };
        match qdisc_add_clsact(name) {
            Ok(()) | Err(TcError::AlreadyAttached) => Ok(opened),
            Err(e) => match os_error(&e) {
                Some(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(opened),
                Some(e) => Err(Error::io(format!("add a clsact qdisc to {name}"), "CAP_NET_ADMIN", e)),
                None => Err(Error::Bpf { action: format!("adding a clsact qdisc to {name}"), reason: e.to_string() }),
            },
        }
    }

    /// Priority and handle of the next filter. The guard has them before the filter exists.
    ///
    /// # Errors
    /// [`Error::Io`] if the guard has ended.
    pub fn prepare(&mut self, direction: TcAttachType) -> Result<NlOptions> {
        // A priority for this process, and a handle for each filter: if another owner's filter had the same pair,
        // attaching would fail, and the guard would remove the other owner's filter.
        static FILTERS: AtomicU16 = AtomicU16::new(0);
        let pid = std::process::id();
        let priority = 20_000 + (pid % 20_000) as u16;
        let (major, minor) = (pid as u16, FILTERS.fetch_add(1, Ordering::Relaxed) | 0x8000);
        let side = if direction == TcAttachType::Ingress { "ingress" } else { "egress" };
        let handle = u32::from(major) << 16 | u32::from(minor);
        lock(&self.guard).filter(self.owner, &self.device, side, priority, handle)?;
        Ok(NlOptions { priority, handle: TcHandle::new(major, minor), classid: None })
    }

    /// Keeps `link` until the end.
    pub fn hold(&mut self, link: SchedClassifierLink) {
        self.links.push(link);
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        self.links.clear();
        if let Err(error) = lock(&self.guard).end(self.owner, &self.device) {
            log::warn!("{error}; list what is left with `tc filter show dev {}`", self.device);
        }
    }
}
