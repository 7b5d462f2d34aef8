//! The entries of the table: leases and streams, and their packets.

use std::{
    collections::{HashMap, VecDeque},
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

/// The leases that own ports.
#[derive(Default)]
pub(crate) struct PortOwners(HashMap<(Transport, u16), Vec<(IpAddr, LeaseId)>>);

impl PortOwners {
    pub(crate) fn add(&mut self, ports: &Ports, id: LeaseId) {
        for &port in &ports.ports {
            self.0.entry((ports.transport, port)).or_default().push((ports.address, id));
        }
    }

    pub(crate) fn remove(&mut self, ports: &Ports, id: LeaseId) {
        for &port in &ports.ports {
            let key = (ports.transport, port);
            if let Some(owners) = self.0.get_mut(&key) {
                owners.retain(|&(_, owner)| owner != id);
                if owners.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// The owner of a port: the lease on `address`, or the one on any address.
    pub(crate) fn find(&self, transport: Transport, address: IpAddr, port: u16) -> Option<LeaseId> {
        let owners = self.0.get(&(transport, port))?;
        let own = owners.iter().find(|(owned, _)| *owned == address);
        own.or_else(|| owners.iter().find(|(owned, _)| owned.is_unspecified())).map(|&(_, id)| id)
    }

    /// Whether a lease owns `port` on `address`, or on any address if either is unspecified.
    pub(crate) fn is_owned(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        let owners = self.0.get(&(transport, port)).map_or(&[][..], Vec::as_slice);
        owners.iter().any(|(owned, _)| *owned == address || owned.is_unspecified() || address.is_unspecified())
    }
}

/// What a backend passes to the table.
#[derive(Clone, Copy)]
pub(crate) enum Delivery<'p> {
    /// A received packet, from the IP header on.
    Packet(&'p [u8], Meta),
    /// An answer of the kernel, from the IP header on, that was dropped at egress.
    Suppressed(&'p [u8], Meta),
    /// A frame without a readable packet.
    Malformed,
    /// The service did not send the packet that begins with `quoted`, and will not send similar ones.
    Refused {
        quoted: &'p [u8],
        /// The rule of the policy, counted from 1.
        rule: Option<u32>,
        sentence: &'p str,
    },
    /// The connection to the service ended, and with it all leases.
    Ended {
        /// Its socket.
        path: &'p str,
        reason: &'p str,
    },
}

impl<'p> Delivery<'p> {
    /// A packet, or a suppressed answer of the kernel, as the verdict's reason says.
    pub(crate) fn of(ip: &'p [u8], meta: Meta) -> Self {
        if meta.reason.is_ingress() { Self::Packet(ip, meta) } else { Self::Suppressed(ip, meta) }
    }
}

/// Metadata of a received packet.
#[derive(Clone, Copy)]
pub(crate) struct Meta {
    /// CLOCK_MONOTONIC nanoseconds, if the kernel half stamped the packet.
    pub(crate) timestamp: Option<u64>,
    /// Longer than a ring-buffer record: the rest is missing.
    pub(crate) cut: bool,
    /// The verdict that delivered it.
    pub(crate) reason: Reason,
    /// The state of its checksums, if they were verified already.
    pub(crate) checksum: Option<Checksum>,
}

impl Meta {
    /// The metadata of an AF_XDP frame.
    pub(crate) const REDIRECTED: Self =
        Self { timestamp: None, cut: false, reason: Reason::Redirected, checksum: None };
}

/// A packet for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The packet from the IP header on; fragments are reassembled.
    pub ip: Vec<u8>,
    /// The state of its checksums. A packet with an invalid one is delivered too.
    pub checksum: Checksum,
    /// CLOCK_MONOTONIC nanoseconds when the kernel half saw it; `None` for AF_XDP frames.
    pub timestamp_ns: Option<u64>,
    /// Whether the end is missing: the packet was longer than 64 KiB.
    pub cut: bool,
    /// The verdict that delivered it: redirected, copied or observed; suppressed for an answer of the kernel that was
    /// dropped. A reassembled datagram has the verdict of its last fragment.
    pub reason: Reason,
}

/// Counters of packets in user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Packets handed to a lease or a stream.
    pub delivered: u64,
    /// Packets for a port that was returned meanwhile, or that cannot be read.
    pub stray: u64,
    /// Segments for a stream with an invalid checksum; they are ignored.
    pub bad_checksum: u64,
    /// Packets dropped because a lease's queue was full.
    pub overflow: u64,
    /// Fragments for owned ports, reassembled or not.
    pub fragments: u64,
    /// Datagrams reassembled from them; each also counts as delivered, stray, ...
    pub reassembled: u64,
    /// Frames that AF_XDP sockets lost (`XDP_STATISTICS`).
    pub lost: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that the kernel did not accept.
    pub not_sent: u64,
    /// How often a queue was full for a packet that had passed the egress hook; most are sent later.
    pub turned_away: u64,
}

/// The table's entry for a lease.
pub(crate) struct LeaseState {
    pub(crate) ports: Ports,
    pub(crate) queue: VecDeque<Received>,
    /// Bytes in the queue.
    pub(super) queued: usize,
    /// Packets that the queue had no room for.
    pub(super) overflow: u64,
    /// Answers of the kernel that were dropped at egress.
    pub(crate) suppressed: VecDeque<Received>,
    /// Packets are gathered together with those of other leases.
    pub(super) gathered: bool,
    /// Whether the table's list of gathered leases with packets contains it.
    pub(super) listed: bool,
    /// Packets since its waiting tasks were last notified.
    pub(super) arrived: usize,
}

/// The maximum number of suppressed answers that wait for one lease.
pub(super) const SUPPRESSED: usize = 4096;

impl LeaseState {
    pub(crate) fn new(ports: Ports, gathered: bool) -> Self {
        Self {
            ports,
            queue: VecDeque::new(),
            queued: 0,
            overflow: 0,
            suppressed: VecDeque::new(),
            gathered,
            listed: false,
            arrived: 0,
        }
    }

    /// Adds the lease to the list of gathered leases with packets, and to the list of leases to notify.
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

/// The side of a stream that a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// Data, or the end of connecting or of the connection.
    Reader,
    /// Room in the send buffer.
    Writer,
}

/// The table's entry for a stream.
pub(crate) struct StreamState {
    pub(crate) engine: StreamEngine,
    pub(crate) route: Arc<Route>,
    pub(super) flow: (SocketAddr, SocketAddr),
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Whether an event may concern a waiting task. A poll alone does not set it: a task that waits for both directions
    /// would wake itself forever.
    pub(crate) stirred: bool,
    /// Whether the table's list of streams to poll contains it.
    pub(super) touched: bool,
    pub(super) due: Option<Instant>,
    /// The stream's handle was dropped; it closes in the background.
    pub(super) is_orphan: bool,
    /// When an orphan is aborted.
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

    /// The waker of a waiting task.
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
