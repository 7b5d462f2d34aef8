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

use crate::{
    datapath::route::Route,
    engine::StreamEngine,
    packet::{Checksum, Transport},
};

/// A lease's number within its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LeaseId(pub(crate) u32);

/// A stream's number within its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(pub(crate) u32);

/// Ports of one transport on one address, or on all addresses where it is unspecified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) transport: Transport,
    pub(crate) address: IpAddr,
    pub(crate) ports: Vec<u16>,
}

/// What a backend hands to the table.
#[derive(Clone, Copy)]
pub(crate) enum Delivery<'p> {
    /// A packet that came in, from the IP header on.
    Packet(&'p [u8], Meta),
    /// An answer of the kernel, from the IP header on, that was dropped on its way out.
    Suppressed(&'p [u8], Meta),
    /// A frame in which no packet could be found.
    Malformed,
    /// The packet that `quoted` begins was not let out, and nothing like it will be.
    Refused {
        quoted: &'p [u8],
        /// The rule of the policy, counted from 1.
        rule: Option<u32>,
        sentence: &'p str,
    },
    /// The service is gone, and with it all leases.
    Ended {
        /// Its socket.
        path: &'p str,
        reason: &'p str,
    },
}

impl<'p> Delivery<'p> {
    /// What a verdict's reason makes of a packet.
    pub(crate) fn of(ip: &'p [u8], meta: Meta) -> Self {
        if meta.reason.is_ingress() { Self::Packet(ip, meta) } else { Self::Suppressed(ip, meta) }
    }
}

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
    pub(crate) ports: Ports,
    pub(crate) queue: VecDeque<Received>,
    /// Bytes in the queue.
    pub(super) queued: usize,
    /// Answers of the kernel that were dropped.
    pub(crate) suppressed: VecDeque<Received>,
    /// What comes is gathered together with that of other leases.
    pub(super) gathered: bool,
    /// It is in the table's list of gathered leases that something came to.
    pub(super) listed: bool,
    /// Packets that came since its waiting tasks were notified last.
    pub(super) arrived: usize,
}

/// Answers of the kernel that wait for one lease at most.
pub(super) const SUPPRESSED: usize = 4096;

impl LeaseState {
    pub(crate) fn new(ports: Ports, gathered: bool) -> Self {
        Self {
            ports,
            queue: VecDeque::new(),
            queued: 0,
            suppressed: VecDeque::new(),
            gathered,
            listed: false,
            arrived: 0,
        }
    }

    /// Notes that something has come to it: in the list of gathered leases, and in that of leases to notify.
    pub(super) fn note_arrival(&mut self, id: LeaseId, gathered: &mut Vec<LeaseId>, arrived: &mut Vec<LeaseId>) {
        if self.gathered && !std::mem::replace(&mut self.listed, true) {
            gathered.push(id);
        }
        if self.arrived == 0 {
            arrived.push(id);
        }
        self.arrived += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<Received> {
        let received = self.queue.pop_front()?;
        self.queued -= received.ip.len();
        Some(received)
    }
}

/// Who waits for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// For bytes, or for the connection to open or to end.
    Reader,
    /// For room.
    Writer,
}

/// A stream as the table knows it.
pub(crate) struct StreamState {
    pub(crate) engine: StreamEngine,
    pub(crate) route: Arc<Route>,
    pub(super) flow: (SocketAddr, SocketAddr),
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Whether something happened that a waiting task may have waited for. Being polled alone is not:
    /// a task that waits for both directions would wake itself for ever.
    pub(crate) stirred: bool,
    /// It is in the table's list of streams to ask what they have to send.
    pub(super) touched: bool,
    pub(super) due: Option<Instant>,
    /// Nobody holds the stream any more: it ends by itself.
    pub(super) is_orphan: bool,
    /// When an orphan that does not end is given up.
    pub(super) given_up_at: Option<Instant>,
}

impl StreamState {
    pub(super) fn new(engine: StreamEngine, route: Arc<Route>, flow: (SocketAddr, SocketAddr)) -> Self {
        Self {
            engine,
            route,
            flow,
            reader: None,
            writer: None,
            stirred: false,
            touched: false,
            due: None,
            is_orphan: false,
            given_up_at: None,
        }
    }

    /// Who waits, if somebody does.
    pub(crate) fn waiter(&mut self, waiter: Waiter) -> &mut Option<Waker> {
        match waiter {
            Waiter::Reader => &mut self.reader,
            Waiter::Writer => &mut self.writer,
        }
    }

    pub(super) fn take_wakers(&mut self) -> impl Iterator<Item = Waker> {
        [self.reader.take(), self.writer.take()].into_iter().flatten()
    }
}
