//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, extension headers included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::ipv4::{self, Ipv4Flags, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::{Ipv6Packet, MutableIpv6Packet};

use crate::error::{Error, Result};

/// IPv6 hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// IPv6 routing header.
pub const ROUTING: u8 = 43;
/// IPv6 fragment header.
pub const FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
/// IPv6 destination options.
pub const DESTINATION_OPTIONS: u8 = 60;
/// Mobility header (RFC 6275).
pub const MOBILITY: u8 = 135;
/// Host identity protocol (RFC 7401).
pub const HIP: u8 = 139;
/// Shim6 (RFC 5533).
pub const SHIM6: u8 = 140;

/// Length of an IPv4 header without options, in bytes.
pub const IPV4_HEADER: usize = 20;
/// Length of the fixed IPv6 header, in bytes.
pub const IPV6_HEADER: usize = 40;

/// No sender nests more extension headers than this; a longer chain is an attack on the reader's time.
const MAX_EXTENSION_HEADERS: usize = 16;

/// Where a fragment belongs in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits for IPv4, 32 bits for IPv6.
    pub id: u32,
    /// Offset of this fragment's payload in the datagram's, in bytes (at most 65,528).
    pub offset: usize,
    /// More fragments follow.
    pub more: bool,
    /// IPv6: where the fragment header begins; IPv4: 0.
    pub header: usize,
    /// IPv6: which byte names the fragment header as next header; IPv4: the protocol field.
    pub next_header_at: usize,
}

/// A view over one IP packet. Bytes after its end (Ethernet padding) are not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpPacket<'a> {
    bytes: &'a [u8],
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol after all extension headers. In a later fragment: what its datagram's
    /// fragmentable part begins with, which may be an extension header.
    pub protocol: u8,
    /// Where [`protocol`](Self::protocol)'s header begins, to the packet's end.
    pub payload: Range<usize>,
    /// Set in a fragment. An IPv6 atomic fragment (RFC 6946: a fragment header, yet the whole datagram) has none.
    pub fragment: Option<Fragment>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// DSCP and ECN, the traffic class.
    pub tos: u8,
    /// IPv4 identification; 0 for IPv6.
    pub id: u16,
}

impl<'a> IpPacket<'a> {
    /// Reads a received packet.
    ///
    /// The IPv4 total length and IPv6 payload length are honoured, save 0: that is how
    /// Linux marks a super-frame too long for the field (BIG TCP, `skb_gro_receive`), and
    /// such a packet takes all of `bytes`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a header is cut short or contradicts itself.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::read(bytes).map_err(|reason| Error::invalid("IP packet", reason))
    }

    /// [`parse`](Self::parse) without a sentence to allocate.
    pub fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        Self::read_as(bytes, false)
    }

    /// Reads a packet that an ICMP error quotes: it may end anywhere behind its first header.
    pub fn read_quoted(bytes: &'a [u8]) -> Result<Self, &'static str> {
        Self::read_as(bytes, true)
    }

    fn read_as(bytes: &'a [u8], quoted: bool) -> Result<Self, &'static str> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::read_ipv4(bytes, quoted),
            Some(6) => Self::read_ipv6(bytes, quoted),
            Some(_) => Err("the version is neither 4 nor 6"),
            None => Err("no bytes"),
        }
    }

    fn read_ipv4(bytes: &'a [u8], quoted: bool) -> Result<Self, &'static str> {
        let header = Ipv4Packet::new(bytes).ok_or("shorter than an IPv4 header")?;
        let header_length = usize::from(header.get_header_length()) * 4;
        if header_length < IPV4_HEADER {
            return Err("IPv4 header length below 5 words");
        }
        let total = match usize::from(header.get_total_length()) {
            0 => bytes.len(),
            total => total,
        };
        if total < header_length {
            return Err("IPv4 total length below its header length");
        }
        if bytes.len() < header_length || (bytes.len() < total && !quoted) {
            return Err("shorter than its IPv4 total length");
        }
        let end = total.min(bytes.len());
        let more = header.get_flags() & Ipv4Flags::MoreFragments != 0;
        let offset = usize::from(header.get_fragment_offset()) * 8;
        Ok(Self {
            bytes: &bytes[..end],
            source: IpAddr::V4(header.get_source()),
            destination: IpAddr::V4(header.get_destination()),
            protocol: header.get_next_level_protocol().0,
            payload: header_length..end,
            fragment: (more || offset > 0).then(|| Fragment {
                id: header.get_identification().into(),
                offset,
                more,
                header: 0,
                next_header_at: 9,
            }),
            ttl: header.get_ttl(),
            tos: header.get_dscp() << 2 | header.get_ecn(),
            id: header.get_identification(),
        })
    }

    fn read_ipv6(bytes: &'a [u8], quoted: bool) -> Result<Self, &'static str> {
        let header = Ipv6Packet::new(bytes).ok_or("shorter than an IPv6 header")?;
        let total = match usize::from(header.get_payload_length()) {
            0 => bytes.len(),
            length => IPV6_HEADER + length,
        };
        if bytes.len() < total && !quoted {
            return Err("shorter than its IPv6 payload length");
        }
        let end = total.min(bytes.len());
        let bytes = &bytes[..end];
        let mut protocol = header.get_next_header().0;
        let mut next_header_at = 6;
        let mut at = IPV6_HEADER;
        let mut fragment = None;
        let mut headers = 0;
        loop {
            let length = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
                    let length = bytes.get(at + 1).ok_or("an IPv6 extension header is cut short")?;
                    (usize::from(*length) + 1) * 8
                }
                // RFC 4302, 2.2: counted in words of 4 bytes, less 2.
                AUTHENTICATION => {
                    let length = bytes.get(at + 1).ok_or("an authentication header is cut short")?;
                    (usize::from(*length) + 2) * 4
                }
                FRAGMENT => 8,
                _ => break,
            };
            headers += 1;
            if headers > MAX_EXTENSION_HEADERS {
                return Err("too many IPv6 extension headers");
            }
            let extension = bytes.get(at..at + length).ok_or("an IPv6 extension header is cut short")?;
            if protocol == FRAGMENT {
                let field = u16::from_be_bytes([extension[2], extension[3]]);
                let read = Fragment {
                    id: u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]),
                    offset: usize::from(field & !7),
                    more: field & 1 == 1,
                    header: at,
                    next_header_at,
                };
                if read.more || read.offset > 0 {
                    fragment = Some(read);
                }
            }
            next_header_at = at;
            protocol = extension[0];
            at += length;
            if fragment.is_some_and(|fragment| fragment.offset > 0) {
                break;
            }
        }
        Ok(Self {
            bytes,
            source: IpAddr::V6(header.get_source()),
            destination: IpAddr::V6(header.get_destination()),
            protocol,
            payload: at..end,
            fragment,
            ttl: header.get_hop_limit(),
            tos: header.get_traffic_class(),
            id: 0,
        })
    }

    /// 4 or 6.
    pub fn version(&self) -> u8 {
        if self.source.is_ipv4() { 4 } else { 6 }
    }

    /// The whole packet, padding cut off.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of headers and payload, in bytes.
    pub fn total_length(&self) -> usize {
        self.bytes.len()
    }

    /// What [`protocol`](Self::protocol) begins with.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload.clone()]
    }

    /// The first byte of `payload` that belongs to the fragmentable part:
    /// behind the fragment header for IPv6 (RFC 8200, 4.5), behind the header for IPv4.
    pub fn fragment_data(&self) -> &'a [u8] {
        match self.fragment {
            Some(fragment) if fragment.header > 0 => &self.bytes[fragment.header + 8..],
            _ => self.payload(),
        }
    }
}

/// The fields of an IP header that a crafter sets.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol above.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// DSCP and ECN, the traffic class.
    pub tos: u8,
    /// IPv4 identification.
    pub id: u16,
}

impl Header {
    /// An IP header and `payload_length` bytes of zero behind it; the offset of the latter is returned too.
    ///
    /// A length that does not fit its field is written as 0, as the kernel does for super-frames.
    /// Where one address is IPv4 and the other IPv6, the IPv4 one is mapped (RFC 4291, 2.5.5.2).
    pub fn build(&self, payload_length: usize) -> (Vec<u8>, usize) {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (self.build_ipv4(source, destination, payload_length), IPV4_HEADER)
            }
            (source, destination) => {
                (self.build_ipv6(mapped(source), mapped(destination), payload_length), IPV6_HEADER)
            }
        }
    }

    fn build_ipv4(&self, source: Ipv4Addr, destination: Ipv4Addr, payload_length: usize) -> Vec<u8> {
        let mut bytes = vec![0; IPV4_HEADER + payload_length];
        let total = u16::try_from(bytes.len()).unwrap_or(0);
        if let Some(mut header) = MutableIpv4Packet::new(&mut bytes) {
            header.set_version(4);
            header.set_header_length(5);
            header.set_dscp(self.tos >> 2);
            header.set_ecn(self.tos & 3);
            header.set_total_length(total);
            header.set_identification(self.id);
            header.set_flags(Ipv4Flags::DontFragment);
            header.set_ttl(self.ttl);
            header.set_next_level_protocol(IpNextHeaderProtocol(self.protocol));
            header.set_source(source);
            header.set_destination(destination);
            let checksum = ipv4::checksum(&header.to_immutable());
            header.set_checksum(checksum);
        }
        bytes
    }

    fn build_ipv6(&self, source: Ipv6Addr, destination: Ipv6Addr, payload_length: usize) -> Vec<u8> {
        let mut bytes = vec![0; IPV6_HEADER + payload_length];
        if let Some(mut header) = MutableIpv6Packet::new(&mut bytes) {
            header.set_version(6);
            header.set_traffic_class(self.tos);
            header.set_payload_length(u16::try_from(payload_length).unwrap_or(0));
            header.set_next_header(IpNextHeaderProtocol(self.protocol));
            header.set_hop_limit(self.ttl);
            header.set_source(source);
            header.set_destination(destination);
        }
        bytes
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let header = Header {
            source: "2001:db8::1".parse().unwrap(),
            destination: "2001:db8::2".parse().unwrap(),
            protocol: next,
            ttl: 3,
            tos: 0xb9,
            id: 0,
        };
        let (mut bytes, at) = header.build(rest.len());
        bytes[at..].copy_from_slice(rest);
        bytes
    }

    fn v4(payload: usize) -> Vec<u8> {
        let header = Header {
            source: "192.0.2.1".parse().unwrap(),
            destination: "192.0.2.2".parse().unwrap(),
            protocol: UDP,
            ttl: 64,
            tos: 0x2e,
            id: 7,
        };
        header.build(payload).0
    }

    #[test]
    fn trailing_bytes_are_ignored_and_short_packets_refused() {
        let mut bytes = v4(8);
        bytes.extend_from_slice(&[0; 18]);
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!((packet.total_length(), packet.payload.clone()), (28, 20..28));
        assert_eq!((packet.version(), packet.tos, packet.id, packet.ttl), (4, 0x2e, 7, 64));
        assert!(IpPacket::parse(&bytes[..27]).is_err());
        assert!(IpPacket::read_quoted(&bytes[..27]).is_ok());
    }

    #[test]
    fn ipv4_options_are_skipped_and_a_bad_header_length_refused() {
        let mut bytes = v4(12);
        bytes[0] = 0x46;
        assert_eq!(IpPacket::parse(&bytes).unwrap().payload, 24..32);
        bytes[0] = 0x44;
        assert!(IpPacket::parse(&bytes).is_err());
        bytes[0] = 0x4f;
        assert!(IpPacket::parse(&bytes).is_err());
    }

    #[test]
    fn extension_headers_are_walked() {
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
    fn fragments_tell_where_they_belong() {
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
    fn a_super_frame_takes_all_bytes() {
        let long = v6(TCP, &vec![7; 70_000]);
        assert_eq!(&long[4..6], [0, 0]);
        assert_eq!(IpPacket::parse(&long).unwrap().payload().len(), 70_000);
        assert_eq!(IpPacket::parse(&v4(66_000)).unwrap().payload().len(), 66_000);
    }

    #[test]
    fn an_endless_chain_is_refused() {
        let bytes = v6(HOP_BY_HOP, &[0; 8 * 100]);
        assert!(IpPacket::parse(&bytes).is_err());
    }
}
