//! Errors of streams and settings.

use std::{fmt, io, net::IpAddr, net::SocketAddr, time::Duration};

/// Why a stream failed, or a setting was rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot work.
    #[error("{what}: {reason}")]
    Invalid {
        /// The setting, e.g. `MTU`.
        what: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A RST answered the SYN.
    #[error("{remote} refused the connection (RST to the SYN); check the port")]
    Refused {
        /// The peer.
        remote: SocketAddr,
    },
    /// A RST ended an established connection.
    #[error("{remote} reset the connection; the log of the peer may give the reason")]
    Reset {
        /// The peer.
        remote: SocketAddr,
    },
    /// The peer did not answer in time.
    #[error("no answer from {remote} within {after:?} ({waiting_for}); check the address, or wait longer")]
    TimedOut {
        /// The peer.
        remote: SocketAddr,
        /// How long the stream waited.
        after: Duration,
        /// What was awaited: `SYN-ACK`, `acknowledgment`, ...
        waiting_for: &'static str,
    },
    /// An ICMP error reported that the peer cannot be reached.
    #[error("{remote} is unreachable: {reason} (ICMP from {from}); check the address and port")]
    Unreachable {
        /// The peer.
        remote: SocketAddr,
        /// The router or host that sent it.
        from: IpAddr,
        /// The code in words, e.g. `port unreachable`.
        reason: String,
    },
    /// The policy of the service that sends the segments does not allow them.
    #[error("the segments are not allowed: {message}")]
    Forbidden {
        /// The number of the rule; `None`: no rule names the user.
        rule: Option<u32>,
        /// Why, in words.
        message: String,
    },
    /// The stream was aborted or closed, or its interface was removed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, as a verb phrase.
        action: String,
        /// The reason as the standard library names it.
        source: io::Error,
    },
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }
}
