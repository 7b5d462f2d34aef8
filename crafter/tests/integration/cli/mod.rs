//! The command line: each test runs the built binary in its own lab. Needs root.

mod appearance;
mod config;
mod dns;
mod doctor_served;
mod exchange;
mod exit_codes;
mod get;
mod get_http;
mod guide;
mod interrupted;
mod lab_shell;
mod limits;
mod man;
mod maps;
mod moments;
mod moments_lasting;
mod monitor;
mod on_terminal;
mod ping;
mod pipes;
mod replay;
mod routers;
pub mod schema;
mod serve_socket;
mod served;
mod service;
mod shell;
mod snapshots;
mod sniff;
mod surroundings;
mod terminal;
mod top;
mod traceroute;
mod zones;

use std::{
    ffi::OsStr,
    io::Read as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crafter::lab::{Lab, LabOptions};
use crafter_tests::guarded::GuardedLab;

/// The result of a command.
#[derive(Debug)]
struct Done {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Done {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Checks that it ended with `code` and printed one line with `part`.
    #[track_caller]
    fn fails(&self, code: u8, part: &str) {
        assert_eq!(self.code, i32::from(code), "{self:?}");
        let said = self.stderr.lines().filter(|line| line.starts_with("crafter: ")).collect::<Vec<_>>();
        assert!(matches!(said[..], [line] if line.contains(part)), "no '{part}': {self:?}");
    }

    #[track_caller]
    fn succeeds(&self) {
        assert_eq!(self.code, 0, "{self:?}");
    }
}

fn lab() -> GuardedLab {
    GuardedLab::new(&LabOptions::default())
}

/// The binary inside the lab's client.
fn command(lab: &Lab, args: &[&str]) -> Command {
    let mut command = lab.command(env!("CARGO_BIN_EXE_crafter"));
    command.args(args);
    command
}

fn crafter(lab: &Lab, args: &[&str]) -> Done {
    run(command(lab, args))
}

/// The binary without some capabilities, such as `-net_raw`.
fn crafter_without(lab: &Lab, capabilities: &str, args: &[&str]) -> Done {
    let mut command = lab.command("setpriv");
    command.arg(format!("--bounding-set={capabilities}")).arg(env!("CARGO_BIN_EXE_crafter")).args(args);
    run(command)
}

/// Runs a command, which must end within a minute.
fn run(mut command: Command) -> Done {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let code = wait(&mut child);
    Done { code, stdout: reading.join().unwrap().unwrap(), stderr: errors.join().unwrap().unwrap() }
}

/// The exit code, or -1 if a signal ended the process.
fn wait(child: &mut Child) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it runs for a minute and does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a tool of the host in the lab's server.
fn on_server(lab: &Lab, program: impl AsRef<OsStr>, args: &[&str]) {
    let status = lab.server().command(program).args(args).status().unwrap();
    assert!(status.success(), "{args:?}");
}

/// Datagrams of the client's kernel to the server, every 20 ms until this is dropped.
struct Traffic(Child);

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let script = "while :; do echo datagram >/dev/udp/192.0.2.1/9; read -t 0.02 <>/dev/zero; done";
        let mut bash = lab.command("bash");
        // A refusal by the server is an error of the next write.
        Self(bash.args(["-c", script]).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Polls `found` until it returns a value.
fn eventually<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "nothing within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}
