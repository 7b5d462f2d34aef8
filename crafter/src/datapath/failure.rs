//! Errors of aya as errors of this crate.

use std::io;

use aya::programs::{ProgramError, tc::TcError};

use super::features;
use crate::error::Error;

/// The system error at the root of one of aya's, if there is one.
pub(crate) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        // `source()` skips this one.
        let error_of = match error.downcast_ref() {
            Some(ProgramError::TcError(TcError::IoError(error))) => Some(error),
            _ => error.downcast_ref::<io::Error>(),
        };
        if let Some(code) = error_of.and_then(io::Error::raw_os_error) {
            return Some(io::Error::from_raw_os_error(code));
        }
        next = error.source();
    }
    None
}

/// The error of attaching by an interface's name: if_nametoindex(3), which aya calls, fails with ENOENT if it cannot open a
/// socket (`__opensock()` of glibc), and with ENODEV for an unknown name.
pub(crate) fn by_name(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) => io::Error::from_raw_os_error(libc::EMFILE),
        _ => error,
    }
}

/// An error of aya as an [`Error`]: a missing capability by its name, anything else with the chain of causes.
pub(crate) fn bpf_error(action: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    if os_error(error).is_some_and(|e| matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
        && let Ok(host) = features::host()
        && !host.has("CAP_SYS_ADMIN")
        // Without CAP_PERFMON the verifier rejects adding a variable to a packet pointer (sanitize_ptr_alu() in
        // kernel/bpf/verifier.c), which skipping headers of variable length needs; maps of AF_XDP sockets and
        // networking programs need CAP_NET_ADMIN.
        && let Some(capability) = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"].into_iter().find(|name| !host.has(name))
    {
        return Error::Permission { capability, action: action.to_owned() };
    }
    let mut reason = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        next = source.source();
    }
    Error::Bpf { action: action.to_owned(), reason }
}
