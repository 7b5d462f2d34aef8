//! A private service in a lab, and its clients.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crafter::lab::Lab;
use crafter_tests::{executable, guarded::GuardedLab, service::open_directory};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use super::{Done, eventually, lab, run, wait};

/// The unprivileged user and group.
pub const NOBODY: u32 = 65_534;

/// Root may observe; the user nobody may send TCP from some ports.
pub const POLICY: &str = "\
[[rule]]
user = 0
protocols = [\"any\"]
max_leases = \"unlimited\"
packets_per_second = \"unlimited\"
observe = true

[[rule]]
user = 65534
protocols = [\"tcp\"]
ports = [\"50000-50099\"]
allow = [\"192.0.2.0/24\"]
packets_per_second = 1000
burst = 100
max_leases = 4
";

/// A running `crafter serve`.
pub struct Served {
    pub lab: GuardedLab,
    pub directory: TempDir,
    pub socket: PathBuf,
    pub policy: PathBuf,
    binary: PathBuf,
    daemon: Child,
}

impl Served {
    /// Starts a service in a new lab with [`POLICY`].
    pub fn new() -> Self {
        let lab = lab();
        // The user nobody must be able to reach the socket and the binary, wherever the binary was built.
        let directory = open_directory("crafter-cli-");
        let [socket, policy, binary] =
            ["crafter.sock", "crafter.toml", "crafter"].map(|name| directory.path().join(name));
        executable::place(env!("CARGO_BIN_EXE_crafter").as_ref(), &binary).unwrap();
        fs::write(&policy, POLICY).unwrap();
        let daemon = Self::start(&lab, &binary, &socket, &policy);
        Self { lab, directory, socket, policy, binary, daemon }
    }

    fn start(lab: &Lab, binary: &PathBuf, socket: &PathBuf, policy: &PathBuf) -> Child {
        let mut command = lab.command(binary);
        command.args(["serve", "--everybody", "--socket"]).arg(socket).arg("--policy").arg(policy);
        let mut daemon = command.stdin(Stdio::null()).spawn().unwrap();
        eventually(|| {
            assert!(daemon.try_wait().unwrap().is_none(), "the service ended");
            UnixStream::connect(socket).ok()
        });
        daemon
    }

    /// The service's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// Ends it with SIGTERM, as systemd does; returns the exit code.
    pub fn stop(&mut self) -> i32 {
        kill(Pid::from_raw(self.daemon.id() as i32), Signal::SIGTERM).unwrap();
        wait(&mut self.daemon)
    }

    /// Restarts it.
    pub fn restart(&mut self) {
        self.daemon = Self::start(&self.lab, &self.binary, &self.socket, &self.policy);
    }

    /// Runs the binary as root with `--socket`.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_as(None, &self.binary, args)
    }

    /// Like `root`, as another user whose only group has the same number.
    pub fn command_as_user(&self, user: u32, args: &[&str]) -> Command {
        self.command_as(Some(user), &self.binary, args)
    }

    fn command_as(&self, user: Option<u32>, program: impl AsRef<OsStr>, args: &[&str]) -> Command {
        // Command::uid would change the user before the process enters the namespace, which needs privileges.
        let mut command = match user {
            Some(user) => {
                let mut command = self.lab.command("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
                command.arg(program.as_ref());
                command
            }
            None => self.lab.command(program.as_ref()),
        };
        command.args(args).arg("--socket").arg(&self.socket).current_dir("/");
        command
    }

    /// Like `root`, as the user nobody.
    pub fn command_as_nobody(&self, args: &[&str]) -> Command {
        self.command_as(Some(NOBODY), &self.binary, args)
    }

    pub fn root(&self, args: &[&str]) -> Done {
        run(self.command(args))
    }

    pub fn nobody(&self, args: &[&str]) -> Done {
        run(self.command_as_nobody(args))
    }

    /// Requests a lease with these parameters, as nobody or as root.
    pub fn lease(&self, is_nobody: bool, parameters: &Value) -> Client {
        let user = is_nobody.then_some(NOBODY);
        let mut command = self.command_as(user, "/usr/bin/python3", &["-c", CLIENT, &parameters.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let leased: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(leased["error"].is_null(), "{leased}");
        let leased = leased["parameters"].clone();
        Client { child, stdin, stdout, leased }
    }

    /// Leases a port, sends a SYN and receives the SYN-ACK; the kernel's RST is suppressed.
    pub fn handshake(&self, is_nobody: bool, port: u16) -> Client {
        let parameters = serde_json::json!({
            "interface": "lab0", "protocol": "tcp", "port": port, "observe": true,
        });
        let mut client = self.lease(is_nobody, &parameters);
        let syn = format!("IP(src=\"192.0.2.2\", dst=\"192.0.2.1\")/TCP(sport={port}, dport=80, flags=\"S\")");
        let mut build = Command::new(&self.binary);
        build.args(["build", &syn]);
        client.send(run(build).text().trim());
        client.receives("packet");
        client
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A test may have ended it.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The owner of a lease, in a separate process.
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// The service's answer to the request.
    pub leased: Value,
}

impl Client {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn number(&self) -> u64 {
        self.leased["lease"].as_u64().unwrap()
    }

    /// Sends a packet, given in hexadecimal.
    pub fn send(&mut self, hex: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{hex}").unwrap();
    }

    /// Waits for a message of this kind.
    #[track_caller]
    pub fn receives(&mut self, kind: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), kind);
    }

    /// Releases the lease.
    pub fn close(mut self) {
        drop(self.stdin.take());
        wait(&mut self.child);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that requests a lease, sends each line of stdin as a packet, prints the kind of each message, and ends at
/// EOF.
const CLIENT: &str = r#"
import array, json, select, socket, sys
control = socket.socket(socket.AF_UNIX)
control.connect(sys.argv[3])
call = {"method": "org.crafter.v1.Lease", "parameters": json.loads(sys.argv[1])}
control.sendall(json.dumps(call).encode() + b"\0")
answer, descriptors = b"", array.array("i")
while not answer.endswith(b"\0"):
    data, ancillary, _, _ = control.recvmsg(65536, 1024)
    if not data:
        sys.exit("the service closed the connection")
    answer += data
    for _, _, payload in ancillary:
        descriptors.frombytes(payload)
print(answer[:-1].decode(), flush=True)
if not len(descriptors):
    sys.exit(1)
lease = socket.socket(fileno=descriptors[0])
names = {1: "packet", 2: "refusal", 3: "end"}
while True:
    ready, _, _ = select.select([sys.stdin, lease], [], [])
    if lease in ready:
        message = lease.recv(131072)
        if not message:
            sys.exit(0)
        # Copies of what the kernel was kept from saying are another kind.
        kind = names[message[0]]
        if kind != "packet" or message[1] not in (3, 4):
            print(kind, flush=True)
    if sys.stdin in ready:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        lease.send(bytes.fromhex(line))
"#;
