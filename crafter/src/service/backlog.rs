//! What there was no room for yet, in the kernel's queue or among the packets that wait for a next hop, in the order in
//! which a client sent it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    datapath::route::Route,
    driver::{NoRoom, ROOM_RETRY_DELAY, ROOM_TIMEOUT},
};

/// How seldom packets are tried again at most.
const SELDOM: Duration = Duration::from_millis(20);

/// Where a packet goes, and the source address that its way is asked for with.
pub(super) type Bound = (IpAddr, Option<IpAddr>);

/// A packet to send.
pub(super) enum Packet<'p> {
    /// From the IP header on, by the way that is known when it is sent.
    Wanted(Bound, &'p [u8]),
    /// From the IP header on, by this way.
    Ip(Arc<Route>, &'p [u8]),
    /// From the Ethernet header on.
    Frame(&'p [u8]),
}

impl Packet<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Wanted(_, bytes) | Self::Ip(_, bytes) | Self::Frame(bytes) => bytes,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    fn way(&self) -> Way {
        match self {
            Self::Wanted(bound, _) => Way::Wanted(*bound),
            Self::Ip(route, _) => Way::Known(route.clone()),
            Self::Frame(_) => Way::None,
        }
    }
}

/// How a packet leaves.
enum Way {
    Wanted(Bound),
    Known(Arc<Route>),
    /// As a frame.
    None,
}

/// Packets of one lease, at most what was read of its client at once and what waited for next hops then.
#[derive(Default)]
pub(super) struct Backlog {
    packets: Vec<(Way, Vec<u8>)>,
    /// When the kernel took one last, or since when there are some.
    progress: Option<Instant>,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// What to do if there is still no room for them; `None` without packets.
    pub(super) fn no_room(&self) -> Option<NoRoom> {
        let progress = self.progress.filter(|_| !self.is_empty())?;
        Some(if progress.elapsed() < ROOM_TIMEOUT { NoRoom::Stop } else { NoRoom::Refuse })
    }

    /// How long to wait until they are tried again: the longer nothing has left, the longer, as a link that stands still
    /// must not keep the service busy.
    pub(super) fn pause(&self) -> Duration {
        let progress = self.progress.map_or(Duration::ZERO, |progress| progress.elapsed());
        (progress / 8).clamp(ROOM_RETRY_DELAY, SELDOM)
    }

    /// Copies packets to its end.
    pub(super) fn add(&mut self, packets: &[Packet<'_>]) {
        self.insert(self.packets.len(), packets);
    }

    /// Copies packets to its beginning.
    pub(super) fn add_first(&mut self, packets: &[Packet<'_>]) {
        self.insert(0, packets);
    }

    fn insert(&mut self, at: usize, packets: &[Packet<'_>]) {
        if !packets.is_empty() {
            self.progress.get_or_insert_with(Instant::now);
            self.packets.splice(at..at, packets.iter().map(|packet| (packet.way(), packet.bytes().to_vec())));
        }
    }

    pub(super) fn packets(&self) -> Vec<Packet<'_>> {
        let packets = self.packets.iter().map(|(way, bytes)| match way {
            Way::Wanted(bound) => Packet::Wanted(*bound, bytes),
            Way::Known(route) => Packet::Ip(route.clone(), bytes),
            Way::None => Packet::Frame(bytes),
        });
        packets.collect()
    }

    /// The rest, once so many were tried.
    pub(super) fn without(mut self, tried: usize) -> Self {
        self.packets.drain(..tried);
        if tried > 0 {
            self.progress = (!self.packets.is_empty()).then(Instant::now);
        }
        self
    }
}
