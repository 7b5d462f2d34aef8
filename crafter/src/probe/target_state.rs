//! The state of a port or host, as the reply to one packet shows it.

use std::{borrow::Cow, fmt, net::IpAddr, time::Duration};

use serde::Serialize;

use super::probe_reply::{IcmpError, ProbeReply, ReplyKind};
use crate::{
    layer::{AnyLayer, Arp, Dns, NdNeighborAdvertisement, Packet},
    packet::Flags,
};

/// What a reply, or no reply, shows about the target of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetReport {
    /// State of the target.
    pub state: TargetState,
    /// Source address of the reply; `None` without a reply, or with one that is not IP.
    pub from: Option<IpAddr>,
    /// One line of text, such as `80/tcp is open: SYN-ACK from 192.0.2.1 in 0.412 ms`.
    pub text: String,
}

/// State of a port or host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    /// A SYN-ACK, or a datagram: the port is open.
    Open,
    /// A RST to a SYN, or the host's own ICMP port unreachable to a datagram: the port is closed.
    Closed,
    /// An echo reply, an ARP reply, or a neighbour advertisement: the host is up.
    Up,
    /// An ICMP destination unreachable: no route, no such host, protocol or port, or prohibited. Not the port
    /// unreachable of [`Self::Closed`], and not "fragmentation needed".
    Unreachable,
    /// TTL, or hop limit, exceeded on the path.
    TtlExceeded,
    /// Another ICMP error: packet too big, redirect, parameter problem, ...
    Error,
    /// Any other reply.
    Answered,
    /// No reply in time.
    NoAnswer,
}

impl TargetState {
    /// The state that the reply to a request shows: that of [`TargetReport::answered`], without its text.
    pub fn of_reply(request: &Packet, reply: &Packet) -> Self {
        judge(request, reply, Duration::ZERO, &mut |_| {}).0
    }

    /// All states, the positive ones first.
    pub const ALL: [Self; 8] = [
        Self::Open,
        Self::Up,
        Self::Answered,
        Self::Closed,
        Self::Unreachable,
        Self::TtlExceeded,
        Self::Error,
        Self::NoAnswer,
    ];

    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Up => "up",
            Self::Unreachable => "unreachable",
            Self::TtlExceeded => "ttl_exceeded",
            Self::Error => "error",
            Self::Answered => "answered",
            Self::NoAnswer => "no_answer",
        }
    }
}

/// The name in words: `no answer`.
impl fmt::Display for TargetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TtlExceeded => "TTL exceeded",
            Self::NoAnswer => "no answer",
            other => other.name(),
        })
    }
}

/// What a reply shows, and its source address. `say` is called with the line of text, which is not formatted before.
fn judge(
    request: &Packet,
    reply: &Packet,
    rtt: Duration,
    say: &mut dyn FnMut(fmt::Arguments<'_>),
) -> (TargetState, Option<IpAddr>) {
    let (target, within) = (Target::read(request), Within(rtt));
    let Some(answer) = ProbeReply::read(reply) else {
        let state = match reply.get::<Arp>() {
            Some(Arp { op: Some(2), psrc: Some(address), hwsrc: Some(mac), .. }) => {
                say(format_args!("{address} is at {mac}: ARP reply {within}"));
                TargetState::Up
            }
            _ => {
                say(format_args!("{target} answered: {} {within}", reply.summary()));
                TargetState::Answered
            }
        };
        return (state, None);
    };
    let from = answer.from;
    let (state, what) = match (answer.kind, target.port) {
        (ReplyKind::SynAck, Some(Port::Syn(_))) => (TargetState::Open, "is open: SYN-ACK".into()),
        (ReplyKind::Reset, Some(Port::Syn(_))) => (TargetState::Closed, "is closed: RST".into()),
        (ReplyKind::Reset, _) => (TargetState::Answered, "answered: RST".into()),
        // The reply to a multicast or broadcast request shows one host.
        (ReplyKind::Echo, _) if target.host != Some(from) => {
            say(format_args!("{from} is up: echo reply to a request for {target} {within}"));
            return (TargetState::Up, Some(from));
        }
        (ReplyKind::Echo, _) => (TargetState::Up, "is up: echo reply".into()),
        (ReplyKind::Datagram, Some(Port::Udp(_))) => match reply.get::<Dns>() {
            Some(dns) => (TargetState::Open, format!("is open: DNS answer, {}", outcome(dns)).into()),
            None => (TargetState::Open, "is open: UDP datagram".into()),
        },
        (ReplyKind::IcmpError(fault), port) => {
            let is_own = target.host == Some(from);
            let (state, is) = match (fault, port) {
                (IcmpError::Port, Some(Port::Udp(_))) if is_own => (TargetState::Closed, "is closed"),
                (IcmpError::TimeExceeded, _) => (TargetState::TtlExceeded, "was not reached"),
                (fault, _) if fault.is_unreachable() => (TargetState::Unreachable, "is unreachable"),
                // A source quench: the router may have forwarded the packet (RFC 792).
                (IcmpError::Other { r#type: 4, .. }, _) if from.is_ipv4() => {
                    (TargetState::Error, "got a source quench")
                }
                (IcmpError::Other { r#type: 5, .. }, _) if from.is_ipv4() => (TargetState::Error, "was redirected"),
                _ if is_own => (TargetState::Error, "answered with an error"),
                _ => (TargetState::Error, "was not reached"),
            };
            (state, format!("{is}: {}", reason(fault, reply)).into())
        }
        (ReplyKind::Other, None) if reply.get::<NdNeighborAdvertisement>().is_some() => {
            let advertisement = reply.get::<NdNeighborAdvertisement>();
            let address = advertisement.and_then(|advertisement| advertisement.tgt).map_or(from, IpAddr::V6);
            say(format_args!("{address} is up: neighbour advertisement from {from} {within}"));
            return (TargetState::Up, Some(from));
        }
        _ => (TargetState::Answered, Cow::from(format!("answered: {}", reply.summary()))),
    };
    say(format_args!("{target} {what} from {from} {within}"));
    (state, Some(from))
}

/// A round-trip time, as in `in 0.412 ms`.
struct Within(Duration);

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in {:.3} ms", self.0.as_secs_f64() * 1e3)
    }
}

impl TargetReport {
    /// The report on an answered request; `rtt`: round-trip time.
    pub fn answered(request: &Packet, reply: &Packet, rtt: Duration) -> Self {
        let mut text = String::new();
        let (state, from) = judge(request, reply, rtt, &mut |said| text = said.to_string());
        Self { state, from, text }
    }

    /// The report on a request that was sent `attempts` times and not answered within `timeout` of any.
    pub fn unanswered(request: &Packet, timeout: Duration, attempts: u32) -> Self {
        let (target, seconds) = (Target::read(request), timeout.as_secs_f64());
        let text = match attempts {
            0 | 1 => format!("{target}: no answer within {seconds} s"),
            more => format!("{target}: no answer to {more} requests, within {seconds} s each"),
        };
        Self { state: TargetState::NoAnswer, from: None, text }
    }
}

impl fmt::Display for TargetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Destination of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address; `None` if the request has none, or the session fills it in.
    pub host: Option<IpAddr>,
    /// The port; `None` for protocols without ports.
    pub port: Option<Port>,
}

/// A port that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// TCP, by a SYN.
    Syn(u16),
    /// TCP, by another segment.
    Tcp(u16),
    /// UDP.
    Udp(u16),
}

impl Target {
    /// Reads the destination of a request.
    pub fn read(request: &Packet) -> Self {
        let mut target = Self { host: None, port: None };
        for layer in request.layers() {
            match layer {
                AnyLayer::Ip(ip) => target.host = ip.dst.map(IpAddr::V4),
                AnyLayer::Ipv6(ip) => target.host = ip.dst.map(IpAddr::V6),
                AnyLayer::Arp(arp) => target.host = arp.pdst.map(IpAddr::V4),
                AnyLayer::Tcp(tcp) => {
                    let flags = tcp.flags.unwrap_or(Flags::SYN);
                    let is_syn = flags.contains(Flags::SYN) && !flags.intersects(Flags::ACK | Flags::RST);
                    target.port = tcp.dport.map(if is_syn { Port::Syn } else { Port::Tcp });
                    break;
                }
                AnyLayer::Udp(udp) => {
                    target.port = udp.dport.map(Port::Udp);
                    break;
                }
                // Layers after these are quoted.
                AnyLayer::Icmp(_)
                | AnyLayer::Icmpv6DestUnreach(_)
                | AnyLayer::Icmpv6PacketTooBig(_)
                | AnyLayer::Icmpv6TimeExceeded(_)
                | AnyLayer::Icmpv6ParamProblem(_) => break,
                _ => {}
            }
        }
        target
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.host) {
            (Some(Port::Syn(port) | Port::Tcp(port)), _) => write!(f, "{port}/tcp"),
            (Some(Port::Udp(port)), _) => write!(f, "{port}/udp"),
            (None, Some(host)) => write!(f, "{host}"),
            (None, None) => f.write_str("the request"),
        }
    }
}

/// The response code and the number of answer records.
fn outcome(dns: &Dns) -> String {
    let code = Dns::rcode_name(dns.rcode.unwrap_or(0).into());
    match dns.an.as_ref().map_or(0, Vec::len) {
        1 => format!("{code} with 1 record,"),
        records => format!("{code} with {records} records,"),
    }
}

/// Meaning of an ICMP error in words, if it has a name, with its type and code.
fn reason(fault: IcmpError, reply: &Packet) -> String {
    let found = reply.layers().iter().find_map(|layer| match layer {
        AnyLayer::Icmp(message) => Some(("ICMP", message.number(), message.code)),
        AnyLayer::Icmpv6DestUnreach(message) => Some(("ICMPv6", message.r#type.unwrap_or(1), message.code)),
        AnyLayer::Icmpv6PacketTooBig(message) => Some(("ICMPv6", message.r#type.unwrap_or(2), message.code)),
        AnyLayer::Icmpv6TimeExceeded(message) => Some(("ICMPv6", message.r#type.unwrap_or(3), message.code)),
        AnyLayer::Icmpv6ParamProblem(message) => Some(("ICMPv6", message.r#type.unwrap_or(4), message.code)),
        _ => None,
    });
    let numbers = found.map(|(name, r#type, code)| format!("{name} type {}, code {}", r#type, code.unwrap_or(0)));
    match (fault, numbers) {
        (IcmpError::Unreachable(_) | IcmpError::Other { .. }, Some(numbers)) => numbers,
        (_, Some(numbers)) => format!("{fault} ({numbers})"),
        (_, None) => fault.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(request: &str, reply: &str) -> (TargetState, String) {
        let read = |text: &str| {
            let packet: Packet = text.parse().expect(text);
            let first = packet.layers()[0].kind();
            Packet::parse(first, &packet.build().expect(text))
        };
        let verdict = TargetReport::answered(&read(request), &read(reply), Duration::from_micros(412));
        let named = verdict.from.is_none_or(|from| verdict.text.contains(&from.to_string()));
        assert!(named, "{verdict:?}");
        (verdict.state, verdict.text)
    }

    #[test]
    fn replies_show_the_state_of_their_target() {
        const SYN: &str = r#"IP(src="192.0.2.2", dst="192.0.2.1")/TCP(dport=80, flags="S")"#;
        const ACK: &str = r#"IP(src="192.0.2.2", dst="192.0.2.1")/TCP(dport=80, flags="A")"#;
        const UDP: &str = r#"IP(src="192.0.2.2", dst="192.0.2.1")/UDP(dport=53)"#;
        const PING: &str = r#"IP(src="192.0.2.2", dst="192.0.2.1")/ICMP(id=1)"#;
        const BACK: &str = r#"IP(src="192.0.2.1", dst="192.0.2.2")"#;
        const ROUTER: &str = r#"IP(src="203.0.113.7", dst="192.0.2.2")"#;
        for (request, reply, state, text) in [
            (SYN, format!(r#"{BACK}/TCP(sport=80, flags="SA")"#), TargetState::Open, "80/tcp is open: SYN-ACK from 192.0.2.1"),
            (SYN, format!(r#"{BACK}/TCP(sport=80, flags="RA")"#), TargetState::Closed, "80/tcp is closed: RST from 192.0.2.1"),
            (ACK, format!(r#"{BACK}/TCP(sport=80, flags="R")"#), TargetState::Answered, "80/tcp answered: RST from 192.0.2.1"),
            (PING, format!("{BACK}/ICMP(type=0, id=1)"), TargetState::Up, "192.0.2.1 is up: echo reply from 192.0.2.1"),
            (UDP, format!("{BACK}/UDP(sport=9)/\"x\""), TargetState::Open, "53/udp is open: UDP datagram from 192.0.2.1"),
            (
                UDP,
                format!(r#"{BACK}/UDP(sport=53)/DNS(qr=1, rcode=3, qd=DNSQR(qname="lab.test"))"#),
                TargetState::Open,
                "53/udp is open: DNS answer, NXDOMAIN with 0 records, from 192.0.2.1",
            ),
            (
                UDP,
                format!("{BACK}/ICMP(type=3, code=3)/{UDP}"),
                TargetState::Closed,
                "53/udp is closed: port unreachable (ICMP type 3, code 3) from 192.0.2.1",
            ),
            (
                UDP,
                format!("{ROUTER}/ICMP(type=3, code=3)/{UDP}"),
                TargetState::Unreachable,
                "53/udp is unreachable: port unreachable (ICMP type 3, code 3) from 203.0.113.7",
            ),
            (
                SYN,
                format!("{ROUTER}/ICMP(type=3, code=13)/{SYN}"),
                TargetState::Unreachable,
                "80/tcp is unreachable: communication prohibited (ICMP type 3, code 13) from 203.0.113.7",
            ),
            (
                PING,
                format!("{ROUTER}/ICMP(type=11)/{PING}"),
                TargetState::TtlExceeded,
                "192.0.2.1 was not reached: time to live exceeded (ICMP type 11, code 0) from 203.0.113.7",
            ),
            (
                r#"IPv6(src="2001:db8::2", dst="2001:db8::1")/TCP(dport=80)"#,
                r#"IPv6(src="2001:db8::1", dst="2001:db8::2")/ICMPv6DestUnreach(code=1)/IPv6(src="2001:db8::2", dst="2001:db8::1")/TCP(dport=80)"#.to_owned(),
                TargetState::Unreachable,
                "80/tcp is unreachable: communication prohibited (ICMPv6 type 1, code 1) from 2001:db8::1",
            ),
            (
                r#"Ether()/ARP(pdst="192.0.2.1")"#,
                r#"Ether()/ARP(op=2, psrc="192.0.2.1", hwsrc="02:00:00:00:00:01")"#.to_owned(),
                TargetState::Up,
                "192.0.2.1 is at 02:00:00:00:00:01: ARP reply",
            ),
            // Codes without a name are printed as numbers.
            (
                SYN,
                format!("{ROUTER}/ICMP(type=3, code=15)/{SYN}"),
                TargetState::Unreachable,
                "80/tcp is unreachable: ICMP type 3, code 15 from 203.0.113.7",
            ),
            (
                PING,
                format!("{ROUTER}/ICMP(type=12, code=1)/{PING}"),
                TargetState::Error,
                "192.0.2.1 was not reached: ICMP type 12, code 1 from 203.0.113.7",
            ),
            (
                PING,
                format!("{BACK}/ICMP(type=12, code=1)/{PING}"),
                TargetState::Error,
                "192.0.2.1 answered with an error: ICMP type 12, code 1 from 192.0.2.1",
            ),
            (
                PING,
                format!("{ROUTER}/ICMP(type=5, code=1)/{PING}"),
                TargetState::Error,
                "192.0.2.1 was redirected: ICMP type 5, code 1 from 203.0.113.7",
            ),
            (
                UDP,
                format!("{ROUTER}/ICMP(type=4)/{UDP}"),
                TargetState::Error,
                "53/udp got a source quench: ICMP type 4, code 0 from 203.0.113.7",
            ),
            (
                r#"IPv6(src="2001:db8::2", dst="2001:db8::1")/TCP(dport=80)"#,
                r#"IPv6(src="2001:db8::7", dst="2001:db8::2")/ICMPv6ParamProblem(code=1)/IPv6(src="2001:db8::2", dst="2001:db8::1")/TCP(dport=80)"#.to_owned(),
                TargetState::Error,
                "80/tcp was not reached: ICMPv6 type 4, code 1 from 2001:db8::7",
            ),
            (
                r#"IP(src="192.0.2.2", dst="192.0.2.255")/ICMP(id=1)"#,
                format!("{BACK}/ICMP(type=0, id=1)"),
                TargetState::Up,
                "192.0.2.1 is up: echo reply to a request for 192.0.2.255",
            ),
            (
                r#"IPv6(src="fe80::2", dst="ff02::1:ff00:1")/ICMPv6ND_NS(tgt="2001:db8::1")"#,
                r#"IPv6(src="fe80::1", dst="fe80::2")/ICMPv6ND_NA(tgt="2001:db8::1", s=1)"#.to_owned(),
                TargetState::Up,
                "2001:db8::1 is up: neighbour advertisement from fe80::1",
            ),
            // The request is an ICMP error itself.
            (
                r#"IPv6(src="2001:db8::2", dst="2001:db8::1")/ICMPv6DestUnreach(code=1)/IPv6(src="2001:db8::1", dst="2001:db8::9")/TCP(dport=80)"#,
                r#"IPv6(src="2001:db8::7", dst="2001:db8::2")/ICMPv6TimeExceeded()/IPv6(src="2001:db8::2", dst="2001:db8::1")"#.to_owned(),
                TargetState::TtlExceeded,
                "2001:db8::1 was not reached: time to live exceeded (ICMPv6 type 3, code 0) from 2001:db8::7",
            ),
            // Replies from a tap are frames.
            (PING, format!("Ether()/{BACK}/ICMP(type=0, id=1)"), TargetState::Up, "192.0.2.1 is up: echo reply from 192.0.2.1"),
        ] {
            assert_eq!(verdict(request, &reply), (state, format!("{text} in 0.412 ms")), "{reply}");
        }
    }

    #[test]
    fn no_reply_shows_no_answer() {
        let syn: Packet = r#"IP(dst="192.0.2.1")/TCP(dport=80)"#.parse().unwrap();
        let verdict = |seconds, attempts| TargetReport::unanswered(&syn, Duration::from_secs_f64(seconds), attempts);
        assert_eq!(verdict(2.0, 1).to_string(), "80/tcp: no answer within 2 s");
        assert_eq!(verdict(0.5, 3).text, "80/tcp: no answer to 3 requests, within 0.5 s each");
        assert_eq!(
            serde_json::to_value(verdict(2.0, 1)).unwrap(),
            serde_json::json!({ "state": "no_answer", "from": null, "text": "80/tcp: no answer within 2 s" })
        );
    }
}
