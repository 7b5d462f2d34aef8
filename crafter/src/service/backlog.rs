//! Packets of one lease that found no room in the kernel's queue or among the packets that wait for a next hop, in the
//! order in which the client sent them.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::shares::WaitingBytes;
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
    pub(super) fn bytes(&self) -> &[u8] {
        let (Self::Unrouted(_, bytes) | Self::Routed(_, bytes) | Self::Frame(bytes)) = self;
        bytes.as_ref()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
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

struct Kept {
    packet: Packet<Vec<u8>>,
    _bytes: WaitingBytes,
}

/// Packets of one lease. At most one batch of its client, and the packets that waited for next hops meanwhile.
#[derive(Default)]
pub(super) struct Backlog {
    packets: Vec<Kept>,
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

    /// Appends copies of packets, as long as `count` counts their bytes; returns the number of those appended.
    pub(super) fn add(&mut self, packets: &[Packet<&[u8]>], count: impl FnMut(usize) -> Option<WaitingBytes>) -> usize {
        self.insert(self.packets.len(), packets, count)
    }

    /// Like [`add`](Self::add), at the beginning.
    pub(super) fn add_first(
        &mut self,
        packets: &[Packet<&[u8]>],
        count: impl FnMut(usize) -> Option<WaitingBytes>,
    ) -> usize {
        self.insert(0, packets, count)
    }

    fn insert(
        &mut self,
        at: usize,
        packets: &[Packet<&[u8]>],
        mut count: impl FnMut(usize) -> Option<WaitingBytes>,
    ) -> usize {
        let kept = packets.iter().map_while(|packet| {
            let bytes = count(packet.len())?;
            Some(Kept { packet: packet.map(<[u8]>::to_vec), _bytes: bytes })
        });
        let before = self.packets.len();
        self.packets.splice(at..at, kept);
        if !self.packets.is_empty() {
            self.progress.get_or_insert_with(Instant::now);
        }
        self.packets.len() - before
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
        self.packets.iter().map(|kept| kept.packet.map(|bytes| bytes)).collect()
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
