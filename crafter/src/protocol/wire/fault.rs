//! The errors of the interface.

use zlink::ReplyError;

/// The errors of the interface.
#[derive(Debug, Clone, PartialEq, ReplyError)]
#[zlink(interface = "org.crafter.v1")]
pub enum Fault {
    /// The policy does not allow it.
    Refused {
        /// The rule's number.
        rule: Option<u32>,
        /// As `crafter policy explain` names it.
        verdict: String,
        /// In words.
        message: String,
    },
    /// A parameter is wrong.
    Invalid {
        /// Which.
        field: String,
        /// What would be right.
        message: String,
    },
    /// The port belongs to somebody else.
    PortTaken {
        /// `TCP`, `UDP` or `ICMP`.
        protocol: String,
        /// The local address.
        address: String,
        /// The port.
        port: u16,
        /// Who has it.
        holder: Option<String>,
        /// In words.
        message: String,
    },
    /// No such interface.
    UnknownInterface {
        /// The name.
        interface: String,
        /// In words.
        message: String,
    },
    /// No way leads there.
    NoRoute {
        /// Where to.
        destination: String,
        /// In words.
        message: String,
    },
    /// The next hop does not answer.
    NoNeighbour {
        /// The next hop.
        address: String,
        /// The interface.
        interface: String,
        /// In words.
        message: String,
    },
    /// No such lease of the caller.
    NoSuchLease {
        /// Its number.
        lease: u64,
        /// In words.
        message: String,
    },
    /// The policy's text is none.
    BadPolicy {
        /// All that is wrong.
        problems: Vec<String>,
        /// In words.
        message: String,
    },
    /// The kernel or the host would not.
    Failed {
        /// In words.
        message: String,
    },
}
