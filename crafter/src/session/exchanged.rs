//! The result of an exchange.

use std::time::Duration;

use crafter_common::reason::Reason;

use super::Account;
use crate::layer::Packet;

/// A received packet.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its layers: from the IP header on, or a frame if no port was leased for the request.
    pub packet: Packet,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// When it was received, wall-clock time since 1970.
    pub time: Duration,
    /// How it was delivered; [`Reason::Observed`] if the kernel received it too, [`Reason::OtherProtocol`] if no port
    /// was leased and this is a copy from the tap.
    pub reason: Reason,
    /// The interface that received it.
    pub interface: String,
}

/// A request and a reply to it.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The request as sent: all fields set.
    pub request: Packet,
    /// Its index among the requests, from 0.
    pub number: usize,
    /// When it was sent the last time, wall-clock time since 1970.
    pub sent: Duration,
    /// The reply.
    pub reply: Reply,
    /// Round-trip time.
    pub rtt: Duration,
}

/// The result of an exchange.
#[derive(Clone, Debug, Default)]
pub struct Exchanged {
    /// Requests and their replies, in the order of the replies.
    pub answered: Vec<Pair>,
    /// Requests without a reply, as sent, in the order of sending.
    pub unanswered: Vec<Packet>,
    /// Packets received on the leased ports that answer no request; the first 65,536.
    pub unmatched: Vec<Reply>,
    /// The sum over all packets.
    pub account: Account,
}
