//! Steps that set up mounts and files in a command's mount namespace: prepared before fork, run after it.

use std::{
    ffi::{CStr, CString},
    os::{fd::RawFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
    unistd::{mkdir, symlinkat},
};

/// A step between fork and exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Mounts an empty file system over a directory.
    Tmpfs(CString),
    /// Creates an empty directory.
    Directory(CString),
    /// Creates a symbolic link at `path`.
    Link { path: CString, target: CString },
    /// Creates a file that all users can read.
    File { path: CString, content: Vec<u8> },
    /// Binds `from`, with all mounts below it, to `to`. Without effect if `from` does not exist.
    Bind { from: CString, to: CString },
    /// Moves the mount at `from` to `to`.
    Move { from: CString, to: CString },
    /// Detaches the upper mount of a directory; bind mounts from it stay.
    Detach(CString),
}

/// Steps for one purpose, and the notice if one fails.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) steps: Vec<Step>,
    /// A line for stderr, with its newline.
    pub(super) notice: &'static str,
}

impl Steps {
    /// Runs the steps until one fails; then prints the notice and goes on, as the command is useful without them. Makes
    /// system calls only, neither allocates nor locks.
    pub(super) fn run(&self) {
        if self.steps.iter().try_for_each(Step::run).is_err() {
            self.print_notice();
        }
    }

    /// Writes the notice to stderr.
    pub(super) fn print_notice(&self) {
        const STDERR: RawFd = 2;
        // SAFETY: write() reads the bytes of the notice. There is no other place to report a failure of it.
        unsafe { libc::write(STDERR, self.notice.as_ptr().cast(), self.notice.len()) };
    }
}

impl Step {
    fn run(&self) -> nix::Result<()> {
        const NONE: Option<&CStr> = None;
        match self {
            Self::Tmpfs(at) => {
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                mount(Some(c"tmpfs"), at.as_c_str(), Some(c"tmpfs"), flags, Some(c"mode=755"))
            }
            Self::Directory(path) => mkdir(path.as_c_str(), Mode::from_bits_truncate(0o755)),
            Self::Link { path, target } => symlinkat(target.as_c_str(), nix::fcntl::AT_FDCWD, path.as_c_str()),
            Self::File { path, content } => write(path, content),
            Self::Bind { from, to } => {
                let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
                match mount(Some(from.as_c_str()), to.as_c_str(), NONE, flags, NONE) {
                    Err(Errno::ENOENT) => Ok(()),
                    other => other,
                }
            }
            Self::Move { from, to } => mount(Some(from.as_c_str()), to.as_c_str(), NONE, MsFlags::MS_MOVE, NONE),
            Self::Detach(at) => umount2(at.as_c_str(), MntFlags::MNT_DETACH),
        }
    }
}

fn write(path: &CStr, content: &[u8]) -> nix::Result<()> {
    use nix::fcntl::OFlag;
    let mode = Mode::from_bits_truncate(0o644);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(path, flags, mode)?;
    // Regardless of the umask.
    nix::sys::stat::fchmod(&file, mode)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = nix::unistd::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// A path as C string; empty if it contains a NUL byte, which no path of a file system does.
pub(super) fn path(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap_or_default()
}
