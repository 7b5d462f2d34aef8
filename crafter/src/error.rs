//! One error type for the library.

use std::{fmt, io, net::IpAddr, net::SocketAddr, time::Duration};

use crafter_packet::Excerpt;

/// An error of the library. The message says what failed, why, and what to do; `crafter/docs/errors.md` lists examples
/// and the exit codes of the command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No link of that name in the current network namespace.
    #[error("no interface named '{name}' in this network namespace (`ip link` lists them)")]
    UnknownInterface {
        /// As given by the user.
        name: String,
    },
    /// A host name has no address.
    #[error("no address of host '{name}': {reason}; check the name, or give an address")]
    UnknownHost {
        /// As given by the user.
        name: String,
        /// The error of the resolver, or the IP version that is missing.
        reason: String,
    },
    /// The routing table of the kernel has no route to the destination.
    #[error("no route to {destination}: {reason}")]
    NoRoute {
        /// The destination of the packet.
        destination: IpAddr,
        /// The kernel's error, or the option that excludes the route.
        reason: String,
    },
    /// The next hop did not answer ARP or neighbour discovery.
    #[error(
        "{address} does not answer on {interface}: no ARP or neighbour discovery reply within {after:?}; \
         check that it is up and on this network"
    )]
    NoNeighbour {
        /// The next hop.
        address: IpAddr,
        /// The interface of the request.
        interface: String,
        /// How long the kernel waited.
        after: Duration,
    },
    /// The process lacks a capability.
    #[error("no permission to {action}: {capability} is needed (run as root, or `setcap` the binary)")]
    Permission {
        /// Its name, e.g. `CAP_NET_RAW`.
        capability: &'static str,
        /// The operation, as a verb phrase.
        action: String,
    },
    /// The port belongs to a socket of this host or to another lease.
    #[error(
        "{protocol} port {port} on {address} is in use{}; choose another port",
        .holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default()
    )]
    PortTaken {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The requested local address; unspecified: any.
        address: IpAddr,
        /// The local port.
        port: u16,
        /// Program and process id, if known.
        holder: Option<String>,
    },
    /// The requested number of consecutive ports is not free, or the search reached its time limit before it found
    /// them.
    #[error("{}", no_free_ports(*.count, .protocol, .address, .reason))]
    NoFreePorts {
        /// `TCP`, `UDP` or `ICMP`.
        protocol: &'static str,
        /// The requested local address; unspecified: any.
        address: IpAddr,
        /// The number of ports.
        count: u16,
        /// What the search found.
        reason: String,
    },
    /// A forced attach mode is not available.
    #[error("cannot attach to {interface} in {mode} mode: {reason}; mode auto selects one that is available")]
    Attach {
        /// The interface.
        interface: String,
        /// `native`, `generic` or `tc`.
        mode: &'static str,
        /// The kernel's error, or the program that holds the hook.
        reason: String,
    },
    /// The kernel lacks a feature that crafter requires.
    #[error("this kernel ({release}) is too old: it lacks {missing}; upgrade the kernel")]
    KernelTooOld {
        /// As `uname -r` prints it.
        release: String,
        /// The missing feature and the first Linux version that has it.
        missing: String,
    },
    /// A RST answered the SYN.
    #[error("{remote} refused the connection (RST to the SYN); check the port")]
    Refused {
        /// The peer.
        remote: SocketAddr,
    },
    /// A RST ended an established connection.
    #[error("{remote} reset the connection; the log of the peer may give the reason")]
    Reset {
        /// The peer.
        remote: SocketAddr,
    },
    /// No answer arrived in time.
    #[error("no answer from {remote} within {after:?} ({waiting_for}); check the address, or wait longer")]
    TimedOut {
        /// The peer.
        remote: SocketAddr,
        /// The time limit.
        after: Duration,
        /// What was awaited: `SYN-ACK`, `DNS answer`, ...
        waiting_for: &'static str,
    },
    /// An ICMP error reported the peer or its port as unreachable.
    #[error("{remote} is unreachable: {reason} (ICMP from {from}); check the address and port")]
    Unreachable {
        /// The peer.
        remote: SocketAddr,
        /// The router or host that sent the ICMP error.
        from: IpAddr,
        /// The code in words, e.g. `port unreachable`.
        reason: String,
    },
    /// A value from the user is invalid.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field, e.g. `port` or `URL`; from the command line the option, e.g. `--loss`.
        what: String,
        /// Why it is invalid, and what is valid.
        reason: String,
    },
    /// A text of the user has an error at one place: an expression, or a configuration file.
    #[error("{place}: {reason}")]
    Text {
        /// The text and the place in it, e.g. `expression, column 10`.
        place: String,
        /// What is wrong, and what is valid.
        reason: String,
        /// The line with the place.
        excerpt: Box<Excerpt>,
    },
    /// A policy's text has errors.
    #[error("policy rejected: {}", .problems.join("; "))]
    Policy {
        /// All errors, each with line and column, in the order of the text.
        problems: Vec<String>,
        /// The line of each error.
        excerpts: Vec<Excerpt>,
    },
    /// The service's policy does not allow it.
    #[error("the service does not allow it: {message}")]
    Forbidden {
        /// The number of the rule; `None`: no rule names the user.
        rule: Option<u32>,
        /// What the rule does not allow, as `crafter policy explain` names it.
        verdict: String,
        /// The same in words.
        message: String,
    },
    /// The service does not run, or this user may not connect.
    #[error("no crafter service at {path} ({reason}): {hint}")]
    NoService {
        /// Its socket.
        path: String,
        /// The system's error.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The service has stopped, or its reply cannot be read.
    #[error("lost connection to the crafter service at {path}: {reason}")]
    Service {
        /// Its socket.
        path: String,
        /// What failed.
        reason: String,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    Io {
        /// The operation, as a verb phrase.
        action: String,
        /// The system's error.
        source: io::Error,
    },
    /// Loading or using the kernel half failed.
    #[error("{action}: {reason}")]
    Bpf {
        /// The operation, as a verb phrase.
        action: String,
        /// The error of aya or of the verifier.
        reason: String,
    },
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`], or an [`Error::Permission`] naming `capability` where `source` is EPERM or EACCES.
    pub fn io(action: impl Into<String>, capability: &'static str, source: io::Error) -> Self {
        let action = action.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { capability, action },
            _ => Self::Io { action, source },
        }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }
}

fn no_free_ports(count: u16, protocol: &str, address: &IpAddr, reason: &str) -> String {
    match count {
        1 => format!("no free {protocol} port on {address}: {reason}; close a program or a lease that has one"),
        _ => format!("no {count} consecutive free {protocol} ports on {address}: {reason}; ask for fewer"),
    }
}

impl From<crafter_packet::Error> for Error {
    fn from(error: crafter_packet::Error) -> Self {
        use crafter_packet::Error as Packet;
        match error {
            Packet::Invalid { what, reason } => Self::Invalid { what, reason },
            Packet::Text { place, reason, excerpt } => Self::Text { place, reason, excerpt },
            Packet::Io { action, source } => Self::Io { action, source },
            other => Self::Invalid { what: "packet".to_owned(), reason: other.to_string() },
        }
    }
}

impl From<crafter_engine::Error> for Error {
    fn from(error: crafter_engine::Error) -> Self {
        use crafter_engine::Error as Engine;
        match error {
            Engine::Invalid { what, reason } => Self::Invalid { what, reason },
            Engine::Refused { remote } => Self::Refused { remote },
            Engine::Reset { remote } => Self::Reset { remote },
            Engine::TimedOut { remote, after, waiting_for } => Self::TimedOut { remote, after, waiting_for },
            Engine::Unreachable { remote, from, reason } => Self::Unreachable { remote, from, reason },
            Engine::Forbidden { rule, message } => Self::Forbidden { rule, verdict: String::new(), message },
            Engine::Io { action, source } => Self::Io { action, source },
            other => Self::Invalid { what: "conversation".to_owned(), reason: other.to_string() },
        }
    }
}
