//! What the policy asks of a packet that is to be sent.

use std::net::IpAddr;

use crafter_common::parse::{self, Fragment, Icmp};

use super::targets::FarPort;
use crate::packet::{Framed, IpPacket, Route, Transport, framed, ip};

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
    /// The routers that it names, or a destination behind the one of its header: loose and strict source
    /// route (RFC 791 section 3.1), IPv6 routing header (RFC 8200 section 4.4).
    pub route: Route,
    /// Length from the IP header on, in bytes.
    pub length: usize,
}

impl Outgoing {
    /// Reads an IP packet; `None` if its headers do not tell what the policy has to know. Allocates nothing.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let read = IpPacket::read(packet).ok()?;
        let (bytes, net) = (read.bytes(), read.network());
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
            Some(_) if later => PacketPorts::Fragment,
            Some(Transport::Tcp | Transport::Udp) => {
                let (source, destination) = parse::ports(bytes, net.transport)?;
                PacketPorts::Both { source: u16::from_be_bytes(source), destination: u16::from_be_bytes(destination) }
            }
            Some(Transport::Icmp) => PacketPorts::Query { identifier: query? },
            None => PacketPorts::None,
        };
        Some(Self {
            source: read.source,
            destination: read.destination,
            transport,
            ports,
            route: read.route(),
            length: packet.len(),
        })
    }

    /// Reads the IP packet in an Ethernet frame, as [`read`](Self::read); `None` also where the frame holds none.
    pub fn read_frame(frame: &[u8]) -> Option<Self> {
        match framed(frame) {
            Framed::Ip(packet) => Self::read(packet),
            Framed::Other | Framed::Unreadable => None,
        }
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
