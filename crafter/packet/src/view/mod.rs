//! Checked views over the bytes of packets; [`layer`](crate::layer) is for packets to craft. Numbers in views are in
//! host byte order, slices of bytes in the order of the packet.
//!
//! A packet begins with its IP header, except where a function takes a frame. Reading never panics and accepts the same
//! packets as the parser of the eBPF programs ([`crafter_common::parse`]).

use std::{fmt, net::SocketAddr, ops::RangeInclusive};

use crafter_common::parse;
pub use crafter_common::route::{Route, Waypoints};

pub mod checksum;
pub mod field;
pub mod icmp;
pub mod ip;
pub mod option;
mod ports;
pub mod seq;
pub mod tcp;
pub mod udp;

pub use checksum::Checksum;
pub use icmp::{IcmpError, IcmpReason, Quoted};
pub use ip::{Fragment, IpOptions, IpPacket};
pub use ports::PacketPorts;
pub use seq::Seq;
pub use tcp::{Flags, TcpView};
pub use udp::UdpView;

/// A transport whose ports can be leased. The identifiers of ICMP queries are leased like ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// ICMP or ICMPv6: echo and the other queries with an identifier (RFC 792, RFC 4443).
    Icmp,
}

impl Transport {
    /// The IP protocol number used as map key; ICMPv6 has that of ICMP.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => ip::TCP,
            Self::Udp => ip::UDP,
            Self::Icmp => ip::ICMP,
        }
    }

    /// The valid ports or identifiers. Port 0 is invalid, ICMP identifier 0 is valid.
    pub const fn ports(self) -> RangeInclusive<u16> {
        match self {
            Self::Tcp | Self::Udp => 1..=u16::MAX,
            Self::Icmp => 0..=u16::MAX,
        }
    }

    /// `TCP`, `UDP` or `ICMP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Transport, source and destination of a packet. Ports are 0 for ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The transport; [`Icmp`](Transport::Icmp) over IPv6 is ICMPv6.
    pub protocol: Transport,
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
}

impl Flow {
    /// The flow in the opposite direction.
    pub fn reversed(self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

/// Returns the flow of an IP packet; `None` for a malformed packet, another protocol, and a fragment other than the
/// first, which has no ports. Allocates nothing.
pub fn flow(ip: &[u8]) -> Option<Flow> {
    flow_of(&IpPacket::read(ip).ok()?)
}

/// Returns the [`flow`] of a truncated packet, as quoted in an ICMP error or a refusal by the service.
pub fn quoted_flow(ip: &[u8]) -> Option<Flow> {
    flow_of(&IpPacket::read_quoted(ip).ok()?)
}

/// Returns the [`flow`] of a received packet for which the eBPF program looks up an owner; `None` for a packet in
/// transit (segments left in a routing header) and for an invalid destination address.
pub fn received(ip: &[u8]) -> Option<Flow> {
    received_flow(&IpPacket::read(ip).ok()?)
}

/// Like [`received`], for a packet that is parsed already.
pub fn received_flow(packet: &IpPacket<'_>) -> Option<Flow> {
    let net = packet.network();
    // An ICMP error belongs to the sender of the packet that it quotes, regardless of its own addresses.
    if parse::has_ports(net.protocol) && (net.left != 0 || net.end(net.addresses(packet.bytes())?.1).is_none()) {
        return None;
    }
    flow_of(packet)
}

fn flow_of(packet: &IpPacket<'_>) -> Option<Flow> {
    let net = packet.network();
    if net.fragment == parse::Fragment::Later {
        return None;
    }
    let protocol = match net.protocol {
        ip::TCP => Transport::Tcp,
        ip::UDP => Transport::Udp,
        _ if parse::is_icmp(net) => Transport::Icmp,
        _ => return None,
    };
    let (source, destination) = match protocol {
        Transport::Icmp => (0, 0),
        // Like the eBPF program, ignores a truncated transport header.
        _ if packet.payload().len() < parse::header_length(net.protocol) => return None,
        _ => {
            let (source, destination) = parse::ports(packet.bytes(), net.transport)?;
            (u16::from_be_bytes(source), u16::from_be_bytes(destination))
        }
    };
    Some(Flow {
        protocol,
        source: SocketAddr::new(packet.source, source),
        destination: SocketAddr::new(packet.destination, destination),
    })
}

/// Returns the sender of the ICMP query that `ip` answers or, as an ICMP error, quotes: its address, with the
/// identifier in place of the port. `None` for all other packets.
pub fn icmp_query(ip: &[u8]) -> Option<SocketAddr> {
    use crafter_common::parse::Icmp;
    let packet = IpPacket::read(ip).ok()?;
    let (bytes, net) = (packet.bytes(), packet.network());
    if net.fragment == parse::Fragment::Later || !parse::is_icmp(net) {
        return None;
    }
    let (address, id) = match parse::icmp(bytes, net)? {
        Icmp::Reply { id } if net.left == 0 => (net.end(net.addresses(bytes)?.1)?, id),
        Icmp::Error { .. } => {
            let (quoted, _, [id, _]) =
                parse::quoted_sender(bytes, net).filter(|&(_, protocol, _)| protocol == ip::ICMP)?;
            (quoted.end(quoted.addresses(bytes)?.0)?, id)
        }
        Icmp::Reply { .. } | Icmp::Query { .. } | Icmp::Other => return None,
    };
    Some(SocketAddr::new(ip::address(address, net.v6), u16::from_be_bytes(id)))
}

/// Payload of an outgoing Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framed<'a> {
    /// An IP packet, from its IP header on; padding may follow.
    Ip(&'a [u8]),
    /// Another protocol.
    Other,
    /// Unknown: the frame is truncated, has more than two VLAN tags, or its EtherType contradicts the IP version of the
    /// packet.
    Unreadable,
}

/// Reads an outgoing Ethernet frame ([`parse::frame`]).
pub fn framed(frame: &[u8]) -> Framed<'_> {
    match parse::frame(frame) {
        parse::Frame::Ip { start, v6 } => match frame.get(start..) {
            Some(packet) if parse::link(packet, 0) == Ok((0, v6)) => Framed::Ip(packet),
            _ => Framed::Unreadable,
        },
        parse::Frame::Other => Framed::Other,
        parse::Frame::Unreadable => Framed::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Tcp, TcpOption, Udp};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0u8..3) {
            let mut bytes = bytes;
            // Random first bytes are rarely a valid version.
            match (version, bytes.first_mut()) {
                (1, Some(first)) => *first = 0x45,
                (2, Some(first)) => *first = 0x60,
                _ => {}
            }
            let _ = flow(&bytes);
            let _ = IpPacket::parse(&bytes);
            let _ = TcpView::parse(&bytes).map(|view| (view.to_string(), view.mss(), view.window_scale()));
            let _ = UdpView::parse(&bytes).map(|view| view.to_string());
            let _ = IcmpError::parse(&bytes).map(|e| e.to_string());
            let _ = checksum::verify(&bytes, true);
            checksum::fix(&mut bytes);
        }

        #[test]
        fn damaged_segment_does_not_panic(
            at in 0usize..80, to in any::<u8>(), cut in 0usize..100, v6 in any::<bool>()
        ) {
            let (a, b) = if v6 { ("[2001:db8::1]:1", "[2001:db8::2]:2") } else { ("192.0.2.1:1", "192.0.2.2:2") };
            let options = [TcpOption::Mss(1460), TcpOption::SackOk, TcpOption::WScale(7)];
            let packet = Tcp::new().options(options).between(a.parse().unwrap(), b.parse().unwrap());
            let mut bytes = packet.build().unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            bytes.truncate(cut);
            let _ = flow(&bytes);
            let _ = TcpView::parse(&bytes).map(|view| view.to_string());
            let _ = UdpView::parse(&bytes);
            let _ = IcmpError::parse(&bytes);
            let _ = checksum::verify(&bytes, false);
            checksum::fix(&mut bytes);
        }
    }

    #[test]
    fn flow_of_tcp_udp_and_nothing_else() {
        let (a, b) = ("192.0.2.1:5".parse().unwrap(), "192.0.2.2:6".parse().unwrap());
        let tcp = flow(&Tcp::new().between(a, b).build().unwrap()).unwrap();
        assert_eq!(tcp, Flow { protocol: Transport::Tcp, source: a, destination: b });
        assert_eq!(tcp.reversed().source, b);
        let mut udp = (Udp::new().between(a, b) / "x").build().unwrap();
        assert_eq!(flow(&udp).unwrap().protocol, Transport::Udp);
        udp[9] = 47;
        assert_eq!(flow(&udp), None);
    }
}
