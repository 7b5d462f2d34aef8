//! The cage of a command in the lab: what it starts ends with it, and it ends
//! with the lab, whoever kills whom.
//!
//! PR_SET_PDEATHSIG reaches only a process itself, not its children, so the
//! command gets a PID namespace: when its first process ends, the kernel kills
//! all others. That first process is a small init of ours, because a process 1
//! ignores the signals that it has no handler for, which a command does not expect.
//!
//! ```text
//!   crafter lab run ── fork ── init (1) ── fork ── COMMAND (2) ── ...
//! ```

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
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

/// Signals that init passes on to the command.
const FORWARDED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// What a command is caged with.
pub(super) struct Jail {
    /// The network namespace that it runs in.
    pub(super) namespace: OwnedFd,
    /// The reading end of a pipe whose writing end `lifeline` the caller keeps;
    /// both must stay open until the command is spawned.
    pub(super) alive: RawFd,
    pub(super) lifeline: RawFd,
    /// The command's signal mask.
    pub(super) mask: SigSet,
    /// Mounts of its own, made before and after /proc is.
    pub(super) names: Option<Steps>,
    pub(super) files: Option<Steps>,
    /// `Some` for a command that gets a process group of its own, in the foreground of the terminal on stdin: the
    /// writing end of a pipe that does not block, open until the command is spawned. Init writes the number of the
    /// signal to it by which the command was stopped.
    pub(super) foreground: Option<RawFd>,
}

/// Makes `command` run caged.
///
/// The thread that spawns it must be one that has called [`new_pid_namespace`],
/// and must outlive it.
pub(super) fn confine(command: &mut Command, jail: Jail) {
    let Jail { namespace, alive, lifeline, mask, names, files, foreground } = jail;
    let enter = move || {
        // If the parent was killed before this call, nobody holds the lifeline's
        // writing end after our copy is closed; getppid() cannot tell, it is 0
        // in a new PID namespace.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // SAFETY: the descriptor is this process's copy, which nothing here uses again.
        unsafe { libc::close(lifeline) };
        if hung_up(alive) {
            return Err(Errno::EPIPE.into());
        }
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        own_mounts(names.as_ref())?;
        if let Some(files) = &files {
            files.take();
        }
        become_init(&mask, foreground)
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed; the
    // closure and what it calls make system calls and neither allocate nor lock.
    unsafe { command.pre_exec(enter) };
}

/// Makes the next processes that the calling thread starts members of a new PID
/// namespace, the first of them its init. Affects no other thread.
pub(super) fn new_pid_namespace() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}

fn hung_up(pipe: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: pipe, events: 0, revents: 0 };
    // SAFETY: poll() reads and writes the one pollfd that it is told of.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLHUP != 0 }
}

/// A mount namespace with `names` and with a /proc that shows the new PID
/// namespace; without it /proc/self would dangle.
fn own_mounts(names: Option<&Steps>) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Else the new mounts would show up outside, too.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    match mount(NONE, "/", NONE, private, NONE) {
        Ok(()) => names.into_iter().for_each(Steps::take),
        // In a chroot, / need not be a mount point; /proc is, and is all that can be mounted over then.
        Err(_) => {
            mount(NONE, "/proc", NONE, private, NONE)?;
            names.into_iter().for_each(Steps::tell);
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE)
}

/// The command's process id as init sees it; 0 before there is one.
static COMMAND: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid siginfo.
    let from_kernel = unsafe { (*info).si_code } == libc::SI_KERNEL;
    let command = COMMAND.load(Ordering::Relaxed);
    // What the terminal sends (Ctrl-C) goes to the whole process group, the
    // command included: passed on, it would arrive twice.
    if command > 0 && !from_kernel {
        // SAFETY: kill() takes no pointers and is async-signal-safe.
        unsafe { libc::kill(command, signal) };
    }
}

/// Tells init to continue a command that has stopped. Not SIGCONT: a shell sends that to the whole process group of
/// `crafter lab run`, before the terminal is the command's again. Nobody else sends init this signal.
pub(super) const RESUME: Signal = Signal::SIGURG;

/// The same, after making the command's process group the terminal's foreground group.
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

/// Forks: the child returns, to exec the command; the parent stays as init and
/// ends with the command's exit code (128 + signal if it was killed).
fn become_init(mask: &SigSet, foreground: Option<RawFd>) -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let handler = SigAction::new(SigHandler::SigAction(pass_on), SaFlags::empty(), SigSet::all());
    let resume = SigAction::new(SigHandler::Handler(resume), SaFlags::empty(), SigSet::all());
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the process has one thread after fork(), and either branch does
    // only async-signal-safe work until it execs or ends.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if foreground.is_some() {
                come_to_foreground();
            }
            for signal in FORWARDED {
                // SAFETY: the default action is no code of ours.
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

/// Makes the calling process the leader of the terminal's foreground process
/// group. SIGTTOU, which a process in the background gets for that, must be blocked.
///
/// Where the group's leader is outside of the PID namespace its number is 0
/// within, and a shell cannot set it back when it ends (dash fails at that).
fn come_to_foreground() {
    // SAFETY: neither takes pointers, both are async-signal-safe. A shell that finds itself in the background says so.
    unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(libc::STDIN_FILENO, libc::getpid());
    }
}

/// The descriptor of the pipe in init that it writes to when the command has stopped, behind stdin.
const STOPPED: RawFd = libc::STDIN_FILENO + 1;

/// Collects children, also orphaned ones, until the command ends. Writes to `stopped`, if there is such a pipe, with
/// which signal the command has stopped, each time that it does.
fn reap(command: libc::pid_t, stopped: Option<RawFd>) -> ! {
    // The pipe over which Command learns whether exec worked is among them: it
    // waits until nobody holds that open.
    // SAFETY: init uses no descriptors, except for a command in the foreground the terminal on stdin and the pipe.
    unsafe {
        let kept = stopped.map_or(0, |stopped| libc::dup2(stopped, STOPPED) + 1);
        libc::syscall(libc::SYS_close_range, kept, libc::c_uint::MAX, 0);
    }
    let options = if stopped.is_some() { libc::WUNTRACED } else { 0 };
    let code = loop {
        let mut status = 0;
        // SAFETY: waitpid() writes the status that it is handed.
        let child = unsafe { libc::waitpid(-1, &raw mut status, options) };
        match child {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => break 1,
            _ if child == command && libc::WIFSTOPPED(status) => {
                let signal = libc::WSTOPSIG(status) as u8;
                // SAFETY: one byte is read from where it is. If the pipe is full, a stop is pending in it already.
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
    // SAFETY: _exit() does not return and runs no handlers of the process that forked us.
    unsafe { libc::_exit(code) }
}

/// A pipe that tells a child whether its parent still lives.
pub(super) fn lifeline() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Descriptor numbers of a lifeline, for [`confine`].
pub(super) fn numbers((alive, lifeline): &(OwnedFd, OwnedFd)) -> (RawFd, RawFd) {
    (alive.as_raw_fd(), lifeline.as_raw_fd())
}
