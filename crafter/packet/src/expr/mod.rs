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
//! - Layers are separated by `/`; a string is a `Raw` layer.
//! - Values are numbers (`80`, `0x50`), strings (`"..."` or `'...'`), bytes (`b"\x00"`), lists, tuples, `None` for
//!   unset, `True` and `False` for 1 and 0, records (`DNSQR(qname="example.org")`), and names of values
//!   (`proto="tcp"`).
//! - Values can be computed: `+ - * // % << >> & | ^ ~`, `(1 + 2)`. The shell of `crafter` adds variables and
//!   functions.
//! - `*` repeats texts, bytes and lists; adjacent texts are one; a backslash continues a line.
//! - Several values for a field make a set of packets: a list `[80, 443]`, an inclusive range `(1, 5)`, a prefix
//!   `"192.0.2.0/28"`, addresses `"192.0.2.1-5"`, `"192.0.2.*"` or `("192.0.2.1", "192.0.2.9")`. Alternatives
//!   for a list field are a list of lists: `options=[[], ["NOP"]]`. The set is the product of all alternatives, the last
//!   one varying fastest.

pub mod access;
pub mod evaluate;
pub mod fault;
pub mod hint;
pub mod object;
mod operator;
mod resolve;
pub mod scan;
mod set;
pub mod syntax;

pub use object::{Items, Object, Pair, Received};
pub use resolve::{NoNames, Resolve};
pub use set::{PacketSet, Packets};

/// Largest set whose packets are all created at once.
pub const LIMIT: u128 = 1_000_000;
