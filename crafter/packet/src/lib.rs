//! Packets without IO: bytes and time are arguments; only capture files are opened.
//!
//! - [`view`] reads: checked views over received bytes (IP, TCP, UDP, ICMP headers), checksums, sequence numbers. A
//!   view borrows the bytes and allocates nothing.
//! - [`layer`] crafts: packets as stacks of layers with any field set, as in Scapy, built to bytes and parsed from
//!   them.
//! - [`expr`]: the text form of packets, and sets of packets.
//! - [`reassembly`]: IP fragments to datagrams, bounded in memory and time.
//! - [`capture`]: pcap and pcapng files.

#![deny(missing_docs)]

pub mod capture;
pub mod error;
pub mod expr;
pub mod layer;
pub mod reassembly;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod view;

pub use error::{Error, Excerpt, Result};
pub use reassembly::Reassembler;
