//! The error of this crate.

use std::{fmt, io};

/// Why a packet, its text form or a capture file is rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value, a text or received bytes are malformed or do not fit.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field or object, e.g. `IP packet` or `capture`.
        what: String,
        /// What is wrong, and what is valid.
        reason: String,
    },
    /// A file cannot be opened, read or written.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted, as a verb phrase.
        action: String,
        /// The error of the system.
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
