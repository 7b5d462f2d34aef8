//! What can be wrong with a packet, its text or a capture file.

use std::{fmt, io};

/// What can go wrong without a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value, a text or received bytes that do not fit.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field or object, e.g. `IP packet` or `capture`.
        what: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A file cannot be opened, read or written.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, as a verb phrase.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }
}
