//! The file of the control socket: made by the service, replaced only if an earlier service left it behind.

use std::{
    fs::{self, Metadata},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use crafter::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
        stat::{Mode, umask},
    },
    unistd::{Gid, fchownat, geteuid},
};

/// Who may connect.
pub(super) struct Access {
    /// The group of the socket; `None`: that of the process.
    pub(super) group: Option<Gid>,
    /// Whether all users may connect.
    pub(super) everybody: bool,
}

/// The file of a bound socket; removed on drop, unless something else is at its path by then.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == self.identity) {
            // Fails if the service has switched users and may not write the directory; the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on `path`. After an error, no file is left there that was not there before.
///
/// # Errors
/// [`Error::Invalid`] if something is at the path that is not the stale socket of an earlier service, or if the group
/// cannot be set; [`Error::Io`].
pub(super) fn bind(path: &Path, access: &Access) -> Result<(UnixListener, SocketFile)> {
    let failed = |source: io::Error| Error::Io { action: format!("listen on {}", path.display()), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    remove_stale(path)?;
    // No other user may connect before owner and mode are set.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.map_err(failed)?;
    let identity = identity(&fs::symlink_metadata(path).map_err(failed)?);
    let file = SocketFile { path: path.to_owned(), identity };
    if let Some(group) = access.group {
        give(path, group)?;
    }
    let mode = if access.everybody { 0o666 } else { 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok((listener, file))
}

fn give(path: &Path, group: Gid) -> Result<()> {
    let given = fchownat(AT_FDCWD, path, None, Some(group), AtFlags::AT_SYMLINK_NOFOLLOW);
    given.map_err(|errno| match errno {
        Errno::EPERM => {
            let reason = format_args!(
                "this process may not give its socket to group {group}: it is not in the group, and has no CAP_CHOWN; \
                 start it with that group (SupplementaryGroups= in systemd, `setpriv --groups`), let crafter.socket \
                 open the socket, or choose --everybody"
            );
            Error::invalid(format!("--socket {}", path.display()), reason)
        }
        errno => Error::Io { action: format!("listen on {}", path.display()), source: errno.into() },
    })
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Removes the socket that an earlier service of this user left at `path`, and nothing else.
fn remove_stale(path: &Path) -> Result<()> {
    let failed = |source: io::Error| Error::Io { action: format!("listen on {}", path.display()), source };
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let refused = |reason: &str| Err(Error::invalid(format!("--socket {}", path.display()), reason));
    let kind = there.file_type();
    let what = match () {
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_file() => "a regular file",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if !kind.is_socket() => "a device",
        () => match listener(path) {
            Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => {
                return refused("another service is listening on it; stop that service, or choose another socket");
            }
            Err(Errno::ECONNREFUSED) if there.uid() == geteuid().as_raw() => {
                // Not what has taken its place meanwhile.
                return match fs::symlink_metadata(path) {
                    Ok(now) if identity(&now) == identity(&there) => fs::remove_file(path).map_err(failed),
                    _ => refused("something else has taken its place just now; try again"),
                };
            }
            Err(Errno::ECONNREFUSED) => "a socket that another user has left",
            Err(Errno::EPROTOTYPE) => "a socket of another type that a process uses",
            Err(_) => "a socket that this process may not connect to",
        },
    };
    refused(&format!(
        "it is {what}, and the service replaces only a socket that it has left itself; remove it, or choose another \
         path"
    ))
}

/// Connects to the socket without waiting for room in its queue.
fn listener(path: &Path) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(client.as_raw_fd(), &UnixAddr::new(path)?)
}
