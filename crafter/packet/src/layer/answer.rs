//! Which packet answers which.

use std::net::IpAddr;

use super::{AnyLayer, Packet, Tcp, match_key::is_group, protocol::or_default, udp};
use crate::error::Result;

impl Packet {
    /// Whether this packet, as received, answers `request`, as sent: by addresses, ports, sequence numbers,
    /// identifiers and questions, or as the ICMP error that quotes it. Ethernet, VLAN and MPLS headers
    /// around do not count. Unset fields of the request count with their defaults; [`resolved`](Self::resolved) gives
    /// it the computed ones too.
    ///
    /// What was sent to many may be answered by anybody: broadcast and multicast addresses of IP, questions of ARP and
    /// neighbour discovery.
    pub fn answers(&self, request: &Packet) -> bool {
        // That what answers is found by its key holds as the key is asked first.
        self.reply_key() == request.request_key() && answers(behind_link(self.layers()), behind_link(request.layers()))
    }

    /// The packet as its bytes say it: built and read again, so that all fields are set.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn resolved(&self) -> Result<Packet> {
        let bytes = self.build()?;
        Ok(match self.layers().first() {
            Some(first) => Packet::parse(first.kind(), &bytes),
            None => Packet::new(),
        })
    }
}

/// The layers behind Ethernet, VLAN and MPLS headers.
pub(crate) fn behind_link(layers: &[AnyLayer]) -> &[AnyLayer] {
    let is_link = |layer: &&AnyLayer| {
        matches!(layer, AnyLayer::Ether(_) | AnyLayer::Dot1Q(_) | AnyLayer::Dot1AD(_) | AnyLayer::Mpls(_))
    };
    &layers[layers.iter().take_while(is_link).count()..]
}

/// Whether layers answer layers, from the outermost of both.
pub(crate) fn answers(answer: &[AnyLayer], request: &[AnyLayer]) -> bool {
    match (answer, request) {
        // What a layer below has matched is enough where one of the two says no more.
        ([], _) | (_, []) => true,
        ([first, ..], [asked, ..]) => match (first, asked) {
            (AnyLayer::Raw(_) | AnyLayer::Padding(_), _) | (_, AnyLayer::Raw(_) | AnyLayer::Padding(_)) => true,
            _ => first.answers_layer(&answer[1..], asked, &request[1..]),
        },
    }
}

/// Whether an answer with these addresses, source and destination, comes from where the request went, `wanted`, to
/// where that came from, if that is known.
pub(crate) fn goes_back(
    answer: (Option<IpAddr>, Option<IpAddr>),
    wanted: Option<IpAddr>,
    source: Option<IpAddr>,
) -> bool {
    let asked_many = wanted.is_some_and(is_group);
    let to_here = source.is_none_or(|source| {
        // Who asks from no address is answered at one that it does not have yet, or by multicast (RFC 4861, 7.2.4);
        // questions to a group may be answered to the group (RFC 6762, 6).
        answer.1 == Some(source) || source.is_unspecified() || (asked_many && answer.1.is_some_and(is_group))
    });
    (answer.0 == wanted || asked_many) && to_here
}

/// Whether the layers that an ICMP error quotes are those that were sent, above IP. A quote may be cut short, but tells
/// ports or identifiers at least (RFC 792, RFC 1812 4.3.2.3).
pub(crate) fn quotes(quoted: &[AnyLayer], asked: &[AnyLayer]) -> bool {
    let told = |layer: &&AnyLayer| !matches!(layer, AnyLayer::Padding(_) | AnyLayer::IcmpExtensionHeader(_));
    let (first, request) = match (quoted.first().filter(told), asked.first().filter(told)) {
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
        // Where a protocol has no layer, its number has been compared.
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

/// Whether two values are the same where both are known.
pub(crate) fn both<T: PartialEq>(quoted: Option<T>, asked: Option<T>) -> bool {
    quoted.zip(asked).is_none_or(|(quoted, asked)| quoted == asked)
}

/// Whether a layer answers one of another type.
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
        // A first fragment too small for a whole header.
        (AnyLayer::Tcp(reply), AnyLayer::TcpError(request)) => {
            or_default!(reply, Tcp, sport) == or_default!(request, Tcp, dport)
                && or_default!(reply, Tcp, dport) == or_default!(request, Tcp, sport)
        }
        _ => false,
    }
}
