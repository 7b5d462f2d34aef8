//! TCP connections without IO: bytes and the time are arguments; bytes and deadlines are results.
//!
//! Nothing here reads a clock or opens a socket, so that tests run whole connections on a virtual clock. All times are
//! monotonic.

#![deny(missing_docs)]

pub mod config;
pub mod cursor;
mod delay;
pub mod error;
mod filter;
pub mod hook;
pub mod pace;
mod smoltcp;
pub mod stream;

#[cfg(test)]
mod tests;

pub use crafter_packet::reassembly::{self, Reassembler};

pub use config::{AckPolicy, StreamConfig, StreamStats};
pub use cursor::{Cursor, Received};
pub use error::{Error, Result};
pub use hook::{Action, Direction, Impair, Observer, SegmentHook};
pub use pace::Pacer;
pub use stream::{StreamBuffer, StreamEngine, StreamState};
