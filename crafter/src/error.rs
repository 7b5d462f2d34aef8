//! The library's error type.

use std::{fmt, io, net::IpAddr, net::SocketAddr, time::Duration};

/// An error of the library. Its message says what failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No interface of that name exists in the current network namespace.
    #[error("no interface named '{name}' in this network namespace (`ip link` lists them)")]
    UnknownInterface {
        /// As given by the user.
        name: String,
    },
    /// The kernel's routing table has no route to the destination.
    #[error("no route to {destination}: {reason}")]
    NoRoute {
        /// The destination of the packet.
        destination: IpAddr,
        /// The kernel's error, or the constraint that excluded the route.
        reason: String,
    },
    /// The next hop did not answer ARP or neighbour discovery.
    #[error("{address} does not answer on {interface}: no ARP or neighbour discovery reply within {after:?}")]
    NoNeighbour {
        /// The next hop.
        address: IpAddr,
        /// The interface of the next hop.
        interface: String,
        /// How long the kernel tried.
        after: Duration,
    },
    /// The process lacks a capability.
    #[error("no permission to {action}: {capability} is needed (run as root, or `setcap` the binary)")]
    Permission {
        /// Names such as `CAP_NET_RAW`.
        capability: &'static str,
        /// What was tried, as a verb phrase.
        action: String,
    },
    /// A socket of this host or another lease uses the port.
    #[error("{protocol} port {port} on {address} is in use{}; choose another port", .holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    PortTaken {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The requested local address; unspecified: any.
        address: IpAddr,
        /// The local port.
        port: u16,
        /// Program and process id, if they are known. Through the service: only the caller's own lease.
        holder: Option<String>,
    },
    /// The requested attach mode is not possible.
    #[error("cannot attach to {interface} in {mode} mode: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// `native`, `generic` or `tc`.
        mode: &'static str,
        /// The kernel's error, or the program that holds the hook.
        reason: String,
    },
    /// The kernel lacks a feature that crafter requires.
    #[error("this kernel ({release}) is too old: {missing}")]
    KernelTooOld {
        /// As `uname -r` prints it.
        release: String,
        /// The missing feature, and the Linux version that has it.
        missing: String,
    },
    /// A RST answered the SYN.
    #[error("{remote} refused the connection (RST to the SYN)")]
    Refused {
        /// The peer.
        remote: SocketAddr,
    },
    /// A RST ended an established connection.
    #[error("{remote} reset the connection")]
    Reset {
        /// The peer.
        remote: SocketAddr,
    },
    /// No answer arrived in time.
    #[error("no answer from {remote} within {after:?} ({waiting_for})")]
    TimedOut {
        /// The peer.
        remote: SocketAddr,
        /// How long this end waited.
        after: Duration,
        /// What was awaited: `SYN-ACK`, `DNS answer`, ...
        waiting_for: &'static str,
    },
    /// An ICMP error reported that the peer or its port cannot be reached.
    #[error("{remote} is unreachable: {reason} (ICMP from {from})")]
    Unreachable {
        /// The peer.
        remote: SocketAddr,
        /// The router or host that sent it.
        from: IpAddr,
        /// The code in words, e.g. `port unreachable`.
        reason: String,
    },
    /// An invalid value.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field or option, e.g. `--loss` or `URL`.
        what: String,
        /// What is wrong, and a correct value.
        reason: String,
    },
    /// A policy's text has errors.
    #[error("policy rejected: {}", .problems.join("; "))]
    Policy {
        /// All problems, each with line and column, in the order of the text.
        problems: Vec<String>,
    },
    /// The service's policy does not allow the operation.
    #[error("the service's policy does not allow it: {message}")]
    Forbidden {
        /// The number of the rule; `None`: no rule names the user.
        rule: Option<u32>,
        /// The verdict as `crafter policy explain` names it.
        verdict: String,
        /// The decision as a sentence.
        message: String,
    },
    /// There is no service, or this user may not connect to it.
    #[error("no crafter service at {path} ({reason}): {hint}")]
    NoService {
        /// Its socket.
        path: String,
        /// The system's reason.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The connection to the service ended, or the service sent an invalid reply.
    #[error("lost connection to the crafter service at {path}: {reason}")]
    Service {
        /// Its socket.
        path: String,
        /// Why the connection failed.
        reason: String,
    },
    /// The kernel refused an operation that should have worked.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, as a verb phrase.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Loading or using the kernel half failed.
    #[error("{action}: {reason}")]
    Bpf {
        /// What was tried, as a verb phrase.
        action: String,
        /// aya's or the verifier's reason.
        reason: String,
    },
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`]; an [`Error::Permission`] with `capability` if `source` is EPERM or EACCES.
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

impl From<crafter_packet::Error> for Error {
    fn from(error: crafter_packet::Error) -> Self {
        use crafter_packet::Error as Packet;
        match error {
            Packet::Invalid { what, reason } => Self::Invalid { what, reason },
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
