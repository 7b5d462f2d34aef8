//! IPv4.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    AnyLayer, Icmp, IpOption, Kind, answer,
    described::{self, Family},
    build::Building,
    ip_option, option,
    protocol::{Fixed, Parsed, Protocol, or_default},
    table::{FieldError, BitField, layer},
    value::{FieldInfo, FieldKind, FieldValue, IntoField, Value},
};
use crate::view::{
    checksum::{fold, sum},
    ip::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, TCP, UDP},
};

/// Protocol number of IPv4 in IP.
const IPV4: u8 = 4;
/// Protocol number of IPv6 in IP.
const IPV6: u8 = 41;
/// Protocol number of GRE.
const GRE: u8 = 47;
/// Protocol number of MPLS in IP (RFC 4023).
const MPLS: u8 = 137;

/// Names of IP protocols.
pub(crate) const PROTOCOLS: &[(u64, &str)] = &[
    (0, "hopopt"),
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipencap"),
    (6, "tcp"),
    (17, "udp"),
    (41, "ipv6"),
    (43, "ipv6_route"),
    (44, "ipv6_frag"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6_icmp"),
    (59, "ipv6_nonxt"),
    (60, "ipv6_opts"),
    (89, "ospf"),
    (132, "sctp"),
    (135, "mobility_header"),
    (137, "mpls_in_ip"),
];

/// The flags of an IPv4 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IpFlags(pub u8);

impl IpFlags {
    /// Don't fragment.
    pub const DF: Self = Self(2);
    /// More fragments.
    pub const MF: Self = Self(1);
    /// The reserved bit (RFC 3514).
    pub const EVIL: Self = Self(4);

    const NAMES: [(u8, &'static str); 3] = [(1, "MF"), (2, "DF"), (4, "evil")];
}

impl std::str::FromStr for IpFlags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split('+').filter(|name| !name.is_empty()).try_fold(Self(0), |flags, name| {
            let known = Self::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name.trim()));
            known
                .map(|(bit, _)| Self(flags.0 | bit))
                .ok_or_else(|| format!("unknown flag '{name}'; use MF, DF and evil, joined by +"))
        })
    }
}

impl fmt::Display for IpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| *name);
        f.write_str(&names.collect::<Vec<_>>().join("+"))
    }
}

impl FieldValue for IpFlags {
    const KIND: FieldKind = FieldKind::Flags;

    fn to_value(&self) -> Value {
        if self.0 < 8 { Value::Text(self.to_string()) } else { Value::Uint(self.0.into()) }
    }

    fn from_value(value: &Value, field: &FieldInfo) -> Result<Self, String> {
        match value {
            Value::Text(text) => text.parse(),
            other => u8::from_value(other, field).map(Self),
        }
    }
}

impl BitField for IpFlags {
    #[inline(always)]
    fn put(self, header: &mut [u8], offset: usize, bits: usize) -> bool {
        self.0.put(header, offset, bits)
    }

    #[inline(always)]
    fn get(header: &[u8], offset: usize, bits: usize) -> Self {
        Self(BitField::get(header, offset, bits))
    }
}

super::value::text_fields!(IpFlags);

layer! {
    /// Internet Protocol, version 4
    pub struct Ip: "IP", "RFC 791" {
        /// Version
        version: u8, 4, (4);
        /// Header length in 32-bit words
        ihl: u8, 4, computed;
        /// Type of service: DSCP and ECN
        tos: u8, 8, (0);
        /// Length of header and payload in bytes
        len: u16, 16, computed;
        /// Identification of the datagram that fragments belong to
        id: u16, 16, (1);
        /// Flags
        flags: IpFlags, 3, (IpFlags(0));
        /// Fragment offset in units of 8 bytes
        frag: u16, 13, (0);
        /// Time to live, in hops
        ttl: u8, 8, (64);
        /// Protocol of the payload
        proto: u8, 8, computed, PROTOCOLS;
        /// Header checksum
        chksum: u16, 16, computed;
        /// Source address; if unset, that of the route if known, else 0.0.0.0
        src: Ipv4Addr, 32, (Ipv4Addr::UNSPECIFIED);
        /// Destination address
        dst: Ipv4Addr, 32, (Ipv4Addr::LOCALHOST);
    }
    tail {
        /// Options, padded to a 32-bit word with end-of-list
        options: Vec<IpOption>;
    }
}

impl Ip {
    /// A packet to a destination address.
    pub fn to(dst: impl IntoField<Ipv4Addr>) -> Self {
        Self::new().dst(dst)
    }
}

/// The layer for a protocol number.
#[inline]
pub(crate) fn payload(protocol: u8, bytes: &[u8]) -> Kind {
    match protocol {
        HOP_BY_HOP => Kind::Ipv6HopByHop,
        ICMP => Kind::Icmp,
        IPV4 => Kind::Ip,
        // Only ICMP errors quote so few bytes.
        TCP if (8..20).contains(&bytes.len()) => Kind::TcpError,
        TCP => Kind::Tcp,
        UDP => Kind::Udp,
        IPV6 => Kind::Ipv6,
        ROUTING => Kind::Ipv6Routing,
        FRAGMENT => Kind::Ipv6Fragment,
        GRE => Kind::Gre,
        ICMPV6 => super::icmpv6::message(bytes),
        DESTINATION_OPTIONS => Kind::Ipv6Destination,
        MPLS => Kind::Mpls,
        described::MOBILITY => described::mobility(bytes),
        _ => Kind::Raw,
    }
}

/// The protocol number of the layer that follows.
#[inline]
pub(crate) fn protocol(next: Option<&AnyLayer>) -> Option<u8> {
    Some(match next? {
        AnyLayer::Ipv6HopByHop(_) => HOP_BY_HOP,
        AnyLayer::Icmp(_) => ICMP,
        AnyLayer::Ip(_) => IPV4,
        AnyLayer::Tcp(_) | AnyLayer::TcpError(_) => TCP,
        AnyLayer::Udp(_) => UDP,
        AnyLayer::Ipv6(_) => IPV6,
        AnyLayer::Ipv6Routing(_) => ROUTING,
        AnyLayer::Ipv6Fragment(_) => FRAGMENT,
        AnyLayer::Gre(_) => GRE,
        AnyLayer::Ipv6Destination(_) => DESTINATION_OPTIONS,
        AnyLayer::Mpls(_) => MPLS,
        AnyLayer::Described(layer) => match layer.family() {
            Family::Icmpv6 | Family::NdMessage => ICMPV6,
            Family::Mobility => described::MOBILITY,
            Family::SegmentRouting => ROUTING,
            _ => return None,
        },
        other if super::icmpv6::is_message(other) => ICMPV6,
        _ => return None,
    })
}

/// The last address of a source route that was not visited yet; `None` if there is not exactly one route.
#[cold]
pub(crate) fn last_hop(options: &[IpOption]) -> Option<Ipv4Addr> {
    let mut routes = options.iter().filter_map(|option| match option {
        IpOption::LooseRoute(pointer, route) | IpOption::StrictRoute(pointer, route) => Some((pointer, route)),
        _ => None,
    });
    let (pointer, route) = routes.next()?;
    // The pointer counts bytes of the option from 1; kind, length and pointer precede the addresses.
    let rest = route.get(usize::from(*pointer).checked_sub(4)? / 4..)?;
    if routes.next().is_some() { None } else { rest.last().copied() }
}

/// The final destination of a packet; in transit, a source route holds it (RFC 791, section 3.1).
pub(crate) fn last_destination(ip: &Ip) -> Option<IpAddr> {
    let route = ip.options.as_ref().and_then(|options| last_hop(options));
    route.or(or_default!(ip, Ip, dst)).map(Into::into)
}

impl Protocol for Ip {
    #[inline]
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let header = usize::from(layer.ihl?) * 4;
        let Some(options) = bytes.get(Self::FIXED..header) else {
            // An impossible header length: options and payload cannot be separated.
            return Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next: Kind::Raw });
        };
        if !options.is_empty() {
            layer.options = Some(option::parse(options));
        }
        let end = match usize::from(layer.len?) {
            // 0: Linux writes it if the packet is longer than the field allows.
            length if length >= header => length.min(bytes.len()),
            _ => bytes.len(),
        };
        let next = match layer.frag {
            Some(0) => payload(layer.proto?, &bytes[header..end]),
            // A fragment other than the first has no header.
            _ => Kind::Raw,
        };
        Some(Parsed { layer, header, end, next })
    }

    #[inline(always)]
    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        if let Some(options) = &self.options {
            ip_option::write(options, out)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        let header = packet.header();
        if self.ihl.is_none() {
            if header > 60 {
                return Err(FieldError { layer: "IP", field: "ihl", bits: 4 });
            }
            if let Some(first) = packet.bytes().first_mut() {
                *first = *first & 0xf0 | (header / 4) as u8;
            }
        }
        if self.len.is_none() {
            let length = packet.length().max(header);
            let length = u16::try_from(length).map_err(|_| FieldError { layer: "IP", field: "len", bits: 16 })?;
            packet.put16(Self::AT.len, length);
        }
        if self.proto.is_none() {
            let number = protocol(packet.next()).unwrap_or(0);
            if let Some(byte) = packet.bytes().get_mut(Self::AT.proto) {
                *byte = number;
            }
        }
        if self.chksum.is_none() {
            let value = !fold(sum(packet.bytes().get(..header).unwrap_or_default()));
            packet.put16(Self::AT.chksum, value);
        }
        Ok(())
    }

    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        if let [AnyLayer::Icmp(icmp), AnyLayer::Ip(quoted), rest @ ..] = above
            && icmp.is_error()
        {
            // If the request has no source address, that in the quote counts. Routers change time to live, type of
            // service and checksum.
            let same_source = request.src.is_none_or(|source| quoted.src == Some(source));
            return same_source
                && last_destination(quoted) == last_destination(request)
                && quoted.proto == request.proto.or(protocol(asked.first()))
                && (request.id.is_none() || quoted.id == request.id)
                && match (rest, asked) {
                    ([AnyLayer::Raw(cut), ..], [AnyLayer::Icmp(asked), ..]) => {
                        Icmp::cut_short(quoted, cut).is_some_and(|quoted| quoted.is_quote_of(asked))
                    }
                    _ => answer::quotes(rest, asked),
                };
        }
        let wanted = last_destination(request);
        let addresses = (or_default!(self, Ip, src).map(Into::into), last_destination(self));
        answer::addresses_match(addresses, wanted, request.src.map(Into::into)) && answer::answers(above, asked)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result {
        f.write_str("IP")?;
        if matches!(packet.get(at + 1), Some(AnyLayer::Tcp(_) | AnyLayer::Udp(_) | AnyLayer::TcpError(_))) {
            return Ok(());
        }
        let (source, destination) = (or_default!(self, Ip, src), or_default!(self, Ip, dst));
        write!(f, " {} > {}", source.unwrap_or(Ipv4Addr::UNSPECIFIED), destination.unwrap_or(Ipv4Addr::LOCALHOST))?;
        if let Some(fragment) = self.frag.filter(|fragment| *fragment > 0) {
            write!(f, " frag:{fragment}")?;
        }
        match self.proto {
            Some(number) if protocol(packet.get(at + 1)) != Some(number) => write!(f, " proto {number}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::{Packet, Tcp, Udp},
        view::checksum::{Checksum, verify},
    };

    #[test]
    fn fields_are_computed_at_any_depth() {
        let packet = Ip::to("192.0.2.1") / Ip::to("192.0.2.2").options([IpOption::Nop]) / Udp::to(7) / "abc";
        let bytes = packet.build().unwrap();
        assert_eq!((bytes[3], bytes[9], bytes[20], bytes[23], bytes[29]), (55, 4, 0x46, 35, 17));
        assert_eq!(verify(&bytes, false), Checksum::Valid);
        assert_eq!(verify(&bytes[20..], false), Checksum::Valid);
    }

    #[test]
    fn set_fields_are_written_unchanged() {
        let ip = Ip::to("192.0.2.1").ihl(3).len(7).chksum(0xbeef).proto(250).flags("evil+DF").frag(1);
        let packet = ip.version(9) / Tcp::to(80);
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[..12], [0x93, 0, 0, 7, 0, 1, 0xc0, 1, 64, 250, 0xbe, 0xef]);
        let read = Packet::parse(Kind::Ip, &bytes);
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn too_long_is_an_error() {
        let error = (Ip::new() / vec![0; 65_536]).build().unwrap_err().to_string();
        assert_eq!(error, "IP.len: the value does not fit 16 bits");
        assert!((Ip::new().len(0) / vec![0; 65_536]).build().is_ok());
    }
}
