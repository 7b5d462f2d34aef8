//! Commands of the table, which [`Core`](super::core::Core) executes.

use std::{ops::Range, sync::Arc, task::Waker};

use super::entry::{LeaseId, StreamId};
use crate::datapath::{route::Route, tx::TxPacket};

/// Commands gathered by [`Table::poll_commands`](super::table::Table::poll_commands).
#[derive(Default)]
pub(crate) struct Commands {
    /// Segments to send.
    pub(super) outbox: Outbox,
    /// Tasks to wake: their stream has news.
    pub(super) wake: Vec<Waker>,
    /// Leases whose tasks to notify, each with its number of new packets.
    pub(super) arrived: Vec<(LeaseId, usize)>,
    /// All leases ended: notify their tasks too.
    pub(super) end: bool,
    /// Streams that were removed: drop what they kept alive.
    pub(super) release: Vec<StreamId>,
}

/// Packets in one reusable buffer.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    packets: Vec<(Arc<Route>, Range<usize>)>,
}

impl Outbox {
    /// Appends a copy of a packet.
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

    /// Empties the outbox and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
    }
}
