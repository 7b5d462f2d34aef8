//! IPv6 extension headers: hop-by-hop and destination options, routing, fragment.

use std::{fmt, net::Ipv6Addr};

use super::{
    AnyLayer, Ipv6Option, Kind,
    build::Building,
    ip::{self, PROTOCOLS},
    ipv6::NO_NEXT_HEADER,
    ipv6_option,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};

layer! {
    /// Options for every node on the path
    pub struct Ipv6HopByHop: "IPv6ExtHdrHopByHop", "RFC 8200, section 4.3" {
        /// Next header
        nh: u8, 8, computed, PROTOCOLS;
        /// Length in units of 8 bytes, without the first 8 bytes
        len: u8, 8, computed;
    }
    tail {
        /// 1: options are aligned, and padded to a multiple of 8 bytes (RFC 8200, section 4.2); 0: they are not. Parsing
        /// sets it where the sender did not align them
        autopad: u8;
        /// Options
        options: Vec<Ipv6Option>;
    }
}

layer! {
    /// Options for the destination
    pub struct Ipv6Destination: "IPv6ExtHdrDestOpt", "RFC 8200, section 4.6" {
        /// Next header
        nh: u8, 8, computed, PROTOCOLS;
        /// Length in units of 8 bytes, without the first 8 bytes
        len: u8, 8, computed;
    }
    tail {
        /// 1: options are aligned, and padded to a multiple of 8 bytes (RFC 8200, section 4.2); 0: they are not. Parsing
        /// sets it where the sender did not align them
        autopad: u8;
        /// Options
        options: Vec<Ipv6Option>;
    }
}

layer! {
    /// Addresses of the nodes to visit
    pub struct Ipv6Routing: "IPv6ExtHdrRouting", "RFC 8200, section 4.4" {
        /// Next header
        nh: u8, 8, computed, PROTOCOLS;
        /// Length in units of 8 bytes, without the first 8 bytes
        len: u8, 8, computed;
        /// Routing type: 0 deprecated source route (RFC 5095), 2 mobile IPv6 (RFC 6275), 4 segment routing (RFC 8754)
        r#type: u8, 8, (0);
        /// Segments left
        segleft: u8, 8, computed;
        /// Reserved; segment routing: last entry, flags and tag
        reserved: u32, 32, (0);
    }
    tail {
        /// The addresses
        addresses: Vec<Ipv6Addr>;
        /// Data after the addresses, such as the TLVs of segment routing
        data: Vec<u8>;
    }
}

layer! {
    /// Fragment of a datagram
    pub struct Ipv6Fragment: "IPv6ExtHdrFragment", "RFC 8200, section 4.5" {
        /// Next header of the datagram
        nh: u8, 8, computed, PROTOCOLS;
        /// Reserved
        res1: u8, 8, (0);
        /// Offset in units of 8 bytes
        offset: u16, 13, (0);
        /// Reserved
        res2: u8, 2, (0);
        /// More fragments follow
        m: u8, 1, (0);
        /// Identification of the datagram
        id: u32, 32, (0);
    }
    tail {}
}

impl Ipv6Destination {
    /// The home address, which replaces the source address at the destination (RFC 6275, section 6.3).
    pub(crate) fn home_address(&self) -> Option<Ipv6Addr> {
        self.options.iter().flatten().find_map(|option| match option {
            Ipv6Option::HomeAddress(address) => Some(*address),
            _ => None,
        })
    }
}

impl Ipv6Routing {
    const SEGMENT_ROUTING: u8 = 4;

    /// The final destination, if it is not the destination address yet.
    pub(crate) fn final_destination(&self) -> Option<Ipv6Addr> {
        let addresses = self.addresses.as_ref()?;
        match (self.segleft, self.r#type.unwrap_or(0)) {
            (Some(0), _) => None,
            // Segments are listed from the last to the first (RFC 8754, section 2).
            (_, Self::SEGMENT_ROUTING) => addresses.first().copied(),
            _ => addresses.last().copied(),
        }
    }
}

/// Fills in next header and length, the first fields of all extension headers.
fn finish(nh: Option<u8>, len: Option<Option<u8>>, packet: &mut Building<'_>) -> Result<(), FieldError> {
    if nh.is_none() {
        let number = ip::protocol(packet.next()).unwrap_or(NO_NEXT_HEADER);
        if let Some(byte) = packet.bytes().get_mut(Ipv6Destination::AT.nh) {
            *byte = number;
        }
    }
    if len == Some(None) {
        let units = (packet.header() / 8).saturating_sub(1);
        let units = u8::try_from(units).map_err(|_| FieldError { layer: "IPv6 extension header", field: "len", bits: 8 })?;
        if let Some(byte) = packet.bytes().get_mut(Ipv6Destination::AT.len) {
            *byte = units;
        }
    }
    Ok(())
}

macro_rules! options {
    ($($layer:ident: $summary:literal),*) => {$(
        impl Protocol for $layer {
            fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
                let mut layer = Self::get_fixed(bytes)?;
                let header = usize::from(layer.len?) * 8 + 8;
                let options = bytes.get(Self::FIXED..header)?;
                layer.options = Some(ipv6_option::parse(options));
                let mut again = Vec::with_capacity(header);
                layer.write(&mut again).ok()?;
                if again.get(Self::FIXED..) != Some(options) {
                    layer.autopad = Some(0);
                }
                let next = ip::payload(layer.nh?, &bytes[header..]);
                Some(Parsed { layer, header, end: bytes.len(), next })
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
                let start = out.len();
                self.put_fixed(out)?;
                let is_padded = self.autopad.is_none_or(|autopad| autopad > 0);
                ipv6_option::write(self.options.as_deref().unwrap_or_default(), is_padded, start, out)
            }

            fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
                finish(self.nh, Some(self.len), packet)
            }

            fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
                f.write_str($summary)
            }
        }
    )*};
}

options!(Ipv6HopByHop: "hop-by-hop", Ipv6Destination: "destination options");

impl Protocol for Ipv6Routing {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let header = usize::from(layer.len?) * 8 + 8;
        let data = bytes.get(Self::FIXED..header)?;
        let count = match layer.r#type? {
            // The last entry field counts from 0.
            Self::SEGMENT_ROUTING => (layer.reserved? >> 24) as usize + 1,
            0 | 2 => data.len() / 16,
            _ => 0,
        };
        let (addresses, data) = data.split_at(count.min(data.len() / 16) * 16);
        layer.addresses = Some(addresses.as_chunks::<16>().0.iter().map(|octets| Ipv6Addr::from(*octets)).collect());
        layer.data = (!data.is_empty()).then(|| data.to_vec());
        let next = ip::payload(layer.nh?, &bytes[header..]);
        Some(Parsed { layer, header, end: bytes.len(), next })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        let start = out.len();
        self.put_fixed(out)?;
        for address in self.addresses.iter().flatten() {
            out.extend_from_slice(&address.octets());
        }
        out.extend_from_slice(self.data.as_deref().unwrap_or_default());
        let length = out.len() - start;
        out.resize(start + length.next_multiple_of(8), 0);
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        let too_large = |field| FieldError { layer: "IPv6ExtHdrRouting", field, bits: 8 };
        let count = self.addresses.as_ref().map_or(0, Vec::len);
        let is_segment_routing = self.r#type == Some(Self::SEGMENT_ROUTING);
        if self.segleft.is_none() {
            let left = if is_segment_routing { count.saturating_sub(1) } else { count };
            packet.bytes()[Self::AT.segleft] = u8::try_from(left).map_err(|_| too_large("segleft"))?;
        }
        if is_segment_routing && self.reserved.is_none() {
            packet.bytes()[Self::AT.reserved] = u8::try_from(count.saturating_sub(1)).map_err(|_| too_large("reserved"))?;
        }
        finish(self.nh, Some(self.len), packet)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        write!(f, "routing type {}", self.r#type.unwrap_or(0))
    }
}

impl Protocol for Ipv6Fragment {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        let next = match layer.offset {
            Some(0) => ip::payload(layer.nh?, &bytes[Self::FIXED..]),
            _ => Kind::Raw,
        };
        Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        finish(self.nh, None, packet)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        write!(f, "fragment {}+{}", self.id.unwrap_or(0), u32::from(self.offset.unwrap_or(0)) * 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::{Ipv6, Packet, Tcp, Udp},
        view::checksum::{Checksum, fold, pseudo_header, sum, verify},
    };

    #[test]
    fn options_are_padded_and_the_chain_is_linked() {
        let packet = Ipv6::to("2001:db8::1")
            / Ipv6HopByHop::new().options([Ipv6Option::RouterAlert(0)])
            / Ipv6Destination::new()
            / Ipv6Fragment::new().id(7)
            / Udp::to(7)
            / "abc";
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[6], 0);
        assert_eq!(bytes[40..48], [60, 0, 5, 2, 0, 0, 1, 0]);
        assert_eq!(bytes[48..56], [44, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(bytes[56..64], [17, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(verify(&bytes, false), Checksum::Valid);
        assert_eq!(Packet::from_ip(&bytes).build().unwrap(), bytes);
    }

    #[test]
    fn checksum_uses_final_destination() {
        let [a, b]: [Ipv6Addr; 2] = ["2001:db8::a".parse().unwrap(), "2001:db8::b".parse().unwrap()];
        for (kind, last) in [(0, b), (4, a)] {
            let routing = Ipv6Routing::new().r#type(kind).addresses([a, b]);
            let bytes = (Ipv6::to("2001:db8::1").src("2001:db8::2") / routing / Tcp::to(80)).build().unwrap();
            let tcp = &bytes[80..];
            let pseudo = pseudo_header("2001:db8::2".parse().unwrap(), last.into(), 6, tcp.len());
            assert_eq!(fold(pseudo + sum(tcp)), 0xffff, "type {kind}");
            assert_eq!(Packet::from_ip(&bytes).build().unwrap(), bytes);
        }
    }
}
