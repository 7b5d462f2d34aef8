//! Events of an exchange: one per packet sent, received or suppressed.

use std::{fmt, time::Duration};

use crafter_common::reason::Reason;

use crate::layer::{Kind, Packet};

/// A packet of an exchange as it is sent, received or suppressed.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// When, wall-clock time since 1970.
    pub time: Duration,
    /// Name of the interface.
    pub interface: &'a str,
    /// First layer of `bytes`: IP, IPv6 or Ethernet.
    pub first: Kind,
    /// The whole packet.
    pub bytes: &'a [u8],
    /// The request that it is, or that it answers, with all fields set; `None` for other packets.
    pub request: Option<&'a Packet>,
    /// The dissected reply, for [`Outcome::Matched`]; otherwise `None`.
    pub reply: Option<&'a Packet>,
    /// What happened to it.
    pub outcome: Outcome,
}

/// What happened to a packet. Requests are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Handed to the kernel; of a request in fragments, the first one.
    Sent {
        /// The request's number.
        request: usize,
        /// 0 for the first transmission, then counted up with each retransmission.
        attempt: u32,
    },
    /// A further fragment, handed to the kernel.
    SentFragment {
        /// The request's number.
        request: usize,
    },
    /// The first reply to a request, or any reply if all are accepted.
    Matched {
        /// The request's number.
        request: usize,
        /// How it was delivered.
        reason: Reason,
        /// Round-trip time.
        rtt: Duration,
    },
    /// A further reply to an answered request.
    Duplicate {
        /// The request's number.
        request: usize,
        /// How it was delivered.
        reason: Reason,
        /// Round-trip time.
        rtt: Duration,
    },
    /// No reply to any request.
    Unmatched {
        /// How it was delivered.
        reason: Reason,
    },
    /// Received with a wrong checksum.
    BadChecksum {
        /// How it was delivered.
        reason: Reason,
    },
    /// A RST with which the session resets a half-open connection.
    Reset,
    /// A packet of the kernel from a leased port, dropped.
    Suppressed {
        /// Which kind of packet it is.
        reason: Reason,
    },
}

impl Outcome {
    /// Whether the packet was sent, or suppressed, by this host.
    pub fn is_outgoing(self) -> bool {
        matches!(self, Self::Sent { .. } | Self::SentFragment { .. } | Self::Reset | Self::Suppressed { .. })
    }
}

/// In words, with requests numbered from 1.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |request: usize| request + 1;
        match *self {
            Self::Sent { request, attempt: 0 } => write!(f, "sent, request {}", number(request)),
            Self::Sent { request, attempt } => write!(f, "sent again ({attempt}), request {}", number(request)),
            Self::SentFragment { request } => write!(f, "sent, a further fragment of request {}", number(request)),
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
