//! The PID namespace of a command in the lab: all its descendants end with it, and it ends with the lab, even by
//! SIGKILL.
//!
//! PR_SET_PDEATHSIG applies to one process, not to its children. When the first process of a PID namespace ends, the
//! kernel kills all others. Process 1 ignores signals without a handler, which commands do not expect; so it is a small
//! init, and the command is its child.
//!
//! ```text
//!   crafter lab run ── fork ── init (1) ── fork ── COMMAND (2) ── ...
//! ```

use std::{
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::atomic::{AtomicI32, Ordering},
};

use super::mounts::Steps;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask},
    },
};

/// Signals that init forwards to the command.
const FORWARDED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Environment of a confined command.
pub(super) struct Jail {
    /// Its network namespace.
    pub(super) namespace: OwnedFd,
    /// Both ends of a pipe, open until the command is spawned: the reading end hangs up if the caller ends before that.
    pub(super) alive: RawFd,
    pub(super) lifeline: RawFd,
    /// The command's signal mask.
    pub(super) mask: SigSet,
    /// Steps in its mount namespace before and after /proc is mounted.
    pub(super) names: Option<Steps>,
    pub(super) files: Option<Steps>,
    /// `Some` to run the command in a process group of its own, in the foreground of the terminal on stdin: the writing
    /// end of a non-blocking pipe, open until the command is spawned. Init writes the number of each signal to it that
    /// stops the command.
    pub(super) foreground: Option<RawFd>,
}

/// Confines `command` to the jail. The thread that spawns it must have called [`new_pid_namespace`] and must outlive
/// it.
pub(super) fn confine(command: &mut Command, jail: Jail) {
    let Jail { namespace, alive, lifeline, mask, names, files, foreground } = jail;
    let enter = move || {
        // If the parent was killed before this call, the pipe hangs up once this copy of its writing end is closed.
        // getppid() does not show that: it is 0 in a new PID namespace.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // SAFETY: the descriptor is this process's copy, and not used again.
        unsafe { libc::close(lifeline) };
        if hung_up(alive) {
            return Err(Errno::EPIPE.into());
        }
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        own_mounts(names.as_ref())?;
        if let Some(files) = &files {
            files.run();
        }
        become_init(&mask, foreground)
    };
    // SAFETY: only async-signal-safe work is allowed between fork and exec; the closure makes system calls and neither
    // allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

/// Processes that the calling thread starts from now on are members of a new PID namespace, the first of them its init.
/// Affects no other thread.
pub(super) fn new_pid_namespace() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}

fn hung_up(pipe: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: pipe, events: 0, revents: 0 };
    // SAFETY: poll() reads and writes the one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLHUP != 0 }
}

/// Creates a mount namespace with `names` and with the /proc of the new PID namespace, without which /proc/self
/// dangles.
fn own_mounts(names: Option<&Steps>) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Keeps the new mounts out of other mount namespaces.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    match mount(NONE, "/", NONE, private, NONE) {
        Ok(()) => names.into_iter().for_each(Steps::run),
        // In a chroot, / may not be a mount point. /proc is one, and only it can be mounted over.
        Err(_) => {
            mount(NONE, "/proc", NONE, private, NONE)?;
            names.into_iter().for_each(Steps::print_notice);
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE)
}

/// Process id of the command in the PID namespace; 0 before it is started.
static COMMAND: AtomicI32 = AtomicI32::new(0);

extern "C" fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid siginfo.
    let from_kernel = unsafe { (*info).si_code } == libc::SI_KERNEL;
    let command = COMMAND.load(Ordering::Relaxed);
    // The terminal (Ctrl-C) signals the whole process group, including the command: forwarded, the signal would arrive
    // twice.
    if command > 0 && !from_kernel {
        // SAFETY: kill() takes no pointers and is async-signal-safe.
        unsafe { libc::kill(command, signal) };
    }
}

/// Signal to init: continue the stopped command. Not SIGCONT, which a shell sends to the whole process group of
/// `crafter lab run` before the command's group is in the foreground again. No other process sends this signal to init.
pub(super) const RESUME: Signal = Signal::SIGURG;

/// The same, after putting the command's process group into the foreground of the terminal.
pub(super) const RESUME_IN_FOREGROUND: Signal = Signal::SIGIO;

extern "C" fn resume(signal: libc::c_int) {
    let command = COMMAND.load(Ordering::Relaxed);
    if command > 0 {
        // SAFETY: neither takes pointers, both are async-signal-safe. The command leads a process group, and SIGTTOU,
        // which tcsetpgrp() raises in the background, is blocked in this handler.
        unsafe {
            if signal == RESUME_IN_FOREGROUND as libc::c_int {
                libc::tcsetpgrp(libc::STDIN_FILENO, command);
            }
            libc::kill(-command, libc::SIGCONT);
        }
    }
}

/// Forks: the child returns and executes the command; the parent becomes init and exits with the command's exit code
/// (128 + signal if it was killed).
fn become_init(mask: &SigSet, foreground: Option<RawFd>) -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let handler = SigAction::new(SigHandler::SigAction(forward), SaFlags::empty(), SigSet::all());
    let resume = SigAction::new(SigHandler::Handler(resume), SaFlags::empty(), SigSet::all());
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the process has one thread after fork(), and both branches do only async-signal-safe work until they exec
    // or exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if foreground.is_some() {
                enter_foreground();
            }
            for signal in FORWARDED {
                // SAFETY: the default action runs no code of this process.
                unsafe { sigaction(signal, &default) }?;
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?;
            Ok(())
        }
        command => {
            COMMAND.store(command, Ordering::Relaxed);
            for signal in FORWARDED {
                // SAFETY: the handler reads an atomic and calls kill(), both async-signal-safe.
                let _ = unsafe { sigaction(signal, &handler) };
            }
            if foreground.is_some() {
                for signal in [RESUME, RESUME_IN_FOREGROUND] {
                    // SAFETY: the handler reads an atomic and calls tcsetpgrp() and kill(), all async-signal-safe.
                    let _ = unsafe { sigaction(signal, &resume) };
                }
            }
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            reap(command, foreground)
        }
    }
}

/// Makes the calling process the leader of the terminal's foreground process group. SIGTTOU, which a process in the
/// background gets for that, must be blocked.
///
/// A group whose leader is outside of the PID namespace has number 0 inside: a shell cannot restore it as the
/// foreground group when it exits (dash fails).
fn enter_foreground() {
    // SAFETY: neither takes pointers, both are async-signal-safe. On failure the shell reports that it is in the
    // background.
    unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(libc::STDIN_FILENO, libc::getpid());
    }
}

/// Init's descriptor of the pipe for signals that stop the command.
const STOPPED: RawFd = libc::STDIN_FILENO + 1;

/// Reaps children, orphaned ones included, until the command ends. Writes each signal that stops the command to
/// `stopped`, if it is set.
fn reap(command: libc::pid_t, stopped: Option<RawFd>) -> ! {
    // Among the closed descriptors is the pipe that reports a failed exec: std::process::Command waits for its end.
    // SAFETY: init uses no descriptors but the terminal on stdin and the pipe for a command in the foreground.
    unsafe {
        let kept = stopped.map_or(0, |stopped| libc::dup2(stopped, STOPPED) + 1);
        libc::syscall(libc::SYS_close_range, kept, libc::c_uint::MAX, 0);
    }
    let options = if stopped.is_some() { libc::WUNTRACED } else { 0 };
    let code = loop {
        let mut status = 0;
        // SAFETY: waitpid() writes to the status.
        let child = unsafe { libc::waitpid(-1, &raw mut status, options) };
        match child {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => break 1,
            _ if child == command && libc::WIFSTOPPED(status) => {
                let signal = libc::WSTOPSIG(status) as u8;
                // SAFETY: write() reads one byte. If the pipe is full, it reports a stop already.
                unsafe { libc::write(STOPPED, (&raw const signal).cast(), 1) };
            }
            _ if libc::WIFSTOPPED(status) => {}
            _ if child == command && libc::WIFSIGNALED(status) => {
                break 128 + libc::WTERMSIG(status);
            }
            _ if child == command => break libc::WEXITSTATUS(status),
            _ => {}
        }
    };
    // SAFETY: _exit() does not return and runs no exit handlers of the parent.
    unsafe { libc::_exit(code) }
}
