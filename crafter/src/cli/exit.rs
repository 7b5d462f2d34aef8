//! Exit codes of the command line, the same for every command.

use crafter::{Error, engine, packet};

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

/// The exit code for an error of the library.
pub fn code(error: &Error) -> u8 {
    match error {
        Error::Invalid { .. } | Error::Policy { .. } => USAGE,
        Error::Permission { .. } => PERMISSION,
        Error::NoService { .. } | Error::Service { .. } => FAILURE,
        Error::Refused { .. } | Error::Forbidden { .. } | Error::Unreachable { .. } => REFUSED,
        Error::TimedOut { .. } => TIMED_OUT,
        Error::Reset { .. } => RESET,
        Error::PortTaken { .. } => PORT_TAKEN,
        Error::UnknownInterface { .. } | Error::NoRoute { .. } | Error::NoNeighbour { .. } => NO_ROUTE,
        Error::Attach { .. } => ATTACH,
        Error::KernelTooOld { .. } => KERNEL,
        Error::Io { .. } | Error::Bpf { .. } => FAILURE,
        _ => FAILURE,
    }
}

/// The exit code for what a command ends with: that of the library's error in it, if there is one.
pub fn code_of(error: &anyhow::Error) -> u8 {
    let of_library = error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return Some(code(error));
        }
        match (cause.downcast_ref::<packet::Error>(), cause.downcast_ref::<engine::Error>()) {
            (Some(packet::Error::Invalid { .. }), _) | (_, Some(engine::Error::Invalid { .. })) => Some(USAGE),
            (Some(_), _) | (_, Some(_)) => Some(FAILURE),
            (None, None) => None,
        }
    });
    of_library.unwrap_or(FAILURE)
}
