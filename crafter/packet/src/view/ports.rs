//! Ports of a packet that is to be sent, as far as they can be read.

use crafter_common::parse::{self, Fragment, Icmp};

use super::{IpPacket, Transport, ip};

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
    /// A fragment that is not the first of its datagram: it carries neither ports nor an identifier.
    Fragment,
    /// Of all other packets.
    None,
}

impl PacketPorts {
    /// The transport and the ports of `packet`; the transport is `None` for other protocols and other ICMP messages.
    /// Unlike [`flow`](super::flow), it reads ports from a transport header that is truncated after them.
    ///
    /// `None` where the packet ends before its ports. Allocates nothing.
    pub fn read(packet: &IpPacket<'_>) -> Option<(Option<Transport>, Self)> {
        let (bytes, net) = (packet.bytes(), packet.network());
        let later = net.fragment == Fragment::Later;
        let query = match parse::is_icmp(net).then(|| parse::icmp(bytes, net)).flatten() {
            Some(Icmp::Query { id }) if !later => Some(u16::from_be_bytes(id)),
            _ => None,
        };
        let transport = match net.protocol {
            ip::TCP => Some(Transport::Tcp),
            ip::UDP => Some(Transport::Udp),
            _ if parse::is_icmp(net) && (later || query.is_some()) => Some(Transport::Icmp),
            _ => None,
        };
        let ports = match transport {
            Some(_) if later => Self::Fragment,
            Some(Transport::Tcp | Transport::Udp) => {
                let (source, destination) = parse::ports(bytes, net.transport)?;
                Self::Both { source: u16::from_be_bytes(source), destination: u16::from_be_bytes(destination) }
            }
            Some(Transport::Icmp) => Self::Query { identifier: query? },
            None => Self::None,
        };
        Some((transport, ports))
    }

    /// The source port, or the identifier of an ICMP query: what a lease owns.
    pub const fn source(self) -> Option<u16> {
        match self {
            Self::Both { source, .. } => Some(source),
            Self::Query { identifier } => Some(identifier),
            Self::Fragment | Self::None => None,
        }
    }
}
