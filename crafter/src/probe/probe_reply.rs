//! Classifies replies to probes.

use std::{fmt, net::IpAddr};

use serde::Serialize;

use crate::{
    layer::{AnyLayer, Icmp, Icmpv6DestUnreach, Icmpv6PacketTooBig, Icmpv6TimeExceeded, Ip, Ipv6, MplsLabel, Packet},
    packet::Flags,
};

/// A reply to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReply {
    /// Source address.
    pub from: IpAddr,
    /// TTL, or hop limit, of the reply when it was received.
    pub ttl: u8,
    /// Kind of the reply.
    pub kind: ReplyKind,
    /// MPLS labels of the probe when the router received it, the outermost first (RFC 4950).
    pub labels: Vec<MplsLabel>,
}

/// Kind of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// An echo reply.
    Echo,
    /// A SYN-ACK: the port is open.
    SynAck,
    /// A RST: the port is closed, the host is up.
    Reset,
    /// A UDP datagram.
    Datagram,
    /// An ICMP or ICMPv6 error.
    IcmpError(IcmpError),
    /// Any other packet that answers the probe.
    Other,
}

/// Meaning of an ICMP or ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IcmpError {
    /// TTL, or hop limit, exceeded in transit: a router on the path.
    TimeExceeded,
    /// No route to the network.
    Network,
    /// Host, or address, unreachable.
    Host,
    /// The host does not implement the protocol.
    Protocol,
    /// No socket listens on the port.
    Port,
    /// Larger than the MTU of the next link, in bytes; 0 if the router does not report it.
    TooBig(u32),
    /// The source route failed.
    SourceRoute,
    /// Forbidden by a rule.
    Prohibited,
    /// Destination unreachable with another code.
    Unreachable(u8),
    /// Another error.
    Other {
        /// Its type.
        r#type: u8,
        /// Its code.
        code: u8,
    },
}

impl ProbeReply {
    /// Reads a reply, from its IP header on or as a frame; `None` if it has no IP header.
    pub fn read(packet: &Packet) -> Option<Self> {
        let is_link =
            |layer: &&AnyLayer| matches!(layer, AnyLayer::Ether(_) | AnyLayer::Dot1Q(_) | AnyLayer::Dot1AD(_));
        let link = packet.layers().iter().take_while(is_link).count();
        let (from, ttl) = match packet.layers().get(link)? {
            AnyLayer::Ip(Ip { src, ttl, .. }) => (IpAddr::V4((*src)?), *ttl),
            AnyLayer::Ipv6(Ipv6 { src, hlim, .. }) => (IpAddr::V6((*src)?), *hlim),
            _ => return None,
        };
        // The first of these, since errors quote other layers after their own.
        let kind = packet.layers()[link + 1..].iter().find_map(|layer| match layer {
            AnyLayer::Icmp(message) => Some(icmp(message)),
            AnyLayer::Icmpv6EchoReply(_) => Some(ReplyKind::Echo),
            AnyLayer::Icmpv6DestUnreach(Icmpv6DestUnreach { code, .. }) => {
                Some(ReplyKind::IcmpError(unreachable_v6(code.unwrap_or(0))))
            }
            AnyLayer::Icmpv6TimeExceeded(Icmpv6TimeExceeded { code, .. }) => {
                Some(ReplyKind::IcmpError(exceeded(3, code.unwrap_or(0))))
            }
            AnyLayer::Icmpv6PacketTooBig(Icmpv6PacketTooBig { mtu, .. }) => {
                Some(ReplyKind::IcmpError(IcmpError::TooBig(mtu.unwrap_or(0))))
            }
            AnyLayer::Icmpv6ParamProblem(problem) => {
                Some(ReplyKind::IcmpError(IcmpError::Other { r#type: 4, code: problem.code.unwrap_or(0) }))
            }
            AnyLayer::Tcp(segment) => Some(match segment.flags {
                Some(flags) if flags.contains(Flags::RST) => ReplyKind::Reset,
                Some(flags) if flags.contains(Flags::SYN | Flags::ACK) => ReplyKind::SynAck,
                _ => ReplyKind::Other,
            }),
            AnyLayer::Udp(_) => Some(ReplyKind::Datagram),
            _ => None,
        });
        let kind = kind.unwrap_or(ReplyKind::Other);
        Some(Self { from, ttl: ttl.unwrap_or(0), kind, labels: packet.mpls_stack().to_vec() })
    }

    /// The ICMP error, if it is one.
    pub fn icmp_error(&self) -> Option<IcmpError> {
        match self.kind {
            ReplyKind::IcmpError(fault) => Some(fault),
            _ => None,
        }
    }

    /// Whether it shows that `destination` received the probe: it sent the reply, other than TTL exceeded and packet
    /// too big.
    pub fn is_from(&self, destination: IpAddr) -> bool {
        let is_on_path = matches!(self.kind, ReplyKind::IcmpError(IcmpError::TimeExceeded | IcmpError::TooBig(_)));
        // Probes to a group, or to an address of this host, are answered from another address.
        let is_own = self.from == destination || self.icmp_error().is_none();
        is_own && !is_on_path
    }
}

/// By ICMP type and code: RFC 792; RFC 1122, section 3.2.2.1; RFC 1812, section 5.2.7.1.
fn icmp(message: &Icmp) -> ReplyKind {
    let code = message.code.unwrap_or(0);
    ReplyKind::IcmpError(match (message.number(), code) {
        (0, _) => return ReplyKind::Echo,
        (3, 0 | 6) => IcmpError::Network,
        (3, 1 | 7) => IcmpError::Host,
        (3, 2) => IcmpError::Protocol,
        (3, 3) => IcmpError::Port,
        (3, 4) => IcmpError::TooBig(message.nexthopmtu.unwrap_or(0).into()),
        (3, 5) => IcmpError::SourceRoute,
        (3, 9 | 10 | 13) => IcmpError::Prohibited,
        (3, code) => IcmpError::Unreachable(code),
        (11, code) => exceeded(11, code),
        (r#type, code) if message.is_error() => IcmpError::Other { r#type, code },
        _ => return ReplyKind::Other,
    })
}

/// Code 0: in transit; 1: while reassembling fragments (RFC 792).
fn exceeded(r#type: u8, code: u8) -> IcmpError {
    if code == 0 { IcmpError::TimeExceeded } else { IcmpError::Other { r#type, code } }
}

/// By ICMPv6 code: RFC 4443, section 3.1.
fn unreachable_v6(code: u8) -> IcmpError {
    match code {
        0 => IcmpError::Network,
        1 | 5 | 6 => IcmpError::Prohibited,
        3 => IcmpError::Host,
        4 => IcmpError::Port,
        code => IcmpError::Unreachable(code),
    }
}

impl IcmpError {
    /// The annotation of `traceroute`, such as `!H`; empty for TTL exceeded and port unreachable.
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

    /// Whether it says that the destination is unreachable.
    pub fn is_unreachable(self) -> bool {
        !matches!(self, Self::TimeExceeded | Self::TooBig(_) | Self::Other { .. })
    }
}

/// In words.
impl fmt::Display for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimeExceeded => f.write_str("time to live exceeded"),
            Self::Network => f.write_str("network unreachable"),
            Self::Host => f.write_str("host unreachable"),
            Self::Protocol => f.write_str("protocol unreachable"),
            Self::Port => f.write_str("port unreachable"),
            Self::TooBig(0) => f.write_str("too big for a link on the path"),
            Self::TooBig(mtu) => write!(f, "too big for a link on the path, whose MTU is {mtu} bytes"),
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

    fn read(packet: Packet) -> ProbeReply {
        ProbeReply::read(&Packet::from_ip(&packet.build().unwrap())).unwrap()
    }

    #[test]
    fn icmp_errors_of_both_versions_are_classified() {
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
            let fault = answer.icmp_error().unwrap();
            assert_eq!((fault.annotation().as_str(), fault.is_unreachable()), (annotation, unreachable), "{fault}");
            assert_eq!((answer.from, answer.ttl), (IpAddr::from([203, 0, 113, 7]), 61));
            assert!(!answer.is_from(here));
        }
        let icmp = Icmp::new().r#type(3).code(4).nexthopmtu(1280);
        let answer = read(Ip::to("192.0.2.1").src("192.0.2.9") / icmp / quote());
        assert_eq!((answer.icmp_error(), answer.is_from(here)), (Some(IcmpError::TooBig(1280)), false));
        let quote = || Ipv6::to("2001:db8::9").src("2001:db8::1") / Udp::to(33_434).sport(5000);
        let six = || Ipv6::to("2001:db8::1").src("2001:db8::9");
        for (code, fault) in
            [(0, IcmpError::Network), (1, IcmpError::Prohibited), (3, IcmpError::Host), (4, IcmpError::Port)]
        {
            let answer = read(six() / Icmpv6DestUnreach::new().code(code) / quote());
            assert_eq!(answer.kind, ReplyKind::IcmpError(fault));
            assert!(answer.is_from("2001:db8::9".parse().unwrap()));
        }
        assert_eq!(
            read(six() / Icmpv6PacketTooBig::new().mtu(1300_u32) / quote()).icmp_error(),
            Some(IcmpError::TooBig(1300))
        );
    }

    #[test]
    fn replies_of_a_host_are_classified() {
        let back = || Ip::to("192.0.2.1").src("192.0.2.9");
        for (packet, what) in [
            (back() / Icmp::echo(1, 2).r#type(0), ReplyKind::Echo),
            (back() / Tcp::to(5000).flags("SA"), ReplyKind::SynAck),
            (back() / Tcp::to(5000).flags("RA"), ReplyKind::Reset),
            (back() / Tcp::to(5000).flags("A"), ReplyKind::Other),
            (back() / Udp::to(5000), ReplyKind::Datagram),
        ] {
            let answer = read(packet);
            assert_eq!(answer.kind, what);
            assert!(answer.is_from([192, 0, 2, 9].into()));
        }
    }

    #[test]
    fn mpls_labels_are_read_from_the_icmp_extension() {
        let label = MplsLabel { label: 24_001, cos: 2, s: 1, ttl: 1 };
        let quote = Ip::to("192.0.2.9").src("192.0.2.1") / Udp::to(33_434).sport(5000);
        let error = Ip::to("192.0.2.1").src("203.0.113.7") / Icmp::new().r#type(11) / quote;
        let answer = read(error / IcmpExtensionHeader::new() / IcmpExtensionMpls::new().stack([label]));
        assert_eq!((answer.labels, answer.kind), (vec![label], ReplyKind::IcmpError(IcmpError::TimeExceeded)));
    }
}
