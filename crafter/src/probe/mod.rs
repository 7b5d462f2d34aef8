//! Probing a path: [`Ping`] and [`Trace`], scripts for [`Session::run`](crate::session::Session::run) that open
//! nothing and read no clock; and [`Verdict`], what the answer to one packet says.

mod ping;
mod probe_reply;
mod target_state;
mod trace;

use std::{fmt, net::IpAddr};

pub use self::{
    ping::{Ping, PingOptions, PingOutcome, PingSummary, Pong},
    probe_reply::{Answer, Fault, Said},
    target_state::{State, Verdict},
    trace::{Ending, Hop, HopAnswer, Trace, TraceOptions},
};
use crate::layer::{Icmp, Icmpv6EchoRequest, Ip, Ipv6, Packet, Raw, Tcp, TcpOption, Udp};

/// What to probe with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// ICMP or ICMPv6 echo requests, told apart by their sequence number.
    Icmp,
    /// UDP datagrams to this port, told apart by their source port.
    Udp(u16),
    /// UDP datagrams to ports from this one on, one for each, told apart by that.
    UdpFrom(u16),
    /// TCP SYNs to this port, told apart by their source port and sequence number.
    Tcp(u16),
}

impl Method {
    /// Whether each probe needs a source port of its own.
    fn takes_ports(self) -> bool {
        matches!(self, Self::Udp(_) | Self::Tcp(_))
    }

    /// The probe of this number, without source address and source port, which the session fills in.
    fn probe(self, to: IpAddr, ttl: Option<u8>, number: u64, load: Vec<u8>) -> Packet {
        let mut packet = Packet::new();
        match to {
            IpAddr::V4(to) => {
                // Never 0: a raw socket would choose another one (raw(7)).
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
                // From the last port on to the first one again: port 0 is nobody's.
                let span = u64::from(u16::MAX - first) + 1;
                packet.push(Udp::to(first + (number % span) as u16));
            }
            Self::Tcp(port) => {
                let mss = if to.is_ipv4() { 1460 } else { 1440 };
                // Far from each other, so that no probe is in another's window.
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

/// The RST that ends what a SYN-ACK has half opened (RFC 9293, 3.5.2): its sequence number is the one that the SYN-ACK
/// expects. `None` if `reply` is no SYN-ACK.
fn reset(reply: &Packet) -> Option<Packet> {
    let segment = reply.get::<Tcp>()?;
    let back = Tcp::to(segment.sport?).sport(segment.dport?).flags("R").seq(segment.ack?).window(0_u16);
    match (reply.get::<Ip>(), reply.get::<Ipv6>()) {
        (Some(ip), _) => Some(Ip::to(ip.src?).src(ip.dst?) / back),
        (_, Some(ip)) => Some(Ipv6::to(ip.src?).src(ip.dst?) / back),
        _ => None,
    }
}
