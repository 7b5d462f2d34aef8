//! The Internet checksum (RFC 1071) and the pseudo-headers of TCP and UDP.

use std::net::IpAddr;
use std::ops::Range;

use crafter_common::parse;

use super::field::{icmp, ipv4, tcp, udp};
use super::ip::{self, IpPacket};

/// Result of verifying the checksums of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Correct, or absent: a protocol without a checksum, UDP over IPv4 without one, or a fragment (only its IPv4
    /// header is verified).
    Valid,
    /// Only the folded sum of the pseudo-header: the sender left the rest to checksum offload, which the packet has not
    /// passed (`CHECKSUM_PARTIAL` over veth or loopback).
    Partial,
    /// Incorrect, or the packet is malformed.
    Invalid,
}

/// Verifies the IPv4 header checksum and that of TCP, UDP, ICMP or ICMPv6.
///
/// If `accept_partial` is false, a partial checksum is [`Checksum::Invalid`]: packets received from hardware must have
/// complete checksums.
pub fn verify(ip: &[u8], accept_partial: bool) -> Checksum {
    let Ok(packet) = IpPacket::read(ip) else {
        return Checksum::Invalid;
    };
    if packet.version() == 4 && fold(sum(&packet.bytes()[..packet.payload.start])) != 0xffff {
        return Checksum::Invalid;
    }
    if packet.fragment.is_some() {
        return Checksum::Valid;
    }
    let payload = packet.payload();
    let Some(layout) = Layout::of(&packet) else {
        return Checksum::Valid;
    };
    let Some(&[high, low]) = payload.get(layout.field.clone()) else {
        return Checksum::Invalid;
    };
    let covered = match layout.length(payload) {
        Some(length) => &payload[..length],
        None => return Checksum::Invalid,
    };
    let field = u16::from_be_bytes([high, low]);
    if layout.zero_is_none && field == 0 {
        return match packet.source {
            IpAddr::V4(_) => Checksum::Valid,
            // RFC 8200, section 8.1: a receiver discards a UDP packet with checksum 0.
            IpAddr::V6(_) => Checksum::Invalid,
        };
    }
    let pseudo = layout.pseudo(&packet, covered.len());
    if fold(pseudo + sum(covered)) == 0xffff {
        Checksum::Valid
    } else if accept_partial && layout.pseudo_header && field == fold(pseudo) {
        Checksum::Partial
    } else {
        Checksum::Invalid
    }
}

/// Recomputes the checksums of a packet from its IP header on: IPv4 header, and TCP, UDP, ICMP or ICMPv6 unless it is a
/// fragment. Headers that cannot be parsed stay unchanged.
pub fn fix(ip: &mut [u8]) {
    let Ok(packet) = IpPacket::read(ip) else {
        return;
    };
    let payload = packet.payload.clone();
    let transport = match Layout::of(&packet) {
        Some(layout) if packet.fragment.is_none() => {
            layout.length(packet.payload()).map(|length| {
                let covered = &packet.payload()[..length];
                let field = word(&covered[layout.field.clone()]);
                // Adding the complement of the field removes its old value from the sum.
                let all = layout.pseudo(&packet, length) + sum(covered) + u64::from(!field);
                let value = match !fold(all) {
                    0 if layout.zero_is_none => 0xffff,
                    value => value,
                };
                (layout.field, value)
            })
        }
        _ => None,
    };
    let is_ipv4 = packet.version() == 4;
    if let Some((field, value)) = transport {
        ip[payload.start..][field].copy_from_slice(&value.to_be_bytes());
    }
    if is_ipv4 {
        ip[ipv4::CHECKSUM].fill(0);
        let value = !fold(sum(&ip[..payload.start]));
        ip[ipv4::CHECKSUM].copy_from_slice(&value.to_be_bytes());
    }
}

/// Position and coverage of a protocol's checksum.
struct Layout {
    field: Range<usize>,
    protocol: u8,
    pseudo_header: bool,
    zero_is_none: bool,
}

impl Layout {
    fn of(packet: &IpPacket<'_>) -> Option<Self> {
        let (field, pseudo_header) = match (packet.protocol, packet.version()) {
            (ip::TCP, _) => (tcp::CHECKSUM, true),
            (ip::UDP, _) => (udp::CHECKSUM, true),
            (ip::ICMP, 4) => (icmp::CHECKSUM, false),
            (ip::ICMPV6, 6) => (icmp::CHECKSUM, true),
            _ => return None,
        };
        Some(Self { field, protocol: packet.protocol, pseudo_header, zero_is_none: packet.protocol == ip::UDP })
    }

    /// Covered bytes of the IP payload: all, or the length field of UDP if it is not 0 (RFC 768; 0 in a jumbogram, RFC
    /// 2675, section 4).
    fn length(&self, payload: &[u8]) -> Option<usize> {
        if payload.len() < self.field.end {
            return None;
        }
        if self.protocol != ip::UDP {
            return Some(payload.len());
        }
        match usize::from(word(&payload[udp::LENGTH])) {
            0 => Some(payload.len()),
            length => (parse::header_length(ip::UDP)..=payload.len()).contains(&length).then_some(length),
        }
    }

    fn pseudo(&self, packet: &IpPacket<'_>, length: usize) -> u64 {
        if self.pseudo_header { pseudo_header(packet.source, packet.destination, self.protocol, length) } else { 0 }
    }
}

/// Reads a big-endian field of two bytes.
fn word(field: &[u8]) -> u16 {
    field.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

/// Returns the unfolded sum of a pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1), `length` in bytes.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    address(source) + address(destination) + u64::from(protocol) + length as u64
}

/// Returns the unfolded sum of `bytes` as big-endian 16-bit words; an odd last byte is padded with 0.
///
/// Sums can be added; the total is exact for up to 4 GiB of input. See [`fold`].
pub fn sum(bytes: &[u8]) -> u64 {
    // RFC 1071, section 2 (B): the sum is independent of byte order except for a final swap. Adding native 32-bit words
    // into 64-bit lanes cannot overflow and lets the compiler vectorize.
    let mut lanes = [0_u64; 8];
    let mut chunks = bytes.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut rest = chunks.remainder().chunks_exact(2);
    for word in &mut rest {
        total += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = rest.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u64::from(u16::from_be(fold(total)))
}

/// Folds a sum to 16 bits in host byte order. The complement of the result is the checksum.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Tcp, Udp};
    use proptest::prelude::*;
    use std::net::SocketAddr;

    /// RFC 1071, section 4.1: two bytes at a time.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn sum_equals_rfc_1071_loop(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&bytes)), plain(&bytes));
        }
    }

    #[test]
    fn sum_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 1 << 20];
        assert_eq!(fold(sum(&bytes)), plain(&bytes));
    }

    fn segment(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        (Tcp::new().between(source.parse().unwrap(), destination.parse().unwrap()) / payload).build().unwrap()
    }

    fn datagram(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        (Udp::new().between(source.parse().unwrap(), destination.parse().unwrap()) / payload).build().unwrap()
    }

    #[test]
    fn verify_detects_single_bit_errors() {
        let good = segment("192.0.2.1:1000", "192.0.2.2:80", b"odd");
        assert_eq!(verify(&good, false), Checksum::Valid);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(verify(&bad, false), Checksum::Invalid, "byte {at}");
            if at >= 20 {
                fix(&mut bad);
                // A changed data offset makes the segment malformed.
                assert_eq!(verify(&bad, false), Checksum::Valid, "byte {at}");
            }
        }
    }

    #[test]
    fn partial_checksum_is_pseudo_header_sum() {
        for (source, destination) in [("192.0.2.1:1", "192.0.2.2:2"), ("[2001:db8::1]:1", "[2001:db8::2]:2")] {
            let mut bytes = segment(source, destination, &[9; 700]);
            let header = bytes.len() - 720;
            let [source, destination] = [source, destination].map(|end| end.parse::<SocketAddr>().unwrap().ip());
            let partial = fold(pseudo_header(source, destination, ip::TCP, 720));
            bytes[header + 16..header + 18].copy_from_slice(&partial.to_be_bytes());
            assert_eq!(verify(&bytes, true), Checksum::Partial);
            assert_eq!(verify(&bytes, false), Checksum::Invalid);
            bytes[header + 17] ^= 1;
            assert_eq!(verify(&bytes, true), Checksum::Invalid);
        }
    }

    #[test]
    fn udp_checksum_zero_is_valid_only_over_ipv4() {
        let mut v4 = datagram("192.0.2.1:1", "192.0.2.2:2", &[1; 9]);
        assert_eq!(verify(&v4, false), Checksum::Valid);
        v4[26..28].fill(0);
        assert_eq!(verify(&v4, false), Checksum::Valid);
        let mut v6 = datagram("[2001:db8::1]:1", "[2001:db8::2]:2", &[]);
        v6[46..48].fill(0);
        assert_eq!(verify(&v6, false), Checksum::Invalid);
    }

    #[test]
    fn verify_includes_ipv4_header() {
        let mut bytes = segment("192.0.2.1:1000", "192.0.2.2:80", b"odd");
        bytes[8] -= 1;
        assert_eq!(verify(&bytes, true), Checksum::Invalid);
    }
}
