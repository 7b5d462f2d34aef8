//! Exit codes of the command line, the same for every command.

use crafter::{Error, packet};

/// Success.
pub const SUCCESS: u8 = 0;
/// A failure without its own code; `doctor`: crafter cannot work on this host.
pub const FAILURE: u8 = 1;
/// An invalid option or value.
pub const USAGE: u8 = 2;
/// A capability is missing.
pub const PERMISSION: u8 = 3;
/// Refused: by a RST to the SYN, by an ICMP unreachable, or by the policy of the service.
pub const REFUSED: u8 = 4;
/// No answer in time.
pub const TIMED_OUT: u8 = 5;
/// The server answered with an error: an HTTP status of 400 or more, a DNS response code other than NOERROR.
pub const SERVER_ERROR: u8 = 6;
/// The peer reset an established connection.
pub const RESET: u8 = 7;
/// The port is in use by a socket of this host or by another lease.
pub const PORT_TAKEN: u8 = 8;
/// Unknown interface or host name, no route, or the next hop does not answer.
pub const NO_ROUTE: u8 = 9;
/// The attach mode that `--attach` forces is not available.
pub const ATTACH: u8 = 10;
/// The kernel is too old.
pub const KERNEL: u8 = 11;
/// `lab run`: the command cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// `lab run`: the command does not exist.
pub const NOT_FOUND: u8 = 127;
/// A signal ended the command; its number is added: 130 for Ctrl-C, 143 for SIGTERM, 129 if the terminal was closed.
pub const SIGNAL: u8 = 128;

/// The exit code of a command that a signal ended, as shells report it.
pub const fn signal(number: i32) -> u8 {
    SIGNAL + number as u8
}

/// The exit code of an error of the library.
pub fn code(error: &Error) -> u8 {
    match error {
        Error::Invalid { .. } | Error::Text { .. } | Error::Policy { .. } => USAGE,
        Error::Permission { .. } => PERMISSION,
        Error::Refused { .. } | Error::Forbidden { .. } | Error::Unreachable { .. } => REFUSED,
        Error::TimedOut { .. } => TIMED_OUT,
        Error::Reset { .. } => RESET,
        Error::PortTaken { .. } | Error::NoFreePorts { .. } => PORT_TAKEN,
        Error::UnknownInterface { .. }
        | Error::UnknownHost { .. }
        | Error::NoRoute { .. }
        | Error::NoNeighbour { .. } => NO_ROUTE,
        Error::Attach { .. } => ATTACH,
        Error::KernelTooOld { .. } => KERNEL,
        _ => FAILURE,
    }
}

/// The exit code of an error that ends a command: that of the library's error among its causes, else [`FAILURE`].
pub fn code_of(error: &anyhow::Error) -> u8 {
    let code = error.chain().find_map(|cause| match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(error), _) => Some(code(error)),
        (_, Some(packet::Error::Invalid { .. } | packet::Error::Text { .. })) => Some(USAGE),
        _ => None,
    });
    code.unwrap_or(FAILURE)
}
