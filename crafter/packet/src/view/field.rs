//! Offsets of header fields, in bytes from the beginning of the header.
//!
//! A range is a field of several bytes in network byte order. A number is a field of one byte, or the byte that it
//! shares with other fields. `header[tcp::SEQ]` is the sequence number in the TCP header at the start of `header`.

/// IPv4 (RFC 791, section 3.1).
pub mod ipv4 {
    use std::ops::Range;

    /// Version, and header length in 32-bit words.
    pub const VERSION_IHL: usize = 0;
    /// Total length of header and payload, in bytes.
    pub const LENGTH: Range<usize> = 2..4;
    /// Three flags, and the fragment offset in units of 8 bytes.
    pub const FRAGMENT: Range<usize> = 6..8;
    /// Protocol of the payload.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: Range<usize> = 10..12;
    /// Source and destination address.
    pub const ADDRESSES: Range<usize> = 12..20;
}

/// IPv6 (RFC 8200, section 3).
pub mod ipv6 {
    use std::ops::Range;

    /// Payload length, extension headers included, in bytes.
    pub const LENGTH: Range<usize> = 4..6;
    /// Next header.
    pub const NEXT_HEADER: usize = 6;
    /// Source and destination address.
    pub const ADDRESSES: Range<usize> = 8..40;
}

/// TCP (RFC 9293, section 3.1).
pub mod tcp {
    use std::ops::Range;

    /// Sequence number.
    pub const SEQ: Range<usize> = 4..8;
    /// Acknowledgment number.
    pub const ACK: Range<usize> = 8..12;
    /// The eight flags from CWR to FIN; AE and the reserved bits are in the byte before.
    pub const FLAGS: usize = 13;
    /// Window, unscaled.
    pub const WINDOW: Range<usize> = 14..16;
    /// Checksum.
    pub const CHECKSUM: Range<usize> = 16..18;
}

/// UDP (RFC 768).
pub mod udp {
    use std::ops::Range;

    /// Length of header and data, in bytes.
    pub const LENGTH: Range<usize> = 4..6;
    /// Checksum; 0: none.
    pub const CHECKSUM: Range<usize> = 6..8;
}

/// ICMP (RFC 792). ICMPv6 has the same first three fields (RFC 4443, section 2.1); the type of a message determines the
/// others.
pub mod icmp {
    use std::ops::Range;

    /// Type.
    pub const TYPE: usize = 0;
    /// Code.
    pub const CODE: usize = 1;
    /// Checksum.
    pub const CHECKSUM: Range<usize> = 2..4;
    /// Bytes 4 to 7, whose meaning depends on the type.
    pub const REST: Range<usize> = 4..8;
    /// Identifier.
    pub const ID: Range<usize> = 4..6;
    /// Sequence number.
    pub const SEQ: Range<usize> = 6..8;
    /// Gateway, in a redirect.
    pub const GATEWAY: Range<usize> = 4..8;
    /// Pointer, in a parameter problem.
    pub const POINTER: usize = 4;
    /// An unused byte in the other errors.
    pub const RESERVED: usize = 4;
    /// Length of the quoted packet in 32-bit words (RFC 4884, section 4.1).
    pub const QUOTE_LENGTH: usize = 5;
    /// MTU of the next hop (RFC 1191, section 4).
    pub const NEXT_HOP_MTU: Range<usize> = 6..8;
    /// Originate timestamp.
    pub const ORIGINATE: Range<usize> = 8..12;
    /// Receive timestamp.
    pub const RECEIVE: Range<usize> = 12..16;
    /// Transmit timestamp.
    pub const TRANSMIT: Range<usize> = 16..20;
    /// Address mask (RFC 950, appendix I).
    pub const ADDRESS_MASK: Range<usize> = 8..12;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Icmp, Ip, Ipv6, Layer, Tcp, Udp};

    /// The field tables of the layers have the same offsets.
    #[test]
    fn offsets_equal_those_of_layer_tables() {
        let at = |layer: &dyn Layer, name: &str| {
            let (_, field) = layer.info().field(name).unwrap_or_else(|| panic!("no field {name}"));
            let first = field.offset.expect("a fixed place") / 8;
            first..first + field.bits.div_ceil(8)
        };
        let (ip, ipv6, tcp, udp, icmp) = (Ip::new(), Ipv6::new(), Tcp::new(), Udp::new(), Icmp::new());
        assert_eq!(at(&ip, "ihl").start, ipv4::VERSION_IHL);
        assert_eq!(
            (at(&ip, "len"), at(&ip, "proto").start, at(&ip, "chksum")),
            (ipv4::LENGTH, ipv4::PROTOCOL, ipv4::CHECKSUM)
        );
        assert_eq!(at(&ip, "src").start..at(&ip, "dst").end, ipv4::ADDRESSES);
        assert_eq!((at(&ipv6, "plen"), at(&ipv6, "nh").start), (self::ipv6::LENGTH, self::ipv6::NEXT_HEADER));
        assert_eq!(at(&ipv6, "src").start..at(&ipv6, "dst").end, self::ipv6::ADDRESSES);
        assert_eq!((at(&tcp, "seq"), at(&tcp, "ack")), (self::tcp::SEQ, self::tcp::ACK));
        assert_eq!(at(&tcp, "flags").end - 1, self::tcp::FLAGS);
        assert_eq!((at(&tcp, "window"), at(&tcp, "chksum")), (self::tcp::WINDOW, self::tcp::CHECKSUM));
        assert_eq!((at(&udp, "len"), at(&udp, "chksum")), (self::udp::LENGTH, self::udp::CHECKSUM));
        assert_eq!((at(&icmp, "type").start, at(&icmp, "code").start), (self::icmp::TYPE, self::icmp::CODE));
        assert_eq!(at(&icmp, "chksum"), self::icmp::CHECKSUM);
    }
}
