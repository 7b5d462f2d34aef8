//! Packets read by hand, from the RFCs: no line of this is shared with the kernel half, whose judge it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Extension headers that the kernel half says it walks.
const WALKED: usize = 8;

/// Why no transport was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Ends within a header, has a header length or version that cannot be, or fragments a fragment.
    CutShort,
    /// More IPv6 extension headers than are walked.
    TooManyHeaders,
}

/// Which part of its datagram a packet is; with the identification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// All of it; for IPv6 with an atomic fragment header, too (RFC 6946).
    Whole,
    /// Offset zero and more to come.
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
    /// Protocol of the transport, or of the whole datagram's first header for later fragments.
    pub protocol: u8,
    /// Part of the datagram.
    pub piece: Piece,
    /// Whether a routing header names nodes still to be visited (RFC 8200 section 4.4).
    pub routed: bool,
    /// What follows the IP headers, as far as it is there.
    pub rest: &'a [u8],
}

/// Where the IP header begins in an Ethernet frame, and which version the ethertype announces (IEEE 802.3,
/// 802.1Q, 802.1ad; two tags at most).
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

/// The version of a packet on a device without link-layer header: its first four bits.
pub fn bare(packet: &[u8]) -> Result<(usize, u8), Fault> {
    match packet.first().map(|byte| byte >> 4) {
        Some(version @ (4 | 6)) => Ok((0, version)),
        _ => Err(Fault::NotIp),
    }
}

/// An IP packet of the announced version.
pub fn ip(bytes: &[u8], version: u8) -> Result<Ip<'_>, Fault> {
    if version == 4 { ipv4(bytes) } else { ipv6(bytes) }
}

/// RFC 791 section 3.1. Neither total length nor header checksum are looked at: what is malformed is the
/// owner's to see, as far as its ports can be found.
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
        rest: bytes.get(words * 4..).ok_or(Fault::CutShort)?,
    })
}

fn piece(offset: u16, more: bool, identification: u32) -> Piece {
    match (offset, more) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First(identification),
        _ => Piece::Later(identification),
    }
}

/// RFC 8200 sections 3 and 4, RFC 4302 section 2 (authentication), RFC 6275 section 6.1 (mobility).
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
        rest: &bytes[40..],
    };
    let mut walked = 0;
    // The last header that was walked ends behind the packet.
    let mut beyond = false;
    while let 0 | 43 | 44 | 51 | 60 | 135 = found.protocol {
        if walked == WALKED {
            return Err(Fault::TooManyHeaders);
        }
        walked += 1;
        let [next, length, ..] = *found.rest else { return Err(Fault::CutShort) };
        let whole = match found.protocol {
            // "Reserved" stands in the place of the length (section 4.5).
            44 => {
                // A datagram is fragmented once.
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
                    // "Segments Left" is the fourth byte of every type of routing header.
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

/// What an ICMP message is, as far as owners care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp<'a> {
    /// A question with its identifier.
    Query(u16),
    /// An answer with its identifier.
    Reply(u16),
    /// An error, and what it quotes, as far as it is there.
    Error {
        /// Whether it says that a port is closed.
        port_unreachable: bool,
        /// From the quoted IP header on.
        quoted: &'a [u8],
    },
    /// None of these.
    Other,
}

/// RFC 792 and RFC 950 for IPv4, RFC 4443 for IPv6; `None` where the message is cut short.
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
        // RFC 4443 sections 3.1 to 3.4, 4.1 and 4.2.
        (true, 1) => error(code == 4),
        (true, 2..=4) => error(false),
        (true, 128) => Icmp::Query(identifier()?),
        (true, 129) => Icmp::Reply(identifier()?),
        _ => Icmp::Other,
    })
}

/// Source and destination port: the first four bytes of a TCP and of a UDP header.
pub fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d, ..] = *transport else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}
