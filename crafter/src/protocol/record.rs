//! The header of what comes on a lease's socket. Network byte order; see `org.crafter.v1.varlink`.

use crafter_common::reason::Reason;

use crate::packet::Checksum;

/// Bytes of the header.
pub const HEADER: usize = 24;

/// Bytes that a refusal quotes of what was refused, at most.
pub const QUOTED: usize = 128;

/// Flag of a packet: its end is missing.
pub const CUT: u16 = 1;
/// Flag of a packet: its checksum is wrong.
pub const BAD_CHECKSUM: u16 = 2;
/// Flag of a packet: its checksum is partial, as veth and other virtual devices hand it over.
pub const PARTIAL_CHECKSUM: u16 = 4;
/// Flag of a packet: it begins with an Ethernet header.
pub const ETHERNET: u16 = 8;
/// Flag of a packet: this host sent it.
pub const OUTGOING: u16 = 16;

/// How a packet came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeliveryKind {
    /// Redirected into an AF_XDP socket.
    Redirected = 0,
    /// Copied into the ring buffer, and dropped.
    Copied = 1,
    /// Copied; the kernel has it too.
    Observed = 2,
    /// A RST of the kernel that was dropped.
    RstSuppressed = 3,
    /// A port-unreachable of the kernel that was dropped.
    UnreachableSuppressed = 4,
    /// Seen by `Observe`.
    Captured = 5,
}

impl DeliveryKind {
    /// All of them, by number.
    pub const ALL: [Self; 6] = [
        Self::Redirected,
        Self::Copied,
        Self::Observed,
        Self::RstSuppressed,
        Self::UnreachableSuppressed,
        Self::Captured,
    ];

    /// The verdict's reason that it stands for.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Redirected => Reason::Redirected,
            Self::Copied => Reason::Copied,
            Self::Observed => Reason::Observed,
            Self::RstSuppressed => Reason::RstSuppressed,
            Self::UnreachableSuppressed => Reason::UnreachableSuppressed,
            Self::Captured => Reason::OtherProtocol,
        }
    }

    /// What stands for a verdict's reason.
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::Redirected => Self::Redirected,
            Reason::Observed => Self::Observed,
            Reason::RstSuppressed => Self::RstSuppressed,
            Reason::UnreachableSuppressed => Self::UnreachableSuppressed,
            Reason::OtherProtocol => Self::Captured,
            _ => Self::Copied,
        }
    }
}

/// Why something was refused, or is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The policy says so.
    Policy = 0,
    /// No route leads there, or one by another interface.
    NoRoute = 1,
    /// The next hop does not answer.
    NoNeighbour = 2,
    /// The kernel would not take it.
    NotSent = 3,
    /// The interface is gone.
    InterfaceGone = 4,
    /// It is no packet.
    Malformed = 5,
    /// It was released by method, or a new policy took it.
    Released = 6,
    /// The service stops.
    Stops = 7,
    /// The policy says so: packets come too fast.
    Rate = 8,
}

impl Code {
    const ALL: [Self; 9] = [
        Self::Policy,
        Self::NoRoute,
        Self::NoNeighbour,
        Self::NotSent,
        Self::InterfaceGone,
        Self::Malformed,
        Self::Released,
        Self::Stops,
        Self::Rate,
    ];
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A packet.
    Packet {
        /// How it came.
        delivery: DeliveryKind,
        /// [`CUT`], [`BAD_CHECKSUM`], [`PARTIAL_CHECKSUM`], [`ETHERNET`], [`OUTGOING`].
        flags: u16,
    },
    /// What was sent was refused.
    Refusal {
        /// Why.
        code: Code,
        /// The rule of the policy, from 1; 0: none.
        rule: u16,
    },
    /// The lease is over.
    End {
        /// Why.
        code: Code,
    },
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Index of the interface.
    pub ifindex: u32,
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// Of a packet, its bytes before any was cut off; otherwise bytes of the sentence.
    pub length: u32,
    /// Messages of this lease lost so far, modulo 2^32.
    pub lost: u32,
}

impl Header {
    /// Its bytes.
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

    /// Reads a message; the header, and what follows it. `None`: it is none that this version knows.
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

    /// The sentence of a refusal or an end, and what follows it.
    pub fn sentence<'m>(&self, rest: &'m [u8]) -> (std::borrow::Cow<'m, str>, &'m [u8]) {
        let (sentence, quoted) = rest.split_at((self.length as usize).min(rest.len()));
        (String::from_utf8_lossy(sentence), quoted)
    }
}

/// The flags that tell what a packet's checksums are worth.
pub const fn checksum_flags(checksum: Checksum) -> u16 {
    match checksum {
        Checksum::Valid => 0,
        Checksum::Partial => PARTIAL_CHECKSUM,
        Checksum::Invalid => BAD_CHECKSUM,
    }
}

/// What such flags tell.
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
    fn headers_are_what_the_interface_says() {
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
    fn every_kind_is_read_back_and_nothing_else_is() {
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
    fn reasons_come_back() {
        for delivery in DeliveryKind::ALL {
            assert_eq!(DeliveryKind::of(delivery.reason()), delivery);
        }
        for checksum in [Checksum::Valid, Checksum::Partial, Checksum::Invalid] {
            assert_eq!(checksum_of(checksum_flags(checksum)), checksum);
        }
    }
}
