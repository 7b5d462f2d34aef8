//! One error type for the library, and the exit code that the command line gives each kind.

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

    /// The exit code that the command line ends with; see [`exit`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Invalid { .. } | Self::Policy { .. } => exit::USAGE,
            Self::Permission { .. } => exit::PERMISSION,
            Self::NoService { .. } | Self::Service { .. } => exit::FAILURE,
            Self::Refused { .. } | Self::Forbidden { .. } | Self::Unreachable { .. } => exit::REFUSED,
            Self::TimedOut { .. } => exit::TIMED_OUT,
            Self::Reset { .. } => exit::RESET,
            Self::PortTaken { .. } => exit::PORT_TAKEN,
            Self::UnknownInterface { .. } | Self::NoRoute { .. } | Self::NoNeighbour { .. } => exit::NO_ROUTE,
            Self::Attach { .. } => exit::ATTACH,
            Self::KernelTooOld { .. } => exit::KERNEL,
            Self::Io { .. } | Self::Bpf { .. } => exit::FAILURE,
        }
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

/// Exit codes of the command line, the same for every command.
pub mod exit {
    /// All went well.
    pub const SUCCESS: u8 = 0;
    /// Something failed that has no code of its own; `doctor`: nothing can work here.
    pub const FAILURE: u8 = 1;
    /// A wrong option or value.
    pub const USAGE: u8 = 2;
    /// A capability is missing.
    pub const PERMISSION: u8 = 3;
    /// The peer refused: a RST to the SYN, or an ICMP unreachable. Or the policy did.
    pub const REFUSED: u8 = 4;
    /// No answer in time.
    pub const TIMED_OUT: u8 = 5;
    /// The server answered with an error: an HTTP status of 400 or more, a DNS response code other than NOERROR.
    pub const SERVER_ERROR: u8 = 6;
    /// The peer reset an established connection.
    pub const RESET: u8 = 7;
    /// The port is held by a socket of this host.
    pub const PORT_TAKEN: u8 = 8;
    /// Unknown interface, no route, or the next hop does not answer.
    pub const NO_ROUTE: u8 = 9;
    /// The forced attach mode cannot be had.
    pub const ATTACH: u8 = 10;
    /// The kernel is too old.
    pub const KERNEL: u8 = 11;
}
