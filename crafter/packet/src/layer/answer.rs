//! Decides whether a packet is a reply to another one, layer by layer.

use std::net::IpAddr;

use super::{AnyLayer, Packet, Tcp, match_key::is_group, protocol::or_default, udp};
use crate::error::Result;

impl Packet {
    /// Whether this received packet answers the sent `request`, by addresses, ports, sequence numbers, identifiers and
    /// questions, or as an ICMP error that quotes it. Ethernet, VLAN and MPLS headers are ignored. Unset fields of the
    /// request have their defaults; [`resolved`](Self::resolved) sets the computed ones too.
    ///
    /// A request to a group (broadcast or multicast IP address, ARP, neighbour discovery) may be answered from any
    /// address.
    pub fn answers(&self, request: &Packet) -> bool {
        // Comparing the keys first guarantees that every answer has the key of its request.
        self.reply_key() == request.request_key() && answers(behind_link(self.layers()), behind_link(request.layers()))
    }

    /// The packet built and parsed again, so that all fields are set.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn resolved(&self) -> Result<Packet> {
        let bytes = self.build()?;
        Ok(match self.layers().first() {
            Some(first) => Packet::parse(first.kind(), &bytes),
            None => Packet::new(),
        })
    }
}

/// The layers after Ethernet, VLAN and MPLS headers.
pub(crate) fn behind_link(layers: &[AnyLayer]) -> &[AnyLayer] {
    let is_link = |layer: &&AnyLayer| {
        matches!(layer, AnyLayer::Ether(_) | AnyLayer::Dot1Q(_) | AnyLayer::Dot1AD(_) | AnyLayer::Mpls(_))
    };
    &layers[layers.iter().take_while(is_link).count()..]
}

/// Whether the layers of a reply answer those of a request, from the outermost on.
pub(crate) fn answers(answer: &[AnyLayer], request: &[AnyLayer]) -> bool {
    match (answer, request) {
        // If one side has no more layers, the match of the layers below decides.
        ([], _) | (_, []) => true,
        ([first, ..], [asked, ..]) => match (first, asked) {
            (AnyLayer::Raw(_) | AnyLayer::Padding(_), _) | (_, AnyLayer::Raw(_) | AnyLayer::Padding(_)) => true,
            _ => first.answers_layer(&answer[1..], asked, &request[1..]),
        },
    }
}

/// Whether an answer with the addresses `answer` (source, destination) matches a request to `wanted` from `source`, if
/// that is known.
pub(crate) fn addresses_match(
    answer: (Option<IpAddr>, Option<IpAddr>),
    wanted: Option<IpAddr>,
    source: Option<IpAddr>,
) -> bool {
    let asked_many = wanted.is_some_and(is_group);
    let to_here = source.is_none_or(|source| {
        // A request from the unspecified address is answered to a new address or by multicast (RFC 4861, section
        // 7.2.4); a request to a group may be answered to the group (RFC 6762, section 6).
        answer.1 == Some(source) || source.is_unspecified() || (asked_many && answer.1.is_some_and(is_group))
    });
    (answer.0 == wanted || asked_many) && to_here
}

/// Whether the layers above IP in the quote of an ICMP error are those of the request. A quote may be truncated, but
/// has at least ports or identifiers (RFC 792; RFC 1812, section 4.3.2.3).
pub(crate) fn quotes(quoted: &[AnyLayer], asked: &[AnyLayer]) -> bool {
    let is_content = |layer: &&AnyLayer| !matches!(layer, AnyLayer::Padding(_) | AnyLayer::IcmpExtensionHeader(_));
    let (first, request) = match (quoted.first().filter(is_content), asked.first().filter(is_content)) {
        (Some(first), Some(request)) => (first, request),
        (None, None) => return true,
        _ => return false,
    };
    let segment = |layer: &AnyLayer| match layer {
        AnyLayer::Tcp(tcp) => {
            Some((or_default!(tcp, Tcp, sport), or_default!(tcp, Tcp, dport), or_default!(tcp, Tcp, seq)))
        }
        AnyLayer::TcpError(tcp) => {
            Some((or_default!(tcp, Tcp, sport), or_default!(tcp, Tcp, dport), or_default!(tcp, Tcp, seq)))
        }
        _ => None,
    };
    if let (Some(quoted), Some(asked)) = (segment(first), segment(request)) {
        return quoted == asked;
    }
    match (first, request) {
        (AnyLayer::Udp(datagram), AnyLayer::Udp(sent)) => {
            let port = Some(udp::port(asked.get(1)));
            let question = both(quoted.get(1).and_then(dns_id), asked.get(1).and_then(dns_id));
            both(datagram.sport, sent.sport.or(port)) && both(datagram.dport, sent.dport.or(port)) && question
        }
        (AnyLayer::Icmp(quoted), AnyLayer::Icmp(asked)) => quoted.is_quote_of(asked),
        (AnyLayer::Icmpv6EchoRequest(quoted), AnyLayer::Icmpv6EchoRequest(asked)) => {
            (quoted.id, quoted.seq) == (asked.id.or(Some(0)), asked.seq.or(Some(0)))
        }
        (AnyLayer::NdNeighborSolicitation(quoted), AnyLayer::NdNeighborSolicitation(asked)) => {
            both(quoted.tgt, asked.tgt)
        }
        // For a protocol without a layer, its number has been compared.
        (AnyLayer::Raw(quoted), AnyLayer::Raw(asked)) => {
            let (quoted, asked) = (quoted.load.as_deref(), asked.load.as_deref());
            quoted.zip(asked).is_none_or(|(quoted, asked)| quoted.iter().zip(asked).take(8).all(|(a, b)| a == b))
        }
        (AnyLayer::Raw(_), _) | (_, AnyLayer::Raw(_)) => true,
        (quoted, asked) => quoted.kind() == asked.kind(),
    }
}

fn dns_id(layer: &AnyLayer) -> Option<u16> {
    match layer {
        AnyLayer::Dns(dns) => Some(dns.id.unwrap_or(0)),
        _ => None,
    }
}

/// Whether two values are equal, or one is unknown.
pub(crate) fn both<T: PartialEq>(quoted: Option<T>, asked: Option<T>) -> bool {
    quoted.zip(asked).is_none_or(|(quoted, asked)| quoted == asked)
}

/// Whether a layer answers a layer of another type.
pub(crate) fn crossed(answer: &AnyLayer, request: &AnyLayer) -> bool {
    match (answer, request) {
        (AnyLayer::Icmpv6EchoReply(reply), AnyLayer::Icmpv6EchoRequest(request)) => {
            let numbers = |id: Option<u16>, seq: Option<u16>| (id.unwrap_or(0), seq.unwrap_or(0));
            numbers(reply.id, reply.seq) == numbers(request.id, request.seq)
        }
        (AnyLayer::NdNeighborAdvertisement(reply), AnyLayer::NdNeighborSolicitation(request)) => {
            let unspecified = std::net::Ipv6Addr::UNSPECIFIED;
            reply.tgt.unwrap_or(unspecified) == request.tgt.unwrap_or(unspecified)
        }
        (AnyLayer::NdRouterAdvertisement(_), AnyLayer::NdRouterSolicitation(_)) => true,
        // The request is a first fragment with a truncated TCP header.
        (AnyLayer::Tcp(reply), AnyLayer::TcpError(request)) => {
            or_default!(reply, Tcp, sport) == or_default!(request, Tcp, dport)
                && or_default!(reply, Tcp, dport) == or_default!(request, Tcp, sport)
        }
        _ => false,
    }
}
