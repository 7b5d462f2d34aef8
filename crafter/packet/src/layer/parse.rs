//! From bytes to layers.

use smallvec::SmallVec;

use super::{AnyLayer, Ip, Ipv6, Kind, Packet, Padding, Raw, icmp_extension, protocol::be16};

/// Deeper stacks are an attack on the reader's time; the rest stays [`Raw`].
const MAX_LAYERS: usize = 64;

impl Packet {
    /// Reads an Ethernet frame.
    pub fn from_ethernet(bytes: &[u8]) -> Self {
        Self::parse(Kind::Ether, bytes)
    }

    /// Reads an IP packet, version 4 or 6.
    pub fn from_ip(bytes: &[u8]) -> Self {
        Self::parse(Kind::of_ip(bytes), bytes)
    }

    /// Reads bytes that begin with a `first`. What cannot be read as a layer is [`Raw`], what is behind
    /// a layer's end [`Padding`]: built again, every packet gives the same bytes.
    pub fn parse(first: Kind, bytes: &[u8]) -> Self {
        let mut packet = Self::new();
        packet.parse_into(first, bytes);
        packet
    }

    /// [`parse`](Self::parse) into this packet, whose layers are replaced and whose memory is used again.
    pub fn parse_into(&mut self, first: Kind, bytes: &[u8]) {
        let layers = self.layers_mut();
        layers.clear();
        let mut next = first;
        let (mut start, mut end) = (0, bytes.len());
        // Ends of the payloads around the present one, the innermost last, and the layer that ended its payload before.
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
    /// Which version of IP some bytes are, by their first four bits.
    pub fn of_ip(bytes: &[u8]) -> Self {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::Ip,
            Some(6) => Self::Ipv6,
            _ => Self::Raw,
        }
    }

    /// What some bytes are most likely: an IP packet whose lengths fit them, else an Ethernet frame.
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
