//! Parses bytes to layers.

use smallvec::SmallVec;

use super::{AnyLayer, Ip, Ipv6, Kind, Packet, Padding, Raw, icmp_extension, protocol::be16};

/// Bounds the parsing time; the rest of a deeper stack is [`Raw`].
const MAX_LAYERS: usize = 64;

impl Packet {
    /// Parses an Ethernet frame.
    pub fn from_ethernet(bytes: &[u8]) -> Self {
        Self::parse(Kind::Ether, bytes)
    }

    /// Parses an IPv4 or IPv6 packet.
    pub fn from_ip(bytes: &[u8]) -> Self {
        Self::parse(Kind::of_ip(bytes), bytes)
    }

    /// Parses bytes whose first layer is `first`. Bytes that are not a valid layer become [`Raw`], bytes after a
    /// layer's end [`Padding`]. Building the packet gives the same bytes.
    pub fn parse(first: Kind, bytes: &[u8]) -> Self {
        let mut packet = Self::new();
        packet.parse_into(first, bytes);
        packet
    }

    /// Like [`parse`](Self::parse), into this packet: replaces its layers and reuses its memory.
    pub fn parse_into(&mut self, first: Kind, bytes: &[u8]) {
        let layers = self.layers_mut();
        layers.clear();
        let mut next = first;
        let (mut start, mut end) = (0, bytes.len());
        // Ends of the enclosing payloads, the innermost last, with the layer that shortened each.
        let mut ends: SmallVec<[(usize, Kind); 8]> = SmallVec::new();
        loop {
            while start < end {
                let rest = &bytes[start..end];
                let read = if layers.len() < MAX_LAYERS { next.parse(rest, layers) } else { None };
                let Some((header, payload_end, above)) = read else {
                    layers.push(AnyLayer::Raw(Raw { load: Some(rest.to_vec()) }));
                    break;
                };
                let payload_end = start + payload_end.clamp(header, rest.len());
                if payload_end < end {
                    ends.push((end, next));
                    end = payload_end;
                }
                start += header;
                next = above;
            }
            let Some((around, layer)) = ends.pop() else { break };
            let behind = &bytes[end..around];
            (start, end) = match icmp_extension::behind_quote(layer, behind) {
                Some(extension) => {
                    next = extension;
                    (end, around)
                }
                None => {
                    layers.push(AnyLayer::Padding(Padding { load: Some(behind.to_vec()) }));
                    (around, around)
                }
            };
        }
    }
}

impl Kind {
    /// The IP version of a packet, by its first four bits; [`Raw`](Kind::Raw) if it is neither 4 nor 6.
    pub fn of_ip(bytes: &[u8]) -> Self {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::Ip,
            Some(6) => Self::Ipv6,
            _ => Self::Raw,
        }
    }

    /// Guesses the first layer: IP if the length field matches the bytes, else Ethernet.
    pub fn guess(bytes: &[u8]) -> Self {
        let number = |at: usize| bytes.get(at..).and_then(be16).map(usize::from);
        let fits = match Self::of_ip(bytes) {
            Self::Ip => bytes[Ip::AT.ihl] & 15 >= 5 && number(Ip::AT.len) == Some(bytes.len()),
            Self::Ipv6 => number(Ipv6::AT.plen).map(|length| length + Ipv6::FIXED) == Some(bytes.len()),
            _ => false,
        };
        if fits { Self::of_ip(bytes) } else { Self::Ether }
    }
}
