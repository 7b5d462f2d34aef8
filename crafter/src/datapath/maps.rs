//! The shared maps: written by the owner, read by whoever may.

use std::{
    collections::HashMap as StdHashMap,
    net::{IpAddr, Ipv6Addr},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use crafter_common::{
    ANY, Address, ICMP, TCP,
    flow::{FlowKey, FlowValue},
    map,
    port::{FilterWord, OBSERVE, OwnedKey, OwnedPort, REPORT, SUPPRESS, filter_position},
    reason::Reason,
};
use serde::Serialize;

use super::failure::{bpf_error, os_error};
use crate::{
    error::{Error, Result},
    packet::Transport,
};

/// An address in the 16-byte form of the maps.
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
}

impl Default for Terms {
    fn default() -> Self {
        Self { observe: false, suppress: true, report: false }
    }
}

/// The maps that the owner writes, and reads for others.
pub struct OwnerMaps {
    owned: HashMap<MapData, OwnedKey, OwnedPort>,
    filter: Array<MapData, FilterWord>,
    local: HashMap<MapData, Address, u8>,
    flows: HashMap<MapData, FlowKey, FlowValue>,
    counters: PerCpuArray<MapData, u64>,
    /// How many entries stand behind each filter bit: on particular addresses, on any.
    behind: StdHashMap<(u8, u16), (u32, u32)>,
    listed: Vec<Address>,
}

impl OwnerMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            owned: open(ebpf.take_map(map::OWNED), map::OWNED)?,
            filter: open(ebpf.take_map(map::FILTER), map::FILTER)?,
            local: open(ebpf.take_map(map::LOCAL), map::LOCAL)?,
            flows: open(ebpf.take_map(map::FLOWS), map::FLOWS)?,
            counters: open(ebpf.take_map(map::COUNTERS), map::COUNTERS)?,
            behind: StdHashMap::new(),
            listed: Vec::new(),
        })
    }

    /// Owns a port on `address`, or on any local address where that is unspecified: the entry
    /// first, then the filter bit that makes the kernel half look at it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the map is full.
    pub fn own(&mut self, lease: u32, transport: Transport, address: IpAddr, port: u16, terms: Terms) -> Result<()> {
        let key = owned_key(transport, address, port);
        let flags = [(terms.observe, OBSERVE), (terms.suppress, SUPPRESS), (terms.report, REPORT)];
        let flags = flags.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag);
        let fresh = self.owned.get(&key, 0).is_err();
        self.owned.insert(key, OwnedPort { lease, flags }, 0).map_err(|e| match os_error(&e) {
            // htab_map_alloc_elem() has none left.
            Some(error) if error.raw_os_error() == Some(libc::E2BIG) => {
                let count: u32 = self.behind.values().map(|(exact, any)| exact + any).sum();
                Error::invalid(
                    "port",
                    format_args!("{count} are owned on this interface, and there is no room for more"),
                )
            }
            _ => bpf_error("own a port", &e),
        })?;
        if fresh {
            let (exact, any) = self.behind.entry((transport.number(), port)).or_default();
            *(if key.address == ANY { any } else { exact }) += 1;
        }
        self.set_filter(transport, port)
    }

    /// Gives a port back: the filter bit first.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn disown(&mut self, transport: Transport, address: IpAddr, port: u16) -> Result<()> {
        let key = owned_key(transport, address, port);
        if self.owned.get(&key, 0).is_err() {
            return Ok(());
        }
        if let Some((exact, any)) = self.behind.get_mut(&(transport.number(), port)) {
            let count = if key.address == ANY { any } else { exact };
            *count = count.saturating_sub(1);
        }
        self.set_filter(transport, port)?;
        self.owned.remove(&key).map_err(|e| bpf_error("give a port back", &e))
    }

    fn set_filter(&mut self, transport: Transport, port: u16) -> Result<()> {
        let (index, bit) = filter_position(transport.number(), port);
        let (exact, any) = self.behind.get(&(transport.number(), port)).copied().unwrap_or_default();
        if (exact, any) == (0, 0) {
            self.behind.remove(&(transport.number(), port));
        }
        let mut word = self.filter.get(&index, 0).map_err(|e| bpf_error("read the port filter", &e))?;
        word.exact = if exact > 0 { word.exact | bit } else { word.exact & !bit };
        word.any = if any > 0 { word.any | bit } else { word.any & !bit };
        self.filter.set(index, word, 0).map_err(|e| bpf_error("write the port filter", &e))
    }

    /// Tells the kernel half which addresses are this host's; those no longer listed go.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let wanted: Vec<Address> = addresses.iter().map(|&a| to_map(a)).collect();
        for address in &wanted {
            self.local.insert(address, 1, 0).map_err(|e| bpf_error("list the local addresses", &e))?;
        }
        for gone in self.listed.iter().filter(|a| !wanted.contains(a)) {
            let _ = self.local.remove(gone);
        }
        self.listed = wanted;
        Ok(())
    }

    /// Whether `address` is among those that [`OwnerMaps::set_local`] was given last.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.listed.contains(&to_map(address))
    }

    /// The counters, one per reason, summed over CPUs.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn counters(&self) -> Result<Counters> {
        read_counters(&self.counters)
    }

    /// The flows, in no order.
    pub fn flows(&self) -> Vec<Flow> {
        read_flows(&self.flows)
    }
}

fn owned_key(transport: Transport, address: IpAddr, port: u16) -> OwnedKey {
    let address = if address.is_unspecified() { ANY } else { to_map(address) };
    OwnedKey { address, port: port.to_be_bytes(), protocol: transport.number(), pad: 0 }
}

fn open<T>(map: Option<Map>, name: &str) -> Result<T>
where
    T: TryFrom<Map>,
    T::Error: std::error::Error + 'static,
{
    let map =
        map.ok_or_else(|| Error::Bpf { action: "open the eBPF object".into(), reason: format!("it holds no {name}") })?;
    T::try_from(map).map_err(|e| bpf_error(&format!("open the map {name}"), &e))
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
    /// `tcp`, `udp` or `icmp`, which stands for ICMPv6 too.
    pub protocol: &'static str,
    /// This host's end; the identifier of ICMP queries takes the place of a port.
    pub local: std::net::SocketAddr,
    /// The peer's end.
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

pub(super) fn read_counters(map: &PerCpuArray<MapData, u64>) -> Result<Counters> {
    let sum = |reason: &Reason| {
        let values = map.get(&(*reason as u32), 0).map_err(|e| bpf_error("read the counters", &e))?;
        Ok(values.iter().sum())
    };
    Ok(Counters(Reason::ALL.iter().map(sum).collect::<Result<_>>()?))
}

pub(super) fn read_flows(map: &HashMap<MapData, FlowKey, FlowValue>) -> Vec<Flow> {
    // An LRU map changes under the reader: an entry that went meanwhile is no error, nor is one that just begins.
    let begun = map.iter().filter_map(|entry| entry.ok()).filter(|(_, value)| value.first_seen != 0);
    begun.map(|(key, value)| flow(&key, &value)).collect()
}

fn flow(key: &FlowKey, value: &FlowValue) -> Flow {
    let end = |address, port| std::net::SocketAddr::new(from_map(address), u16::from_be_bytes(port));
    Flow {
        protocol: match key.protocol {
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
