//! Packets without a network: bytes and time come in as arguments, nothing is opened but capture files.
//!
//! - [`view`]: what bytes say: checked views of IP, TCP, UDP and ICMP headers, checksums, sequence numbers.
//! - [`layer`]: what one crafts: packets of any layers with any fields, as Scapy has them.
//! - [`expr`]: their text form, and sets of packets.
//! - [`reassembly`]: datagrams out of fragments, bounded in memory and time.
//! - [`capture`]: files of packets.

pub mod capture;
pub mod error;
pub mod expr;
pub mod layer;
pub mod reassembly;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod view;

pub use error::{Error, Result};
pub use reassembly::Reassembler;
