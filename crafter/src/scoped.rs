//! Scoped threads whose creation can fail without a panic.

use std::{
    io,
    thread::{Builder, Scope, ScopedJoinHandle},
};

/// Runs `work` on another thread of the scope, like [`Scope::spawn`].
///
/// # Errors
/// EAGAIN if the process may have no more threads (`RLIMIT_NPROC`, `pids.max`) or no memory for a stack.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, work)
}
