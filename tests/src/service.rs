//! A service of the test's own: `crafter serve` as a process in a namespace of the test's, and its clients, each with a
//! user's ids and no capability.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crafter::{
    Result,
    lab::NetNs,
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
    nobody::{GROUP, as_nobody},
    peer::{Process, wait_for},
    raw::Raw,
    slow,
};

/// How long the service may take until it answers; much, because the machine may be busy.
const START: Duration = Duration::from_secs(20);

/// How long a message may take that is to come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A user id, a group id as primary group, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// Root.
pub const ROOT: Who = Who { user: 0, group: 0 };
/// The user nobody, in a group that has no name.
pub const NOBODY: Who = Who { user: 65_534, group: 54_321 };

/// A running `crafter serve`, killed when dropped; where it still runs, it has to be at rest by then, and to have no more
/// descriptors than at its start: those of leases, reserved ports, programs, maps, frames and connections are closed.
pub struct Service {
    process: Process,
    /// Its descriptors when it had just started.
    before: BTreeMap<String, usize>,
    namespace: NetNs,
    directory: TempDir,
    /// Where it listens.
    pub socket: PathBuf,
    /// Its policy's file.
    pub policy: PathBuf,
    /// The program, where everybody may run it.
    pub binary: PathBuf,
    /// Who may connect, as its options say it.
    access: Vec<String>,
}

impl Service {
    /// Starts it in `namespace` with a policy of this text, for everybody, and waits until it answers.
    pub fn start(namespace: &NetNs, policy: &str) -> Self {
        Self::with(namespace, policy, &[])
    }

    /// The same with more arguments.
    pub fn with(namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        Self::open_to(vec!["--everybody".to_owned()], namespace, policy, arguments)
    }

    /// The same for [`GROUP`] alone.
    pub fn for_group(namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        Self::open_to(vec!["--group".to_owned(), GROUP.to_string()], namespace, policy, arguments)
    }

    /// The first, by way of a program that executes what follows its own arguments.
    pub fn by_way_of(way: &[&str], namespace: &NetNs, policy: &str) -> Self {
        Self::opened(way, vec!["--everybody".to_owned()], namespace, policy, &[])
    }

    fn open_to(access: Vec<String>, namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        Self::opened(&[], access, namespace, policy, arguments)
    }

    fn opened(way: &[&str], access: Vec<String>, namespace: &NetNs, policy: &str, arguments: &[&str]) -> Self {
        let directory = open_directory("crafter-service-");
        let [socket, file, binary] =
            ["crafter.sock", "crafter.toml", "crafter"].map(|name| directory.path().join(name));
        // Where it was built, others may not get at it.
        executable::place(&built(), &binary).expect("the service's program");
        fs::write(&file, policy).expect("a policy");
        let namespace = namespace.try_clone().expect("the namespace again");
        let process = spawn(way, &namespace, &directory, [&binary, &socket, &file], &access, arguments);
        let before = at_its_start(&process);
        Self { process, before, namespace, directory, socket, policy: file, binary, access }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The directory of its socket and policy, which everybody may enter.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it has logged, its audit records among it; shown where a test fails.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join(LOG)).expect("its log")
    }

    /// Another program of the tests, where everybody may run it.
    pub fn place(&self, program: &Path) -> PathBuf {
        let there = self.directory.path().join(program.file_name().expect("a program"));
        if !there.exists() {
            executable::place(program, &there).expect("a program for everybody");
        }
        there
    }

    /// The namespace that it is in.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("signal the service");
    }

    /// Ends it by SIGKILL, and waits for that.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends it as systemd does; its exit code, `None` if a signal ended it.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        wait_for("the end of the service", PATIENCE, || self.process.0.try_wait().expect("its end")).code()
    }

    /// Starts it again, after it has ended.
    pub fn restart(&mut self) {
        let paths = [&self.binary, &self.socket, &self.policy];
        self.process = spawn(&[], &self.namespace, &self.directory, paths, &self.access, &[]);
        self.before = at_its_start(&self.process);
    }

    /// Changes the text of its policy, which is read by SIGHUP or by `Reload`.
    pub fn write_policy(&self, text: &str) {
        fs::write(&self.policy, text).expect("write the policy");
    }

    /// The program with these arguments and CRAFTER_SOCKET, in the service's namespace, as this user.
    pub fn command(&self, who: Who, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(&self.binary);
        command.args(arguments).env("CRAFTER_SOCKET", &self.socket);
        drop_to(&mut command, who);
        command
    }

    /// Any program with CRAFTER_SOCKET, in the service's namespace, as `nobody` in [`GROUP`].
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = as_nobody(&self.namespace, program);
        command.env("CRAFTER_SOCKET", &self.socket);
        command
    }

    /// Runs [`command`](Self::command) to its end.
    pub fn run(&self, who: Who, arguments: &[&str]) -> Output {
        self.command(who, arguments).stdin(Stdio::null()).output().expect("crafter")
    }

    /// Runs that to its end, which has to be a good one; what it printed.
    pub fn succeed(&self, who: Who, arguments: &[&str]) -> String {
        let output = self.run(who, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}: {said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `work` with a control connection on a thread of its own, which has the ids of `who` and no capability, and
    /// is in the service's namespace.
    pub fn session<T: Send, F: Future<Output = T>>(&self, who: Who, work: impl FnOnce(Control) -> F + Send) -> T {
        let work = || {
            become_user(who).expect("become a user");
            crate::block_on(async { work(self.connect().await).await })
        };
        self.namespace.run(work).expect("enter the namespace")
    }

    /// A control connection with the ids of the calling thread.
    pub async fn connect(&self) -> Control {
        Control::connect(&self.socket).await.expect("connect to the service")
    }

    /// All leases there are.
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
            return;
        }
        let mut left = Vec::new();
        let clean = slow::wait_until(PATIENCE, || {
            left = more(&descriptors(self.pid()), &self.before);
            left.is_empty()
        });
        assert!(clean, "the service, which nobody uses, still has {left:?}");
    }
}

/// A directory that every user may look into.
pub fn open_directory(prefix: &str) -> TempDir {
    let directory = TempDir::with_prefix(prefix).expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("let others in");
    directory
}

/// The descriptors of a service that has just begun to answer, once it has let go of whoever asked.
fn at_its_start(process: &Process) -> BTreeMap<String, usize> {
    let mut before = descriptors(process.id());
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(5));
        let now = descriptors(process.id());
        before.retain(|kind, _| now.contains_key(kind));
        before.iter_mut().for_each(|(kind, count)| *count = (*count).min(now[kind]));
    }
    before
}

/// The log of a service, in its directory.
const LOG: &str = "log";

/// The program that was built beside the tests.
///
/// # Panics
/// If it was not built.
pub fn built() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    let beside = this.ancestors().skip(1).take(2).map(|directory| directory.join("crafter"));
    let found = beside.into_iter().find(|path| path.is_file());
    found.expect("no program crafter beside the tests: `cargo build --release -p crafter` makes it")
}

fn spawn(
    way: &[&str],
    namespace: &NetNs,
    directory: &TempDir,
    [binary, socket, policy]: [&PathBuf; 3],
    access: &[String],
    arguments: &[&str],
) -> Process {
    let log = fs::File::options().create(true).append(true).open(directory.path().join(LOG)).expect("a log");
    let mut command = match way {
        [] => namespace.command(binary),
        [program, arguments @ ..] => {
            let mut command = namespace.command(program);
            command.args(arguments).arg(binary);
            command
        }
    };
    command.arg("serve").args(access).arg("--socket").arg(socket).arg("--policy").arg(policy).args(arguments);
    let mut process = Process::start(command.stdout(Stdio::null()).stderr(log));
    wait_for("the service's answer", START, || {
        assert!(process.0.try_wait().expect("its state").is_none(), "the service ended");
        std::os::unix::net::UnixStream::connect(socket).ok()
    });
    // It listens before it has all that it opens at its start.
    assert!(Raw::connect(socket).call("Info", &serde_json::json!({}))["error"].is_null());
    process
}

/// Makes a command run as `who`: no other groups, and with root's ids its capabilities end.
pub fn drop_to(command: &mut Command, who: Who) {
    if who != ROOT {
        let enter = move || become_user(who);
        // SAFETY: between fork and exec become_user makes three system calls and nothing else.
        unsafe { command.current_dir("/").pre_exec(enter) };
    }
}

/// Gives the calling thread, and no other, the ids of `who`. The C library's functions would change all threads.
fn become_user(who: Who) -> io::Result<()> {
    if who == ROOT {
        return Ok(());
    }
    let (user, group) = (who.user, who.group);
    let done = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: no group is read from the null pointer, as there are none.
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
    /// What follows: a packet, or a sentence and what it quotes.
    pub rest: Vec<u8>,
}

impl Message {
    /// The packet, if it is one.
    pub fn packet(&self) -> Option<&[u8]> {
        matches!(self.header.kind, Kind::Packet { .. }).then_some(&self.rest[..])
    }

    /// Code, rule and sentence, if it is a refusal.
    pub fn refusal(&self) -> Option<(Code, u16, String)> {
        let Kind::Refusal { code, rule } = self.header.kind else { return None };
        Some((code, rule, self.header.sentence(&self.rest).0.into_owned()))
    }
}

/// A lease by its socket, with nothing of crafter's driver in between.
#[derive(Debug)]
pub struct Socket {
    /// What was granted.
    pub leased: Leased,
    /// The descriptor.
    pub fd: OwnedFd,
}

impl Socket {
    /// Leases.
    ///
    /// # Errors
    /// What the service says.
    pub async fn lease(control: &Control, call: &LeaseCall) -> Result<Self> {
        let (leased, mut descriptors) = control.call_for_descriptors(call).await?;
        assert_eq!((descriptors.len(), leased.socket), (1, 0), "{leased:?}");
        Ok(Self { leased, fd: descriptors.remove(0) })
    }

    /// Sends a packet, or whatever it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer outlives the call, and its length is right.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next message; `None`: none within `timeout`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] once the service has closed its end.
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

    /// The next refusal, packets before it passed over: code, rule, sentence.
    ///
    /// # Panics
    /// If none comes.
    pub fn refusal(&self) -> (Code, u16, String) {
        wait_for("a refusal", PATIENCE, || self.receive(PATIENCE).expect("the lease").and_then(|said| said.refusal()))
    }
}
