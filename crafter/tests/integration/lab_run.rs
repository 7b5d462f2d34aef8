//! `crafter lab run`: exit codes, signals, output, and clean-up after any process is killed.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crafter::lab::NetNs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::canary::Canary;

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
fn exit_code_is_that_of_the_command() {
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(run(&["lab", "run", "-q", "--", "sh", "-c", script]), (Some(code), String::new(), String::new()));
    }
    let (code, _, stderr) = run(&["lab", "run", "--", "/nonexistent/program"]);
    assert_eq!(code, Some(127), "{stderr}");
    assert!(stderr.starts_with("crafter: run /nonexistent/program: No such file"), "{stderr}");
    let no_program = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(run(&["lab", "run", "--", no_program.path().to_str().unwrap()]).0, Some(126));
    for usage in [&["lab"][..], &["lab", "run", "--mtu", "100", "true"], &["lab", "run", "--mtu", "x", "true"]] {
        let (code, stdout, stderr) = run(usage);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{usage:?}");
        assert!(stderr.starts_with("crafter: "), "{stderr}");
    }
}

#[test]
fn command_reaches_the_lab() {
    let script = "curl -sS --max-time 10 $CRAFTER_LAB_WEB/status/200 && curl -sSg --max-time 10 $CRAFTER_LAB_WEB6/bytes/3 | wc -c; \
                  echo $CRAFTER_LAB_DNS $CRAFTER_LAB_DNS6 $CRAFTER_LAB_INTERFACE; [ -e /proc/self/exe ] && echo proc";
    let (code, stdout, stderr) = run(&["lab", "run", "--", "sh", "-c", script]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout, "3\n192.0.2.1 2001:db8::1 lab0\nproc\n", "{stderr}");
    assert_eq!(stderr, "lab: RST segments that reached the server: 0\n");
}

#[test]
fn resets_are_reported() {
    // curl times out after a second; the kernel answers later segments with a RST.
    let script = "curl -s --max-time 1 --limit-rate 1000 -o /dev/null $CRAFTER_LAB_WEB/bytes/100M; sleep 0.3; \
                  curl -s $CRAFTER_LAB_WEB/rsts | grep -c 192.0.2.2";
    let (code, stdout, stderr) = run(&["lab", "run", "--json", "--", "sh", "-c", script]);
    assert_eq!((code, stdout.as_str()), (Some(0), "1\n"), "{stderr}");
    let report = crate::cli::schema::valid("lab-run", &stderr);
    assert_eq!(report["exit_code"], 0);
    assert!(report["rsts_received"].as_u64().unwrap() >= 1, "{report}");
}

/// A running lab whose command has printed its first line.
struct Running {
    lab: Child,
    output: BufReader<std::process::ChildStdout>,
    canaries: Vec<Canary>,
}

impl Running {
    fn start(script: &str) -> Self {
        let mut lab = crafter(&["lab", "run", "-q", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(lab.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        // Its threads are in the server's namespace, its child is in the client's.
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
        Self { lab, output, canaries }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.lab.id() as i32), signal).unwrap();
    }

    /// Waits until the lab ends; checks that nothing is left a second later.
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
        Canary::assert_destroyed(&self.canaries, Duration::from_secs(1));
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
fn background_processes_end_with_the_command() {
    let running = Running::start("setsid sleep 100 >/dev/null & echo ready; sleep 0.5; exit 5");
    assert_eq!(running.end(), Some(5));
}

#[test]
fn signals_are_forwarded_once() {
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
    // Without a handler it kills the command, as outside of a lab.
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

#[test]
fn shell_without_terminal_reads_commands() {
    for (shell, code) in
        [(Some("/bin/bash"), 7), (Some("/bin/dash"), 7), (Some(""), 7), (None, 7), (Some("/no/sh"), 127)]
    {
        let mut command = crafter(&["lab", "run", "-q"]);
        command.env_remove("SHELL").envs(shell.map(|shell| ("SHELL", shell)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut lab = command.spawn().unwrap();
        let script =
            b"echo $CRAFTER_LAB_INTERFACE; curl -sS http://web.lab.test/bytes/3 | wc -c\nexit 7\necho unread\n";
        lab.stdin.take().unwrap().write_all(script).unwrap();
        let Output { status, stdout, stderr } = lab.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert_eq!(status.code(), Some(code), "{shell:?}: {stderr}");
        match code {
            7 => assert_eq!((&*stdout, &*stderr), ("lab0\n3\n", ""), "{shell:?}"),
            _ => assert!(stderr.starts_with("crafter: run /no/sh: No such file"), "{stderr}"),
        }
    }
}

/// Lookups in a lab by `curl` and the C library's getent, for A and AAAA.
const LOOK_UP: &str = "curl -sS --max-time 10 http://web.lab.test/bytes/3 | wc -c
getent hosts web.lab.test
getent ahostsv4 web.lab.test | awk 'NR == 1 { print $1 }'
getent ahosts web.lab.test | awk '$2 == \"STREAM\" { print $1 }' | sort
getent hosts localhost >/dev/null && echo localhost
getent hosts nowhere.lab.test || echo unknown
grep -c . /etc/passwd >/dev/null && echo passwd
";

/// The output of the lookups.
fn found(text: &str) {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected = [
        &["3"][..],
        &["2001:db8::1", "web.lab.test"],
        &["192.0.2.1"],
        &["192.0.2.1"],
        &["2001:db8::1"],
        &["localhost"],
        &["unknown"],
        &["passwd"],
    ];
    assert_eq!(lines, expected, "{text}");
}

#[test]
fn names_of_the_lab_resolve() {
    let files = ["/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/hosts"];
    let read =
        || files.map(|file| (fs::read(file).ok(), fs::symlink_metadata(file).ok().map(|data| data.is_symlink())));
    let before = read();
    let (code, stdout, stderr) = run(&["lab", "run", "-q", "--", "sh", "-c", LOOK_UP]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    found(&stdout);
    assert_eq!(before, read());
    let crafted = env!("CARGO_BIN_EXE_crafter");
    let get = format!("{crafted} get -q web.lab.test/bytes/5 | wc -c");
    assert_eq!(run(&["lab", "run", "-q", "--", "sh", "-c", &get]), (Some(0), "5\n".to_owned(), String::new()));
    let (code, stdout, stderr) = run(&["lab", "run", "-q", "--", crafted, "dns", "mx", "lab.test"]);
    assert_eq!((code, stdout.lines().count()), (Some(0), 2), "{stdout}{stderr}");
    assert!(stderr.contains(" UDP 192.0.2.1:53, "), "{stderr}");
}

/// Runs a script in a mount namespace with another /etc and /run: `make` changes a copy of /etc in the current
/// directory, then `check` runs with it. $CRAFTER is the binary, $LOOK_UP the lookups to run in labs.
fn on_another_host(make: &str, check: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs none /run; mkdir etc; cp -a /etc/. etc/; rm -f etc/resolv.conf\n{make}\nmount --bind etc /etc\n\
         list() {{ (cd /etc; ls -lAR --time-style=full-iso . 2>&1; cat nsswitch.conf hosts resolv.conf 2>&1 || true); ls -lAR /run; }}\n\
         list > before\n{check}\nlist > after\ncmp before after\numount /etc"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", &script])
        .current_dir(directory.path())
        .envs([("CRAFTER", env!("CARGO_BIN_EXE_crafter")), ("LOOK_UP", LOOK_UP), ("LC_ALL", "C")])
        .env("HOST_RESOLVER", HOST_RESOLVER)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn names_resolve_without_a_resolv_conf_on_the_host() {
    for make in ["", "ln -s ../run/nowhere/resolv.conf etc/resolv.conf", "rm -f etc/nsswitch.conf"] {
        // All other files are unchanged.
        let check = "$CRAFTER lab run -q -- sh -ec \"$LOOK_UP\"\n\
                     ls -A /etc | grep -vx -e resolv.conf -e nsswitch.conf > host\n\
                     $CRAFTER lab run -q -- ls -A /etc | grep -vx -e resolv.conf -e nsswitch.conf | cmp - host\n\
                     read_all='cat /etc/hosts; for below in /etc/*/; do ls \"$below\"; done'\n\
                     $CRAFTER lab run -q -- sh -c \"$read_all\" > lab\n\
                     sh -c \"$read_all\" | cmp - lab";
        found(&on_another_host(make, check));
    }
}

/// Resolvers of the host over each protocol. The one that speaks nscd's protocol (glibc, nscd/nscd-client.h) answers
/// 203.0.113.9 to every query.
const HOST_RESOLVER: &str = r#"
import os, socket, struct, threading
def listen(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    return listener
def nscd(listener):
    while True:
        client, _ = listener.accept()
        version, kind, length = struct.unpack("iii", client.recv(12))
        client.recv(length)
        if kind == 14:  # GETAI: found, one address of four bytes, no name, no error
            client.sendall(struct.pack("iiiiii", 2, 1, 1, 4, 0, 0) + bytes([203, 0, 113, 9, socket.AF_INET]))
        client.close()
threading.Thread(target=nscd, args=[listen("/run/nscd/socket")], daemon=True).start()
resolved = listen("/run/systemd/resolve/io.systemd.Resolve")
open("ready", "w").close()
while True:
    resolved.accept()[0].close()
"#;

#[test]
fn resolver_of_the_host_is_not_asked() {
    let make = "mkdir -p /run/systemd/resolve; echo nameserver 127.0.0.53 > /run/systemd/resolve/stub-resolv.conf\n\
                ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf\n\
                sed -i '/^hosts:/d' etc/nsswitch.conf\n\
                echo 'hosts: mymachines resolve [!UNAVAIL=return] files dns' >> etc/nsswitch.conf\n\
                [ -e /var/run/nscd ] || [ -L /var/run ] || { mkdir -p var; mount --rbind /run /var/run; }\n\
                python3 -c \"$HOST_RESOLVER\" & resolver=$!\n\
                trap 'kill $resolver' EXIT\n\
                until [ -e ready ]; do kill -0 $resolver; sleep 0.05; done";
    let connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/systemd/resolve/io.systemd.Resolve')";
    let check = format!(
        "getent ahosts web.lab.test | awk 'NR == 1 {{ print $1 }}'\n\
         python3 -c \"{connect}\" && echo reached\n\
         $CRAFTER lab run -q -- python3 -c \"{connect}\" 2>/dev/null || echo out of reach\n\
         $CRAFTER lab run -q -- sh -ec \"$LOOK_UP\""
    );
    let text = on_another_host(make, &check);
    let rest = text.strip_prefix("203.0.113.9\nreached\nout of reach\n").unwrap_or_else(|| panic!("{text}"));
    found(rest);
}
