//! Flows: one entry per five-tuple of an owned port, written by the kernel half; and the peers of leases, written by
//! the user half.

use crate::Address;

/// Key of the flow map and of the map of peers. *Local* is this host in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// [`crate::attached::Attached::link`] of the interface, host order.
    pub link: u32,
    /// [`crate::port::OwnedPort::lease`] of the owner, host order.
    pub lease: u32,
    /// This host's address in 16-byte form.
    pub local: Address,
    /// The peer's address in 16-byte form.
    pub remote: Address,
    /// This host's port, or the identifier of its ICMP queries, big-endian.
    pub local_port: [u8; 2],
    /// The peer's port, big-endian; zero for ICMP, and of a peer in all of its ports ([`crate::port::PEER_ADDRESS`]).
    pub remote_port: [u8; 2],
    /// [`crate::TCP`], [`crate::UDP`], or [`crate::ICMP`] for the ICMP of either IP version; then zeros.
    pub protocol: [u8; 4],
}

/// Counters of a flow. All numbers are in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowValue {
    /// Packets received for the owner at this five-tuple: later fragments, which name no ports, and ICMP errors
    /// about the flow reach the owner too, but are not counted here.
    pub rx_packets: u64,
    /// Their bytes, from the IP header on.
    pub rx_bytes: u64,
    /// Crafted packets sent through the egress hook.
    pub tx_packets: u64,
    /// Their bytes, from the IP header on.
    pub tx_bytes: u64,
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) at the first packet.
    pub first_seen: u64,
    /// The same at the latest packet.
    pub last_seen: u64,
    /// RSTs (TCP) or port-unreachables (UDP) of the kernel that were dropped.
    pub suppressed: u64,
    /// Sequence number of the latest received TCP segment, host order.
    pub last_seq: u32,
    /// Its acknowledgement number, host order.
    pub last_ack: u32,
    /// Its flags: the low byte of the flags field (RFC 9293 section 3.1).
    pub last_flags: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 48 && size_of::<FlowValue>() == 72);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), valid for every bit pattern.
unsafe impl aya::Pod for FlowKey {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), valid for every bit pattern.
unsafe impl aya::Pod for FlowValue {}

/// A peer that a lease has sent to, and whose packets the lease receives ([`crate::port::PEERS`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) at its latest packet; 0 before the first.
    pub heard: u64,
}

#[cfg(feature = "user")]
// SAFETY: repr(C), one u64, valid for every bit pattern.
unsafe impl aya::Pod for Peer {}

/// Key of the map that lets later fragments follow their first (RFC 791 section 3.2,
/// RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// [`crate::attached::Attached::link`] of the interface, host order.
    pub link: u32,
    /// Sender, in 16-byte form.
    pub source: Address,
    /// Receiver, in 16-byte form.
    pub destination: Address,
    /// Identification, big-endian; IPv4's 16 bits are the last two bytes.
    pub identification: [u8; 4],
    /// The protocol of the whole datagram for IPv4, then zeros; zero for IPv6, where it is not part of the key.
    pub protocol: [u8; 4],
}

const _: () = assert!(size_of::<FragmentKey>() == 44);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), valid for every bit pattern.
unsafe impl aya::Pod for FragmentKey {}

/// What an owned first fragment says about those that follow it. Whether its lease still owns the port is asked again
/// for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FirstFragment {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) when it was received; see [`FRAGMENT_NS`].
    pub since: u64,
    /// [`crate::port::OwnedPort::lease`] of its owner, host order.
    pub lease: u32,
    /// Its destination port, or the identifier of an ICMP reply, big-endian.
    pub local_port: [u8; 2],
    /// Its source port, big-endian; zero for ICMP.
    pub remote_port: [u8; 2],
    /// [`crate::TCP`], [`crate::UDP`], or [`crate::ICMP`] for the ICMP of either IP version; host order.
    pub protocol: u32,
    /// Zero.
    pub pad: u32,
}

/// How long later fragments follow a first one, in nanoseconds: as long as Linux waits for those of a datagram
/// (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_NS: u64 = 30_000_000_000;

const _: () = assert!(size_of::<FirstFragment>() == 24);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), valid for every bit pattern.
unsafe impl aya::Pod for FirstFragment {}
