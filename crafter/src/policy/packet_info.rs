//! The fields of a packet that the policy compares.

use std::net::IpAddr;

use super::targets::FarPort;
use crate::packet::{Framed, IpOptions, IpPacket, PacketPorts, Route, Transport, framed};

/// The fields of a packet that the policy compares before the packet is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketInfo {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The transport that can be leased; `None`: another protocol or another ICMP message.
    pub transport: Option<Transport>,
    /// Its ports.
    pub ports: PacketPorts,
    /// The addresses of a loose or strict source route (RFC 791, section 3.1) or an IPv6 routing header (RFC 8200,
    /// section 4.4).
    pub route: Route,
    /// Its IP options.
    pub options: IpOptions,
    /// Length from the IP header on, in bytes.
    pub length: usize,
}

impl PacketInfo {
    /// Reads an IP packet. `None` if a header that the policy has to compare cannot be read. Allocates nothing.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let read = IpPacket::read(packet).ok()?;
        let (transport, ports) = PacketPorts::read(&read)?;
        Some(Self {
            source: read.source,
            destination: read.destination,
            transport,
            ports,
            route: read.route(),
            options: read.options(),
            length: packet.len(),
        })
    }

    /// Reads the IP packet in an Ethernet frame, as [`read`](Self::read). `None` also if the frame contains no IP
    /// packet.
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
            // The receiver may find TCP or UDP after a header that this parser reads as another protocol.
            PacketPorts::Fragment | PacketPorts::None => FarPort::Hidden { matches: denying },
        }
    }
}
