//! `crafter lab run` as a user meets it: exit codes, signals, output, and that
//! nothing stays behind whoever is killed.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crafter::lab::NetNs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[allow(dead_code, reason = "shared with lab.rs")]
mod canary;
use canary::Canary;

fn crafter(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = crafter(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn the_commands_exit_code_is_ours() {
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(run(&["lab", "run", "-q", "--", "sh", "-c", script]), (Some(code), String::new(), String::new()));
    }
    let (code, _, stderr) = run(&["lab", "run", "--", "/nonexistent/program"]);
    assert_eq!(code, Some(127), "{stderr}");
    assert!(stderr.starts_with("crafter: run /nonexistent/program: No such file"), "{stderr}");
    let no_program = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(run(&["lab", "run", "--", no_program.path().to_str().unwrap()]).0, Some(126));
    for usage in [&["lab", "run"][..], &["lab", "run", "--mtu", "100", "true"], &["lab", "run", "--mtu", "x", "true"]] {
        let (code, stdout, stderr) = run(usage);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{usage:?}");
        assert!(stderr.starts_with("crafter: "), "{stderr}");
    }
}

#[test]
fn the_command_finds_the_lab() {
    let script = "curl -sS --max-time 10 $CRAFTER_LAB_WEB/status/200 && curl -sSg --max-time 10 $CRAFTER_LAB_WEB6/bytes/3 | wc -c; \
                  echo $CRAFTER_LAB_DNS $CRAFTER_LAB_DNS6 $CRAFTER_LAB_INTERFACE; [ -e /proc/self/exe ] && echo proc";
    let (code, stdout, stderr) = run(&["lab", "run", "--", "sh", "-c", script]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout, "3\n192.0.2.1 2001:db8::1 lab0\nproc\n", "{stderr}");
    assert_eq!(stderr, "lab: RST segments that reached the server: 0\n");
}

#[test]
fn resets_are_reported() {
    // curl gives up after a second; its kernel answers what still comes with a RST.
    let script = "curl -s --max-time 1 --limit-rate 1000 -o /dev/null $CRAFTER_LAB_WEB/bytes/100M; sleep 0.3; \
                  curl -s $CRAFTER_LAB_WEB/rsts | grep -c 192.0.2.2";
    let (code, stdout, stderr) = run(&["lab", "run", "--json", "--", "sh", "-c", script]);
    assert_eq!((code, stdout.as_str()), (Some(0), "1\n"), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(report["exit_code"], 0);
    assert!(report["rsts_received"].as_u64().unwrap() >= 1, "{report}");
}

/// A running lab whose command has printed its first line.
struct Running {
    lab: Child,
    output: BufReader<std::process::ChildStdout>,
    canaries: Vec<Canary>,
    inodes: Vec<u64>,
}

impl Running {
    fn start(script: &str) -> Self {
        let mut lab = crafter(&["lab", "run", "-q", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(lab.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        // Its own threads are in the server's namespace, its child is in the client's.
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let tasks = fs::read_dir(format!("/proc/{}/task", lab.id())).unwrap();
        let paths = tasks.map(|task| task.unwrap().path()).chain(children(lab.id()));
        let mut namespaces: Vec<_> = paths
            .map(|path| path.join("ns/net"))
            .filter(|path| fs::read_link(path).unwrap() != own)
            .map(|path| NetNs::from_fd(File::open(path).unwrap().into()).unwrap())
            .collect();
        namespaces.sort_by_key(NetNs::inode);
        namespaces.dedup_by_key(|namespace| namespace.inode());
        assert_eq!(namespaces.len(), 2, "{namespaces:?}");
        let canaries = namespaces.iter().map(Canary::new).collect();
        Self { lab, output, canaries, inodes: namespaces.iter().map(NetNs::inode).collect() }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.lab.id() as i32), signal).unwrap();
    }

    /// Waits for the lab's end; checks that all is gone within a second of it.
    fn end(mut self) -> Option<i32> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.lab.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > Duration::from_secs(10) {
                self.lab.kill().unwrap();
                panic!("the lab does not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Canary::assert_gone(&self.canaries, Duration::from_secs(1));
        assert_eq!(canary::processes_in(&self.inodes), Vec::<String>::new());
        status.code()
    }
}

/// The `/proc/PID` of all children of a process.
fn children(parent: u32) -> Vec<PathBuf> {
    let is_child = |path: &PathBuf| {
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        // pid (comm) state ppid, see proc_pid_stat(5).
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok()) == Some(parent)
    };
    fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(is_child).collect()
}

#[test]
fn a_background_process_ends_with_the_command() {
    let running = Running::start("setsid sleep 100 >/dev/null & echo ready; sleep 0.5; exit 5");
    assert_eq!(running.end(), Some(5));
}

#[test]
fn signals_reach_the_command_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let script =
            format!("trap 'echo got; exit 9' {}; echo ready; while :; do sleep 0.05; done", &signal.as_str()[3..]);
        let mut running = Running::start(&script);
        running.signal(signal);
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut running.output, &mut rest).unwrap();
        assert_eq!(rest, "got\n", "{signal}");
        assert_eq!(running.end(), Some(9), "{signal}");
    }
    // Without a handler it kills the command, as it would outside.
    let running = Running::start("echo ready; exec sleep 100");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end(), Some(143));
}

#[test]
fn sigkill_leaves_nothing() {
    let running = Running::start("setsid sleep 100 >/dev/null & sleep 100 & echo ready; sleep 100; sleep 100");
    running.signal(Signal::SIGKILL);
    assert_eq!(running.end(), None);
}
