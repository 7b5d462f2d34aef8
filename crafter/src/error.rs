//! One error type for the library.

use std::{fmt, io, net::IpAddr, net::SocketAddr, time::Duration};

/// What can go wrong, each with what the user can do about it in its sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No link of that name in the current network namespace.
    #[error("no interface named '{name}' in this network namespace (`ip link` lists them)")]
    UnknownInterface {
        /// As given by the user.
        name: String,
    },
    /// The kernel's routing table has no way to the destination.
    #[error("no route to {destination}: {reason}")]
    NoRoute {
        /// Where the packet should have gone.
        destination: IpAddr,
        /// The kernel's answer, or which constraint ruled the route out.
        reason: String,
    },
    /// The next hop did not answer ARP or neighbour discovery.
    #[error("{address} does not answer on {interface}: no ARP or neighbour discovery reply within {after:?}")]
    NoNeighbour {
        /// The next hop.
        address: IpAddr,
        /// The interface asked on.
        interface: String,
        /// How long the kernel was given.
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
    /// The port belongs to a socket of this host or to another lease.
    #[error("{protocol} port {port} on {address} is taken{}", .holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    PortTaken {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The local address asked for (unspecified: any).
        address: IpAddr,
        /// The local port.
        port: u16,
        /// Program and process id, where it could be found out.
        holder: Option<String>,
    },
    /// An attach mode was forced and cannot be had.
    #[error("cannot attach to {interface} in {mode} mode: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// `native`, `generic` or `tc`.
        mode: &'static str,
        /// The kernel's reason, and who holds the hook if somebody does.
        reason: String,
    },
    /// The kernel misses something that crafter cannot do without.
    #[error("this kernel ({release}) is too old: {missing}")]
    KernelTooOld {
        /// As `uname -r` prints it.
        release: String,
        /// What is missing and since when Linux has it.
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
    /// Nothing came back in time.
    #[error("no answer from {remote} within {after:?} ({waiting_for})")]
    TimedOut {
        /// The peer.
        remote: SocketAddr,
        /// How long was waited.
        after: Duration,
        /// What was awaited: `SYN-ACK`, `DNS answer`, ...
        waiting_for: &'static str,
    },
    /// An ICMP error said that the peer or its port cannot be reached.
    #[error("{remote} is unreachable: {reason} (ICMP from {from})")]
    Unreachable {
        /// The peer.
        remote: SocketAddr,
        /// The router or host that said so.
        from: IpAddr,
        /// The code in words, e.g. `port unreachable`.
        reason: String,
    },
    /// A value that the user gave does not fit.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field or option, e.g. `--loss` or `URL`.
        what: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A policy's text has errors.
    #[error("policy rejected: {}", .problems.join("; "))]
    Policy {
        /// All that is wrong, each with its line and column, in the order of the text.
        problems: Vec<String>,
    },
    /// The service's policy does not allow it.
    #[error("the service does not allow it: {message}")]
    Forbidden {
        /// The number of the rule; `None`: no rule names the user.
        rule: Option<u32>,
        /// What the rule lacks, as `crafter policy explain` names it.
        verdict: String,
        /// The same in words.
        message: String,
    },
    /// There is no service, or it may not be used.
    #[error("no crafter service at {path} ({reason}): {hint}")]
    NoService {
        /// Its socket.
        path: String,
        /// The system's reason.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The service went away, or answered what cannot be read.
    #[error("the crafter service at {path} is of no use any more: {reason}")]
    Service {
        /// Its socket.
        path: String,
        /// What went wrong.
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
