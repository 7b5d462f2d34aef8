//! What an answer to a probe says.

use std::{fmt, net::IpAddr};

use serde::Serialize;

use crate::{
    layer::{AnyLayer, Icmp, Icmpv6DestUnreach, Icmpv6PacketTooBig, Icmpv6TimeExceeded, Ip, Ipv6, MplsLabel, Packet},
    packet::Flags,
};

/// An answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answers.
    pub from: IpAddr,
    /// The TTL, or hop limit, that is left of the answer's.
    pub ttl: u8,
    /// What it says.
    pub said: Said,
    /// The labels of MPLS with which the probe came to the router, the outermost first (RFC 4950).
    pub labels: Vec<MplsLabel>,
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// An echo reply.
    Echo,
    /// A SYN-ACK: the port is open.
    SynAck,
    /// A RST: the port is closed, the host is there.
    Reset,
    /// A UDP datagram.
    Datagram,
    /// An ICMP or ICMPv6 error.
    Fault(Fault),
    /// Anything else that answers the probe.
    Other,
}

/// What an ICMP or ICMPv6 error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The TTL, or hop limit, was used up: the path goes on from here.
    TimeExceeded,
    /// No route to the network.
    Network,
    /// The host, or address, does not answer there.
    Host,
    /// The protocol is not known there.
    Protocol,
    /// Nobody listens on the port.
    Port,
    /// Larger than what fits the next link, of this MTU in bytes; 0: not told.
    TooBig(u32),
    /// The source route failed.
    SourceRoute,
    /// Forbidden by a rule.
    Prohibited,
    /// Unreachable with another code.
    Unreachable(u8),
    /// Another error.
    Other {
        /// Its type.
        r#type: u8,
        /// Its code.
        code: u8,
    },
}

impl Answer {
    /// Reads a packet that answers a probe, from its IP header on or as a frame; `None` if there is no IP in it.
    pub fn read(packet: &Packet) -> Option<Self> {
        let is_link =
            |layer: &&AnyLayer| matches!(layer, AnyLayer::Ether(_) | AnyLayer::Dot1Q(_) | AnyLayer::Dot1AD(_));
        let link = packet.layers().iter().take_while(is_link).count();
        let (from, ttl) = match packet.layers().get(link)? {
            AnyLayer::Ip(Ip { src, ttl, .. }) => (IpAddr::V4((*src)?), *ttl),
            AnyLayer::Ipv6(Ipv6 { src, hlim, .. }) => (IpAddr::V6((*src)?), *hlim),
            _ => return None,
        };
        // The first that is none of IP's: an error quotes others behind it.
        let said = packet.layers()[link + 1..].iter().find_map(|layer| match layer {
            AnyLayer::Icmp(message) => Some(icmp(message)),
            AnyLayer::Icmpv6EchoReply(_) => Some(Said::Echo),
            AnyLayer::Icmpv6DestUnreach(Icmpv6DestUnreach { code, .. }) => {
                Some(Said::Fault(unreachable_v6(code.unwrap_or(0))))
            }
            AnyLayer::Icmpv6TimeExceeded(Icmpv6TimeExceeded { code, .. }) => {
                Some(Said::Fault(exceeded(3, code.unwrap_or(0))))
            }
            AnyLayer::Icmpv6PacketTooBig(Icmpv6PacketTooBig { mtu, .. }) => {
                Some(Said::Fault(Fault::TooBig(mtu.unwrap_or(0))))
            }
            AnyLayer::Icmpv6ParamProblem(problem) => {
                Some(Said::Fault(Fault::Other { r#type: 4, code: problem.code.unwrap_or(0) }))
            }
            AnyLayer::Tcp(segment) => Some(match segment.flags {
                Some(flags) if flags.contains(Flags::RST) => Said::Reset,
                Some(flags) if flags.contains(Flags::SYN | Flags::ACK) => Said::SynAck,
                _ => Said::Other,
            }),
            AnyLayer::Udp(_) => Some(Said::Datagram),
            _ => None,
        });
        let said = said.unwrap_or(Said::Other);
        Some(Self { from, ttl: ttl.unwrap_or(0), said, labels: packet.mpls_stack().to_vec() })
    }

    /// The error, if it is one.
    pub fn fault(&self) -> Option<Fault> {
        match self.said {
            Said::Fault(fault) => Some(fault),
            _ => None,
        }
    }

    /// Whether it shows that `destination` was reached: its own word, other than that the TTL was used up.
    pub fn is_from(&self, destination: IpAddr) -> bool {
        let passing = matches!(self.said, Said::Fault(Fault::TimeExceeded | Fault::TooBig(_)));
        // What was sent to a group, or to any address of this host, is answered by another one.
        let own = self.from == destination || self.fault().is_none();
        own && !passing
    }
}

/// ICMP types and codes: RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1.
fn icmp(message: &Icmp) -> Said {
    let code = message.code.unwrap_or(0);
    Said::Fault(match (message.number(), code) {
        (0, _) => return Said::Echo,
        (3, 0 | 6) => Fault::Network,
        (3, 1 | 7) => Fault::Host,
        (3, 2) => Fault::Protocol,
        (3, 3) => Fault::Port,
        (3, 4) => Fault::TooBig(message.nexthopmtu.unwrap_or(0).into()),
        (3, 5) => Fault::SourceRoute,
        (3, 9 | 10 | 13) => Fault::Prohibited,
        (3, code) => Fault::Unreachable(code),
        (11, code) => exceeded(11, code),
        (r#type, code) if message.is_error() => Fault::Other { r#type, code },
        _ => return Said::Other,
    })
}

/// Code 0 is of routers; 1, of hosts: a fragment is missing.
fn exceeded(r#type: u8, code: u8) -> Fault {
    if code == 0 { Fault::TimeExceeded } else { Fault::Other { r#type, code } }
}

/// Codes of RFC 4443, 3.1.
fn unreachable_v6(code: u8) -> Fault {
    match code {
        0 => Fault::Network,
        1 | 5 | 6 => Fault::Prohibited,
        3 => Fault::Host,
        4 => Fault::Port,
        code => Fault::Unreachable(code),
    }
}

impl Fault {
    /// What `traceroute` writes behind the time; empty for what is usual on the way, and at its end with UDP.
    pub fn annotation(self) -> String {
        match self {
            Self::TimeExceeded | Self::Port => String::new(),
            Self::Network => "!N".into(),
            Self::Host => "!H".into(),
            Self::Protocol => "!P".into(),
            Self::TooBig(mtu) => format!("!F-{mtu}"),
            Self::SourceRoute => "!S".into(),
            Self::Prohibited => "!X".into(),
            Self::Unreachable(14) => "!V".into(),
            Self::Unreachable(15) => "!C".into(),
            Self::Unreachable(code) => format!("!<{code}>"),
            Self::Other { r#type, code } => format!("!<{type}-{code}>"),
        }
    }

    /// Whether it says that the destination cannot be had.
    pub fn is_unreachable(self) -> bool {
        !matches!(self, Self::TimeExceeded | Self::TooBig(_) | Self::Other { .. })
    }
}

/// In words.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimeExceeded => f.write_str("time to live exceeded"),
            Self::Network => f.write_str("network unreachable"),
            Self::Host => f.write_str("host unreachable"),
            Self::Protocol => f.write_str("protocol unreachable"),
            Self::Port => f.write_str("port unreachable"),
            Self::TooBig(0) => f.write_str("too big for a link on the way"),
            Self::TooBig(mtu) => write!(f, "too big for a link on the way, whose MTU is {mtu} bytes"),
            Self::SourceRoute => f.write_str("source route failed"),
            Self::Prohibited => f.write_str("communication prohibited"),
            Self::Unreachable(code) => write!(f, "unreachable, code {code}"),
            Self::Other { r#type, code } => write!(f, "ICMP error of type {type}, code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{IcmpExtensionHeader, IcmpExtensionMpls, Tcp, Udp};

    fn read(packet: Packet) -> Answer {
        Answer::read(&Packet::from_ip(&packet.build().unwrap())).unwrap()
    }

    #[test]
    fn errors_of_both_versions() {
        let here = IpAddr::from([192, 0, 2, 9]);
        let quote = || Ip::to("192.0.2.9").src("192.0.2.1") / Udp::to(33_434).sport(5000);
        for (r#type, code, annotation, unreachable) in [
            (11, 0, "", false),
            (11, 1, "!<11-1>", false),
            (3, 0, "!N", true),
            (3, 1, "!H", true),
            (3, 2, "!P", true),
            (3, 3, "", true),
            (3, 13, "!X", true),
            (3, 15, "!C", true),
            (3, 99, "!<99>", true),
            (12, 0, "!<12-0>", false),
        ] {
            let icmp = Icmp::new().r#type(r#type).code(code);
            let answer = read(Ip::to("192.0.2.1").src("203.0.113.7").ttl(61) / icmp / quote());
            let fault = answer.fault().unwrap();
            assert_eq!((fault.annotation().as_str(), fault.is_unreachable()), (annotation, unreachable), "{fault}");
            assert_eq!((answer.from, answer.ttl), (IpAddr::from([203, 0, 113, 7]), 61));
            assert!(!answer.is_from(here));
        }
        let icmp = Icmp::new().r#type(3).code(4).nexthopmtu(1280);
        let answer = read(Ip::to("192.0.2.1").src("192.0.2.9") / icmp / quote());
        assert_eq!((answer.fault(), answer.is_from(here)), (Some(Fault::TooBig(1280)), false));
        let quote = || Ipv6::to("2001:db8::9").src("2001:db8::1") / Udp::to(33_434).sport(5000);
        let six = || Ipv6::to("2001:db8::1").src("2001:db8::9");
        for (code, fault) in [(0, Fault::Network), (1, Fault::Prohibited), (3, Fault::Host), (4, Fault::Port)] {
            let answer = read(six() / Icmpv6DestUnreach::new().code(code) / quote());
            assert_eq!(answer.said, Said::Fault(fault));
            assert!(answer.is_from("2001:db8::9".parse().unwrap()));
        }
        assert_eq!(read(six() / Icmpv6PacketTooBig::new().mtu(1300_u32) / quote()).fault(), Some(Fault::TooBig(1300)));
    }

    #[test]
    fn what_a_host_says() {
        let back = || Ip::to("192.0.2.1").src("192.0.2.9");
        for (packet, what) in [
            (back() / Icmp::echo(1, 2).r#type(0), Said::Echo),
            (back() / Tcp::to(5000).flags("SA"), Said::SynAck),
            (back() / Tcp::to(5000).flags("RA"), Said::Reset),
            (back() / Tcp::to(5000).flags("A"), Said::Other),
            (back() / Udp::to(5000), Said::Datagram),
        ] {
            let answer = read(packet);
            assert_eq!(answer.said, what);
            assert!(answer.is_from([192, 0, 2, 9].into()));
        }
    }

    #[test]
    fn labels() {
        let label = MplsLabel { label: 24_001, cos: 2, s: 1, ttl: 1 };
        let quote = Ip::to("192.0.2.9").src("192.0.2.1") / Udp::to(33_434).sport(5000);
        let error = Ip::to("192.0.2.1").src("203.0.113.7") / Icmp::new().r#type(11) / quote;
        let answer = read(error / IcmpExtensionHeader::new() / IcmpExtensionMpls::new().stack([label]));
        assert_eq!((answer.labels, answer.said), (vec![label], Said::Fault(Fault::TimeExceeded)));
    }
}
