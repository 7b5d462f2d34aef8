//! Mounts and files of a command's own mount namespace, in steps that are
//! prepared before the fork and taken after it.

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

/// What is done between fork and exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Mounts an empty file system over a directory.
    Tmpfs(CString),
    /// Makes an empty directory.
    Directory(CString),
    /// Makes a symbolic link at `path`.
    Link { path: CString, target: CString },
    /// Makes a file that everybody may read.
    File { path: CString, content: Vec<u8> },
    /// Shows `from`, with all that is mounted below it, at `to` too. Without effect if `from` is gone meanwhile.
    Bind { from: CString, to: CString },
    /// Moves what is mounted at `from` to `to`.
    Move { from: CString, to: CString },
    /// Takes the upper mount off a directory; what is bound from it stays.
    Detach(CString),
}

/// The steps of one purpose, and what to tell if one fails.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) steps: Vec<Step>,
    /// A line for stderr, with its newline.
    pub(super) notice: &'static str,
}

impl Steps {
    /// Takes all steps, up to the first that fails, which is printed on stderr: a
    /// command that finds less in its lab is better than none. Makes system
    /// calls only, neither allocates nor locks.
    pub(super) fn take(&self) {
        if self.steps.iter().try_for_each(Step::take).is_err() {
            self.tell();
        }
    }

    /// Writes the notice.
    pub(super) fn tell(&self) {
        const STDERR: RawFd = 2;
        // SAFETY: write() reads as many bytes as the notice has. Its result does not matter: nobody is left to tell.
        unsafe { libc::write(STDERR, self.notice.as_ptr().cast(), self.notice.len()) };
    }
}

impl Step {
    fn take(&self) -> nix::Result<()> {
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
    // Whatever the user's umask.
    nix::sys::stat::fchmod(&file, mode)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = nix::unistd::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// A path for the kernel. One that holds a NUL byte, which no path of the file system does, becomes empty.
pub(super) fn path(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap_or_default()
}
