//! `crafter serve` in a namespace, and programs that are run as a user who is not root.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crafter::lab::NetNs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::peer::{Process, wait_for};

/// The user `nobody`, and the group of the same.
pub const NOBODY: u32 = 65_534;
/// A group that has no name here: the one that may use the service.
pub const GROUP: u32 = 61_234;

/// crafter's own executable: that of `cargo xtask test`, else the one that lies beside the tests.
pub fn crafter() -> PathBuf {
    std::env::var_os("CRAFTER_BIN").map_or_else(|| target().join("crafter"), PathBuf::from)
}

/// Where cargo puts what it builds for release.
pub fn target() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this test");
    this.parent().and_then(Path::parent).expect("target/release/deps").to_owned()
}

/// The service at work.
pub struct Service {
    process: Process,
    directory: TempDir,
}

impl Service {
    /// Starts it in `namespace` with a policy of this text, for [`GROUP`].
    pub fn start(namespace: &NetNs, policy: &str) -> Self {
        Self::start_with(namespace, policy, &[])
    }

    /// As [`start`](Self::start), with more options.
    pub fn start_with(namespace: &NetNs, policy: &str, options: &[&str]) -> Self {
        let directory = open_directory("crafter-serve-");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("policy.toml"), policy).expect("a policy");
        let errors = fs::File::create(path("log")).expect("a log");
        let mut command = namespace.command(crafter());
        command.args(["serve", "--group", &GROUP.to_string(), "--socket"]).arg(path("crafter.sock"));
        command.arg("--policy").arg(path("policy.toml")).args(options).stdout(Stdio::null()).stderr(errors);
        let service = Self { process: Process::start(&mut command), directory };
        wait_for("the service's socket", Duration::from_secs(20), || {
            service.socket().exists().then_some(()).or_else(|| {
                assert!(Path::new("/proc").join(service.process.id().to_string()).exists(), "{}", service.log());
                None
            })
        });
        service
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("crafter.sock")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// A program in `namespace`, run as `nobody` in [`GROUP`], that finds this service.
    pub fn command(&self, namespace: &NetNs, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = as_nobody(namespace, program);
        command.env("CRAFTER_SOCKET", self.socket());
        command
    }

    /// Ends it by SIGTERM, and sees that it ended as told.
    pub fn stop(mut self) {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM).expect("end the service");
        let status = self.process.0.wait().expect("wait for the service");
        assert!(status.success(), "{status}: {}", self.log());
    }
}

/// A program in `namespace`, run as `nobody` in [`GROUP`], with no capability.
pub fn as_nobody(namespace: &NetNs, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = namespace.command("setpriv");
    let (user, group) = (NOBODY.to_string(), GROUP.to_string());
    command.args(["--reuid", &user, "--regid", &user, "--groups", &group, "--inh-caps=-all", "--"]).arg(program);
    command.env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// A directory that every user may look into.
pub fn open_directory(prefix: &str) -> TempDir {
    let directory = TempDir::with_prefix(prefix).expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("open it to all");
    directory
}
