//! Runs a command in the client namespace and waits for its end.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::ExitStatusExt,
    },
    process::{Child, Command, ExitStatus},
    thread,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, getpgrp, pipe2, read, tcgetpgrp, tcsetpgrp},
};

use super::{
    jail::{self, Jail},
    mounts::Steps,
    resolver_files,
    setup::{Lab, environment},
    shell_prompt,
};
use crate::{Error, Result, scoped};

/// How a command in the lab ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Exit code of the command; 128 + signal number if a signal killed it.
    pub code: u8,
    /// RSTs that the server received while the command ran.
    pub rsts: u64,
}

/// Forwards SIGINT, SIGTERM, SIGHUP and SIGQUIT to the command instead of ending this process; the lab ends with the
/// command.
#[derive(Debug)]
pub struct SignalForwarding {
    signals: SignalFd,
    before: SigSet,
}

impl SignalForwarding {
    /// Blocks the signals. Must be called before other threads are started: they inherit the mask, and a signal is
    /// delivered to any thread that does not block it.
    ///
    /// # Errors
    /// [`Error::Io`] if no file descriptor is left.
    pub fn block() -> Result<Self> {
        let block = || -> nix::Result<Self> {
            let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
            let signals = SigSet::from_iter(signals);
            let mut before = SigSet::empty();
            sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before))?;
            let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
            Ok(Self { signals, before })
        };
        block().map_err(|errno| Error::Io { action: "block signals".into(), source: errno.into() })
    }

    /// Forwards pending signals to `init`. Returns whether there were any, including signals of the terminal.
    fn forward(&self, init: Pid) -> io::Result<bool> {
        let mut is_any = false;
        while let Some(signal) = self.signals.read_signal()? {
            is_any = true;
            // Signals of the terminal reach the command directly, see jail.rs.
            if signal.ssi_code == libc::SI_KERNEL {
                continue;
            }
            let signal = Signal::try_from(signal.ssi_signo as i32)?;
            match kill(init, signal) {
                // ESRCH: it has just ended.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(is_any)
    }
}

/// Runs a command in the lab's client namespace, with [`environment`] set, and waits for its end. Its descendants end
/// with it, and all of them with this process, even by SIGKILL: it runs in a PID namespace with its own /proc.
///
/// If the lab has a DNS server, the command resolves the names of the lab: its mount namespace has its own
/// `/etc/resolv.conf` and `/etc/nsswitch.conf`.
///
/// # Errors
/// [`Error::Io`] if the command cannot be started (the kind of its source is NotFound or PermissionDenied),
/// [`Error::Permission`] without CAP_SYS_ADMIN.
pub fn run(lab: &Lab, command: &[OsString], signals: Option<&SignalForwarding>) -> Result<Ending> {
    let [program, arguments @ ..] = command else {
        return Err(Error::invalid("COMMAND", "name a command to run in the lab"));
    };
    let mut command = Command::new(program);
    command.args(arguments);
    supervise(lab, command, None, false, signals)
}

/// Runs a shell like [`run`] runs a command. If stdin is a terminal, its prompt is marked; when it is suspended, this
/// process stops by the same signal, and when this process is continued in the foreground, so is the shell.
///
/// # Errors
/// As [`run`].
pub fn run_shell(lab: &Lab, program: &OsStr, signals: Option<&SignalForwarding>) -> Result<Ending> {
    let (command, files) = shell_prompt::prepare(program, io::stdin().is_terminal());
    // In the background, the terminal is left to the foreground group.
    supervise(lab, command, files, is_foreground(), signals)
}

fn supervise(
    lab: &Lab,
    mut command: Command,
    files: Option<Steps>,
    foreground: bool,
    signals: Option<&SignalForwarding>,
) -> Result<Ending> {
    lab.tap().clear()?;
    command.envs(environment());
    let program = command.get_program().to_owned();
    // On a thread of its own, because the new PID namespace applies to its later children. The end of this thread kills
    // the command.
    let status = thread::scope(|scope| {
        let supervisor = scoped::spawn(scope, || {
            let stops = foreground.then(|| pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)).transpose();
            let child = stops.map_err(io::Error::from).and_then(|stops| {
                let stopped = stops.as_ref().map(|(_, stopped)| stopped.as_raw_fd());
                Ok((spawn(lab, &mut command, files, stopped, signals)?, stops))
            });
            let ended = child.map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => Error::io("put a command into the lab", "CAP_SYS_ADMIN", error),
                _ => Error::Io { action: format!("run {}", program.display()), source: error },
            });
            let ended = ended.and_then(|(child, stops)| {
                wait(child, signals, stops.as_ref().map(|(stops, _)| stops.as_fd()))
                    .map_err(|source| Error::Io { action: format!("wait for {}", program.display()), source })
            });
            if foreground {
                take_terminal_back();
            }
            ended
        })
        .map_err(|source| Error::Io { action: "start a thread for the command".into(), source })?;
        supervisor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    // Init exits with 128 + signal of the command; a signal here is init's own.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(Ending { code: code as u8, rsts: lab.tap().count()? })
}

/// Puts this process's group into the foreground of the terminal again.
fn take_terminal_back() {
    // SIGTTOU stops a process in the background that does this.
    let before = SigSet::from(Signal::SIGTTOU).thread_swap_mask(SigmaskHow::SIG_BLOCK);
    if let Ok(before) = before {
        // Fails only if the terminal was closed.
        let _ = tcsetpgrp(io::stdin(), getpgrp());
        let _ = before.thread_set_mask();
    }
}

/// Interval in milliseconds at which a process whose command is stopped checks whether it is in the foreground.
const FOREGROUND_CHECK_MS: u16 = 1000;

fn is_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// If the command has stopped, stops this process by the same signal, like su(1) and sudo(8), so that the parent shell
/// continues. Returns whether it did, once this process is continued.
fn follow_stop(stops: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut signals = [0; 64];
    let count = match read(stops, &mut signals) {
        Ok(count) => count,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    let Some(signal) = signals[..count].last() else { return Ok(false) };
    take_terminal_back();
    // This thread runs on when the process is continued.
    raise(Signal::try_from(i32::from(*signal))?)?;
    Ok(true)
}

/// Continues the stopped command; returns whether it did. In the background it does not, and stops this process again
/// like the terminal driver does for a read: a continued shell puts itself into the foreground. `is_signalled`: a
/// signal for the command is pending.
fn resume(init: Pid, is_signalled: bool) -> nix::Result<bool> {
    if !is_foreground() && !is_signalled {
        // Without effect in an orphaned process group, which no shell can continue (POSIX).
        raise(Signal::SIGTTIN)?;
    }
    let how = match is_foreground() {
        true => jail::RESUME_IN_FOREGROUND,
        false if is_signalled => jail::RESUME,
        false => return Ok(false),
    };
    match kill(init, how) {
        // It has just ended.
        Ok(()) | Err(Errno::ESRCH) => Ok(true),
        Err(errno) => Err(errno),
    }
}

fn spawn(
    lab: &Lab,
    command: &mut Command,
    files: Option<Steps>,
    foreground: Option<RawFd>,
    signals: Option<&SignalForwarding>,
) -> io::Result<Child> {
    jail::new_pid_namespace()?;
    let (alive, lifeline) = pipe2(OFlag::O_CLOEXEC)?;
    let mask = match signals {
        Some(signals) => signals.before,
        None => SigSet::thread_get_mask()?,
    };
    let namespace = lab.client().as_fd().try_clone_to_owned()?;
    let names = lab.dns.then(resolver_files::steps);
    let (alive_fd, lifeline_fd) = (alive.as_raw_fd(), lifeline.as_raw_fd());
    jail::confine(command, Jail { namespace, alive: alive_fd, lifeline: lifeline_fd, mask, names, files, foreground });
    command.spawn()
}

fn wait(mut child: Child, signals: Option<&SignalForwarding>, stops: Option<BorrowedFd<'_>>) -> io::Result<ExitStatus> {
    let init = Pid::from_raw(child.id() as i32);
    // SAFETY: pidfd_open() takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, init.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pidfd_open() has just returned this descriptor; nothing else owns it.
    let ended = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let sources = [Some(ended.as_fd()), signals.map(|signals| signals.signals.as_fd()), stops];
    let mut is_stopped = false;
    loop {
        let mut sources: Vec<PollFd<'_>> =
            sources.into_iter().flatten().map(|source| PollFd::new(source, PollFlags::POLLIN)).collect();
        match poll(&mut sources, if is_stopped { FOREGROUND_CHECK_MS.into() } else { PollTimeout::NONE }) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_signalled = signals.map(|signals| signals.forward(init)).transpose()?.unwrap_or_default();
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Some(stops) = stops {
            is_stopped |= follow_stop(stops)?;
        }
        if is_stopped {
            is_stopped = !resume(init, is_signalled)?;
        }
    }
}
