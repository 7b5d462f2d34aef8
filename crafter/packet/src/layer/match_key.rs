//! Keys that a request and its replies share, to look up one of many requests in flight.

use std::net::IpAddr;

use super::{
    AnyLayer, Icmp, Ip, Ipv6, Packet, TcpError, answer::behind_link, ether, icmpv6, ip, ipv6, protocol::or_default, udp,
};
use crate::view::ip::{ICMP, ICMPV6, TCP, UDP};

/// A lookup key that is equal for a request and everything that answers it, ICMP errors included.
///
/// Equal keys are necessary for [`answers`](Packet::answers), not sufficient. Computing a key neither allocates nor
/// builds. It includes the address only if no other address can answer (TCP), unlike a broadcast ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatchKey {
    /// IP protocol number; [`LINK`] and above for packets without IP.
    protocol: u16,
    /// Message type of the request, for ICMP and ARP.
    message: u16,
    /// Ports of the request, or identifier and sequence number.
    numbers: (u16, u16),
    /// The address of the request; 0: any.
    address: u128,
}

/// Above all IP protocol numbers.
const LINK: u16 = 0x100;
const ARP: u16 = LINK + 1;

impl Packet {
    /// The key of this packet as a request. Unset fields have their defaults.
    ///
    /// ```
    /// # use crafter_packet::layer::{Ip, Tcp};
    /// let request = Ip::to("192.0.2.2").src("192.0.2.1") / Tcp::to(80).sport(5000).seq(9);
    /// let reply = Ip::to("192.0.2.1").src("192.0.2.2") / Tcp::to(5000).sport(80).flags("SA").ack(10);
    /// assert!(reply.answers(&request));
    /// assert_eq!(reply.reply_key(), request.request_key());
    /// ```
    ///
    /// Store requests in a map by this key. Those that a reply may answer have the reply's
    /// [`reply_key`](Self::reply_key); [`answers`](Self::answers) selects among them.
    pub fn request_key(&self) -> MatchKey {
        let layers = behind_link(self.layers());
        of_request(layers).of_link(self.layers(), layers)
    }

    /// The key of the requests that this received packet can answer: if `reply.answers(&request)`, then
    /// `reply.reply_key() == request.request_key()`. For an ICMP error, the key of the quoted packet.
    pub fn reply_key(&self) -> MatchKey {
        let layers = behind_link(self.layers());
        of_reply(layers).of_link(self.layers(), layers)
    }

    /// The only address that can answer this request, apart from ICMP errors; `None` if any can, because the request
    /// goes to a group or is not an IP packet.
    ///
    /// For many requests that differ only in their destination, a table by key and this address is faster: look up a
    /// reply by its key and [`reply_source`](Self::reply_source), then by its key and `None`. If
    /// `reply.answers(&request)`, then `request.expected_source()` is one of these two.
    pub fn expected_source(&self) -> Option<IpAddr> {
        destination(behind_link(self.layers())).filter(|address| !is_group(*address))
    }

    /// The address for which this reply answers: its source; for an ICMP error, the destination of the quoted packet.
    pub fn reply_source(&self) -> Option<IpAddr> {
        let layers = behind_link(self.layers());
        quote(layers).map_or_else(|| source(layers), destination)
    }
}

/// Whether an address is multicast or broadcast.
pub(crate) fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// The packet quoted by an ICMP error, from its IP header on.
fn quote(layers: &[AnyLayer]) -> Option<&[AnyLayer]> {
    let above = above_ip(layers)?;
    match above {
        [AnyLayer::Icmp(icmp), quoted @ ..] if icmp.is_error() => matches!(quoted, [AnyLayer::Ip(_), ..]),
        [error, quoted @ ..] if icmpv6::is_error(error) => matches!(quoted, [AnyLayer::Ipv6(_), ..]),
        _ => false,
    }
    .then(|| &above[1..])
}

/// The layers above the outermost IP header, without IPv6 extension headers.
fn above_ip(layers: &[AnyLayer]) -> Option<&[AnyLayer]> {
    match layers {
        [AnyLayer::Ip(_), above @ ..] => Some(above),
        [AnyLayer::Ipv6(_), above @ ..] => Some(&above[ipv6::extensions(above)..]),
        _ => None,
    }
}

/// The final destination according to the outermost IP header.
fn destination(layers: &[AnyLayer]) -> Option<IpAddr> {
    match layers {
        [AnyLayer::Ip(ip), ..] => ip::last_destination(ip),
        [AnyLayer::Ipv6(ip), above @ ..] => ipv6::last_destination(ip, above),
        _ => None,
    }
}

/// The source address in the outermost IP header.
fn source(layers: &[AnyLayer]) -> Option<IpAddr> {
    match layers.first() {
        Some(AnyLayer::Ip(ip)) => or_default!(ip, Ip, src).map(Into::into),
        Some(AnyLayer::Ipv6(ip)) => or_default!(ip, Ipv6, src).map(Into::into),
        _ => None,
    }
}

/// The protocol number in the outermost IP header or its last extension header.
fn protocol(layers: &[AnyLayer]) -> Option<u8> {
    let above = above_ip(layers)?;
    let set = match &layers[layers.len() - above.len() - 1] {
        AnyLayer::Ip(ip) => ip.proto,
        AnyLayer::Ipv6(ip) => ip.nh,
        AnyLayer::Ipv6HopByHop(header) => header.nh,
        AnyLayer::Ipv6Destination(header) => header.nh,
        AnyLayer::Ipv6Routing(header) => header.nh,
        AnyLayer::Ipv6Fragment(header) => header.nh,
        _ => None,
    };
    set.or(ip::protocol(above.first()))
}

impl MatchKey {
    /// Adds the EtherType if the key has nothing else.
    fn of_link(self, layers: &[AnyLayer], behind: &[AnyLayer]) -> Self {
        let link = layers.len() - behind.len();
        let set = match layers[..link].last() {
            Some(AnyLayer::Ether(frame)) if self == NOTHING => frame.r#type,
            Some(AnyLayer::Dot1Q(tag)) if self == NOTHING => tag.r#type,
            Some(AnyLayer::Dot1AD(tag)) if self == NOTHING => tag.r#type,
            _ => return self,
        };
        Self { numbers: (set.unwrap_or_else(|| ether::ethertype(behind.first())), 0), ..self }
    }
}

const NOTHING: MatchKey = MatchKey { protocol: LINK, message: 0, numbers: (0, 0), address: 0 };

fn bits(address: Option<IpAddr>) -> u128 {
    match address {
        Some(IpAddr::V4(address)) => address.to_ipv6_mapped().to_bits(),
        Some(IpAddr::V6(address)) => address.to_bits(),
        None => 0,
    }
}

fn tcp(ports: (Option<u16>, Option<u16>), address: Option<IpAddr>) -> MatchKey {
    let numbers = (ports.0.or(TcpError::DEFAULTS.sport), ports.1.or(TcpError::DEFAULTS.dport));
    let numbers = (numbers.0.unwrap_or(0), numbers.1.unwrap_or(0));
    MatchKey { protocol: TCP.into(), numbers, address: bits(address), ..NOTHING }
}

fn udp(source: u16, destination: u16) -> MatchKey {
    let is_tunnel = source == udp::VXLAN || destination == udp::VXLAN;
    // Both ends of a tunnel send to the same port, from any source port.
    let numbers = if is_tunnel { (0, udp::VXLAN) } else { (source, destination) };
    MatchKey { protocol: UDP.into(), numbers, ..NOTHING }
}

fn numbered(protocol: u8, message: u8, numbers: (u16, u16)) -> MatchKey {
    MatchKey { protocol: protocol.into(), message: message.into(), numbers, ..NOTHING }
}

/// The key of a request, from the layer after the link layer on.
fn of_request(layers: &[AnyLayer]) -> MatchKey {
    let above = above_ip(layers).unwrap_or(layers);
    let solicited = |target: Option<std::net::Ipv6Addr>| MatchKey {
        address: bits(target.map(Into::into)),
        ..numbered(ICMPV6, 135, (0, 0))
    };
    if let [AnyLayer::Ip(ip), AnyLayer::Raw(cut), ..] = layers
        && let Some(message) = Icmp::cut_short(ip, cut)
    {
        return numbered(ICMP, message.number(), message.numbers());
    }
    match above {
        [AnyLayer::Tcp(segment), ..] => tcp((segment.sport, segment.dport), destination(layers)),
        [AnyLayer::TcpError(segment), ..] => tcp((segment.sport, segment.dport), destination(layers)),
        [AnyLayer::Udp(datagram), rest @ ..] => {
            let port = udp::port(rest.first());
            udp(datagram.sport.unwrap_or(port), datagram.dport.unwrap_or(port))
        }
        [AnyLayer::Icmp(message), ..] => numbered(ICMP, message.number(), message.numbers()),
        [AnyLayer::Icmpv6EchoRequest(echo), ..] => numbered(ICMPV6, 128, (echo.id.unwrap_or(0), echo.seq.unwrap_or(0))),
        [AnyLayer::Icmpv6EchoReply(echo), ..] => numbered(ICMPV6, 129, (echo.id.unwrap_or(0), echo.seq.unwrap_or(0))),
        [AnyLayer::NdNeighborSolicitation(message), ..] => {
            solicited(message.tgt.or(Some(std::net::Ipv6Addr::UNSPECIFIED)))
        }
        [AnyLayer::NdRouterSolicitation(_), ..] => numbered(ICMPV6, 133, (0, 0)),
        [AnyLayer::Arp(question), ..] => {
            let op = question.op.unwrap_or(1);
            let address = if op == 1 { question.pdst.or(Some(std::net::Ipv4Addr::UNSPECIFIED)) } else { None };
            MatchKey { protocol: ARP, message: op, address: bits(address.map(Into::into)), ..NOTHING }
        }
        _ => other(layers),
    }
}

/// The key of the requests that a packet can answer.
fn of_reply(layers: &[AnyLayer]) -> MatchKey {
    if let Some(quoted) = quote(layers) {
        return of_request(quoted);
    }
    match above_ip(layers).unwrap_or(layers) {
        [AnyLayer::Tcp(segment), ..] => {
            let back = tcp((segment.sport, segment.dport), source(layers));
            MatchKey { numbers: (back.numbers.1, back.numbers.0), ..back }
        }
        [AnyLayer::Udp(datagram), rest @ ..] => {
            let port = udp::port(rest.first());
            udp(datagram.dport.unwrap_or(port), datagram.sport.unwrap_or(port))
        }
        [AnyLayer::Icmp(message), ..] => {
            let request = message.asked_by().unwrap_or(message.number());
            numbered(ICMP, request, message.numbers())
        }
        [AnyLayer::Icmpv6EchoReply(echo), ..] => numbered(ICMPV6, 128, (echo.id.unwrap_or(0), echo.seq.unwrap_or(0))),
        [AnyLayer::NdNeighborAdvertisement(message), ..] => {
            let target = message.tgt.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED);
            MatchKey { address: target.to_bits(), ..numbered(ICMPV6, 135, (0, 0)) }
        }
        [AnyLayer::NdRouterAdvertisement(_), ..] => numbered(ICMPV6, 133, (0, 0)),
        [AnyLayer::Arp(reply), ..] => {
            let op = reply.op.unwrap_or(1).wrapping_sub(1);
            let address = if op == 1 { reply.psrc.or(Some(std::net::Ipv4Addr::UNSPECIFIED)) } else { None };
            MatchKey { protocol: ARP, message: op, address: bits(address.map(Into::into)), ..NOTHING }
        }
        _ => other(layers),
    }
}

/// The key of a packet without ports or identifiers: only its protocol.
fn other(layers: &[AnyLayer]) -> MatchKey {
    match above_ip(layers) {
        Some(_) => MatchKey { protocol: protocol(layers).unwrap_or(0).into(), ..NOTHING },
        None => NOTHING,
    }
}
