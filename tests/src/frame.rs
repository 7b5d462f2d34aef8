//! Frames built byte by byte, without crafter's packet code: the tests feed them to the kernel half and to the wire, so
//! a mistake in crafter's code cannot hide in them.

use std::net::{IpAddr, SocketAddr};

/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `IPPROTO_ICMPV6`.
pub const ICMPV6: u8 = 58;

/// TCP flags (RFC 9293, section 3.1).
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const PSH: u8 = 0x08;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// "More fragments" of IPv4's flags and offset field.
pub const MORE: u16 = 0x2000;

/// The Ethernet address that frames are for.
pub const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// An Ethernet frame around `payload`, with `tags` of 802.1Q (TPID, TCI), outermost first.
pub fn ethernet(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An Ethernet frame around an IP packet, untagged.
pub fn framed(ip: &[u8]) -> Vec<u8> {
    tagged(&[], ip)
}

/// An Ethernet frame around an IP packet.
pub fn tagged(tags: &[(u16, u16)], ip: &[u8]) -> Vec<u8> {
    ethernet(tags, if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, ip)
}

/// Fields of an IPv4 header.
#[derive(Clone, Debug)]
pub struct V4 {
    /// Options; the caller pads them to a multiple of four bytes.
    pub options: Vec<u8>,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset as one field, as in the header.
    pub fragment: u16,
}

impl Default for V4 {
    fn default() -> Self {
        Self { options: Vec::new(), id: 0x1234, fragment: 0x4000 }
    }
}

impl V4 {
    /// The packet: header with its checksum, followed by `payload`.
    pub fn packet(&self, source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = 20 + self.options.len();
        let mut header = vec![0x40 | (length / 4) as u8, 0];
        header.extend(((length + payload.len()) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0]);
        header.extend(octets(source));
        header.extend(octets(destination));
        header.extend(&self.options);
        let check = checksum(&[&header]);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header.extend(payload);
        header
    }
}

/// An IPv6 packet; `next` is the type of the first header in `payload`.
pub fn v6(source: IpAddr, destination: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(octets(source));
    packet.extend(octets(destination));
    packet.extend(payload);
    packet
}

/// Puts IPv6 extension headers of `kinds` before `payload` of type `next`. Returns the type of the first header, and
/// the bytes. A fragment header among them is that of an atomic fragment (RFC 6946).
pub fn extended(kinds: &[u8], next: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    kinds.iter().rev().fold((next, payload.to_vec()), |(next, rest), &kind| {
        let mut header = match kind {
            // Authentication (RFC 4302): length in 4-byte units minus 2; 24 bytes here.
            51 => vec![next, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            44 => vec![next, 0, 0, 0, 0, 0, 0, 7],
            // Routing, type 4, segments left 0, 8 more bytes.
            43 => vec![next, 1, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
            // Mobility (RFC 6275): binding error.
            135 => vec![next, 0, 7, 0, 0, 0, 0, 0],
            // Hop-by-hop and destination options: PadN.
            _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
        };
        header.extend(rest);
        (kind, header)
    })
}

/// An IPv6 fragment header followed by a fragment of a datagram; `offset` in bytes.
pub fn fragment6(next: u8, offset: u16, more: bool, id: u32, piece: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend((offset & 0xfff8 | u16::from(more)).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend(piece);
    bytes
}

/// A packet of either IP version around `payload`, without options.
pub fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match source {
        IpAddr::V4(_) => V4::default().packet(source, destination, protocol, payload),
        IpAddr::V6(_) => v6(source, destination, protocol, payload),
    }
}

/// Fields of a TCP segment.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flags, the low byte of the field.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Payload.
    pub payload: Vec<u8>,
    /// Overrides the data offset, in 4-byte words.
    pub offset: Option<u8>,
    /// Added to the correct checksum.
    pub spoil: u16,
}

impl Tcp {
    /// A segment without payload.
    pub fn new(flags: u8, seq: u32, ack: u32) -> Self {
        Self { seq, ack, flags, window: 64_000, payload: Vec::new(), offset: None, spoil: 0 }
    }

    /// The same segment with `payload`.
    #[must_use]
    pub fn with(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// Header and payload, with the checksum for these addresses and ports.
    pub fn bytes(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(source.port().to_be_bytes());
        bytes.extend(destination.port().to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([self.offset.unwrap_or(5) << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.payload);
        let check = transport(source.ip(), destination.ip(), TCP, &bytes).wrapping_add(self.spoil);
        bytes[16..18].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    /// The segment in an IP packet.
    pub fn ip(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        packet(source.ip(), destination.ip(), TCP, &self.bytes(source, destination))
    }
}

/// A UDP datagram: header and payload.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    let check = match transport(source.ip(), destination.ip(), UDP, &bytes) {
        0 => 0xffff,
        check => check,
    };
    bytes[6..8].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// A UDP datagram in an IP packet.
pub fn udp_ip(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    packet(source.ip(), destination.ip(), UDP, &udp(source, destination, payload))
}

/// An ICMP or ICMPv6 message with `quoted` after its header, in an IP packet.
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    icmp_query(source, destination, kind, 0, &[&[code], quoted].concat())
}

/// An ICMP or ICMPv6 message with an identifier, in an IP packet; `rest`: the code, followed by what is after the
/// header.
pub fn icmp_query(source: IpAddr, destination: IpAddr, kind: u8, id: u16, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, rest[0], 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(&rest[1..]);
    let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
    let check = match source {
        IpAddr::V4(_) => checksum(&[&bytes]),
        IpAddr::V6(_) => transport(source, destination, ICMPV6, &bytes),
    };
    bytes[2..4].copy_from_slice(&check.to_be_bytes());
    packet(source, destination, protocol, &bytes)
}

/// The bytes of an address, in network byte order.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Checksum of a transport header and payload with its pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1).
fn transport(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let length = (bytes.len() as u32).to_be_bytes();
    checksum(&[&octets(source), &octets(destination), &length, &[0, protocol], bytes])
}

/// RFC 1071 checksum over all parts; all but the last have even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3.
    #[test]
    fn checksum_matches_rfc_1071_example() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn extension_headers_are_chained() {
        let (first, bytes) = extended(&[0, 60], TCP, &[0xaa]);
        assert_eq!(first, 0);
        assert_eq!((bytes[0], bytes[8], bytes.len(), bytes[16]), (60, TCP, 17, 0xaa));
    }
}
