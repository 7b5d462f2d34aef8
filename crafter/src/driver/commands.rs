//! What the table wants done outside of it. [`Core`](super::core::Core) does it, in one place.

use std::{ops::Range, sync::Arc, task::Waker};

use super::entry::{LeaseId, StreamId};
use crate::datapath::{route::Route, tx::TxPacket};

/// What is to be done, gathered by [`Table::poll_commands`](super::table::Table::poll_commands).
#[derive(Default)]
pub(crate) struct Commands {
    /// Segments to send.
    pub(super) outbox: Outbox,
    /// Tasks to wake: a stream has something for them.
    pub(super) wake: Vec<Waker>,
    /// Leases whose tasks are to be notified, each with the number of packets that came.
    pub(super) arrived: Vec<(LeaseId, usize)>,
    /// All leases end: their tasks are to be notified, too.
    pub(super) end: bool,
    /// Streams that are gone: what they kept alive is to be dropped.
    pub(super) release: Vec<StreamId>,
}

/// Packets one behind the other, in memory that is used again.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    packets: Vec<(Arc<Route>, Range<usize>)>,
}

impl Outbox {
    /// Copies a packet to its end.
    pub(super) fn push(&mut self, route: &Arc<Route>, ip: &[u8]) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(ip);
        self.packets.push((route.clone(), begin..self.bytes.len()));
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = TxPacket<'_>> {
        self.packets.iter().map(|(route, range)| TxPacket::Ip(route, &self.bytes[range.clone()]))
    }

    /// Empties it, and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
    }
}
