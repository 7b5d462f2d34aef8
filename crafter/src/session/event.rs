//! What an exchange tells of its packets.

use std::{fmt, time::Duration};

use crafter_common::reason::Reason;

use crate::layer::Kind;

/// A packet of an exchange, as it is sent, received or suppressed.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// When, since 1970.
    pub time: Duration,
    /// The interface.
    pub interface: &'a str,
    /// What the bytes begin with: an IP header, or an Ethernet header.
    pub first: Kind,
    /// The packet.
    pub bytes: &'a [u8],
    /// What became of it.
    pub what: What,
}

/// What became of a packet. Requests are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Handed to the kernel.
    Sent {
        /// Its number.
        request: usize,
        /// 0, or how often it was sent before.
        attempt: u32,
    },
    /// An answer to a request.
    Matched {
        /// The request's number.
        request: usize,
        /// How it came here.
        reason: Reason,
        /// From sending to receiving.
        rtt: Duration,
    },
    /// A further answer to it.
    Duplicate {
        /// The request's number.
        request: usize,
        /// How it came here.
        reason: Reason,
        /// From sending to receiving.
        rtt: Duration,
    },
    /// It answers nothing that was sent.
    Unmatched {
        /// How it came here.
        reason: Reason,
    },
    /// Its checksum is wrong.
    BadChecksum {
        /// How it came here.
        reason: Reason,
    },
    /// The RST with which the session ends a half-open connection.
    Reset,
    /// The kernel wanted to send it, from a leased port.
    Suppressed {
        /// Which answer of the kernel it is.
        reason: Reason,
    },
}

impl What {
    /// Whether the packet left this host, or was about to.
    pub fn is_outgoing(self) -> bool {
        matches!(self, Self::Sent { .. } | Self::Reset | Self::Suppressed { .. })
    }
}

/// In words, requests numbered from 1.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |request: usize| request + 1;
        match *self {
            Self::Sent { request, attempt: 0 } => write!(f, "sent, request {}", number(request)),
            Self::Sent { request, attempt } => write!(f, "sent again ({attempt}), request {}", number(request)),
            Self::Matched { request, reason, .. } => {
                write!(f, "{}, matched: answers request {}", reason.name(), number(request))
            }
            Self::Duplicate { request, reason, .. } => {
                write!(f, "{}, duplicate: answers request {} again", reason.name(), number(request))
            }
            Self::Unmatched { reason } => write!(f, "{}, unmatched", reason.name()),
            Self::BadChecksum { reason } => write!(f, "{}, wrong checksum", reason.name()),
            Self::Reset => f.write_str("sent, resets a half-open connection"),
            Self::Suppressed { reason: Reason::RstSuppressed } => f.write_str("kernel RST suppressed"),
            Self::Suppressed { .. } => f.write_str("kernel ICMP port unreachable suppressed"),
        }
    }
}
