//! Options of IPv6 neighbour discovery.

use std::{fmt, net::Ipv6Addr};

use super::{
    AnyLayer, Kind, Mac,
    build::Building,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};

layer! {
    /// Option: Ethernet address of the sender
    pub struct NdSourceLinkLayer: "ICMPv6NDOptSrcLLAddr", "RFC 4861, section 4.6.1" {
        /// Type
        r#type: u8, 8, (1);
        /// Length in units of 8 bytes
        len: u8, 8, (1);
        /// The address
        lladdr: Mac, 48, (Mac::ZERO);
    }
    tail {}
}

layer! {
    /// Option: Ethernet address of the target
    pub struct NdTargetLinkLayer: "ICMPv6NDOptDstLLAddr", "RFC 4861, section 4.6.1" {
        /// Type
        r#type: u8, 8, (2);
        /// Length in units of 8 bytes
        len: u8, 8, (1);
        /// The address
        lladdr: Mac, 48, (Mac::ZERO);
    }
    tail {}
}

layer! {
    /// Option: a prefix of the link
    pub struct NdPrefix: "ICMPv6NDOptPrefixInfo", "RFC 4861, section 4.6.2" {
        /// Type
        r#type: u8, 8, (3);
        /// Length in units of 8 bytes
        len: u8, 8, (4);
        /// Length of the prefix in bits
        prefixlen: u8, 8, (64);
        /// On-link
        l: u8, 1, (1);
        /// For autoconfigured addresses (RFC 4862)
        a: u8, 1, (1);
        /// The prefix holds the router's address (RFC 6275)
        r: u8, 1, (0);
        /// Reserved
        res1: u8, 5, (0);
        /// Valid lifetime in seconds
        validlifetime: u32, 32, (u32::MAX);
        /// Preferred lifetime in seconds
        preferredlifetime: u32, 32, (u32::MAX);
        /// Reserved
        res2: u32, 32, (0);
        /// The prefix
        prefix: Ipv6Addr, 128, (Ipv6Addr::UNSPECIFIED);
    }
    tail {}
}

layer! {
    /// Option: the beginning of the packet that was redirected
    pub struct NdRedirected: "ICMPv6NDOptRedirectedHdr", "RFC 4861, section 4.6.3" {
        /// Type
        r#type: u8, 8, (4);
        /// Length in units of 8 bytes
        len: u8, 8, computed;
        /// Reserved
        res: [u8; 6], 48, ([0; 6]);
    }
    tail {
        /// The packet, as many whole units of 8 bytes as there are, like Scapy and Linux
        pkt: Vec<u8>;
    }
}

layer! {
    /// Option: MTU of the link
    pub struct NdMtu: "ICMPv6NDOptMTU", "RFC 4861, section 4.6.4" {
        /// Type
        r#type: u8, 8, (5);
        /// Length in units of 8 bytes
        len: u8, 8, (1);
        /// Reserved
        res: u16, 16, (0);
        /// The MTU
        mtu: u32, 32, (1280);
    }
    tail {}
}

layer! {
    /// Option: DNS servers
    pub struct NdRdnss: "ICMPv6NDOptRDNSS", "RFC 8106, section 5.1" {
        /// Type
        r#type: u8, 8, (25);
        /// Length in units of 8 bytes
        len: u8, 8, computed;
        /// Reserved
        res: u16, 16, (0);
        /// Lifetime in seconds
        lifetime: u32, 32, (u32::MAX);
    }
    tail {
        /// Addresses of the servers
        dns: Vec<Ipv6Addr>;
    }
}

layer! {
    /// Option of any other type
    pub struct NdUnknown: "ICMPv6NDOptUnknown", "RFC 4861, section 4.6" {
        /// Type
        r#type: u8, 8, (0);
        /// Length in units of 8 bytes
        len: u8, 8, computed;
    }
    tail {
        /// The data, padded to a multiple of 8 bytes with type and length
        data: Vec<u8>;
    }
}

/// The kind of an option.
pub(crate) fn option(bytes: &[u8]) -> Kind {
    match bytes {
        // An option of length 0 is invalid and ends the list (RFC 4861, section 4.6).
        [_, 0, ..] | [] | [_] => Kind::Raw,
        [1, 1, ..] => Kind::NdSourceLinkLayer,
        [2, 1, ..] => Kind::NdTargetLinkLayer,
        [3, 4, ..] => Kind::NdPrefix,
        [4, ..] => Kind::NdRedirected,
        [5, 1, ..] => Kind::NdMtu,
        [25, len, ..] if len % 2 == 1 => Kind::NdRdnss,
        _ => super::described::nd_option(bytes).unwrap_or(Kind::NdUnknown),
    }
}

/// The variable part of an option, according to its length field.
fn tail(bytes: &[u8], fixed: usize, len: Option<u8>) -> Option<&[u8]> {
    bytes.get(fixed..usize::from(len?) * 8)
}

fn parsed<T>(layer: T, header: usize, bytes: &[u8]) -> Option<Parsed<T>> {
    Some(Parsed { layer, header, end: bytes.len(), next: option(bytes.get(header..)?) })
}

fn put_length(len: Option<u8>, layer: &'static str, packet: &mut Building<'_>) -> Result<(), FieldError> {
    if len.is_none() {
        let units = u8::try_from(packet.header() / 8).map_err(|_| FieldError { layer, field: "len", bits: 8 })?;
        packet.bytes()[NdSourceLinkLayer::AT.len] = units;
    }
    Ok(())
}

/// Removes bytes after the last whole unit of 8 bytes.
fn cut(start: usize, out: &mut Vec<u8>) {
    let length = out.len() - start;
    out.truncate(start + length / 8 * 8);
}

fn pad(start: usize, out: &mut Vec<u8>) {
    let length = out.len() - start;
    out.resize(start + length.next_multiple_of(8), 0);
}

macro_rules! fixed {
    ($($layer:ident: $summary:literal),*) => {$(
        impl Protocol for $layer {
            fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
                parsed(Self::get_fixed(bytes)?, Self::FIXED, bytes)
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
                self.put_fixed(out)
            }

            fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
                f.write_str($summary)
            }
        }
    )*};
}

fixed!(NdSourceLinkLayer: "source address", NdTargetLinkLayer: "target address", NdPrefix: "prefix", NdMtu: "MTU");

macro_rules! bytes {
    ($($layer:ident, $field:ident, $fit:ident: $name:literal, $summary:literal),*) => {$(
        impl Protocol for $layer {
            fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
                let mut layer = Self::get_fixed(bytes)?;
                let tail = tail(bytes, Self::FIXED, layer.len)?;
                layer.$field = Some(tail.to_vec());
                parsed(layer, Self::FIXED + tail.len(), bytes)
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
                let start = out.len();
                self.put_fixed(out)?;
                out.extend_from_slice(self.$field.as_deref().unwrap_or_default());
                $fit(start, out);
                Ok(())
            }

            fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
                put_length(self.len, $name, packet)
            }

            fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
                f.write_str($summary)
            }
        }
    )*};
}

bytes!(
    NdRedirected, pkt, cut: "ICMPv6NDOptRedirectedHdr", "redirected packet",
    NdUnknown, data, pad: "ICMPv6NDOptUnknown", "ND option"
);

impl Protocol for NdRdnss {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let tail = tail(bytes, Self::FIXED, layer.len)?;
        tail.len().is_multiple_of(16).then_some(())?;
        layer.dns = Some(tail.as_chunks::<16>().0.iter().map(|octets| Ipv6Addr::from(*octets)).collect());
        parsed(layer, Self::FIXED + tail.len(), bytes)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        out.extend(self.dns.iter().flatten().flat_map(Ipv6Addr::octets));
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        put_length(self.len, "ICMPv6NDOptRDNSS", packet)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        write!(f, "{} DNS servers", self.dns.as_ref().map_or(0, Vec::len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Ipv6, NdRouterAdvertisement, Packet};

    #[test]
    fn an_advertisement_with_options() {
        let packet = Ipv6::to("ff02::1").src("fe80::1")
            / NdRouterAdvertisement::new()
            / NdPrefix::new().prefix("2001:db8::")
            / NdMtu::new().mtu(1500_u32)
            / NdRdnss::new().dns(["2001:db8::53".parse().unwrap()])
            / NdUnknown::new().r#type(200).data(b"abc".as_slice())
            / NdRedirected::new().pkt(b"0123456789".as_slice());
        let bytes = packet.build().unwrap();
        let read = Packet::from_ip(&bytes);
        let kinds = |packet: &Packet| packet.layers().iter().map(AnyLayer::kind).collect::<Vec<_>>();
        assert_eq!(kinds(&read), kinds(&packet));
        assert_eq!(read.get::<NdRdnss>().unwrap().len, Some(3));
        assert_eq!(read.get::<NdRedirected>().unwrap().pkt.as_deref(), Some(b"01234567".as_slice()));
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn option_of_length_zero_is_raw() {
        let packet = Ipv6::new() / NdRouterAdvertisement::new() / &[1, 0, 2, 3, 4, 5, 6, 7];
        let read = Packet::from_ip(&packet.build().unwrap());
        assert!(matches!(read.layers().last(), Some(AnyLayer::Raw(_))));
    }
}
