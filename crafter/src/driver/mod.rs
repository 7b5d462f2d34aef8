//! The tokio side: one [`Crafter`] per interface owns the hooks, leases ports, and carries packets between the network
//! and the leases.
//!
//! Transmit: `stream` runs its engine under the lock (`shared`); `core` asks `table` for `commands` and passes the
//! segments to the `backend`: `kernel` or `service`. Receive: `core` drains the backend into the table, which queues a
//! packet for its lease or passes it to its stream, and notifies the waiting task.
//!
//! Two tasks drain replies. A task that sent a packet and waits for the reply drains first: on most paths the reply has
//! arrived when the system call returns, so no context switch is needed. The driver task (`task`) handles all other
//! replies, and every deadline.

mod backend;
mod buffer;
mod commands;
mod core;
mod crafter;
mod entry;
#[cfg(test)]
mod fake;
mod kernel;
mod lease;
pub(crate) mod routes;
mod sending;
mod service;
mod shared;
mod stream;
mod table;
mod task;
#[cfg(test)]
mod tests;

use std::time::Duration;

#[cfg(feature = "service")]
pub(crate) use self::backend::{NoRoom, Transmitted};
pub(crate) use self::{backend::TxPacket, entry::LeaseId};
pub use self::{
    crafter::Crafter,
    entry::{Received, Stats},
    lease::{Lease, LeaseRequest, PortChoice},
    stream::{Stream, StreamOptions},
};
use crate::datapath::program::{Attach, LoadOptions};

/// How long a packet waits for room without any progress before it counts as not sent. A link at full rate empties its
/// queue much faster.
pub(crate) const ROOM_TIMEOUT: Duration = Duration::from_secs(1);

/// Retry delay for a full transmit queue; nothing signals room.
pub(crate) const ROOM_RETRY_DELAY: Duration = Duration::from_millis(1);

/// How to open an interface.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which ingress hook to use.
    pub attach: Attach,
    /// Sizes and constants of the kernel half.
    pub load: LoadOptions,
}
