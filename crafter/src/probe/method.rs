//! Probe packets: their methods, and the RST that a TCP probe may need.

use std::{fmt, net::IpAddr};

use crate::layer::{Icmp, Icmpv6EchoRequest, Ip, Ipv6, Packet, Raw, Tcp, TcpOption, Udp};

/// Kind of probe packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// ICMP or ICMPv6 echo requests, identified by their sequence number.
    Icmp,
    /// UDP datagrams to this port, identified by their source port.
    Udp(u16),
    /// UDP datagrams to ports counted up from this one, identified by their destination port.
    UdpFrom(u16),
    /// TCP SYNs to this port, identified by their source port and sequence number.
    Tcp(u16),
}

impl Method {
    /// Whether each probe needs a source port of its own.
    pub(super) fn takes_ports(self) -> bool {
        matches!(self, Self::Udp(_) | Self::Tcp(_))
    }

    /// The probe of this number; the session fills in source address and source port.
    pub(super) fn probe(self, to: IpAddr, ttl: Option<u8>, number: u64, load: Vec<u8>) -> Packet {
        let mut packet = Packet::new();
        match to {
            IpAddr::V4(to) => {
                // Not 0: a raw socket replaces that (raw(7)).
                let mut ip = Ip::to(to).id((number % 0xffff) as u16 + 1);
                ip.ttl = ttl.or(ip.ttl);
                packet.push(ip);
            }
            IpAddr::V6(to) => {
                let mut ip = Ipv6::to(to);
                ip.hlim = ttl.or(ip.hlim);
                packet.push(ip);
            }
        }
        match self {
            Self::Icmp if to.is_ipv4() => {
                let mut echo = Icmp::new();
                echo.seq = Some(number as u16);
                packet.push(echo);
            }
            Self::Icmp => packet.push(Icmpv6EchoRequest::new().seq(number as u16)),
            Self::Udp(port) => packet.push(Udp::to(port)),
            Self::UdpFrom(first) => {
                // Wraps from port 65535 to the first one: port 0 is reserved.
                let span = u64::from(u16::MAX - first) + 1;
                packet.push(Udp::to(first + (number % span) as u16));
            }
            Self::Tcp(port) => {
                let mss = if to.is_ipv4() { 1460 } else { 1440 };
                // Far apart, so that no probe is within another's window.
                let seq = (number as u32).wrapping_add(1).wrapping_mul(0x9e37_79b1);
                packet.push(Tcp::to(port).flags("S").seq(seq).window(64240_u16).options([TcpOption::Mss(mss)]));
            }
        }
        if !load.is_empty() && !matches!(self, Self::Tcp(_)) {
            packet.push(Raw::of(load));
        }
        packet
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("ICMP echo"),
            Self::Udp(port) => write!(f, "UDP to port {port}"),
            Self::UdpFrom(port) => write!(f, "UDP from port {port} on"),
            Self::Tcp(port) => write!(f, "TCP SYN to port {port}"),
        }
    }
}

/// The RST for the half-open connection of a SYN-ACK: its sequence number is the SYN-ACK's acknowledgment number
/// (RFC 9293, section 3.5.2). `None` if `reply` has no TCP header.
pub(super) fn rst_for(reply: &Packet) -> Option<Packet> {
    let segment = reply.get::<Tcp>()?;
    let back = Tcp::to(segment.sport?).sport(segment.dport?).flags("R").seq(segment.ack?).window(0_u16);
    match (reply.get::<Ip>(), reply.get::<Ipv6>()) {
        (Some(ip), _) => Some(Ip::to(ip.src?).src(ip.dst?) / back),
        (_, Some(ip)) => Some(Ipv6::to(ip.src?).src(ip.dst?) / back),
        _ => None,
    }
}
