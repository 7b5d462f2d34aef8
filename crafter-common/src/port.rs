//! Owned ports and their terms. Identifiers of ICMP echo and other queries are owned like ports; here, *port* includes
//! them.

use crate::{Address, ICMP, TCP};

/// Key of the map of owned ports: interface, transport, local address or [`crate::ANY`], local port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OwnedKey {
    /// [`crate::attached::Attached::link`] of the interface, host order.
    pub link: u32,
    /// The local address in 16-byte form, or [`crate::ANY`].
    pub address: Address,
    /// The local port, big-endian.
    pub port: [u8; 2],
    /// [`crate::TCP`], [`crate::UDP`], or [`crate::ICMP`] for the ICMP of either IP version.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// What is done with packets to an owned port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OwnedPort {
    /// Number of the lease, which no other lease on the interface gets.
    pub lease: u32,
    /// [`OBSERVE`], [`SUPPRESS`], [`REPORT`], [`PEERS`] and [`PEER_ADDRESS`], and from bit [`SHARE_SHIFT`] on the position of the lease's first share
    /// ([`crate::share`]).
    pub flags: u32,
}

impl OwnedPort {
    /// The position of the lease's first share.
    #[inline(always)]
    pub const fn share(self) -> u32 {
        self.flags >> SHARE_SHIFT
    }
}

/// See [`OwnedPort::flags`].
pub const SHARE_SHIFT: u32 = 8;

/// Copy to the owner and let the kernel see the packet too, instead of consuming it.
pub const OBSERVE: u32 = 1;
/// Drop the RSTs and port-unreachables that the kernel sends for this port.
pub const SUPPRESS: u32 = 2;
/// Copy to the owner what was dropped because of [`SUPPRESS`].
pub const REPORT: u32 = 4;
/// Only packets of the peers that the lease has sent to are its own ([`crate::map::PEERS`]); without it, those of all.
pub const PEERS: u32 = 8;
/// With [`PEERS`]: a peer is known by its address alone, and may answer from another port.
pub const PEER_ADDRESS: u32 = 16;

const _: () = assert!(size_of::<OwnedKey>() == 24 && size_of::<OwnedPort>() == 8);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), valid for every bit pattern.
unsafe impl aya::Pod for OwnedKey {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), valid for every bit pattern.
unsafe impl aya::Pod for OwnedPort {}

/// One word of the port filter: 64 ports of one transport, one bit per port.
///
/// A packet for an unowned port costs one array lookup, however many ports are owned. The map of owned ports is looked
/// up only if a bit is set, and only with the kind of key (exact or any address) of that bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FilterWord {
    /// Ports owned on at least one particular address.
    pub exact: u64,
    /// Ports owned on any local address.
    pub any: u64,
}

#[cfg(feature = "user")]
// SAFETY: repr(C), two u64: no padding, valid for every bit pattern.
unsafe impl aya::Pod for FilterWord {}

/// Words of the filter: 65,536 ports of each of TCP and UDP, and 65,536 ICMP identifiers, 64 per word.
pub const FILTER_WORDS: u32 = 3 * 1024;

/// Position of `port` in the filter: index of its word, and its bit.
#[inline(always)]
pub const fn filter_position(protocol: u8, port: u16) -> (u32, u64) {
    let transport = match protocol {
        TCP => 0,
        ICMP => 2048,
        _ => 1024,
    };
    (transport + (port >> 6) as u32, 1 << (port & 63))
}

/// Words of the set of UDP ports that leases have on any address, 64 ports per word.
pub const HELD_WORDS: u32 = 1024;

/// Position of `port` in that set: index of its word, and its bit.
#[inline(always)]
pub const fn held_position(port: u16) -> (u32, u64) {
    ((port >> 6) as u32, 1 << (port & 63))
}
