//! The owned ports, counters and flows of an interface, as types of user space.

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::Range,
    sync::Arc,
};

use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use crafter_common::{
    ANY, Address, ICMP, TCP,
    flow::{FlowKey, FlowValue},
    map::SOCKET_ENTRIES,
    port::{OBSERVE, OwnedPort, PEER_ADDRESS, PEERS, REPORT, SHARE_SHIFT, SUPPRESS},
    reason::{REASONS, Reason},
    share::RECORD,
};
use serde::Serialize;

use super::{
    accepted::Accepted,
    batch,
    failure::bpf_error,
    peers::{PeerMap, Peers},
    per_cpu,
    programs::Slot,
    shares::Shares,
};
use crate::{error::Result, packet::Transport};

/// An address in the 16-byte form of the maps: the same for an IPv4 address and its IPv4-mapped form.
pub fn to_map(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => crafter_common::mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address from the 16-byte form of the maps.
pub fn from_map(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// The terms of a lease, as the kernel half enforces them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Copy packets and let the kernel see them too.
    pub observe: bool,
    /// Drop the RSTs and port-unreachables of the kernel.
    pub suppress: bool,
    /// Copy those that are dropped to the owner.
    pub report: bool,
    /// Whose packets are the lease's.
    pub peers: Peers,
    /// The user of the lease. All leases of one user together get a share of the memory of received packets.
    pub user: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Self { observe: false, suppress: true, report: false, peers: Peers::Any, user: 0 }
    }
}

/// The entries of one interface in the maps of its programs: adds owned ports, and reads counters and flows.
pub struct OwnerMaps {
    slot: Arc<Slot>,
    /// Addresses of this host.
    local: Vec<Address>,
    shares: Shares,
}

impl OwnerMaps {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        let shares = Shares::new(slot.programs.shares.clone(), SOCKET_ENTRIES);
        Self { slot, local: Vec::new(), shares }
    }

    /// Limits what may wait for its owner: `frames` in each of the sockets of `queues` queues, `ring` bytes in the ring
    /// buffer. The caller has to [release](Self::release) every packet that it reads.
    ///
    /// # Errors
    /// [`Bpf`](crate::Error::Bpf) if the kernel refuses.
    pub(crate) fn limit(&mut self, queues: u32, frames: u32, ring: u32) -> Result<()> {
        self.shares = Shares::new(self.slot.programs.shares.clone(), queues);
        // The kernel keeps a byte free.
        self.slot.limit(self.shares.all(), frames, (ring - 1) / RECORD)
    }

    /// Releases `units` that were read from `pool`, of the lease with `share`.
    pub(crate) fn release(&self, pool: u32, share: u32, units: u64) {
        self.shares.release(pool, share, units);
    }

    /// Packets for a lease that found no room.
    pub(crate) fn lost(&self, lease: u32) -> u64 {
        self.shares.lost(lease)
    }

    /// Packets for all leases that found no room.
    #[cfg(test)]
    pub(super) fn lost_by_all(&self) -> u64 {
        self.shares.lost_by_all()
    }

    /// Units of a lease that wait in all pools.
    #[cfg(test)]
    pub(super) fn waiting(&self, lease: u32) -> u64 {
        self.shares.waiting(lease)
    }

    /// Frees the shares of a lease whose ports are no longer owned.
    pub(crate) fn end(&mut self, lease: u32) {
        self.shares.end(lease);
    }

    /// Makes the lease the owner of a port on `address`, or on all local addresses if `address` is unspecified.
    ///
    /// # Errors
    /// [`PortTaken`](crate::Error::PortTaken) if a lease owns it already; [`Invalid`](crate::Error::Invalid) when the map
    /// is full.
    pub fn own(&mut self, lease: u32, transport: Transport, address: IpAddr, port: u16, terms: Terms) -> Result<()> {
        let flags = [
            (terms.observe, OBSERVE),
            (terms.suppress, SUPPRESS),
            (terms.report, REPORT),
            (terms.peers != Peers::Any, PEERS),
            (terms.peers == Peers::Address, PEER_ADDRESS),
        ];
        let flags = flags.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag);
        let flags = flags | self.shares.of(lease, terms.user) << SHARE_SHIFT;
        self.slot.own(transport, owned_address(address), port, OwnedPort { lease, flags })
    }

    /// The peers of a lease; `None` if it receives the packets of all.
    pub(crate) fn peers(&self, lease: u32, peers: Peers) -> Option<PeerMap> {
        PeerMap::new(self.slot.clone(), lease, peers)
    }

    /// Gives a port of a lease back; does nothing where the lease does not own it.
    ///
    /// # Errors
    /// [`Bpf`](crate::Error::Bpf) if the kernel refuses.
    pub fn disown(&mut self, lease: u32, transport: Transport, address: IpAddr, port: u16) -> Result<()> {
        self.slot.disown(lease, transport.number(), owned_address(address), port)
    }

    /// Tells the kernel half which addresses are this host's; those no longer listed are removed.
    ///
    /// # Errors
    /// [`Bpf`](crate::Error::Bpf) if the kernel refuses.
    pub fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let wanted: Vec<Address> = addresses.iter().map(|&a| to_map(a)).collect();
        self.slot.set_local(&wanted)?;
        self.local = wanted;
        Ok(())
    }

    /// Has the kernel half deliver only what `accepted` says that the kernel takes on this interface.
    ///
    /// # Errors
    /// [`Bpf`](crate::Error::Bpf) if the kernel refuses.
    pub fn set_accepted(&mut self, accepted: &Accepted) -> Result<()> {
        self.slot.set_accepted(accepted)
    }

    /// Whether `address` is among those that [`OwnerMaps::set_local`] was given last.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&to_map(address))
    }

    /// The counters, one per reason, summed over CPUs.
    ///
    /// # Errors
    /// [`Bpf`](crate::Error::Bpf) if the kernel refuses.
    pub fn counters(&self) -> Result<Counters> {
        self.slot.counters()
    }

    /// The flows, in no order.
    pub fn flows(&self) -> Vec<Flow> {
        read_flows(&self.slot.programs.flows, |link| link == self.slot.link)
    }

    /// Reads the maps of this interface, also on other threads.
    #[cfg(feature = "service")]
    pub(crate) fn reader(&self) -> MapReader {
        MapReader { slot: self.slot.clone() }
    }
}

/// Reads flows and counters of an interface.
#[cfg(feature = "service")]
#[derive(Clone)]
pub(crate) struct MapReader {
    slot: Arc<Slot>,
}

#[cfg(feature = "service")]
impl MapReader {
    /// The number of the interface in the flow map's keys. Unique among readers of the same [load](Self::load).
    pub(crate) fn link(&self) -> u32 {
        self.slot.link
    }

    /// Identifies the flow map, which interfaces share.
    pub(crate) fn load(&self) -> usize {
        Arc::as_ptr(&self.slot.programs).addr()
    }

    /// Calls `take` for each flow of all interfaces that share the flow map.
    ///
    /// # Errors
    /// [`Io`](crate::Error::Io) if the kernel refuses.
    pub(crate) fn read_flows(&self, mut take: impl FnMut(&FlowKey, &FlowValue)) -> Result<()> {
        let calls = batch::read(&self.slot.programs.flows, |key, value| {
            // Otherwise the kernel half has not written the value yet.
            if value.first_seen != 0 {
                take(&key, &value);
            }
        });
        let calls = calls.map_err(|e| crate::Error::Io { action: "read the flows".to_owned(), source: e })?;
        log::debug!("read the flow map in {calls} system calls");
        Ok(())
    }

    /// The counters of the interface.
    ///
    /// # Errors
    /// [`Bpf`](crate::Error::Bpf) if the kernel refuses.
    pub(crate) fn counters(&self) -> Result<Counters> {
        self.slot.counters()
    }
}

fn owned_address(address: IpAddr) -> Address {
    let address = address.to_canonical();
    if address.is_unspecified() { ANY } else { to_map(address) }
}

/// Packets by reason, summed over CPUs, in the order of [`Reason::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(pub Vec<u64>);

impl Counters {
    /// Packets that got `reason`.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Packets that the ingress hook saw.
    pub fn ingress(&self) -> u64 {
        Reason::ALL.iter().filter(|r| r.is_ingress()).map(|&r| self.get(r)).sum()
    }

    /// Packets that the egress hook saw.
    pub fn egress(&self) -> u64 {
        Reason::ALL.iter().filter(|r| !r.is_ingress()).map(|&r| self.get(r)).sum()
    }

    /// RSTs and port-unreachables of the kernel that were dropped.
    pub fn suppressed(&self) -> u64 {
        self.get(Reason::RstSuppressed) + self.get(Reason::UnreachableSuppressed)
    }
}

impl Serialize for Counters {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(Reason::ALL.iter().map(|&r| (r.name(), self.get(r))))
    }
}

/// One flow, as the kernel half saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// `tcp`, `udp` or `icmp`, which includes ICMPv6.
    pub protocol: &'static str,
    /// This host's address and port, or identifier of ICMP queries.
    pub local: std::net::SocketAddr,
    /// The peer's address and port.
    pub remote: std::net::SocketAddr,
    /// Packets received for the owner, and their bytes from the IP header on.
    pub rx_packets: u64,
    /// See `rx_packets`.
    pub rx_bytes: u64,
    /// Crafted packets sent, and their bytes from the IP header on.
    pub tx_packets: u64,
    /// See `tx_packets`.
    pub tx_bytes: u64,
    /// CLOCK_MONOTONIC nanoseconds at the first packet.
    pub first_seen_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds at the latest packet.
    pub last_seen_ns: u64,
    /// Sequence number of the latest received segment.
    pub last_seq: u32,
    /// Acknowledgement number of the latest received segment.
    pub last_ack: u32,
    /// Flags of the latest received segment, the low byte of the field.
    pub last_flags: u8,
    /// RSTs or port-unreachables of the kernel that were dropped.
    pub suppressed: u64,
}

/// The counters of these slots, summed.
pub(super) fn read_counters(map: &PerCpuArray<MapData, u64>, slots: Range<u32>) -> Result<Counters> {
    let sum = |reason: &Reason| {
        let indices = slots.clone().map(|slot| slot * REASONS + *reason as u32);
        indices.map(|index| per_cpu::sum(map, index)).sum()
    };
    let sums: std::result::Result<_, MapError> = Reason::ALL.iter().map(sum).collect();
    sums.map(Counters).map_err(|e| bpf_error("read the counters", &e))
}

/// The flows of the attachments that `is_wanted`; a part of them if the kernel refuses.
pub(super) fn read_flows(map: &HashMap<MapData, FlowKey, FlowValue>, is_wanted: impl Fn(u32) -> bool) -> Vec<Flow> {
    let mut flows = Vec::new();
    let read = batch::read(map, |key, value| {
        // Otherwise the kernel half has not written the value yet.
        if is_wanted(key.link) && value.first_seen != 0 {
            flows.push(flow(&key, &value));
        }
    });
    if let Err(error) = read {
        log::warn!("cannot read all flows: {error}");
    }
    flows
}

/// Converts an entry of the flow map.
pub(crate) fn flow(key: &FlowKey, value: &FlowValue) -> Flow {
    let end = |address, port| std::net::SocketAddr::new(from_map(address), u16::from_be_bytes(port));
    Flow {
        protocol: match key.protocol[0] {
            TCP => "tcp",
            ICMP => "icmp",
            _ => "udp",
        },
        local: end(key.local, key.local_port),
        remote: end(key.remote, key.remote_port),
        rx_packets: value.rx_packets,
        rx_bytes: value.rx_bytes,
        tx_packets: value.tx_packets,
        tx_bytes: value.tx_bytes,
        first_seen_ns: value.first_seen,
        last_seen_ns: value.last_seen,
        last_seq: value.last_seq,
        last_ack: value.last_ack,
        last_flags: value.last_flags as u8,
        suppressed: value.suppressed,
    }
}
