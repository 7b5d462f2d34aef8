//! MPLS labels.

use std::fmt;

use super::{
    AnyLayer, Kind,
    build::Building,
    dns_record::{field, fields},
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
    value::{Element, Value},
};

layer! {
    /// Multiprotocol Label Switching: one label
    pub struct Mpls: "MPLS", "RFC 3032" {
        /// Label
        label: u32, 20, (3);
        /// Traffic class (RFC 5462)
        cos: u8, 3, (0);
        /// Bottom of the stack: no label follows
        s: u8, 1, computed;
        /// Time to live, in hops
        ttl: u8, 8, (0);
    }
    tail {}
}

/// A label in an ICMP error ([`IcmpExtensionMpls`](super::IcmpExtensionMpls)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MplsLabel {
    /// The label, 20 bits.
    pub label: u32,
    /// Traffic class, 3 bits.
    pub cos: u8,
    /// 1 at the bottom of the stack.
    pub s: u8,
    /// Time to live, in hops.
    pub ttl: u8,
}

impl MplsLabel {
    /// Decodes the 32-bit label stack entry.
    pub(crate) fn from_bits(word: u32) -> Self {
        Self { label: word >> 12, cos: (word >> 9) as u8 & 7, s: (word >> 8) as u8 & 1, ttl: word as u8 }
    }

    /// Encodes the 32-bit label stack entry; `None` if a value does not fit.
    pub(crate) fn to_bits(self) -> Option<u32> {
        let fits = self.label < 1 << 20 && self.cos < 8 && self.s < 2;
        fits.then(|| self.label << 12 | u32::from(self.cos) << 9 | u32::from(self.s) << 8 | u32::from(self.ttl))
    }
}

impl fmt::Display for MplsLabel {
    /// As traceroute prints it: `L=24001,E=0,S=1,T=1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L={},E={},S={},T={}", self.label, self.cos, self.s, self.ttl)
    }
}

impl Element for MplsLabel {
    fn to_value(&self) -> Value {
        let values = [("label", self.label), ("cos", self.cos.into()), ("s", self.s.into()), ("ttl", self.ttl.into())];
        let fields = values.map(|(name, value)| (name.to_owned(), Value::Uint(value.into())));
        Value::Record("MPLS".to_owned(), fields.into())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let fields = fields(value, "MPLS", &["label", "cos", "s", "ttl"])?;
        let get = |name: &str, default: u64, most: u64| match field(fields, name) {
            Some(value) => value.uint(most).map_err(|reason| format!("MPLS.{name}: {reason}")),
            None => Ok(default),
        };
        Ok(Self {
            label: get("label", 3, (1 << 20) - 1)? as u32,
            cos: get("cos", 0, 7)? as u8,
            s: get("s", 1, 1)? as u8,
            ttl: get("ttl", 0, 255)? as u8,
        })
    }
}

impl Protocol for Mpls {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        // At the bottom of the stack, the payload type is not in the packet (RFC 3032, section 2.2).
        let next = if layer.s == Some(0) { Kind::Mpls } else { Kind::of_ip(&bytes[Self::FIXED..]) };
        Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        let is_bottom = !matches!(packet.next(), Some(AnyLayer::Mpls(_)));
        if self.s.is_none()
            && is_bottom
            && let Some(byte) = packet.bytes().get_mut(Self::AT.s)
        {
            *byte |= 1;
        }
        Ok(())
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        write!(f, "MPLS {}", self.label.unwrap_or(3))
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::{Ether, Ip, Ipv6, Mpls, Packet, Udp};

    #[test]
    fn a_stack_of_labels() {
        let packet = Ether::new() / Mpls::new().label(24_001_u32).cos(5).ttl(9) / Mpls::new().label(16_u32).ttl(255) / Ip::to("192.0.2.1") / Udp::to(7);
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[12..22], [0x88, 0x47, 5, 220, 26, 9, 0, 1, 1, 255]);
        let read = Packet::from_ethernet(&bytes);
        assert_eq!(read.all::<Mpls>().map(|mpls| mpls.s).collect::<Vec<_>>(), [Some(0), Some(1)]);
        assert!(read.get::<Udp>().is_some());
        assert_eq!(read.build().unwrap(), bytes);
        let six = (Ether::new().r#type(0x8848) / Mpls::new() / Ipv6::to("2001:db8::1")).build().unwrap();
        assert!(Packet::from_ethernet(&six).get::<Ipv6>().is_some());
        // The payload of a pseudowire is neither IPv4 nor IPv6.
        let other = (Ether::new() / Mpls::new() / &[0, 0, 0, 1]).build().unwrap();
        assert_eq!(Packet::from_ethernet(&other).build().unwrap(), other);
        let in_ip = (Ip::new() / Mpls::new() / Ip::new()).build().unwrap();
        assert_eq!((in_ip[9], Packet::from_ip(&in_ip).all::<Ip>().count()), (137, 2));
    }
}
