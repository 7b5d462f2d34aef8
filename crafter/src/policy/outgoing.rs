//! What the policy asks of a packet that is to be sent.

use std::net::IpAddr;

use crafter_common::parse::{self, Icmp};

use super::targets::FarPort;
use crate::packet::{
    IpPacket, Transport,
    ip::{self, FRAGMENT, IPV4_HEADER, IPV6_HEADER, ROUTING},
};

/// Ports of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketPorts {
    /// Of TCP and UDP.
    Both {
        /// The sender's.
        source: u16,
        /// The receiver's.
        destination: u16,
    },
    /// The identifier of an ICMP query, which is owned like a port.
    Query {
        /// The identifier.
        identifier: u16,
    },
    /// A fragment that is not the first of its datagram and so tells no ports and no identifier.
    Fragment,
    /// Of all else.
    None,
}

/// A packet that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What the packet is among what can be leased; `None`: another protocol or another ICMP message.
    pub transport: Option<Transport>,
    /// Its ports.
    pub ports: PacketPorts,
    /// Whether it names routers to visit, or a destination behind the one of its header: loose and strict source
    /// route (RFC 791 section 3.1), IPv6 routing header (RFC 8200 section 4.4).
    pub source_routed: bool,
    /// Length from the IP header on, in bytes.
    pub length: usize,
}

impl Outgoing {
    /// Reads an IP packet; `None` if its headers do not tell what the policy has to know. Allocates nothing.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let read = IpPacket::read(packet).ok()?;
        let later = read.fragment.is_some_and(|fragment| fragment.offset > 0);
        let payload = packet.get(read.payload.clone())?;
        let transport = match (read.protocol, read.source.is_ipv4()) {
            (ip::TCP, _) => Some(Transport::Tcp),
            (ip::UDP, _) => Some(Transport::Udp),
            (ip::ICMP, true) | (ip::ICMPV6, false) if later => Some(Transport::Icmp),
            (ip::ICMP, true) | (ip::ICMPV6, false) => query(packet).map(|_| Transport::Icmp),
            _ => None,
        };
        let ports = match transport {
            Some(_) if later => PacketPorts::Fragment,
            Some(Transport::Tcp | Transport::Udp) => {
                let ports = payload.first_chunk::<4>()?;
                PacketPorts::Both {
                    source: u16::from_be_bytes([ports[0], ports[1]]),
                    destination: u16::from_be_bytes([ports[2], ports[3]]),
                }
            }
            Some(Transport::Icmp) => PacketPorts::Query { identifier: query(packet)? },
            None => PacketPorts::None,
        };
        let headers = packet.get(..read.payload.start)?;
        Some(Self {
            source: read.source,
            destination: read.destination,
            transport,
            ports,
            source_routed: source_routed(headers),
            length: packet.len(),
        })
    }

    pub(super) fn far_port(&self, denying: bool) -> FarPort {
        match self.ports {
            PacketPorts::Both { destination, .. } => FarPort::Known(destination),
            PacketPorts::Query { .. } => FarPort::Without,
            PacketPorts::Fragment if self.transport == Some(Transport::Icmp) => FarPort::Without,
            // What is no TCP or UDP for this reader may be so for the receiver, behind another protocol's header.
            PacketPorts::Fragment | PacketPorts::None => FarPort::Hidden { matches: denying },
        }
    }
}

/// The identifier of an ICMP query. Reads as the kernel half does.
fn query(packet: &[u8]) -> Option<u16> {
    let net = parse::network(packet, 0, packet.first()? >> 4 == 6).ok()?;
    match parse::is_icmp(&net).then(|| parse::icmp(packet, &net))?? {
        Icmp::Query { id } => Some(u16::from_be_bytes(id)),
        _ => None,
    }
}

/// Whether IP headers, without what follows them, choose the packet's way.
fn source_routed(headers: &[u8]) -> bool {
    if headers.first().is_some_and(|first| first >> 4 == 6) {
        // An extension header each, as `IpPacket` has found them: AH is counted in words of 4 bytes.
        let (mut protocol, mut at) = (headers[6], IPV6_HEADER);
        while let Some(&[next, length]) = headers.get(at..).and_then(<[u8]>::first_chunk::<2>) {
            if protocol == ROUTING {
                return true;
            }
            at += match protocol {
                FRAGMENT => 8,
                ip::AUTHENTICATION => (usize::from(length) + 2) * 4,
                _ => (usize::from(length) + 1) * 8,
            };
            protocol = next;
        }
        return protocol == ROUTING;
    }
    let mut options = headers.get(IPV4_HEADER..).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = match kind {
            0 => return false,
            1 => rest,
            // Copied flag, class 0, numbers 3 and 9.
            131 | 137 => return true,
            _ => match rest.first().map(|&length| usize::from(length)) {
                Some(length) if length >= 2 => options.get(length..).unwrap_or_default(),
                // Readers differ on what follows a length that is none.
                _ => return true,
            },
        };
    }
    false
}
