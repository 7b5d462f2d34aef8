//! The fault that [`crate::executable`] prevents, made to occur.

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

/// How long a child has what this process had open, before it executes another program.
static BEFORE_EXEC: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// Threads that start processes all the time.
const THREADS: usize = 4;
/// Scripts of the helper, written beside those. With a file that this process writes, one in three fails.
const ROUNDS: u32 = 20;

/// Ends at once; so long that writing it takes some milliseconds.
fn text() -> String {
    format!("#!/bin/sh\nexit 0\n{}", "# Not read.\n".repeat(700_000))
}

/// Starts `true`, with `before` between fork and exec. It may make system calls, and nothing else.
fn fork(before: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    let mut command = Command::new("true");
    // SAFETY: the callers' closures make system calls that are async-signal-safe, and nothing else.
    unsafe { command.pre_exec(before) };
    assert!(command.stdin(Stdio::null()).status().expect("true").success());
}

/// Runs `work` while other threads start processes.
fn beside_forks<T>(work: impl FnOnce() -> T) -> T {
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

/// The positive control: a script that this process writes while another thread starts a process.
#[test]
fn what_this_process_writes_is_busy() {
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
                // SAFETY: each reads or writes one byte that is there.
                let done = unsafe { (libc::write(tell, byte, 1), libc::read(wait, byte, 1)) };
                if done == (1, 1) { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
        });
        forked.read_exact(&mut [0]).expect("a child");
        file.write_all(b"exit 0\n").expect("write");
        file.set_permissions(fs::Permissions::from_mode(0o755)).expect("permissions");
        drop(file);
        let busy = is_busy(execute(&script));
        (&go).write_all(&[0]).expect("let the child go on");
        child.join().expect("true");
        assert!(busy, "a child has it open for writing");
    });
    assert!(!is_busy(execute(&script)), "no child is left that has it");
}

#[test]
fn what_the_helper_writes_is_not() {
    let directory = TempDir::with_prefix("crafter-busy-").expect("a directory");
    let (at, text) = (|name: String| directory.path().join(name), text());
    beside_forks(|| {
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

/// As for programs on another file system; and what exists is not written to.
#[test]
fn a_copy_is_for_everybody() {
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
