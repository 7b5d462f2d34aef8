//! The interface to the service manager: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
//!
//! Without a service manager, there is no socket, and notifications are not sent.

use std::{
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};
use sd_notify::NotifyState;

use crate::error::{Error, Result};

/// The name of the control socket (`FileDescriptorName=`; default: the name of the unit).
pub const SOCKET_NAME: &str = "crafter.socket";

/// Reports the state of the service to the service manager.
#[derive(Debug, Clone, Copy)]
pub struct Notifier {
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads whether the watchdog is enabled: `WATCHDOG_USEC`, unless `WATCHDOG_PID` names another process.
    pub fn new() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) }
    }

    /// Interval for [`beat`](Self::beat): half of the watchdog's timeout; `None` without a watchdog.
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// `WATCHDOG=1`: the service responds. Call it from the main loop, so that it stops with the loop.
    pub fn beat(&self) {
        if self.watchdog.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// `READY=1`: clients can connect. Also ends [`reloading`](Self::reloading).
    pub fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
    }

    /// `RELOADING=1`, with the time that `Type=notify-reload` requires; [`ready`](Self::ready) ends it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    /// `STATUS=`: one line for `systemctl status`.
    pub fn status(&self, status: &str) {
        notify(&[NotifyState::Status(&line(status))]);
    }

    /// `STOPPING=1`.
    pub fn stopping(&self, status: &str) {
        notify(&[NotifyState::Stopping, NotifyState::Status(&line(status))]);
    }
}

impl Default for Notifier {
    fn default() -> Self {
        Self::new()
    }
}

/// Replaces newlines, which would begin another message.
fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Sends a notification; a failure is only logged.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify the service manager of {states:?}: {error}");
    }
}

/// The control socket in non-blocking mode, if the service manager opened it. `None` otherwise, and from the second
/// call on.
///
/// # Errors
/// [`Error::Invalid`] if there are several sockets and not exactly one is named [`SOCKET_NAME`], or if it is not a
/// listening Unix stream socket.
pub fn listener() -> Result<Option<UnixListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    let passed = sd_notify::listen_fds_with_names()
        .map_err(|error| Error::invalid("LISTEN_FDS", format_args!("the service manager's sockets: {error}")))?;
    // SAFETY: the variables say that the manager opened these descriptors for this process, listen_fds_with_names() has
    // checked that they are open, and TAKEN ensures that nothing else here takes them.
    let passed = passed.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect();
    choose(passed)?.map(check).transpose()
}

fn choose(mut passed: Vec<(String, OwnedFd)>) -> Result<Option<OwnedFd>> {
    if passed.len() > 1 {
        let names = passed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        passed.retain(|(name, _)| name == SOCKET_NAME);
        if passed.len() != 1 {
            let reason = format_args!("exactly one socket must be named {SOCKET_NAME}; the names are {names}");
            return Err(Error::invalid("LISTEN_FDNAMES", reason));
        }
    }
    Ok(passed.pop().map(|(_, socket)| socket))
}

fn check(socket: OwnedFd) -> Result<UnixListener> {
    let wrong = |what: &str| {
        let reason = format_args!("descriptor {} is {what}; use ListenStream=/run/...", socket.as_raw_fd());
        Error::invalid("LISTEN_FDS", reason)
    };
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd()).map_err(|_| wrong("not a socket"))?;
    if address.family() != Some(AddressFamily::Unix) {
        return Err(wrong("not a Unix socket"));
    }
    if getsockopt(&socket, sockopt::SockType) != Ok(SockType::Stream) {
        return Err(wrong("not a stream socket"));
    }
    if getsockopt(&socket, sockopt::AcceptConn) != Ok(true) {
        return Err(wrong("a socket that does not listen"));
    }
    let listener = UnixListener::from(socket);
    let nonblocking = listener.set_nonblocking(true);
    nonblocking.map_err(|source| Error::Io { action: "use the service manager's socket".to_owned(), source })?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::File,
        net::TcpListener,
        os::unix::net::{UnixDatagram, UnixStream},
        path::Path,
        process,
    };

    use super::*;
    use crate::service::host::child;

    /// For children with one thread only.
    fn variables(variables: &[(&str, &str)]) {
        for (name, value) in variables {
            // SAFETY: a forked child has one thread.
            unsafe { env::set_var(name, value) };
        }
    }

    fn received(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn notifications_reach_the_manager() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let ended = child::run(|| {
            let pid = process::id().to_string();
            let path = path.to_str().unwrap();
            variables(&[("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", &pid)]);
            let notifier = Notifier::new();
            notifier.ready("2 interfaces\nREADY=0");
            notifier.reloading();
            notifier.status("working");
            notifier.beat();
            notifier.stopping("bye");
            format!("{:?}", notifier.interval())
        });
        assert_eq!(ended.unwrap(), "Some(15s)");
        assert_eq!(received(&manager), "READY=1\nSTATUS=2 interfaces READY=0\n");
        let reloading = received(&manager);
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        let age = Duration::from(now).saturating_sub(Duration::from_micros(since.parse().unwrap()));
        assert!(age < Duration::from_secs(60), "{age:?}");
        assert_eq!(received(&manager), "STATUS=working\n");
        assert_eq!(received(&manager), "WATCHDOG=1\n");
        assert_eq!(received(&manager), "STOPPING=1\nSTATUS=bye\n");
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        let ended = child::run(|| {
            variables(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "1")]);
            let notifier = Notifier::new();
            notifier.ready("ready");
            notifier.beat();
            variables(&[("NOTIFY_SOCKET", "/nowhere/at/all")]);
            notifier.stopping("bye");
            format!("{:?} {:?}", notifier.interval(), listener().unwrap())
        });
        assert_eq!(ended.unwrap(), "None None", "another process's watchdog");
    }

    /// The result of [`listener`] in a child that inherits `sockets` from descriptor 3 on.
    fn activated(sockets: Vec<OwnedFd>, names: &str) -> String {
        let ended = child::run(|| {
            // Moved away first: their descriptors may be among the numbers from 3 on.
            let count = sockets.len().to_string();
            let far: Vec<OwnedFd> = sockets
                .iter()
                .map(|socket| {
                    let fd = nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_DUPFD(200)).unwrap();
                    // SAFETY: fcntl() has just made it, and nothing else owns it.
                    unsafe { OwnedFd::from_raw_fd(fd) }
                })
                .collect();
            for (number, socket) in (3..).zip(&far) {
                // SAFETY: the previous descriptor of this number belongs to the parent, which keeps its own.
                assert!(unsafe { libc::dup2(socket.as_raw_fd(), number) } >= 0);
            }
            variables(&[("LISTEN_PID", &process::id().to_string()), ("LISTEN_FDS", &count), ("LISTEN_FDNAMES", names)]);
            let said = match listener() {
                Ok(Some(listener)) => format!("{:?}", listener.local_addr().unwrap().as_pathname().unwrap()),
                Ok(None) => "none".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(listener().unwrap().is_none(), "taken once");
            // The listener has closed the descriptors from 3 on: the child must not close them again.
            std::mem::forget(sockets);
            said
        });
        ended.unwrap()
    }

    #[test]
    fn managers_socket_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let bound = |name: &str| OwnedFd::from(UnixListener::bind(at(name)).unwrap());
        let shown = |path: &Path| format!("{path:?}");
        assert_eq!(activated(vec![bound("one")], "anything"), shown(&at("one")));
        let two = vec![bound("two"), bound("three")];
        assert_eq!(activated(two, "other:crafter.socket"), shown(&at("three")));
        let two = vec![bound("four"), bound("five")];
        assert_eq!(
            activated(two, "one:other"),
            "LISTEN_FDNAMES: exactly one socket must be named crafter.socket; the names are one, other"
        );
        assert!(activated(vec![bound("six")], "one:other").contains("LISTEN_FDNAMES"), "numbers differ");
    }

    #[test]
    fn other_sockets_are_refused() {
        let refused = |socket: OwnedFd, what: &str| {
            let said = activated(vec![socket], "crafter.socket");
            assert_eq!(said, format!("LISTEN_FDS: descriptor 3 is {what}; use ListenStream=/run/..."));
        };
        let directory = tempfile::tempdir().unwrap();
        let datagrams = UnixDatagram::bind(directory.path().join("datagrams")).unwrap();
        refused(datagrams.into(), "not a stream socket");
        let (stream, _other) = UnixStream::pair().unwrap();
        refused(stream.into(), "a socket that does not listen");
        refused(TcpListener::bind("127.0.0.1:0").unwrap().into(), "not a Unix socket");
        refused(File::open("/dev/null").unwrap().into(), "not a socket");
    }
}
