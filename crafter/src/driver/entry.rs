//! What the table holds: leases and streams, and what comes to them.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Waker,
    time::Instant,
};

use crafter_common::reason::Reason;
use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    datapath::{reserve::Reservation, route::Route},
    engine::StreamEngine,
    packet::{Checksum, Transport},
};

/// What is known of a packet besides its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Meta {
    /// CLOCK_MONOTONIC nanoseconds, where the kernel half stamped it.
    pub(crate) timestamp: Option<u64>,
    /// Longer than a ring-buffer record: the rest is missing.
    pub(crate) cut: bool,
    /// How it came here.
    pub(crate) reason: Reason,
    /// What its checksums are worth, if somebody has verified them.
    pub(crate) checksum: Option<Checksum>,
}

impl Meta {
    /// All that is known of an AF_XDP frame.
    pub(crate) const REDIRECTED: Self =
        Self { timestamp: None, cut: false, reason: Reason::Redirected, checksum: None };
}

/// A packet for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The packet from the IP header on; fragments are put together.
    pub ip: Vec<u8>,
    /// What its checksums are worth. A packet with a wrong one is delivered all the same.
    pub checksum: Checksum,
    /// CLOCK_MONOTONIC nanoseconds when the kernel half saw it; AF_XDP frames carry none.
    pub timestamp_ns: Option<u64>,
    /// Whether the end is missing: the packet was longer than 64 KiB.
    pub cut: bool,
    /// How it came here: redirected, copied or observed; suppressed, for an answer of the kernel that was dropped.
    /// A datagram put together has that of its last fragment.
    pub reason: Reason,
}

/// What became of packets in user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Packets handed to a lease or a stream.
    pub delivered: u64,
    /// Packets for a port that was given back meanwhile, or that make no sense.
    pub stray: u64,
    /// Segments for a stream with a wrong checksum: ignored.
    pub bad_checksum: u64,
    /// Packets that a lease's queue had no room for.
    pub overflow: u64,
    /// Fragments for owned ports, whether or not their datagram was whole in time.
    pub fragments: u64,
    /// Datagrams put together of them; each counts as delivered, stray, ... besides.
    pub reassembled: u64,
    /// Frames that AF_XDP sockets could not take (`XDP_STATISTICS`).
    pub lost: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that the kernel would not take.
    pub not_sent: u64,
    /// How often a queue had no room for a packet that had passed the egress hook; most are sent later.
    pub turned_away: u64,
}

/// A lease as the table knows it.
pub(crate) struct LeaseState {
    pub(crate) transport: Transport,
    pub(crate) address: IpAddr,
    pub(crate) ports: Vec<u16>,
    pub(crate) queue: VecDeque<Received>,
    pub(super) queued: usize,
    /// Answers of the kernel that were dropped.
    pub(crate) suppressed: VecDeque<Received>,
    pub(crate) arrived: Arc<Notify>,
    /// What comes is gathered together with that of other leases.
    pub(super) gathered: bool,
    /// It is in the table's list of those that something came to.
    pub(super) listed: bool,
    /// What keeps other programs from the ports; nothing, where the service does.
    pub(super) reservations: Vec<Reservation>,
}

/// Answers of the kernel that wait for one lease at most.
pub(super) const SUPPRESSED: usize = 4096;

impl LeaseState {
    pub(crate) fn new(
        transport: Transport,
        address: IpAddr,
        ports: Vec<u16>,
        reservations: Vec<Reservation>,
        arrived: Arc<Notify>,
        gathered: bool,
    ) -> Self {
        Self {
            transport,
            address,
            ports,
            queue: VecDeque::new(),
            queued: 0,
            suppressed: VecDeque::new(),
            arrived,
            gathered,
            listed: false,
            reservations,
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Received> {
        let received = self.queue.pop_front()?;
        self.queued -= received.ip.len();
        Some(received)
    }
}

/// What is to live until something is over.
pub(crate) type Keep = Arc<dyn Send + Sync>;

/// A stream as the table knows it.
pub(crate) struct StreamState {
    pub(crate) engine: StreamEngine,
    pub(crate) route: Arc<Route>,
    pub(super) flow: (SocketAddr, SocketAddr),
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
    /// Whether something happened that who waits may have waited for. Being polled alone is not:
    /// a task that waits for both directions would wake itself for ever.
    pub(crate) stirred: bool,
    pub(super) due: Option<Instant>,
    /// Set once nobody holds the stream any more: it ends by itself, and keeps its lease until then.
    pub(super) orphan: Option<Keep>,
    /// When an orphan that will not end is given up.
    pub(super) patience: Option<Instant>,
}

impl StreamState {
    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}
