//! The text form of packets, in Scapy's notation.
//!
//! ```
//! use crafter_packet::{expr::PacketSet, layer::Packet};
//!
//! let set = PacketSet::parse(r#"IP(dst="192.0.2.2", ttl=(1,5))/TCP(dport=[80,443], flags="S", options=[("MSS",1460)])"#)?;
//! assert_eq!(set.len(), 10);
//! for packet in set.packets(1000)? {
//!     assert_eq!(packet.to_string().parse::<Packet>()?, packet);
//! }
//! let error = PacketSet::parse("IP()/TCP(dprt=80)").unwrap_err();
//! assert_eq!(error.to_string(), "expression, column 10: TCP has no field 'dprt'; did you mean dport?");
//! # Ok::<(), crafter_packet::Error>(())
//! ```
//!
//! - Layers stand one behind the other with `/` between them; a string stands for `Raw`.
//! - Values are numbers (`80`, `0x50`), texts (`"..."` or `'...'`), bytes (`b"\x00"`), lists, tuples, `None` for
//!   unset, `True` and `False` for 1 and 0, records (`DNSQR(qname="example.org")`), and names of values (`proto="tcp"`).
//! - Values can be calculated: `+ - * // % << >> & | ^ ~`, `(1 + 2)`. The shell of `crafter` reads the
//!   same with variables and functions.
//! - Where a field takes one value, more make a set of packets: a list `[80, 443]`, a range `(1, 5)` with both
//!   its ends, a prefix `"192.0.2.0/28"`. A field that is a list takes a list of lists: `options=[[], ["NOP"]]`. The set is the product of them all, the last one varying fastest.

pub mod access;
pub mod evaluate;
pub mod fault;
pub mod object;
mod operator;
mod resolve;
pub mod scan;
mod set;
pub mod syntax;

pub use object::{Items, Object, Pair, Received};
pub use resolve::{NoNames, Resolve};
pub use set::{PacketSet, Packets};

/// How many packets a set may stand for where all of them are made at once.
pub const LIMIT: u128 = 1_000_000;
