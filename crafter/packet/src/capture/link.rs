//! Link types of captures.

use std::fmt;

use crate::layer::{self, Kind};

/// A link type, with the numbers of the tcpdump group (`LINKTYPE_` values).
///
/// Ethernet and bare IP are layers. The headers of Linux cooked captures (SLL and SLL2), of the BSDs' loopback (NULL
/// and LOOP), of PPP and of Cisco HDLC are kept as bytes in front of the layers. Packets of all other link types are
/// one [`Raw`](super::Raw).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link(pub u32);

impl Link {
    /// Loopback of the BSDs: 4 bytes, the address family in the byte order of the host.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// PPP, with or without address and control (RFC 1662, section 3.1).
    pub const PPP: Self = Self(9);
    /// An IP packet, version 4 or 6.
    pub const RAW: Self = Self(101);
    /// Cisco HDLC: address, control, Ethernet type.
    pub const C_HDLC: Self = Self(104);
    /// Loopback of OpenBSD: 4 bytes, the address family, big-endian.
    pub const LOOP: Self = Self(108);
    /// Linux cooked capture: 16 bytes.
    pub const LINUX_SLL: Self = Self(113);
    /// An IPv4 packet.
    pub const IPV4: Self = Self(228);
    /// An IPv6 packet.
    pub const IPV6: Self = Self(229);
    /// Linux cooked capture, version 2: 20 bytes.
    pub const LINUX_SLL2: Self = Self(276);

    /// Unknown: the capture does not describe the interface, or the packet is not from a capture.
    pub const UNKNOWN: Self = Self(u32::MAX);

    /// The link type of packets that begin with a layer; `None` if there is none.
    pub fn of(first: Kind) -> Option<Self> {
        match first {
            Kind::Ether => Some(Self::ETHERNET),
            Kind::Ip | Kind::Ipv6 => Some(Self::RAW),
            _ => None,
        }
    }

    /// The first layer of a packet's bytes.
    pub fn first(self, bytes: &[u8]) -> Kind {
        match self {
            Self::ETHERNET => Kind::Ether,
            Self::RAW | Self::IPV4 | Self::IPV6 => Kind::of_ip(bytes),
            // DLT_RAW has these values on some BSDs.
            Self(12 | 14) => Kind::of_ip(bytes),
            _ => Kind::Raw,
        }
    }

    /// Length of a header in front of the first layer, and what that layer is; `None`: there is no such header.
    pub(super) fn header(self, bytes: &[u8]) -> Option<(usize, Kind)> {
        let number = |at: usize| bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
        let (header, kind) = match self {
            Self::NULL | Self::LOOP => (4, family(*bytes.first_chunk()?)),
            // For ARPHRD_NETLINK, ARPHRD_IPGRE and Wi-Fi the field is not an Ethernet type.
            Self::LINUX_SLL if matches!(number(2)?, 778 | 801..=803 | 824) => return None,
            Self::LINUX_SLL => (16, layer::of_ethertype(number(14)?)),
            Self::LINUX_SLL2 if matches!(number(8)?, 778 | 801..=803 | 824) => return None,
            Self::LINUX_SLL2 => (20, layer::of_ethertype(number(0)?)),
            Self::PPP if number(0)? == 0xff03 => (4, ppp(number(2)?)),
            Self::PPP => (2, ppp(number(0)?)),
            Self::C_HDLC => (4, layer::of_ethertype(number(2)?)),
            _ => return None,
        };
        // No payload, or an unknown protocol.
        (bytes.len() > header && kind != Kind::Raw).then_some((header, kind))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NULL => "NULL",
            Self::ETHERNET => "ETHERNET",
            Self::PPP => "PPP",
            Self::RAW => "RAW",
            Self::C_HDLC => "C_HDLC",
            Self::LOOP => "LOOP",
            Self::LINUX_SLL => "LINUX_SLL",
            Self::IPV4 => "IPV4",
            Self::IPV6 => "IPV6",
            Self::LINUX_SLL2 => "LINUX_SLL2",
            Self::UNKNOWN => "UNKNOWN",
            Self(other) => return write!(f, "{other}"),
        };
        f.write_str(name)
    }
}

/// The layer for an address family, whose number depends on the system, in either byte order.
fn family(number: [u8; 4]) -> Kind {
    match u32::from_be_bytes(number).min(u32::from_le_bytes(number)) {
        2 => Kind::Ip,
        // Linux, NetBSD and OpenBSD, FreeBSD, macOS.
        10 | 24 | 28 | 30 => Kind::Ipv6,
        _ => Kind::Raw,
    }
}

/// PPP protocols of the internet layer (RFC 1332, RFC 5072).
fn ppp(protocol: u16) -> Kind {
    match protocol {
        0x0021 => Kind::Ip,
        0x0057 => Kind::Ipv6,
        _ => Kind::Raw,
    }
}
