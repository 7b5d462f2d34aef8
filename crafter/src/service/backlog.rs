//! Packets of one lease that found no room in the kernel's queue or among the packets that wait for a next hop, in the
//! order in which the client sent them.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    datapath::route::Route,
    driver::{NoRoom, ROOM_RETRY_DELAY, ROOM_TIMEOUT},
};

/// The longest delay between two retries.
const MAX_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Destination, and the source address to look its route up with.
pub(super) type RouteKey = (IpAddr, Option<IpAddr>);

/// A packet to send.
pub(super) enum Packet<B> {
    /// From the IP header on; its route is looked up when it is sent.
    Unrouted(RouteKey, B),
    /// From the IP header on, over this route.
    Routed(Arc<Route>, B),
    /// From the Ethernet header on.
    Frame(B),
}

impl<B: AsRef<[u8]>> Packet<B> {
    pub(super) fn len(&self) -> usize {
        let (Self::Unrouted(_, bytes) | Self::Routed(_, bytes) | Self::Frame(bytes)) = self;
        bytes.as_ref().len()
    }

    /// The same packet, with its bytes in another form.
    fn map<'p, C>(&'p self, convert: impl FnOnce(&'p [u8]) -> C) -> Packet<C> {
        match self {
            Self::Unrouted(key, bytes) => Packet::Unrouted(*key, convert(bytes.as_ref())),
            Self::Routed(route, bytes) => Packet::Routed(route.clone(), convert(bytes.as_ref())),
            Self::Frame(bytes) => Packet::Frame(convert(bytes.as_ref())),
        }
    }
}

/// Packets of one lease. At most one batch of its client, and the packets that waited for next hops meanwhile.
#[derive(Default)]
pub(super) struct Backlog {
    packets: Vec<Packet<Vec<u8>>>,
    /// When the kernel last took a packet, or when the backlog was last empty.
    progress: Option<Instant>,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// What to do if there is still no room: refuse the packets after [`ROOM_TIMEOUT`]. `None` without packets.
    pub(super) fn no_room(&self) -> Option<NoRoom> {
        let progress = self.progress.filter(|_| !self.is_empty())?;
        Some(if progress.elapsed() < ROOM_TIMEOUT { NoRoom::Stop } else { NoRoom::Refuse })
    }

    /// Delay until the next retry. It grows while nothing is sent, so that a stalled link does not keep the service
    /// busy.
    pub(super) fn retry_delay(&self) -> Duration {
        let stalled = self.progress.map_or(Duration::ZERO, |progress| progress.elapsed());
        (stalled / 8).clamp(ROOM_RETRY_DELAY, MAX_RETRY_DELAY)
    }

    /// Appends copies of packets.
    pub(super) fn add(&mut self, packets: &[Packet<&[u8]>]) {
        self.insert(self.packets.len(), packets);
    }

    /// Inserts copies of packets at the beginning.
    pub(super) fn add_first(&mut self, packets: &[Packet<&[u8]>]) {
        self.insert(0, packets);
    }

    fn insert(&mut self, at: usize, packets: &[Packet<&[u8]>]) {
        if !packets.is_empty() {
            self.progress.get_or_insert_with(Instant::now);
            self.packets.splice(at..at, packets.iter().map(|packet| packet.map(<[u8]>::to_vec)));
        }
    }

    /// Appends another backlog.
    pub(super) fn append(&mut self, mut other: Self) {
        if self.packets.is_empty() {
            *self = other;
        } else {
            self.packets.append(&mut other.packets);
        }
    }

    pub(super) fn packets(&self) -> Vec<Packet<&[u8]>> {
        self.packets.iter().map(|packet| packet.map(|bytes| bytes)).collect()
    }

    /// The packets after the first `tried`.
    pub(super) fn without(mut self, tried: usize) -> Self {
        self.packets.drain(..tried);
        if tried > 0 {
            self.progress = (!self.packets.is_empty()).then(Instant::now);
        }
        self
    }
}
