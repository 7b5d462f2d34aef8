//! The peers of leases: whose packets a lease receives, and the exchanges that it has begun.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use crafter_common::{TCP, UDP, flow::FlowKey};
use nix::time::{ClockId, clock_gettime};
use smallvec::SmallVec;

use super::{maps::to_map, programs::Slot};
use crate::{
    error::{Error, Result},
    packet::{Flags, IpPacket, PacketPorts, Route, Transport},
};

/// Whose packets a lease receives. In order: each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peers {
    /// Of peers that it has sent to, by address and port.
    Flow,
    /// Of peers that it has sent to, by address: for protocols whose answer comes from another port.
    Address,
    /// Of all: for leases that listen, and for questions that others answer, such as broadcasts.
    #[default]
    Any,
}

impl Peers {
    /// Its name in policies and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Address => "address",
            Self::Any => "any",
        }
    }
}

impl FromStr for Peers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = [Self::Flow, Self::Address, Self::Any].into_iter().find(|peers| peers.name() == text);
        found.ok_or_else(|| Error::invalid("peers", format_args!("'{text}' is none of flow, address, any")))
    }
}

/// What a lease sends from one of its ports to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) transport: Transport,
    /// For ICMP, the port is the identifier.
    pub(crate) local: SocketAddr,
    /// For ICMP, the port is 0.
    pub(crate) remote: SocketAddr,
    /// Flags of the segment (RFC 9293, section 3.1), for TCP.
    pub(crate) flags: Flags,
}

impl Exchange {
    /// The exchanges that an IP packet to be sent belongs to: with its destination, and with each address of a source
    /// route. None for packets without ports.
    pub(crate) fn of_packet(packet: &[u8]) -> SmallVec<[Self; 1]> {
        let Ok(read) = IpPacket::read(packet) else { return SmallVec::new() };
        let Some((Some(transport), ports)) = PacketPorts::read(&read) else { return SmallVec::new() };
        let (source, destination) = match ports {
            PacketPorts::Both { source, destination } => (source, destination),
            PacketPorts::Query { identifier } => (identifier, 0),
            PacketPorts::Fragment | PacketPorts::None => return SmallVec::new(),
        };
        let flags = match transport {
            Transport::Tcp => packet.get(read.network().transport + 13).copied().unwrap_or_default(),
            Transport::Udp | Transport::Icmp => 0,
        };
        let exchange = |remote: IpAddr| Self {
            transport,
            local: SocketAddr::new(read.source, source),
            remote: SocketAddr::new(remote, destination),
            flags: Flags(flags.into()),
        };
        let mut exchanges = SmallVec::from([exchange(read.destination)]);
        if let Route::Through(waypoints) = read.route() {
            exchanges
                .extend(waypoints.addresses().iter().map(|&address| exchange(IpAddr::from(address).to_canonical())));
        }
        exchanges
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the kernel half.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Into::into);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// The peers of one lease in the map of the kernel half.
#[derive(Clone)]
pub(crate) struct PeerMap {
    slot: Arc<Slot>,
    lease: u32,
    peers: Peers,
}

impl PeerMap {
    /// `None` for a lease that receives the packets of all peers.
    pub(super) fn new(slot: Arc<Slot>, lease: u32, peers: Peers) -> Option<Self> {
        (peers != Peers::Any).then_some(Self { slot, lease, peers })
    }

    /// When the peer's latest packet was received, in nanoseconds of CLOCK_MONOTONIC; 0: none was.
    fn heard(&self, key: &FlowKey) -> u64 {
        self.slot.heard(key)
    }

    fn remove(&self, key: &FlowKey) {
        self.slot.remove_peer(key);
    }
}

/// How long an exchange may be silent, in nanoseconds.
mod silence {
    const SECOND: u64 = 1_000_000_000;
    /// An open TCP connection: RFC 5382, REQ-5.
    pub(super) const CONNECTION: u64 = 7_440 * SECOND;
    /// A TCP connection that is not open yet, or has ended: TIME-WAIT in Linux.
    pub(super) const TRANSITION: u64 = 60 * SECOND;
    /// UDP that the peer has answered: RFC 4787, REQ-5.
    pub(super) const ANSWERED: u64 = 120 * SECOND;
    /// Everything else: conntrack's time for UDP without an answer, and for ICMP.
    pub(super) const OTHER: u64 = 30 * SECOND;
}

/// The exchanges that a lease has begun, and that have not ended. They end with the lease, and when they are silent for
/// longer than their protocol may be. Each has a charge, which is dropped with it.
pub(crate) struct Exchanges<C> {
    /// `None`: the lease receives the packets of all peers, and its exchanges are only counted.
    map: Option<PeerMap>,
    open: HashMap<FlowKey, Open<C>>,
}

struct Open<C> {
    /// When the latest packet is known to have been sent or received, in nanoseconds of CLOCK_MONOTONIC.
    latest: u64,
    is_answered: bool,
    /// Flags of the segments that were sent, since the latest SYN.
    flags: Flags,
    _charge: C,
}

impl<C> Open<C> {
    fn may_be_silent(&self, protocol: u8) -> u64 {
        let has = |flag| self.flags.contains(flag);
        match protocol {
            TCP if self.is_answered && has(Flags::ACK) && !has(Flags::FIN) && !has(Flags::RST) => silence::CONNECTION,
            TCP => silence::TRANSITION,
            UDP if self.is_answered => silence::ANSWERED,
            _ => silence::OTHER,
        }
    }
}

impl<C> Exchanges<C> {
    pub(crate) fn new(map: Option<PeerMap>) -> Self {
        Self { map, open: HashMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether the lease receives the packets of all peers.
    pub(crate) fn are_only_counted(&self) -> bool {
        self.map.is_none()
    }

    fn key(&self, exchange: &Exchange) -> FlowKey {
        let (link, lease, peers) =
            self.map.as_ref().map_or((0, 0, Peers::Any), |map| (map.slot.link, map.lease, map.peers));
        let port = if peers == Peers::Address { 0 } else { exchange.remote.port() };
        FlowKey {
            link,
            lease,
            local: to_map(exchange.local.ip()),
            remote: to_map(exchange.remote.ip()),
            local_port: exchange.local.port().to_be_bytes(),
            remote_port: port.to_be_bytes(),
            protocol: u32::from(exchange.transport.number()).to_le_bytes(),
        }
    }

    /// Notes that a packet is sent now; `false` if the exchange has not begun.
    pub(crate) fn note(&mut self, exchange: &Exchange, now: u64) -> bool {
        let key = self.key(exchange);
        let Some(open) = self.open.get_mut(&key) else { return false };
        let begins = exchange.flags.contains(Flags::SYN);
        open.flags = if begins { exchange.flags } else { Flags(open.flags.0 | exchange.flags.0) };
        open.latest = open.latest.max(now);
        true
    }

    /// Begins an exchange: packets of the peer are the lease's from now on.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the map of peers is full.
    pub(crate) fn begin(&mut self, exchange: &Exchange, now: u64, charge: C) -> Result<()> {
        let key = self.key(exchange);
        if let Some(map) = &self.map {
            map.slot.add_peer(&key)?;
        }
        self.open.insert(key, Open { latest: now, is_answered: false, flags: exchange.flags, _charge: charge });
        Ok(())
    }

    /// Ends the exchanges that have been silent for too long; returns their number.
    pub(crate) fn expire(&mut self, now: u64) -> usize {
        let before = self.open.len();
        let map = &self.map;
        self.open.retain(|key, open| {
            let is_silent = |open: &Open<C>| now.saturating_sub(open.latest) >= open.may_be_silent(key.protocol[0]);
            if !is_silent(open) {
                return true;
            }
            let Some(map) = map else { return false };
            let heard = map.heard(key);
            open.is_answered |= heard != 0;
            open.latest = open.latest.max(heard);
            if !is_silent(open) {
                return true;
            }
            map.remove(key);
            false
        });
        before - self.open.len()
    }

    /// Ends all exchanges; returns what remains to be removed from the map, which may be done on another thread.
    pub(crate) fn end(&mut self) -> EndedExchanges {
        EndedExchanges { map: self.map.clone(), keys: self.open.drain().map(|(key, _)| key).collect() }
    }
}

impl<C> Drop for Exchanges<C> {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Exchanges that have ended; they are removed from the map when this is dropped.
pub(crate) struct EndedExchanges {
    map: Option<PeerMap>,
    keys: Vec<FlowKey>,
}

impl EndedExchanges {
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl Drop for EndedExchanges {
    fn drop(&mut self) {
        if let Some(map) = &self.map {
            self.keys.iter().for_each(|key| map.remove(key));
        }
    }
}
