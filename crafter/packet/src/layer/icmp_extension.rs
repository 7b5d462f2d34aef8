//! Extensions after the quote of an ICMP or ICMPv6 error, such as MPLS labels (RFC 4884).

use std::fmt;

use super::{
    AnyLayer, Icmp, Kind, MplsLabel, Packet,
    build::Building,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};
use crate::view::checksum::{fold, sum};

const CLASSES: &[(u64, &str)] =
    &[(1, "MPLS label stack"), (2, "interface information"), (3, "interface identification")];

layer! {
    /// Header of the extensions of an ICMP or ICMPv6 error; objects follow
    pub struct IcmpExtensionHeader: "ICMPExtension_Header", "RFC 4884, section 7" {
        /// Version
        version: u8, 4, (2);
        /// Reserved
        reserved: u16, 12, (0);
        /// Checksum over header and objects
        chksum: u16, 16, computed;
    }
    tail {}
}

layer! {
    /// MPLS labels of the quoted packet as the router received it
    pub struct IcmpExtensionMpls: "ICMPExtension_MPLS", "RFC 4950, section 3" {
        /// Length of the object in bytes
        len: u16, 16, computed;
        /// Class
        classnum: u8, 8, (1), CLASSES;
        /// Type within the class; 1: incoming label stack
        classtype: u8, 8, (1);
    }
    tail {
        /// The labels, the outermost first
        stack: Vec<MplsLabel>;
    }
}

layer! {
    /// Extension object of any other class, such as interface information (RFC 5837)
    pub struct IcmpExtensionObject: "ICMPExtension_Object", "RFC 4884, section 8" {
        /// Length of the object in bytes
        len: u16, 16, computed;
        /// Class
        classnum: u8, 8, (0), CLASSES;
        /// Type within the class
        classtype: u8, 8, (0);
    }
    tail {
        /// The data
        data: Vec<u8>;
    }
}

/// Length in bytes of a quote without a length field, and minimum length of a quote before extensions (RFC 4884,
/// sections 4 and 5.5).
pub(crate) const QUOTE: usize = 128;

impl Packet {
    /// The MPLS labels with which the router received the quoted packet of this ICMP or ICMPv6 error; empty if the
    /// error has none.
    ///
    /// ```
    /// # use crafter_packet::layer::{Icmp, IcmpExtensionHeader, IcmpExtensionMpls, Ip, MplsLabel, Packet, Udp};
    /// let quoted = Ip::to("198.51.100.9").src("192.0.2.1") / Udp::to(33434).sport(5000);
    /// let label = MplsLabel { label: 24_001, cos: 0, s: 1, ttl: 1 };
    /// let error = Ip::to("192.0.2.1").src("203.0.113.7") / Icmp::new().r#type(11) / quoted
    ///     / IcmpExtensionHeader::new() / IcmpExtensionMpls::new().stack([label]);
    /// assert_eq!(Packet::from_ip(&error.build()?).mpls_stack(), [label]);
    /// # Ok::<(), crafter_packet::Error>(())
    /// ```
    pub fn mpls_stack(&self) -> &[MplsLabel] {
        self.get::<IcmpExtensionMpls>().and_then(|object| object.stack.as_deref()).unwrap_or_default()
    }
}

/// The unit of the quote length field of an error, in bytes; `None` for all other layers.
fn unit(layer: &AnyLayer) -> Option<usize> {
    match layer {
        AnyLayer::Icmp(error) if error.has_length_field() => Some(4),
        AnyLayer::Icmpv6DestUnreach(_) | AnyLayer::Icmpv6TimeExceeded(_) => Some(8),
        _ => None,
    }
}

/// The error that extensions after `layers` belong to: the innermost without extensions.
pub(crate) fn extended(layers: &[AnyLayer]) -> Option<usize> {
    let mut inner = 0_usize;
    layers.iter().rposition(|layer| {
        match layer {
            AnyLayer::IcmpExtensionHeader(_) => inner += 1,
            layer if unit(layer).is_some() => match inner {
                0 => return true,
                _ => inner -= 1,
            },
            _ => {}
        }
        false
    })
}

/// Padded length of a quote of `length` bytes before extensions; `None` if the error has an explicit length.
pub(crate) fn padded(error: &AnyLayer, length: usize) -> Option<usize> {
    let explicit = match error {
        AnyLayer::Icmp(Icmp { length, .. }) => *length,
        AnyLayer::Icmpv6DestUnreach(error) => error.length,
        AnyLayer::Icmpv6TimeExceeded(error) => error.length,
        _ => return None,
    };
    explicit.is_none().then(|| length.max(QUOTE).next_multiple_of(unit(error).unwrap_or(1)))
}

/// The end of the quote in the `bytes` after the header of an error, by its length field. Without one, extensions may
/// follow after 128 bytes if their checksum is correct (RFC 4884, section 5.5).
pub(crate) fn quote_end(bytes: &[u8], length: Option<u8>, unit: usize) -> usize {
    match length {
        Some(units @ 1..) => bytes.len().min(usize::from(units) * unit),
        _ => match bytes.get(QUOTE..) {
            Some(rest @ [0x20..0x30, _, a, b, _, _, _, _, ..]) if (*a, *b) != (0, 0) && fold(sum(rest)) == 0xffff => QUOTE,
            _ => bytes.len(),
        },
    }
}

/// The layer after the quote of an error.
pub(crate) fn behind_quote(error: Kind, bytes: &[u8]) -> Option<Kind> {
    let is_error = matches!(error, Kind::Icmp | Kind::Icmpv6DestUnreach | Kind::Icmpv6TimeExceeded);
    (is_error && bytes.len() >= 4 && bytes[0] >> 4 == 2).then_some(Kind::IcmpExtensionHeader)
}

/// The kind of an extension object.
fn object(bytes: &[u8]) -> Kind {
    match bytes {
        [_, length, 1, 1, ..] if length % 4 == 0 => Kind::IcmpExtensionMpls,
        [_, _, _, _, ..] => Kind::IcmpExtensionObject,
        _ => Kind::Raw,
    }
}

impl Protocol for IcmpExtensionHeader {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next: object(&bytes[Self::FIXED..]) })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        if self.chksum.is_none()
            && let Some(value) = packet.checksum(None)
        {
            packet.put16(Self::AT.chksum, value);
        }
        Ok(())
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        f.write_str("extensions")
    }
}

/// The data of an object, according to its length field.
fn data(bytes: &[u8], len: Option<u16>) -> Option<&[u8]> {
    bytes.get(IcmpExtensionObject::FIXED..usize::from(len?))
}

fn put_length(len: Option<u16>, layer: &'static str, packet: &mut Building<'_>) -> Result<(), FieldError> {
    if len.is_none() {
        let length = u16::try_from(packet.header()).map_err(|_| FieldError { layer, field: "len", bits: 16 })?;
        packet.put16(IcmpExtensionObject::AT.len, length);
    }
    Ok(())
}

impl Protocol for IcmpExtensionMpls {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let (labels, rest) = data(bytes, layer.len)?.as_chunks::<4>();
        rest.is_empty().then_some(())?;
        layer.stack = Some(labels.iter().map(|word| MplsLabel::from_bits(u32::from_be_bytes(*word))).collect());
        let header = Self::FIXED + labels.len() * 4;
        Some(Parsed { layer, header, end: bytes.len(), next: object(&bytes[header..]) })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        for label in self.stack.iter().flatten() {
            let too_large = FieldError { layer: "ICMPExtension_MPLS", field: "stack", bits: 32 };
            out.extend_from_slice(&label.to_bits().ok_or(too_large)?.to_be_bytes());
        }
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        put_length(self.len, "ICMPExtension_MPLS", packet)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        f.write_str("MPLS")?;
        self.stack.iter().flatten().try_for_each(|label| write!(f, " {label}"))
    }
}

impl Protocol for IcmpExtensionObject {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let data = data(bytes, layer.len)?;
        layer.data = Some(data.to_vec());
        let header = Self::FIXED + data.len();
        Some(Parsed { layer, header, end: bytes.len(), next: object(&bytes[header..]) })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        out.extend_from_slice(self.data.as_deref().unwrap_or_default());
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        put_length(self.len, "ICMPExtension_Object", packet)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        write!(f, "object {}.{}", self.classnum.unwrap_or(0), self.classtype.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::{Icmpv6TimeExceeded, Ip, Ipv6, Layer as _, Mpls, Padding, Udp},
        view::checksum::{Checksum, verify},
    };

    fn labels() -> [MplsLabel; 2] {
        [MplsLabel { label: 24_001, cos: 5, s: 0, ttl: 1 }, MplsLabel { label: 16, cos: 0, s: 1, ttl: 254 }]
    }

    fn extensions() -> Packet {
        let interface = IcmpExtensionObject::new().classnum(2).classtype(8).data([0, 0, 0, 7]);
        IcmpExtensionHeader::new() / IcmpExtensionMpls::new().stack(labels()) / interface
    }

    fn v4(icmp: Icmp, load: usize) -> Packet {
        let quoted = Ip::to("198.51.100.9").src("192.0.2.1") / Udp::to(33_434).sport(5000) / vec![b'a'; load];
        Ip::to("192.0.2.1").src("203.0.113.7") / icmp / quoted
    }

    #[test]
    fn quote_is_padded_and_has_its_length() {
        for (load, quote) in [(0, 128), (99, 128), (100, 128), (101, 132), (900, 928)] {
            for number in [3, 11, 12] {
                let packet = v4(Icmp::new().r#type(number), load) / extensions() / Padding::of([0; 3]);
                let bytes = packet.build().unwrap();
                assert_eq!(bytes.len(), 20 + 8 + quote + 4 + 12 + 8 + 3);
                assert_eq!(usize::from(bytes[25]) * 4, quote);
                assert_eq!(usize::from(bytes[30]) << 8 | usize::from(bytes[31]), 28 + load, "length of the quoted packet");
                assert_eq!(verify(&bytes[..bytes.len() - 3], false), Checksum::Valid);
                assert_eq!(fold(sum(&bytes[28 + quote..bytes.len() - 3])), 0xffff);
                assert_eq!(bytes[28 + quote + 4..][..12], [0, 12, 1, 1, 5, 220, 26, 1, 0, 1, 1, 254]);
                let read = Packet::from_ip(&bytes);
                assert_eq!(read.mpls_stack(), labels());
                assert_eq!(read.get::<IcmpExtensionObject>().unwrap().data.as_deref(), Some(&[0, 0, 0, 7][..]));
                assert_eq!(read.build().unwrap(), bytes);
                let mut again = read.clone();
                again.recompute();
                assert_eq!(again.get::<Icmp>().unwrap().length, None);
                assert_eq!(again.build().unwrap(), bytes);
            }
        }
        let error = (v4(Icmp::new().r#type(3), 1000) / extensions()).build().unwrap_err().to_string();
        assert_eq!(error, "ICMP.length: the value does not fit 8 bits");
    }

    #[test]
    fn icmpv6_quote_length_is_in_8_bytes() {
        let quoted = |load: usize| Ipv6::to("2001:db8::9").src("2001:db8::1") / Udp::to(7).sport(9) / vec![1; load];
        for (load, quote) in [(3, 128), (81, 136), (1000, 1048)] {
            let packet = Ipv6::to("2001:db8::1").src("2001:db8::fe") / Icmpv6TimeExceeded::new() / quoted(load) / extensions();
            let bytes = packet.build().unwrap();
            assert_eq!((bytes.len(), usize::from(bytes[44]) * 8), (48 + quote + 24, quote));
            assert_eq!(verify(&bytes, false), Checksum::Valid);
            let read = Packet::from_ip(&bytes);
            assert_eq!(read.mpls_stack(), labels());
            assert_eq!(read.build().unwrap(), bytes);
        }
    }

    #[test]
    fn set_fields_are_written_unchanged() {
        let packet = v4(Icmp::new().r#type(11).length(7), 0) / IcmpExtensionHeader::new().chksum(1).version(3);
        let bytes = packet.build().unwrap();
        assert_eq!((bytes.len(), bytes[25]), (20 + 8 + 28 + 4, 7));
        assert_eq!(bytes[56..], [0x30, 0, 0, 1]);
        let read = Packet::from_ip(&bytes);
        assert!(read.get::<IcmpExtensionHeader>().is_none(), "version 3 is unknown");
        assert_eq!(read.build().unwrap(), bytes);
        let short = v4(Icmp::new().r#type(11).length(7), 0) / extensions();
        let bytes = short.build().unwrap();
        let read = Packet::from_ip(&bytes);
        assert_eq!(read.mpls_stack(), labels(), "an explicit length is kept, even if the quote is shorter");
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn extensions_after_128_bytes_without_a_length() {
        let mut packet = v4(Icmp::new().r#type(11).length(0), 100) / extensions();
        // Routers that do this quote 128 bytes regardless of the length of the packet.
        packet.all_mut::<Ip>().nth(1).unwrap().len = Some(1500);
        let bytes = packet.build().unwrap();
        let read = Packet::from_ip(&bytes);
        assert_eq!(read.mpls_stack(), labels());
        assert_eq!(read.build().unwrap(), bytes);
        let mut wrong = bytes.clone();
        wrong[20 + 8 + 128 + 3] ^= 1;
        let read = Packet::from_ip(&wrong);
        assert!(read.mpls_stack().is_empty());
        assert_eq!(read.build().unwrap(), wrong);
    }

    #[test]
    fn malformed_objects_are_kept() {
        for object in [&[0, 3, 1, 1][..], &[0, 200, 1, 1, 0, 0, 0, 0], &[0, 6, 1, 1, 0, 0], &[0, 4], &[0, 0, 0, 0, 0]] {
            let bytes = (v4(Icmp::new().r#type(3), 0) / IcmpExtensionHeader::new() / object).build().unwrap();
            let read = Packet::from_ip(&bytes);
            assert!(read.get::<IcmpExtensionHeader>().is_some());
            assert_eq!(read.build().unwrap(), bytes);
        }
    }

    #[test]
    fn text() {
        let text = r#"ICMP(type=11)/IP()/UDP(sport=1)/ICMPExtension_Header()/ICMPExtension_MPLS(stack=[MPLS(label=16, cos=1, s=1, ttl=2)])"#;
        let packet: Packet = text.parse().unwrap();
        assert_eq!(packet.mpls_stack(), [MplsLabel { label: 16, cos: 1, s: 1, ttl: 2 }]);
        let printed = packet.to_string();
        assert_eq!(printed.parse::<Packet>().unwrap(), packet, "{printed}");
        let wrong = r#"ICMPExtension_MPLS(stack=[MPLS(labl=16)])"#.parse::<Packet>().unwrap_err().to_string();
        assert!(wrong.ends_with("MPLS has no field 'labl'; did you mean label?"), "{wrong}");
        assert_eq!(Kind::named("ICMPExtensionMPLS"), Ok(Kind::IcmpExtensionMpls));
        assert_eq!(Mpls::new().info().name, "MPLS");
    }
}
