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
        /// The verdict as `crafter policy explain` names it.
        verdict: String,
        /// The decision as a sentence.
        message: String,
    },
    /// A parameter is wrong.
    Invalid {
        /// The parameter.
        field: String,
        /// What is wrong, and a correct value.
        message: String,
    },
    /// Another socket or lease uses the port.
    PortTaken {
        /// `TCP`, `UDP` or `ICMP`.
        protocol: String,
        /// The local address.
        address: String,
        /// The port.
        port: u16,
        /// The caller's own lease, if it uses the port.
        holder: Option<String>,
        /// The error as a sentence.
        message: String,
    },
    /// The requested number of consecutive ports is not free.
    NoFreePorts {
        /// `TCP`, `UDP` or `ICMP`.
        protocol: String,
        /// The local address.
        address: String,
        /// The number of ports.
        count: u16,
        /// What the search found.
        reason: String,
        /// The error as a sentence.
        message: String,
    },
    /// No such interface.
    UnknownInterface {
        /// The name of the interface.
        interface: String,
        /// The error as a sentence.
        message: String,
    },
    /// No route to the destination.
    NoRoute {
        /// The destination.
        destination: String,
        /// The error as a sentence.
        message: String,
    },
    /// The next hop does not answer.
    NoNeighbour {
        /// The next hop.
        address: String,
        /// The interface.
        interface: String,
        /// The error as a sentence.
        message: String,
    },
    /// The caller has no such lease.
    NoSuchLease {
        /// The lease's number.
        lease: u64,
        /// The error as a sentence.
        message: String,
    },
    /// The policy's text has errors.
    BadPolicy {
        /// All problems, each with line and column.
        problems: Vec<String>,
        /// The error as a sentence.
        message: String,
    },
    /// The kernel refused an operation, or the host has no more resources.
    Failed {
        /// The error as a sentence.
        message: String,
    },
}
