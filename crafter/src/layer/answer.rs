//! Which packet answers which.

use super::{AnyLayer, Packet, Tcp, protocol::worth};
use crate::error::Result;

impl Packet {
    /// Whether this packet, as received, answers `request`, as sent: by addresses, ports, sequence numbers,
    /// identifiers and questions, or as the ICMP error that quotes it. Ethernet and VLAN headers around do
    /// not count. Unset fields of the request count with their defaults; [`resolved`](Self::resolved) gives
    /// it the computed ones too.
    pub fn answers(&self, request: &Packet) -> bool {
        answers(behind_link(self.layers()), behind_link(request.layers()))
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

fn behind_link(layers: &[AnyLayer]) -> &[AnyLayer] {
    let is_link = |layer: &&AnyLayer| matches!(layer, AnyLayer::Ether(_) | AnyLayer::Dot1Q(_) | AnyLayer::Dot1AD(_));
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

/// Whether the layers that an ICMP error quotes are those that were sent, above IP. A quote may be cut short.
pub(crate) fn quotes(quoted: &[AnyLayer], asked: &[AnyLayer]) -> bool {
    let (Some(quoted), Some(asked)) = (quoted.first(), asked.first()) else {
        return true;
    };
    match (quoted, asked) {
        (AnyLayer::Tcp(quoted), AnyLayer::Tcp(asked)) => {
            both(quoted.sport, worth!(asked, Tcp, sport))
                && both(quoted.dport, worth!(asked, Tcp, dport))
                && both(quoted.seq, worth!(asked, Tcp, seq))
        }
        (AnyLayer::TcpError(quoted), AnyLayer::Tcp(asked)) => {
            both(quoted.sport, worth!(asked, Tcp, sport))
                && both(quoted.dport, worth!(asked, Tcp, dport))
                && both(quoted.seq, worth!(asked, Tcp, seq))
        }
        (AnyLayer::Udp(quoted), AnyLayer::Udp(asked)) => {
            both(quoted.sport, asked.sport) && both(quoted.dport, asked.dport)
        }
        (AnyLayer::Icmp(quoted), AnyLayer::Icmp(asked)) => quoted.is_quote_of(asked),
        (AnyLayer::Icmpv6EchoRequest(quoted), AnyLayer::Icmpv6EchoRequest(asked)) => {
            both(quoted.id, asked.id) && both(quoted.seq, asked.seq)
        }
        (AnyLayer::Raw(_), _) | (_, AnyLayer::Raw(_)) => true,
        (quoted, asked) => quoted.kind() == asked.kind(),
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
        _ => false,
    }
}
