//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, extension headers included.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use crafter_common::{
    Address,
    parse::{self, Network},
    reason::Reason,
    route::Route,
};

use crate::error::{Error, Result};

pub use crafter_common::{
    ICMP, ICMPV6, TCP, UDP,
    parse::{
        AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4_HEADER, IPV6_HEADER, MAX_EXTENSION_HEADERS,
        MOBILITY, ROUTING,
    },
};

/// Position of a fragment in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits for IPv4, 32 bits for IPv6.
    pub id: u32,
    /// Offset of this fragment's payload in that of the datagram, in bytes; at most 65,528.
    pub offset: usize,
    /// More fragments follow.
    pub more: bool,
    /// IPv6: offset of the fragment header in the packet, in bytes; IPv4: 0.
    pub header: usize,
    /// Offset of the byte that names the next protocol: IPv6: the next header field that refers to the fragment header;
    /// IPv4: the protocol field.
    pub next_header_at: usize,
}

/// A view over an IP packet: the fields that [`parse::network`], also used by the eBPF programs, reads, within the
/// length that the header declares. Bytes after that (Ethernet padding) are excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpPacket<'a> {
    bytes: &'a [u8],
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol after all extension headers. In a fragment other than the first: the protocol at the start of the
    /// datagram's fragmentable part, which may be an extension header.
    pub protocol: u8,
    /// The range of bytes from the header of [`protocol`](Self::protocol) to the end of the packet.
    pub payload: Range<usize>,
    /// Set in a fragment. `None` in an IPv6 atomic fragment (RFC 6946), whose fragment header covers the whole
    /// datagram.
    pub fragment: Option<Fragment>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// DSCP and ECN, the traffic class.
    pub tos: u8,
    /// IPv4 identification; 0 for IPv6.
    pub id: u16,
    net: Network,
}

impl<'a> IpPacket<'a> {
    /// Parses a received packet.
    ///
    /// The packet ends where its IPv4 total length or IPv6 payload length says. Length 0 extends to the end of `bytes`:
    /// Linux writes it into super-frames that exceed the field (BIG TCP, `skb_gro_receive`).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a packet that [`parse::network`] rejects or that is shorter than its length field.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::read(bytes).map_err(|reason| Error::invalid("IP packet", reason))
    }

    /// Like [`parse`](Self::parse); the error is the reason, not allocated.
    pub fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        Self::read_as(bytes, false)
    }

    /// Like [`read`](Self::read); rejects fragments.
    pub(super) fn read_whole(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let packet = Self::read(bytes)?;
        if packet.fragment.is_some() { Err("a fragment: reassemble it first") } else { Ok(packet) }
    }

    /// Parses a packet quoted in an ICMP error: it may be truncated after the IP header.
    pub fn read_quoted(bytes: &'a [u8]) -> Result<Self, &'static str> {
        Self::read_as(bytes, true)
    }

    fn read_as(bytes: &'a [u8], quoted: bool) -> Result<Self, &'static str> {
        let (_, v6) = parse::link(bytes, 0).map_err(|_| match bytes.len() {
            0 => "no bytes",
            1 => "shorter than an IP header",
            _ => "the version is neither 4 nor 6",
        })?;
        let short = if v6 { "shorter than an IPv6 header" } else { "shorter than an IPv4 header" };
        let fixed = if v6 { IPV6_HEADER } else { IPV4_HEADER };
        let declared = parse::declared_length(bytes, 0, v6).filter(|_| bytes.len() >= fixed).ok_or(short)?;
        let end = match declared {
            0 => bytes.len(),
            length if length > bytes.len() && !quoted => {
                return Err(if v6 {
                    "shorter than its IPv6 payload length"
                } else {
                    "shorter than its IPv4 total length"
                });
            }
            length => length.min(bytes.len()),
        };
        let bytes = &bytes[..end];
        let net = parse::network(bytes, 0, v6).map_err(|reason| match (reason, v6) {
            (Reason::OtherProtocol, _) => "too many IPv6 extension headers",
            (_, false) => "IPv4 header length below 5 words, or beyond the packet",
            (_, true) => "an IPv6 extension header is truncated, or there is a second fragment header",
        })?;
        let (source, destination) = net.addresses(bytes).ok_or(short)?;
        let (offset, more) = net.piece(bytes).filter(|_| net.fragment != parse::Fragment::Whole).unwrap_or_default();
        Ok(Self {
            bytes,
            source: address(source, v6),
            destination: address(destination, v6),
            protocol: net.protocol,
            payload: net.transport..end,
            fragment: (net.fragment != parse::Fragment::Whole).then(|| Fragment {
                id: u32::from_be_bytes(net.identification),
                offset: usize::from(offset),
                more,
                header: net.extensions.fragment,
                next_header_at: if v6 { net.extensions.fragment_named_at } else { 9 },
            }),
            ttl: bytes[if v6 { 7 } else { 8 }],
            tos: if v6 { bytes[0] << 4 | bytes[1] >> 4 } else { bytes[1] },
            id: if v6 { 0 } else { u16::from_be_bytes([bytes[4], bytes[5]]) },
            net,
        })
    }

    /// 4 or 6.
    pub fn version(&self) -> u8 {
        if self.net.v6 { 6 } else { 4 }
    }

    /// The fields that the eBPF programs read; offsets refer to [`bytes`](Self::bytes).
    pub fn network(&self) -> &Network {
        &self.net
    }

    /// The source route in the packet.
    pub fn route(&self) -> Route {
        Route::read(self.bytes, &self.net)
    }

    /// The options in its headers: of IPv4, or of the hop-by-hop and destination options headers of IPv6.
    pub fn options(&self) -> IpOptions {
        if !self.net.v6 {
            return options_v4(self.bytes.get(IPV4_HEADER..self.net.transport).unwrap_or_default());
        }
        let (mut next, mut at) = (self.bytes.get(6).copied().unwrap_or_default(), IPV6_HEADER);
        let mut found = IpOptions::Harmless;
        for _ in 0..MAX_EXTENSION_HEADERS {
            let Some(&[following, units, ..]) = self.bytes.get(at..self.net.transport) else { break };
            let length = match next {
                HOP_BY_HOP | DESTINATION_OPTIONS | MOBILITY | ROUTING => (usize::from(units) + 1) * 8,
                AUTHENTICATION => (usize::from(units) + 2) * 4,
                FRAGMENT => 8,
                _ => break,
            };
            if matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS) {
                match self.bytes.get(at + 2..at + length).map_or(IpOptions::Special, options_v6) {
                    IpOptions::Harmless => {}
                    IpOptions::Special => found = IpOptions::Special,
                    IpOptions::HomeAddress => return IpOptions::HomeAddress,
                }
            }
            (next, at) = (following, at + length);
        }
        found
    }

    /// Whether the header declares a length; 0 in a super-frame that exceeds the field.
    pub fn declares_length(&self) -> bool {
        parse::declared_length(self.bytes, 0, self.net.v6).is_some_and(|length| length > 0)
    }

    /// The packet without padding.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of headers and payload, in bytes.
    pub fn total_length(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes from the header of [`protocol`](Self::protocol) on.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload.clone()]
    }

    /// The fragmentable part: after the fragment header for IPv6 (RFC 8200, section 4.5), after the header for IPv4.
    pub fn fragment_data(&self) -> &'a [u8] {
        match self.fragment {
            Some(fragment) if fragment.header > 0 => &self.bytes[fragment.header + 8..],
            _ => self.payload(),
        }
    }

    /// `IP 192.0.2.2.49152 > 192.0.2.1.80`, as tcpdump prints it.
    pub(super) fn write_endpoints(&self, f: &mut fmt::Formatter<'_>, source: u16, destination: u16) -> fmt::Result {
        let version = if self.net.v6 { "IP6" } else { "IP" };
        write!(f, "{version} {}.{source} > {}.{destination}", self.source, self.destination)
    }
}

/// The options in the headers of a packet, as far as they ask others for more than to record or to pad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpOptions {
    /// IPv4: record route and timestamp at most (RFC 791, section 3.1). IPv6: padding at most (RFC 8200, section 4.2).
    Harmless,
    /// Others, such as router alert (RFC 2113, RFC 2711) and security labels (CIPSO; RFC 5570), or unreadable ones.
    Special,
    /// A home address (RFC 6275, section 6.3), which takes the place of the source address.
    HomeAddress,
}

/// Kinds of options that are harmless: end, no operation, record route, timestamp (IPv4).
const HARMLESS_V4: [u8; 4] = [0, 1, 7, 68];
/// Loose and strict source route, which [`IpPacket::route`] reads.
const ROUTES_V4: [u8; 2] = [131, 137];
/// The home address option (RFC 6275, section 6.3).
const HOME_ADDRESS: u8 = 201;

fn options_v4(mut rest: &[u8]) -> IpOptions {
    while let [kind, behind @ ..] = rest {
        let length = match (kind, behind.first()) {
            (0, _) => break,
            (1, _) => 1,
            (_, Some(&length @ 2..)) => usize::from(length),
            _ => return IpOptions::Special,
        };
        if !HARMLESS_V4.contains(kind) && !ROUTES_V4.contains(kind) {
            return IpOptions::Special;
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    IpOptions::Harmless
}

/// The options of a hop-by-hop or destination options header.
fn options_v6(mut rest: &[u8]) -> IpOptions {
    let mut found = IpOptions::Harmless;
    while let [kind, behind @ ..] = rest {
        let length = match (kind, behind.first()) {
            (0, _) => 1,
            (_, Some(&length)) => usize::from(length) + 2,
            (_, None) => return IpOptions::Special,
        };
        match *kind {
            0 | 1 => {}
            HOME_ADDRESS => return IpOptions::HomeAddress,
            _ => found = IpOptions::Special,
        }
        rest = match rest.get(length..) {
            Some(rest) => rest,
            None => return IpOptions::Special,
        };
    }
    found
}

/// Converts an address of the parser: IPv6 if `v6`, else the IPv4 address in its last 4 bytes.
pub fn address(address: Address, v6: bool) -> IpAddr {
    let [.., a, b, c, d] = address;
    if v6 { IpAddr::V6(address.into()) } else { IpAddr::V4(Ipv4Addr::new(a, b, c, d)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Ip, Ipv6};

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let header = Ipv6::to("2001:db8::2").src("2001:db8::1").nh(next).hlim(3).tc(0xb9);
        let header = if rest.len() > 65_535 { header.plen(0) } else { header };
        (header / rest.to_vec()).build().unwrap()
    }

    fn v4(payload: usize) -> Vec<u8> {
        let header = Ip::to("192.0.2.2").src("192.0.2.1").proto(UDP).tos(0x2e).id(7);
        let header = if payload > 65_515 { header.len(0) } else { header };
        (header / vec![0; payload]).build().unwrap()
    }

    #[test]
    fn trailing_bytes_are_ignored_and_short_packets_rejected() {
        let mut bytes = v4(8);
        bytes.extend_from_slice(&[0; 18]);
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!((packet.total_length(), packet.payload.clone()), (28, 20..28));
        assert_eq!((packet.version(), packet.tos, packet.id, packet.ttl), (4, 0x2e, 7, 64));
        assert!(IpPacket::parse(&bytes[..27]).is_err());
        assert!(IpPacket::read_quoted(&bytes[..27]).is_ok());
    }

    #[test]
    fn ipv4_options_are_skipped_and_bad_header_length_rejected() {
        let mut bytes = v4(12);
        bytes[0] = 0x46;
        assert_eq!(IpPacket::parse(&bytes).unwrap().payload, 24..32);
        bytes[0] = 0x44;
        assert!(IpPacket::parse(&bytes).is_err());
        bytes[0] = 0x4f;
        assert!(IpPacket::parse(&bytes).is_err());
    }

    #[test]
    fn extension_headers_are_skipped() {
        let mut rest = vec![ROUTING, 0, 0, 0, 0, 0, 0, 0]; // hop-by-hop
        rest.extend([DESTINATION_OPTIONS, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([AUTHENTICATION, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([TCP, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([1, 2, 3, 4]);
        let bytes = v6(HOP_BY_HOP, &rest);
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!((packet.protocol, packet.payload(), packet.tos), (TCP, &[1, 2, 3, 4][..], 0xb9));
    }

    #[test]
    fn fragment_fields_are_read() {
        let bytes = v6(FRAGMENT, &[UDP, 0, 0x05, 0xa9, 0, 0, 0, 9, 1, 2]);
        let packet = IpPacket::parse(&bytes).unwrap();
        let fragment = packet.fragment.unwrap();
        assert_eq!((fragment.id, fragment.offset, fragment.more), (9, 1448, true));
        assert_eq!((fragment.header, fragment.next_header_at), (40, 6));
        assert_eq!((packet.protocol, packet.fragment_data()), (UDP, &[1, 2][..]));

        let atomic = v6(FRAGMENT, &[UDP, 0, 0, 0, 0, 0, 0, 9, 1, 2]);
        assert_eq!(IpPacket::parse(&atomic).unwrap().fragment, None);

        let mut first = v4(16);
        first[6..8].copy_from_slice(&0x2000_u16.to_be_bytes());
        assert!(IpPacket::parse(&first).unwrap().fragment.unwrap().more);
    }

    #[test]
    fn length_zero_extends_to_end_of_bytes() {
        let long = v6(TCP, &vec![7; 70_000]);
        assert_eq!(&long[4..6], [0, 0]);
        assert_eq!(IpPacket::parse(&long).unwrap().payload().len(), 70_000);
        assert_eq!(IpPacket::parse(&v4(66_000)).unwrap().payload().len(), 66_000);
    }

    #[test]
    fn too_many_extension_headers_are_rejected() {
        let bytes = v6(HOP_BY_HOP, &[0; 8 * 100]);
        assert!(IpPacket::parse(&bytes).is_err());
    }
}
