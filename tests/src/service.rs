//! Runs `crafter serve` as a process in a test's namespace, and clients of it with the ids of some user and no
//! capability.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crafter::{
    Result,
    lab::{INTERFACE, NetNs},
    protocol::{
        control::Control,
        record::{Code, HEADER, Header, Kind},
        wire::{Lease, LeaseCall, Leased, ListLeasesCall},
    },
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    executable,
    leak::{descriptors, more},
    peer::{Process, wait_for},
    raw::Raw,
    slow,
    unprivileged::{GROUP, as_nobody},
};

/// Timeout for the first answer of the service; generous, because the machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The option that says how long an interface stays attached.
pub const KEEP_ATTACHED: &str = "--keep-attached";

/// Timeout for a message that must arrive.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// User id and primary group id, without supplementary groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// Root.
pub const ROOT: Credentials = Credentials { user: 0, group: 0 };
/// The user nobody, with a group id that has no name.
pub const NOBODY: Credentials = Credentials { user: 65_534, group: 54_321 };

/// A running `crafter serve`, killed when dropped. If it still runs then, it must be idle and have no more descriptors
/// than at its start: those of leases, reserved ports, programs, maps, frames and connections are closed. No task of it
/// may have panicked: the service goes on without the task, and only its client sees the connection end.
pub struct Service {
    process: Process,
    /// Its descriptors directly after the start.
    before: BTreeMap<String, usize>,
    namespace: NetNs,
    directory: TempDir,
    /// The path of its control socket.
    pub socket: PathBuf,
    /// The path of its policy file.
    pub policy: PathBuf,
    /// The path of the program, which every user may run.
    pub binary: PathBuf,
    /// The options that say who may connect.
    access: Vec<String>,
}

impl Service {
    /// Starts it in `namespace` with this policy, accessible to every user, and waits until it answers.
    pub fn start(namespace: &NetNs, policy: &str) -> Self {
        Self::with(namespace, policy, &[])
    }

    /// Starts it with additional arguments.
    pub fn with(namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        Self::open_to(vec!["--everybody".to_owned()], namespace, policy, arguments)
    }

    /// Starts it accessible to [`GROUP`] only.
    pub fn for_group(namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        Self::open_to(vec!["--group".to_owned(), GROUP.to_string()], namespace, policy, arguments)
    }

    /// Starts it through a launcher, a program with arguments that executes the command line that follows them.
    pub fn launched_by(launcher: &[&str], namespace: &NetNs, policy: &str) -> Self {
        Self::opened(launcher, vec!["--everybody".to_owned()], namespace, policy, &[])
    }

    fn open_to(access: Vec<String>, namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        Self::opened(&[], access, namespace, policy, arguments)
    }

    fn opened(launcher: &[&str], access: Vec<String>, namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        let directory = open_directory("crafter-service-");
        let [socket, file, binary] =
            ["crafter.sock", "crafter.toml", "crafter"].map(|name| directory.path().join(name));
        // Other users may have no access to the build directory.
        executable::place(&built(), &binary).expect("the service's program");
        fs::write(&file, policy).expect("a policy");
        let namespace = namespace.try_clone().expect("a clone of the namespace");
        let process = spawn(launcher, &namespace, &directory, [&binary, &socket, &file], &access, arguments);
        let before = initial_descriptors(&process);
        Self { process, before, namespace, directory, socket, policy: file, binary, access }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The directory of its socket and policy, which every user may enter.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its log including audit records; printed if a test fails.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join(LOG)).expect("its log")
    }

    /// Makes another program available in its directory, where every user may run it.
    pub fn place(&self, program: &Path) -> PathBuf {
        let there = self.directory.path().join(program.file_name().expect("a program"));
        if !there.exists() {
            executable::place(program, &there).expect("a program that every user may run");
        }
        there
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Waits until a service that a test started itself accepts connections on this service's socket.
    pub fn wait_for_socket(&self) -> UnixStream {
        wait_for("the service's socket", REPLY_TIMEOUT, || UnixStream::connect(&self.socket).ok())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("signal the service");
    }

    /// Kills it with SIGKILL and waits for its exit.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it with SIGTERM; returns the exit code, `None` if it was killed by a signal.
    ///
    /// # Panics
    /// If it does not exit in time.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.process.wait_for_exit(REPLY_TIMEOUT).code()
    }

    /// Starts it again after it has exited.
    pub fn restart(&mut self) {
        let paths = [&self.binary, &self.socket, &self.policy];
        self.process = spawn(&[], &self.namespace, &self.directory, paths, &self.access, &[]);
        self.before = initial_descriptors(&self.process);
    }

    /// Replaces the policy file, which the service reads on SIGHUP or `Reload`.
    pub fn write_policy(&self, text: &str) {
        fs::write(&self.policy, text).expect("write the policy");
    }

    /// The program crafter with `arguments` and CRAFTER_SOCKET, in the service's namespace, as this user.
    pub fn command(&self, credentials: Credentials, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(&self.binary);
        command.args(arguments).env("CRAFTER_SOCKET", &self.socket);
        drop_to(&mut command, credentials);
        command
    }

    /// Any program with CRAFTER_SOCKET, in the service's namespace, as `nobody` with [`GROUP`].
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = as_nobody(&self.namespace, program);
        command.env("CRAFTER_SOCKET", &self.socket);
        command
    }

    /// Runs [`command`](Self::command) to its exit.
    pub fn run(&self, credentials: Credentials, arguments: &[&str]) -> Output {
        self.command(credentials, arguments).stdin(Stdio::null()).output().expect("crafter")
    }

    /// Runs [`command`](Self::command), which must succeed; returns its standard output.
    pub fn succeed(&self, credentials: Credentials, arguments: &[&str]) -> String {
        let output = self.run(credentials, arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}: {message}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `work` with a control connection on a thread in the service's namespace that has the ids of `credentials`
    /// and no capability.
    pub fn session<T: Send, F: Future<Output = T>>(
        &self,
        credentials: Credentials,
        work: impl FnOnce(Control) -> F + Send,
    ) -> T {
        let work = || {
            become_user(credentials).expect("become a user");
            crate::block_on(async { work(self.connect().await).await })
        };
        self.namespace.run(work).expect("enter the namespace")
    }

    /// Opens a control connection with the ids of the calling thread.
    pub async fn connect(&self) -> Control {
        Control::connect(&self.socket).await.expect("connect to the service")
    }

    /// All active leases.
    pub fn leases(&self) -> Vec<Lease> {
        self.session(ROOT, async |control| {
            control.call(&ListLeasesCall::default()).await.expect("list the leases").leases
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            println!("The service's log ends with:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            panics(&log).iter().for_each(|panic| println!("A task of the service panicked: {panic}"));
            return;
        }
        assert_eq!(panics(&self.log()), Vec::<String>::new(), "tasks of the service panicked");
        let mut left = Vec::new();
        let clean = slow::wait_until(REPLY_TIMEOUT, || {
            left = more(&descriptors(self.pid()), &self.before);
            left.is_empty()
        });
        assert!(clean, "the idle service still has these descriptors: {left:?}");
    }
}

/// The panics in a log: the line of each with its place, and the next one with its message.
fn panics(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let places = lines.iter().enumerate().filter(|(_, line)| line.contains(" panicked at "));
    places.map(|(at, line)| format!("{line} {}", lines.get(at + 1).unwrap_or(&""))).collect()
}

/// A directory that every user may enter.
pub fn open_directory(prefix: &str) -> TempDir {
    let directory = TempDir::with_prefix(prefix).expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("set the permissions");
    directory
}

/// The descriptors of a service that has just started, without those of the connections that tested whether it answers.
fn initial_descriptors(process: &Process) -> BTreeMap<String, usize> {
    let mut before = descriptors(process.id());
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(5));
        let now = descriptors(process.id());
        before.retain(|kind, _| now.contains_key(kind));
        before.iter_mut().for_each(|(kind, count)| *count = (*count).min(now[kind]));
    }
    before
}

/// File name of the service's log in its directory.
const LOG: &str = "log";

/// The program crafter built next to the tests.
///
/// # Panics
/// If it was not built.
pub fn built() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    let candidates = this.ancestors().skip(1).take(2).map(|directory| directory.join("crafter"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.expect("no program crafter next to the tests; build it with `cargo build --release -p crafter`")
}

fn spawn(
    launcher: &[&str],
    namespace: &NetNs,
    directory: &TempDir,
    [binary, socket, policy]: [&PathBuf; 3],
    access: &[String],
    arguments: &[&str],
) -> Process {
    let log = fs::File::options().create(true).append(true).open(directory.path().join(LOG)).expect("a log");
    let mut command = match launcher {
        [] => namespace.command(binary),
        [program, arguments @ ..] => {
            let mut command = namespace.command(program);
            command.args(arguments).arg(binary);
            command
        }
    };
    command.arg("serve").args(access).arg("--socket").arg(socket).arg("--policy").arg(policy).args(arguments);
    if !arguments.contains(&KEEP_ATTACHED) {
        // Tests wait until it is detached.
        command.args([KEEP_ATTACHED, "1"]);
    }
    let mut process = Process::start(command.stdout(Stdio::null()).stderr(log));
    wait_for("an answer of the service", START_TIMEOUT, || {
        assert!(process.0.try_wait().expect("its state").is_none(), "the service exited during its start");
        UnixStream::connect(socket).ok()
    });
    // It listens before its start is complete; this call waits until then.
    assert!(Raw::connect(socket).call("Info", &serde_json::json!({}))["error"].is_null());
    process
}

/// Makes a command run as `credentials`, without supplementary groups; root's capabilities are lost with root's ids.
pub fn drop_to(command: &mut Command, credentials: Credentials) {
    if credentials != ROOT {
        let enter = move || become_user(credentials);
        // SAFETY: between fork and exec, become_user makes three system calls and nothing else.
        unsafe { command.current_dir("/").pre_exec(enter) };
    }
}

/// Sets the ids of the calling thread only. The C library's functions would change all threads of the process.
fn become_user(credentials: Credentials) -> io::Result<()> {
    if credentials == ROOT {
        return Ok(());
    }
    let (user, group) = (credentials.user, credentials.group);
    let done = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the group list is empty, so the kernel does not read the null pointer.
    done(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: it takes no pointers.
    done(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) })?;
    // SAFETY: it takes no pointers.
    done(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) })
}

/// A message on the socket of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// The bytes after the header: a packet, or the sentence of a refusal and the packet that it quotes.
    pub rest: Vec<u8>,
}

impl Message {
    /// The packet, if the message is one.
    pub fn packet(&self) -> Option<&[u8]> {
        matches!(self.header.kind, Kind::Packet { .. }).then_some(&self.rest[..])
    }

    /// Code, rule and sentence, if the message is a refusal.
    pub fn refusal(&self) -> Option<(Code, u16, String)> {
        let Kind::Refusal { code, rule } = self.header.kind else { return None };
        Some((code, rule, self.header.sentence(&self.rest).0.into_owned()))
    }
}

/// A call for a lease on the lab's interface; `last_port`: the last port of a range.
pub fn lease_call(protocol: &str, port: Option<u16>, last_port: Option<u16>) -> LeaseCall {
    LeaseCall {
        interface: Some(INTERFACE.to_owned()),
        protocol: protocol.to_owned(),
        port: port.map(u64::from),
        last_port: last_port.map(u64::from),
        ..LeaseCall::default()
    }
}

/// A lease used through its socket, without crafter's driver.
#[derive(Debug)]
pub struct Socket {
    /// What was granted.
    pub leased: Leased,
    /// The descriptor.
    pub fd: OwnedFd,
}

impl Socket {
    /// Acquires a lease.
    ///
    /// # Errors
    /// The refusal of the service.
    pub async fn lease(control: &Control, call: &LeaseCall) -> Result<Self> {
        let (leased, mut descriptors) = control.call_for_descriptors(call).await?;
        assert_eq!((descriptors.len(), leased.socket), (1, 0), "{leased:?}");
        Ok(Self { leased, fd: descriptors.remove(0) })
    }

    /// Sends a packet, or arbitrary bytes.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer outlives the call, and its length is right.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next message; `None` if none arrives within `timeout`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the service has closed its end.
    pub fn receive(&self, timeout: Duration) -> io::Result<Option<Message>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; HEADER + 65_536 + 64];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
                return Ok(None);
            }
            // SAFETY: the buffer outlives the call, and its length is right.
            let count = unsafe {
                libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
            };
            match count {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                1.. => {
                    let (header, rest) = Header::decode(&buffer[..count as usize]).expect("a message of this version");
                    return Ok(Some(Message { header, rest: rest.to_vec() }));
                }
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => {}
                    error => return Err(error),
                },
            }
        }
    }

    /// Waits for the next refusal, discarding packets before it: code, rule, sentence.
    ///
    /// # Panics
    /// If none arrives in time.
    pub fn refusal(&self) -> (Code, u16, String) {
        wait_for("a refusal", REPLY_TIMEOUT, || {
            self.receive(REPLY_TIMEOUT).expect("the lease").and_then(|message| message.refusal())
        })
    }
}
