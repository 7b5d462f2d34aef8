//! The sans-IO half: takes bytes and `now`, returns bytes and deadlines.
//!
//! Nothing here reads a clock or opens anything, so a whole conversation runs on a
//! virtual clock in the tests.

mod buffer;
pub mod config;
pub mod cursor;
mod delay;
mod device;
pub mod hook;
pub mod pace;
pub mod reassembly;
mod repair;
mod stamps;
pub mod stream;
mod wire;

#[cfg(test)]
mod tests;

pub use config::{AckPolicy, StreamConfig, StreamStats};
pub use cursor::{Cursor, Received};
pub use hook::{Action, Direction, Impair, Observer, SegmentHook};
pub use pace::Pacer;
pub use reassembly::Reassembler;
pub use stream::{StreamEngine, StreamState};
