//! Runs tests of irreversible operations in a forked process with one thread.

use std::{
    fs::File,
    io::{Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
};

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, alarm, fork, pipe},
};

/// Seconds until SIGALRM ends the child.
const TIMEOUT_SECONDS: u32 = 20;

/// Runs `work` in a child, and returns what it returned, or what it panicked with.
///
/// # Errors
/// How the child ended, if it did not return.
pub fn run(work: impl FnOnce() -> String) -> Result<String, WaitStatus> {
    let (reader, writer) = pipe().unwrap();
    // SAFETY: glibc keeps its allocator usable in the child, which takes no other lock of this process; it leaves by
    // _exit(), so that nothing of the test harness runs twice.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut said = String::new();
            File::from(reader).read_to_string(&mut said).unwrap();
            match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, 0) => Ok(said),
                otherwise => Err(otherwise),
            }
        }
        ForkResult::Child => {
            alarm::set(TIMEOUT_SECONDS);
            let said = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                format!("panicked: {}", text.unwrap_or_default())
            });
            let code = i32::from(File::from(writer).write_all(said.as_bytes()).is_err());
            // SAFETY: ends this process, which has nothing left to do.
            unsafe { libc::_exit(code) }
        }
    }
}
