//! The kernel side of crafter: programs, maps, sockets, routes, neighbours and reservations of ports.

pub mod accepted;
pub mod address;
mod batch;
mod clsact;
pub(crate) mod failure;
pub mod features;
pub mod frames;
pub mod guard;
mod holder;
pub mod interface;
pub mod maps;
pub mod nat;
pub(crate) mod neighbour;
mod netlink;
pub mod peers;
mod per_cpu;
pub mod program;
mod programs;
pub mod reserve;
pub mod ring;
pub mod route;
pub mod running;
mod shares;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod tx;
pub mod xsk;

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::error::{Error, Result};

/// Locks a mutex even if another thread panicked while it held the lock: its data stays valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers `inner` with tokio's event loop, for reading. `what` names it in the error.
pub(crate) fn watch<T: AsFd + AsRawFd>(inner: T, what: &str) -> Result<AsyncFd<T>> {
    watch_for(inner, Interest::READABLE, what)
}

/// Like [`watch`], for reading, writing or both.
pub(crate) fn watch_for<T: AsFd + AsRawFd>(inner: T, interest: Interest, what: &str) -> Result<AsyncFd<T>> {
    // SAFETY: as AsFd says, the descriptor is open as long as `inner`, which the AsyncFd owns.
    unsafe { AsyncFd::register_with_interest(inner, interest) }
        .map_err(|e| Error::Io { action: format!("watch {what}"), source: e.into() })
}
