//! Reproduces the fault that [`crate::executable`] prevents.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tempfile::TempDir;

use crate::executable;

/// How long a forked child keeps the inherited descriptors open before it executes another program.
static BEFORE_EXEC: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// Threads that fork continuously.
const THREADS: usize = 4;
/// Number of scripts written meanwhile. If this process wrote them itself, about one in three would fail.
const ROUNDS: u32 = 20;

/// A script that exits at once, long enough that writing it takes some milliseconds.
fn text() -> String {
    format!("#!/bin/sh\nexit 0\n{}", "# Not read.\n".repeat(700_000))
}

/// Starts `true` and runs `before` between fork and exec; it may only make system calls.
fn fork(before: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    let mut command = Command::new("true");
    // SAFETY: the closures of all callers only make async-signal-safe system calls.
    unsafe { command.pre_exec(before) };
    assert!(command.stdin(Stdio::null()).status().expect("true").success());
}

/// Runs `work` while other threads fork.
fn while_forking<T>(work: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let linger = || {
        // SAFETY: the first pointer is valid, and the second may be null.
        unsafe { libc::nanosleep(&raw const BEFORE_EXEC, std::ptr::null_mut()) };
        Ok(())
    };
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stopped);
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stopped.load(Ordering::Relaxed) {
                    fork(linger);
                }
            });
        }
        work()
    })
}

fn execute(program: &Path) -> io::Result<()> {
    let status = Command::new(program).stdin(Stdio::null()).status()?;
    assert!(status.success(), "{}: {status}", program.display());
    Ok(())
}

fn is_busy(result: io::Result<()>) -> bool {
    match result {
        Ok(()) => false,
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => true,
        Err(error) => panic!("{error}"),
    }
}

/// Positive control: executing a script fails if this process writes it while another thread forks.
#[test]
fn script_written_by_this_process_is_busy() {
    let directory = TempDir::with_prefix("crafter-busy-").expect("a directory");
    let script = directory.path().join("script");
    let (mut forked, tell) = io::pipe().expect("a pipe");
    let (wait, go) = io::pipe().expect("a pipe");
    thread::scope(|scope| {
        let mut file = File::create(&script).expect("a script");
        file.write_all(b"#!/bin/sh\n").expect("write");
        let child = scope.spawn(move || {
            fork(move || {
                let (mut byte, tell, wait) = (0_u8, tell.as_raw_fd(), wait.as_raw_fd());
                let byte = (&raw mut byte).cast();
                // SAFETY: each call reads or writes one byte of valid memory.
                let done = unsafe { (libc::write(tell, byte, 1), libc::read(wait, byte, 1)) };
                if done == (1, 1) { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
        });
        forked.read_exact(&mut [0]).expect("a child");
        file.write_all(b"exit 0\n").expect("write");
        file.set_permissions(fs::Permissions::from_mode(0o755)).expect("permissions");
        drop(file);
        let busy = is_busy(execute(&script));
        (&go).write_all(&[0]).expect("resume the child");
        child.join().expect("true");
        assert!(busy, "the script is not busy although a child has it open for writing");
    });
    assert!(!is_busy(execute(&script)), "the script is busy although no process has it open");
}

#[test]
fn files_of_the_helper_are_never_busy() {
    let directory = TempDir::with_prefix("crafter-busy-").expect("a directory");
    let (at, text) = (|name: String| directory.path().join(name), text());
    while_forking(|| {
        for round in 0..ROUNDS {
            let [script, copy, link] = ["script", "copy", "link"].map(|name| at(format!("{name}{round}")));
            executable::script(&text, &script).expect("a script");
            assert!(!is_busy(execute(&script)), "script {round}");
            executable::copy(&script, &copy).expect("a copy");
            assert!(!is_busy(execute(&copy)), "copy {round}");
            executable::place(&script, &link).expect("a link");
            assert!(!is_busy(execute(&link)), "link {round}");
            [script, copy, link].iter().for_each(|path| fs::remove_file(path).expect("remove it"));
        }
    });
}

/// Copies, as used across file systems, are executable for every user; existing files are not overwritten.
#[test]
fn copy_is_executable_and_existing_files_are_kept() {
    let directory = TempDir::with_prefix("crafter-busy-").expect("a directory");
    let [script, copy, link] = ["script", "copy", "link"].map(|name| directory.path().join(name));
    executable::script("#!/bin/sh\n", &script).expect("a script");
    executable::copy(&script, &copy).expect("a copy");
    execute(&copy).expect("execute it");
    assert_eq!(fs::metadata(&copy).expect("the copy").permissions().mode() & 0o7777, 0o755);
    let refused = executable::place(&script, &copy).expect_err("it exists").to_string();
    assert!(refused.starts_with(&format!("cannot write {}: ", copy.display())), "{refused}");
    executable::place(&script, &link).expect("a link");
    executable::script("#!/bin/false\n", &link).expect_err("it exists");
    assert_eq!(fs::read_to_string(&script).expect("the script"), "#!/bin/sh\n");
}
