//! Loads the policy on another thread, within a time limit: its file may be on a network that does not answer, and the
//! host's name service may not answer either.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};

use super::{
    names::HostNames,
    quota::{Owners, read_owners},
};
use crate::{
    Error, Result,
    policy::{Policy, SHIPPED},
};

/// The default file of the policy.
pub const POLICY: &str = "/etc/crafter/crafter.toml";

/// How long loading may take; clients wait longer for the reply to `Reload`.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of bytes that are read: more than a policy may have.
const LONGEST: u64 = 2 << 20;

/// A policy and the accounts of the host, as they were at the same time.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) policy: Policy,
    /// The path of its file, or `shipped`.
    pub(super) source: String,
    pub(super) owners: Owners,
}

/// Loads the policy, once at a time.
#[derive(Default)]
pub(super) struct PolicyFile {
    /// `None`: [`POLICY`], or the shipped policy if that file does not exist.
    path: Option<PathBuf>,
    turn: Mutex<()>,
    /// Whether a thread still loads, maybe since an earlier attempt.
    is_loading: Arc<AtomicBool>,
}

impl PolicyFile {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, ..Self::default() }
    }

    /// Loads the policy.
    ///
    /// # Errors
    /// [`Error::Policy`], [`Error::Invalid`] if it is not a regular file, [`Error::Io`] if it cannot be read within
    /// [`TIMEOUT`].
    pub(super) async fn load(&self) -> Result<Loaded> {
        let _turn = self.turn.lock().await;
        let shown = self.path.as_deref().unwrap_or(Path::new(POLICY)).display().to_string();
        let failed = |reason: String| Error::Io {
            action: format!("read the policy {shown}"),
            source: io::Error::new(io::ErrorKind::TimedOut, reason),
        };
        if self.is_loading.swap(true, Ordering::Acquire) {
            let hint = "check its file system and the name service";
            return Err(failed(format!("an earlier attempt still waits for an answer; {hint}")));
        }
        let (sender, loaded) = oneshot::channel();
        let (path, is_loading) = (self.path.clone(), self.is_loading.clone());
        let thread = thread::Builder::new().name("policy".to_owned()).spawn(move || {
            let loaded = load(path.as_deref());
            is_loading.store(false, Ordering::Release);
            // Nobody waits after the time limit.
            let _ = sender.send(loaded);
        });
        if let Err(error) = thread {
            self.is_loading.store(false, Ordering::Release);
            return Err(failed(format!("cannot start a thread: {error}")));
        }
        match timeout(TIMEOUT, loaded).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(_)) => Err(failed("the thread ended without a result".to_owned())),
            Err(_) => Err(failed(format!(
                "no answer within {TIMEOUT:?}; check its file system (`stat {shown}`) and the name service (`getent passwd`)"
            ))),
        }
    }
}

fn load(path: Option<&Path>) -> Result<Loaded> {
    let (text, source) = match path {
        Some(path) => (read(path)?, path.display().to_string()),
        None => match read(Path::new(POLICY)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                (SHIPPED.to_owned(), "shipped".to_owned())
            }
            text => (text?, POLICY.to_owned()),
        },
    };
    Ok(Loaded { policy: Policy::load(&text, &HostNames)?, source, owners: read_owners() })
}

/// Reads a regular file. Opening anything else does not block, and has no effect.
///
/// # Errors
/// [`Error::Invalid`] if it is not a regular file, or too long; [`Error::Io`].
pub(super) fn read(path: &Path) -> Result<String> {
    let failed = |source| Error::Io { action: format!("read {}", path.display()), source };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() {
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_char_device() || kind.is_block_device() => "a device",
            () => "a special file",
        };
        let reason = format_args!("it is {what}; use a regular file");
        return Err(Error::invalid(path.display().to_string(), reason));
    }
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LONGEST {
        let reason = format_args!("it is longer than {LONGEST} bytes; use a shorter file");
        return Err(Error::invalid(path.display().to_string(), reason));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener, time::Instant};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(work);
        runtime.shutdown_background();
        result
    }

    #[test]
    fn only_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(at("fifo"), at("link")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("long"), vec![b'#'; LONGEST as usize + 1]).unwrap();
        fs::write(at("policy"), "[[rule]]\neverybody = true\n").unwrap();
        let read = |path: &Path| {
            let loaded = block_on(PolicyFile::new(Some(path.to_owned())).load());
            loaded.map(|loaded| loaded.policy.rules().len()).map_err(|error| error.to_string())
        };
        let refused = |path: &Path, what: &str| {
            assert_eq!(read(path).unwrap_err(), format!("{}: it is {what}; use a regular file", path.display()));
        };
        refused(&at("fifo"), "a FIFO");
        refused(&at("link"), "a FIFO");
        refused(directory.path(), "a directory");
        refused(Path::new("/dev/zero"), "a device");
        assert!(read(&at("socket")).unwrap_err().contains("No such device"), "open(2) of a socket fails");
        assert!(read(&at("nowhere")).unwrap_err().contains("No such file"));
        assert!(read(&at("long")).unwrap_err().contains("longer than"));
        assert_eq!(read(&at("policy")), Ok(1));
    }

    /// The state during an attempt that waits for the file system.
    #[test]
    fn attempt_after_a_blocked_one_fails_at_once() {
        let file = PolicyFile::new(Some("/etc/passwd".into()));
        file.is_loading.store(true, Ordering::Relaxed);
        let began = Instant::now();
        let error = block_on(file.load()).expect_err("an earlier attempt waits").to_string();
        assert!(error.contains("an earlier attempt still waits"), "{error}");
        assert!(began.elapsed() < TIMEOUT);
    }
}
