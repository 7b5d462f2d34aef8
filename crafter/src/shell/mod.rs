//! A language for sending packets by hand: the [text form](crate::expr) with variables and functions.
//!
//! ```text
//! synack = sr1(IP(dst="192.0.2.1")/TCP(sport=5000, dport=80, flags="S"))
//! send(IP(dst="192.0.2.1")/TCP(sport=5000, dport=80, flags="A", seq=synack.ack, ack=synack.seq + 1))
//! ```
//!
//! - [`Shell`] holds the variables; a [`World`] provides the network, the files and the clock. The shell itself does no
//!   IO.
//! - Values are copied: `q = p; q.ttl = 1` does not change `p`.
//! - Numbers do not wrap: a number that does not fit its field is an error that names the field. Sequence numbers of
//!   packets (`p.seq`, `p.ack`) wrap modulo 2^32 in additions and subtractions.
//! - `p.field` is the value that is set, or the default; `None` if it is computed.
//! - [`Names::complete`] completes an input line, [`is_open`] says whether a statement continues on the next line.
//!
//! From the bottom up: `world` and `signature` (names, parameters and help of the functions), `list` and `complete`,
//! `state`, `builtins` (the functions), `interpreter` (the statements).

mod builtins;
mod complete;
mod interpreter;
mod list;
mod signature;
mod state;
#[cfg(test)]
mod tests;
mod world;

pub use complete::Names;
pub use interpreter::{Failure, Output, is_open};
pub use state::Shell;
pub use world::{Exchange, SniffOptions, World};
