//! The tokio side: one [`Crafter`] per interface owns the hooks, leases ports, and carries packets
//! between the network and the leases.
//!
//! A segment goes out: `stream` lets its engine work under the lock (`shared`); `core` asks `table` for
//! `commands` and hands its segments to the `backend`: `kernel` or `service`. A reply comes in: the backend is
//! drained into the table, which queues the packet for its lease or gives it to its stream, and the core notifies
//! the task that waits.
//!
//! Replies are looked for in two places. The task that sent a packet and waits for its answer drains
//! first: on most paths the answer is there when the system call of sending returns, and no
//! scheduler comes between. What no task waits for, and every deadline, is the driver's (`task`).

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
pub(crate) use self::{backend::Outgoing, entry::LeaseId};
pub use self::{
    crafter::Crafter,
    entry::{Received, Stats},
    lease::{Lease, LeaseRequest, PortChoice},
    stream::{Stream, StreamOptions},
};
use crate::datapath::program::{Attach, LoadOptions};

/// How long a packet may wait for room without any progress before it counts as not sent. Far more than a link at full
/// rate needs for its queue, and little enough for the sender.
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
