//! A packet parser written from the RFCs. It shares no line with the kernel half that it verifies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Maximum number of extension headers that the kernel half is documented to walk.
const WALKED: usize = 8;

/// Why no transport header was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// The packet ends within a header, has an impossible header length or version, or fragments a fragment.
    CutShort,
    /// More IPv6 extension headers than [`WALKED`].
    TooManyHeaders,
}

/// Position of a packet within its datagram, with the identification of fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A complete datagram; also one with an IPv6 atomic fragment header (RFC 6946).
    Whole,
    /// Offset zero, more fragments follow.
    First(u32),
    /// Offset above zero.
    Later(u32),
}

/// An IP packet up to its transport.
#[derive(Clone, Copy, Debug)]
pub struct Ip<'a> {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Protocol of the transport header; for later fragments, of the first header of the whole datagram.
    pub protocol: u8,
    /// Position within the datagram.
    pub piece: Piece,
    /// Whether a routing header has segments left (RFC 8200, section 4.4).
    pub routed: bool,
    /// Whether an IPv4 header has the right checksum (RFC 1071) and a time to live; true for IPv6.
    pub valid: bool,
    /// The bytes after the IP headers, as far as present.
    pub rest: &'a [u8],
}

/// Offset of the IP header in an Ethernet frame, and the IP version announced by the ethertype (IEEE 802.3, 802.1Q,
/// 802.1ad; at most two tags).
pub fn ethernet(frame: &[u8]) -> Result<(usize, u8), Fault> {
    let mut at = 12;
    for tags in 0.. {
        match frame.get(at..at + 2) {
            Some([0x08, 0x00]) => return Ok((at + 2, 4)),
            Some([0x86, 0xdd]) => return Ok((at + 2, 6)),
            Some([0x81, 0x00] | [0x88, 0xa8]) if tags < 2 => at += 4,
            _ => break,
        }
    }
    Err(Fault::NotIp)
}

/// IP version of a packet without link-layer header, from its first four bits.
pub fn bare(packet: &[u8]) -> Result<(usize, u8), Fault> {
    match packet.first().map(|byte| byte >> 4) {
        Some(version @ (4 | 6)) => Ok((0, version)),
        _ => Err(Fault::NotIp),
    }
}

/// Parses an IP packet of the announced version.
pub fn ip(bytes: &[u8], version: u8) -> Result<Ip<'_>, Fault> {
    if version == 4 { ipv4(bytes) } else { ipv6(bytes) }
}

/// RFC 791, section 3.1. Ignores total length: packets are delivered to the owner as long as their ports can be found.
fn ipv4(bytes: &[u8]) -> Result<Ip<'_>, Fault> {
    let header: &[u8; 20] = bytes.first_chunk().ok_or(Fault::CutShort)?;
    let words = usize::from(header[0] % 16);
    if header[0] / 16 != 4 || words < 5 {
        return Err(Fault::CutShort);
    }
    let identification = u32::from(header[4]) << 8 | u32::from(header[5]);
    let more = header[6] & 0b0010_0000 != 0;
    let offset = u16::from(header[6] & 0b0001_1111) << 8 | u16::from(header[7]);
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
    Ok(Ip {
        source: address(12),
        destination: address(16),
        protocol: header[9],
        piece: piece(offset, more, identification),
        routed: false,
        valid: header[8] != 0 && bytes.get(..words * 4).is_some_and(sums_up),
        rest: bytes.get(words * 4..).ok_or(Fault::CutShort)?,
    })
}

/// Whether the ones' complement sum of all 16-bit words is all ones (RFC 1071).
fn sums_up(header: &[u8]) -> bool {
    let sum: u64 = header.chunks(2).map(|pair| u64::from(pair[0]) * 256 + u64::from(pair[1])).sum();
    // Modulo 65,535 a carry counts like the lowest bit.
    sum % 65_535 == 0
}

fn piece(offset: u16, more: bool, identification: u32) -> Piece {
    match (offset, more) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First(identification),
        _ => Piece::Later(identification),
    }
}

/// RFC 8200, sections 3 and 4; RFC 4302, section 2 (authentication); RFC 6275, section 6.1 (mobility).
fn ipv6(bytes: &[u8]) -> Result<Ip<'_>, Fault> {
    let header: &[u8; 40] = bytes.first_chunk().ok_or(Fault::CutShort)?;
    if header[0] / 16 != 6 {
        return Err(Fault::CutShort);
    }
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let mut found = Ip {
        source: address(8),
        destination: address(24),
        protocol: header[6],
        piece: Piece::Whole,
        routed: false,
        valid: true,
        rest: &bytes[40..],
    };
    let mut walked = 0;
    // Whether the last header walked extends beyond the packet.
    let mut beyond = false;
    while let 0 | 43 | 44 | 51 | 60 | 135 = found.protocol {
        if walked == WALKED {
            return Err(Fault::TooManyHeaders);
        }
        walked += 1;
        let [next, length, ..] = *found.rest else { return Err(Fault::CutShort) };
        let whole = match found.protocol {
            // The fragment header has a reserved byte in the place of the length (RFC 8200, section 4.5).
            44 => {
                // A fragment is not fragmented again.
                if let Piece::First(_) = found.piece {
                    return Err(Fault::CutShort);
                }
                let fragment: &[u8; 8] = found.rest.first_chunk().ok_or(Fault::CutShort)?;
                let field = u16::from_be_bytes([fragment[2], fragment[3]]);
                let id = u32::from_be_bytes([fragment[4], fragment[5], fragment[6], fragment[7]]);
                found.piece = piece(field >> 3, field & 1 == 1, id);
                if let Piece::Later(_) = found.piece {
                    return Ok(Ip { protocol: next, rest: &found.rest[8..], ..found });
                }
                8
            }
            51 => 4 * (usize::from(length) + 2),
            kind => {
                if kind == 43 {
                    // "Segments Left" is the fourth byte of every routing header type.
                    found.routed |= *found.rest.get(3).ok_or(Fault::CutShort)? > 0;
                }
                8 * (usize::from(length) + 1)
            }
        };
        found.protocol = next;
        beyond = found.rest.len() < whole;
        found.rest = found.rest.get(whole..).unwrap_or_default();
    }
    if beyond { Err(Fault::CutShort) } else { Ok(found) }
}

/// Classification of an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp<'a> {
    /// A query with its identifier.
    Query(u16),
    /// A reply with its identifier.
    Reply(u16),
    /// An error with the packet that it quotes.
    Error {
        /// Whether it is a port-unreachable error.
        port_unreachable: bool,
        /// The quoted packet from its IP header on, possibly truncated.
        quoted: &'a [u8],
    },
    /// Any other message.
    Other,
}

/// Parses an ICMP message (RFC 792, RFC 950) or ICMPv6 message (RFC 4443); `None` if it is truncated.
pub fn icmp(message: &[u8], v6: bool) -> Option<Icmp<'_>> {
    let [kind, code, ..] = *message else { return None };
    let identifier = || Some(u16::from_be_bytes([*message.get(4)?, *message.get(5)?])).filter(|_| message.len() >= 8);
    let error = |port_unreachable| Icmp::Error { port_unreachable, quoted: message.get(8..).unwrap_or_default() };
    Some(match (v6, kind) {
        // RFC 792: destination unreachable, source quench, time exceeded, parameter problem.
        (false, 3) => error(code == 3),
        (false, 4 | 11 | 12) => error(false),
        // Echo, timestamp, information, address mask.
        (false, 8 | 13 | 15 | 17) => Icmp::Query(identifier()?),
        (false, 0 | 14 | 16 | 18) => Icmp::Reply(identifier()?),
        // RFC 4443, sections 3.1 to 3.4, 4.1 and 4.2.
        (true, 1) => error(code == 4),
        (true, 2..=4) => error(false),
        (true, 128) => Icmp::Query(identifier()?),
        (true, 129) => Icmp::Reply(identifier()?),
        _ => Icmp::Other,
    })
}

/// Source and destination port: the first four bytes of a TCP or UDP header.
pub fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d, ..] = *transport else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}
