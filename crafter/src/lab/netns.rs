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

use crate::{Error, Result, datapath::interface::interface_request, scoped};

/// A network namespace without a name in the file system; it exists as long as a descriptor of it, a thread or a socket
/// in it.
pub struct NetNs {
    fd: OwnedFd,
    inode: u64,
}

impl NetNs {
    /// Creates a namespace with its loopback interface up.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_SYS_ADMIN, [`Error::Io`] otherwise.
    pub fn new() -> Result<Self> {
        // unshare() moves the calling thread, so this runs on a thread of its own.
        let fd = thread::scope(|scope| {
            join(scoped::spawn(scope, || -> io::Result<OwnedFd> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                loopback_up()?;
                Ok(File::open("/proc/thread-self/ns/net")?.into())
            }))
        })
        .map_err(|source| Error::io("create a network namespace", "CAP_SYS_ADMIN", source))?;
        Self::from_fd(fd)
    }

    /// Wraps a descriptor of a namespace, for example of `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::Io`] if the descriptor cannot be read.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let file = File::from(fd);
        let inode = file
            .metadata()
            .map_err(|source| Error::Io { action: "read the inode of a network namespace".into(), source })?
            .ino();
        Ok(Self { fd: file.into(), inode })
    }

    /// The inode number, as in the target `net:[...]` of `/proc/PID/ns/net`.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Moves the calling thread into the namespace. Async-signal-safe (one system call), so it may be used between fork
    /// and exec.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` in the namespace on a thread of its own and waits for it. A panic in `work` is resumed in the
    /// caller.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_SYS_ADMIN, [`Error::Io`] otherwise.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            join(scoped::spawn(scope, || {
                self.enter()?;
                Ok(work())
            }))
        })
        .map_err(enter_error)
    }

    /// Starts a thread in the namespace. Its result is an error if it cannot enter.
    ///
    /// # Errors
    /// [`Error::Io`] if the thread cannot be started.
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
                // The thread itself keeps the namespace from here on.
                drop(namespace);
                Ok(work())
            })
            .map_err(|source| Error::Io { action: format!("start the thread {name}"), source })
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// [`Error::Io`] if no file descriptor is left.
    pub fn try_clone(&self) -> Result<Self> {
        let fd =
            self.fd.try_clone().map_err(|source| Error::Io { action: "duplicate a file descriptor".into(), source })?;
        Ok(Self { fd, inode: self.inode })
    }

    /// A command to run in the namespace. It is killed when the thread that spawns it ends (PR_SET_PDEATHSIG); its own
    /// children are not, see [`crate::lab::run`] for that. `/sys` remains that of the caller's namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        match self.fd.try_clone() {
            Ok(fd) => {
                let enter = move || {
                    setns(&fd, CloneFlags::CLONE_NEWNET)?;
                    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                    Ok(())
                };
                // SAFETY: the closure makes two system calls and does not allocate, as required between fork and exec.
                unsafe { command.pre_exec(enter) };
            }
            Err(source) => {
                let errno = source.raw_os_error().unwrap_or(libc::EMFILE);
                // SAFETY: as above, without a system call. The command must not run outside of the namespace, so
                // spawning it fails with the reason.
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

fn join<T>(thread: io::Result<thread::ScopedJoinHandle<'_, io::Result<T>>>) -> io::Result<T> {
    thread?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    #[test]
    fn work_runs_in_the_namespace_and_the_caller_stays_outside() {
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
