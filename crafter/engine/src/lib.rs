//! Conversations without IO: takes bytes and `now`, returns bytes and deadlines.
//!
//! Nothing here reads a clock or opens anything, so a whole conversation runs on a
//! virtual clock in the tests.

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
