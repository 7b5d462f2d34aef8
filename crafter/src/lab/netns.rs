//! Anonymous network namespaces.

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    process::Command,
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result};

/// A network namespace without a name in the file system: it lives as long as
/// this descriptor, a thread or a socket in it.
pub struct NetNs {
    fd: OwnedFd,
    inode: u64,
}

impl NetNs {
    /// Makes a new namespace with its loopback up.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_SYS_ADMIN, [`Error::Io`] otherwise.
    pub fn new() -> Result<Self> {
        // unshare() moves the calling thread for good, so a thread is spent on it.
        let fd = thread::scope(|scope| {
            join(scope.spawn(|| -> io::Result<OwnedFd> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                loopback_up()?;
                Ok(File::open("/proc/thread-self/ns/net")?.into())
            }))
        })
        .map_err(|source| Error::io("make a network namespace", "CAP_SYS_ADMIN", source))?;
        Self::from_fd(fd)
    }

    /// Adopts a descriptor of a namespace, e.g. an opened `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::Io`] if the descriptor cannot be read.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let file = File::from(fd);
        let inode = file
            .metadata()
            .map_err(|source| Error::Io { action: "read a network namespace's number".into(), source })?
            .ino();
        Ok(Self { fd: file.into(), inode })
    }

    /// The number in `net:[...]`, as `/proc/PID/ns/net` shows it.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Moves the calling thread into the namespace, for good. Async-signal-safe
    /// (one system call), so it may be used between fork and exec.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` inside, on a thread of its own, and waits for it. A panic in
    /// `work` goes on in the caller.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_SYS_ADMIN, [`Error::Io`] otherwise.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter()?;
                Ok(work())
            }))
        })
        .map_err(enter_error)
    }

    /// Starts a thread inside; it holds the namespace until it ends. Its result
    /// is an error if it could not enter.
    ///
    /// # Errors
    /// [`Error::Io`] if no thread can be started.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let namespace = self.try_clone()?;
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                namespace.enter().map_err(enter_error)?;
                // The thread itself is the hold from here on.
                drop(namespace);
                Ok(work())
            })
            .map_err(|source| Error::Io { action: format!("start the thread {name}"), source })
    }

    /// Another handle of the same namespace.
    ///
    /// # Errors
    /// [`Error::Io`] when out of file descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let fd =
            self.fd.try_clone().map_err(|source| Error::Io { action: "duplicate a file descriptor".into(), source })?;
        Ok(Self { fd, inode: self.inode })
    }

    /// A command that will run inside and is killed when the thread that spawns
    /// it ends (PR_SET_PDEATHSIG); what it starts in turn is not, see
    /// [`crate::lab::run`] for that. `/sys` stays that of the caller's namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        match self.fd.try_clone() {
            Ok(fd) => {
                let inside = move || {
                    setns(&fd, CloneFlags::CLONE_NEWNET)?;
                    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                    Ok(())
                };
                // SAFETY: the closure makes two system calls and allocates nothing,
                // which is all that is allowed between fork and exec.
                unsafe { command.pre_exec(inside) };
            }
            Err(source) => {
                let errno = source.raw_os_error().unwrap_or(libc::EMFILE);
                // SAFETY: as above, not even a system call. The command must not run
                // outside, so spawning it fails with the reason.
                unsafe { command.pre_exec(move || Err(io::Error::from_raw_os_error(errno))) };
            }
        }
        command
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}] (fd {})", self.inode, self.fd.as_raw_fd())
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn enter_error(source: io::Error) -> Error {
    Error::io("enter a network namespace", "CAP_SYS_ADMIN", source)
}

/// Sets IFF_UP on `lo` of the calling thread's namespace.
fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = interface_request("lo");
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An `ifreq` that names an interface, all else zero.
pub(super) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data (an array and a union of integers and pointers), for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less, so that the name stays NUL-terminated.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let outside = current();
        let namespace = NetNs::new().unwrap();
        assert_ne!(namespace.inode(), outside);
        assert_eq!(namespace.run(current).unwrap(), namespace.inode());
        assert_eq!(namespace.spawn("inside", current).unwrap().join().unwrap().unwrap(), namespace.inode());
        let output = namespace.command("readlink").arg("/proc/self/ns/net").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("net:[{}]", namespace.inode()));
        assert_eq!(current(), outside);
    }

    #[test]
    fn loopback_is_up() {
        let namespace = NetNs::new().unwrap();
        namespace
            .run(|| {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            })
            .unwrap();
    }
}
