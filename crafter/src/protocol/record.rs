//! The header of messages on a lease's socket, in network byte order; see `org.crafter.v1.varlink`.

use crafter_common::reason::Reason;

use crate::packet::Checksum;

/// Length of the header in bytes.
pub const HEADER: usize = 24;

/// The maximum number of bytes of a refused packet that a refusal quotes.
pub const QUOTED: usize = 128;

/// Flag of a packet: it is truncated.
pub const CUT: u16 = 1;
/// Flag of a packet: its checksum is invalid.
pub const BAD_CHECKSUM: u16 = 2;
/// Flag of a packet: its checksum is partial, as on veth and other virtual devices.
pub const PARTIAL_CHECKSUM: u16 = 4;
/// Flag of a packet: it begins with an Ethernet header.
pub const ETHERNET: u16 = 8;
/// Flag of a packet: this host sent it.
pub const OUTGOING: u16 = 16;

/// How a packet was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeliveryKind {
    /// Redirected into an AF_XDP socket.
    Redirected = 0,
    /// Copied into the ring buffer, and dropped.
    Copied = 1,
    /// Copied into the ring buffer, and passed to the kernel.
    Observed = 2,
    /// A RST of the kernel that was dropped.
    RstSuppressed = 3,
    /// A port-unreachable of the kernel that was dropped.
    UnreachableSuppressed = 4,
    /// Captured by `Observe`.
    Captured = 5,
}

impl DeliveryKind {
    /// All kinds, by number.
    pub const ALL: [Self; 6] = [
        Self::Redirected,
        Self::Copied,
        Self::Observed,
        Self::RstSuppressed,
        Self::UnreachableSuppressed,
        Self::Captured,
    ];

    const REASONS: [Reason; 6] = [
        Reason::Redirected,
        Reason::Copied,
        Reason::Observed,
        Reason::RstSuppressed,
        Reason::UnreachableSuppressed,
        Reason::OtherProtocol,
    ];

    /// The verdict reason of this kind.
    pub const fn reason(self) -> Reason {
        Self::REASONS[self as usize]
    }

    /// The kind of a verdict reason.
    pub fn of(reason: Reason) -> Self {
        Self::ALL.into_iter().find(|kind| kind.reason() == reason).unwrap_or(Self::Copied)
    }
}

/// Why a packet was refused, or a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The policy does not allow it.
    Policy = 0,
    /// No route to the destination, or only over another interface.
    NoRoute = 1,
    /// The next hop does not answer.
    NoNeighbour = 2,
    /// The kernel did not accept the packet.
    NotSent = 3,
    /// The interface was removed.
    InterfaceRemoved = 4,
    /// The packet cannot be read.
    Malformed = 5,
    /// The client released the lease, or a new policy ended it.
    Released = 6,
    /// The service stops.
    Stops = 7,
    /// The packet exceeds the policy's rate.
    Rate = 8,
}

impl Code {
    const ALL: [Self; 9] = [
        Self::Policy,
        Self::NoRoute,
        Self::NoNeighbour,
        Self::NotSent,
        Self::InterfaceRemoved,
        Self::Malformed,
        Self::Released,
        Self::Stops,
        Self::Rate,
    ];
}

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A packet.
    Packet {
        /// How it was delivered.
        delivery: DeliveryKind,
        /// [`CUT`], [`BAD_CHECKSUM`], [`PARTIAL_CHECKSUM`], [`ETHERNET`], [`OUTGOING`].
        flags: u16,
    },
    /// A packet of the client was refused.
    Refusal {
        /// Why.
        code: Code,
        /// The number of the policy's rule, from 1; 0: none.
        rule: u16,
    },
    /// The lease ended.
    End {
        /// Why.
        code: Code,
    },
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of the message.
    pub kind: Kind,
    /// The index of the interface.
    pub ifindex: u32,
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// Of a packet: its length in bytes before it was cut. Otherwise: the length of the sentence in bytes.
    pub length: u32,
    /// Messages of this lease lost so far, modulo 2^32.
    pub lost: u32,
}

impl Header {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER] {
        let (kind, code, extra) = match self.kind {
            Kind::Packet { delivery, flags } => (1, delivery as u8, flags),
            Kind::Refusal { code, rule } => (2, code as u8, rule),
            Kind::End { code } => (3, code as u8, 0),
        };
        let mut bytes = [0; HEADER];
        bytes[0] = kind;
        bytes[1] = code;
        bytes[2..4].copy_from_slice(&extra.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.ifindex.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.time_ns.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_be_bytes());
        bytes[20..24].copy_from_slice(&self.lost.to_be_bytes());
        bytes
    }

    /// Decodes a message into its header and the rest. `None` for a kind that this version does not know.
    pub fn decode(message: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, rest) = message.split_first_chunk::<HEADER>()?;
        let [kind, code, ..] = *bytes;
        let two = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let four = |at: usize| (u32::from(two(at)) << 16) | u32::from(two(at + 2));
        let extra = two(2);
        let known = || Code::ALL.get(usize::from(code)).copied();
        let kind = match kind {
            1 => Kind::Packet { delivery: *DeliveryKind::ALL.get(usize::from(code))?, flags: extra },
            2 => Kind::Refusal { code: known()?, rule: extra },
            3 => Kind::End { code: known()? },
            _ => return None,
        };
        let time_ns = (u64::from(four(8)) << 32) | u64::from(four(12));
        Some((Self { kind, ifindex: four(4), time_ns, length: four(16), lost: four(20) }, rest))
    }

    /// The sentence of a refusal or an end, and the rest.
    pub fn sentence<'m>(&self, rest: &'m [u8]) -> (std::borrow::Cow<'m, str>, &'m [u8]) {
        let (sentence, quoted) = rest.split_at((self.length as usize).min(rest.len()));
        (String::from_utf8_lossy(sentence), quoted)
    }
}

/// The flags of a checksum's state.
pub const fn checksum_flags(checksum: Checksum) -> u16 {
    match checksum {
        Checksum::Valid => 0,
        Checksum::Partial => PARTIAL_CHECKSUM,
        Checksum::Invalid => BAD_CHECKSUM,
    }
}

/// The checksum's state from the flags.
pub const fn checksum_of(flags: u16) -> Checksum {
    match (flags & BAD_CHECKSUM, flags & PARTIAL_CHECKSUM) {
        (0, 0) => Checksum::Valid,
        (0, _) => Checksum::Partial,
        _ => Checksum::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_layout_matches_the_varlink_description() {
        let kind = Kind::Packet { delivery: DeliveryKind::Observed, flags: ETHERNET | CUT };
        let header = Header { kind, ifindex: 0x0102_0304, time_ns: 0x1122_3344_5566_7788, length: 60, lost: 7 };
        let bytes = header.encode();
        assert_eq!(
            bytes,
            [1, 2, 0, 9, 1, 2, 3, 4, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 60, 0, 0, 0, 7]
        );
        assert_eq!(Header::decode(&bytes), Some((header, &[][..])));
    }

    #[test]
    fn every_kind_round_trips_and_unknown_kinds_are_rejected() {
        let kinds = DeliveryKind::ALL.map(|delivery| Kind::Packet { delivery, flags: 3 }).into_iter();
        let kinds = kinds.chain(Code::ALL.map(|code| Kind::Refusal { code, rule: 2 }));
        for kind in kinds.chain(Code::ALL.map(|code| Kind::End { code })) {
            let header = Header { kind, ifindex: 1, time_ns: 2, length: 3, lost: u32::MAX };
            let mut message = header.encode().to_vec();
            message.extend(b"yes and");
            let (read, rest) = Header::decode(&message).unwrap();
            assert_eq!((read, rest), (header, &b"yes and"[..]));
            let (sentence, quoted) = read.sentence(rest);
            assert_eq!((&*sentence, quoted), ("yes", &b" and"[..]));
        }
        assert_eq!(Header::decode(&[1; HEADER - 1]), None);
        for (kind, code) in [(0, 0), (1, 6), (2, 9), (3, 9), (4, 0)] {
            let mut bytes = [0; HEADER];
            (bytes[0], bytes[1]) = (kind, code);
            assert_eq!(Header::decode(&bytes), None, "{kind} {code}");
        }
    }

    #[test]
    fn reasons_round_trip() {
        for delivery in DeliveryKind::ALL {
            assert_eq!(DeliveryKind::of(delivery.reason()), delivery);
        }
        for checksum in [Checksum::Valid, Checksum::Partial, Checksum::Invalid] {
            assert_eq!(checksum_of(checksum_flags(checksum)), checksum);
        }
    }
}
