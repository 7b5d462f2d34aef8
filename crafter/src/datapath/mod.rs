//! The only place that touches the kernel.

pub mod address;
mod clsact;
pub(crate) mod failure;
pub mod features;
pub mod frames;
pub mod guard;
mod holder;
pub mod interface;
pub mod maps;
mod neighbour;
mod netlink;
pub mod program;
pub mod reserve;
pub mod ring;
pub mod route;
pub mod running;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod tx;
pub mod xsk;

use std::os::fd::{AsFd, AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

use crate::error::{Error, Result};

/// Has tokio tell when `inner` is readable; `what` it is says the message if it cannot.
pub(crate) fn watch<T: AsFd + AsRawFd>(inner: T, what: &str) -> Result<AsyncFd<T>> {
    // SAFETY: as AsFd says, the descriptor is open as long as `inner`, which the AsyncFd owns.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }
        .map_err(|e| Error::Io { action: format!("watch {what}"), source: e.into() })
}
