//! As `moments`, for commands that last until somebody ends them: `monitor`, `top`, `serve` and `lab run`.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crafter::lab::{INTERFACE, Lab};
use crafter_tests::{leak::attached, service::open_directory};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    Done, command, eventually, lab,
    moments::{CALLS, count, spread},
    run,
    schema::valid,
    served::{POLICY, Served},
    terminal::Terminal,
    wait,
};

const SYN: &str = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags="S")"#;

/// The binary under strace, which traces the first thread: it alone handles signals.
fn traced(mut strace: Command, options: &[&str], args: &[&str]) -> Command {
    strace.arg("-qq").args(options).arg("--").arg(env!("CARGO_BIN_EXE_crafter")).args(args);
    strace
}

/// The moments of a command: `run` runs it under strace with these options to its end.
fn moments(name: &str, begins: impl Fn(&str, &str) -> bool, run: impl FnOnce(&[&str])) -> Vec<(String, usize)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let calls = format!("trace=rt_sigprocmask,{}", CALLS.join(","));
    run(&["-o", file.path().to_str().unwrap(), "-e", &calls]);
    spread(name, &fs::read_to_string(file.path()).unwrap(), begins, count())
}

/// Calls `interrupt` at each moment, with each of the signals in turn, and with options of strace that send the signal.
/// It returns whether the command was interrupted.
fn each(name: &str, moments: &[(String, usize)], mut interrupt: impl FnMut(&[&str], Signal, &str) -> bool) {
    let mut interrupted = 0;
    for (at, (call, number)) in moments.iter().enumerate() {
        let signal = [Signal::SIGINT, Signal::SIGTERM][at % 2];
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal={signal}:when={number}"));
        let point = format!("{name}, {signal} at {call} {number}");
        let is_interrupted = interrupt(&["-o", "/dev/null", "-e", &trace, "-e", &inject], signal, &point);
        assert!(is_interrupted || at > 0, "{point}: the first signal was lost");
        interrupted += usize::from(is_interrupted);
    }
    assert!(interrupted >= count() / 4, "{name}: interrupted {interrupted} times");
}

/// Whether a call holds SIGINT and SIGTERM, as the binary does before all else: a later signal is kept.
fn holds(call: &str, arguments: &str) -> bool {
    call == "rt_sigprocmask" && arguments.starts_with("SIG_BLOCK, [INT TERM]")
}

/// Leases of the service that begin and end without pause, until this is dropped.
struct Leases(Child);

impl Leases {
    fn start(lab: &Lab, socket: &Path) -> Self {
        let script = r#"while :; do "$0" send --socket "$1" 'IP(dst="192.0.2.1")/UDP(dport=9)'; done"#;
        let mut bash = lab.command("bash");
        bash.args(["-c", script, env!("CARGO_BIN_EXE_crafter")]).arg(socket);
        Self(bash.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Waits until a service has no lease.
fn no_leases(served: &Served) {
    eventually(|| (served.root(&["leases", "--json"]).object("leases")["leases"] == json!([])).then_some(()));
}

#[test]
fn monitor_is_interrupted() {
    let served = Served::new();
    let socket = served.socket.to_str().unwrap();
    for json in [true, false] {
        let form: &[&str] = if json { &["--json"] } else { &[] };
        let args = [&["monitor", "--count", "4", "--interval", "0.1", "--socket", socket], form].concat();
        let monitor = |options: &[&str]| {
            let leases = Leases::start(&served.lab, &served.socket);
            let done = run(traced(served.lab.command("strace"), options, &args));
            drop(leases);
            done
        };
        let found = moments("monitor", holds, |options| monitor(options).succeeds());
        each("monitor", &found, |options, signal, point| {
            let done = monitor(options);
            let is_interrupted = done.code == 128 + signal as i32;
            assert!(is_interrupted || done.code == 0, "{point}: {done:?}");
            assert_eq!(done.stderr, "", "{point}: {done:?}");
            events(&done, json, is_interrupted, point);
            is_interrupted
        });
    }
    no_leases(&served);
}

/// Checks what `monitor --count 4` has printed.
fn events(done: &Done, json: bool, is_interrupted: bool, point: &str) {
    let mut count = done.text().lines().count();
    if json {
        let records: Vec<Value> = done.text().lines().map(|line| valid("monitor", line)).collect();
        count = records.iter().filter(|record| record["type"] == "event").count();
        assert_eq!(records.last(), Some(&json!({ "type": "summary", "events": count })), "{point}: {done:?}");
        assert_eq!(records.len(), count + 1, "{point}: {done:?}");
    }
    assert!(done.text().is_empty() || done.text().ends_with('\n'), "{point}: {done:?}");
    assert!(if is_interrupted { count <= 4 } else { count == 4 }, "{point}: {done:?}");
}

#[test]
fn top_is_interrupted() {
    let served = Served::new();
    let socket = served.socket.to_str().unwrap();
    let args = ["top", "--interval", "0.1", "--socket", socket];
    // Returns the exit code, and whether it ended without a key.
    let top = |options: &[&str]| {
        let mut top = Terminal::new(traced(served.lab.command("strace"), options, &args));
        let mut has_key = false;
        eventually(|| {
            if top.child.try_wait().unwrap().is_some() {
                return Some(());
            }
            if !has_key && top.said().contains("IN-BYTES/s") {
                has_key = true;
                top.keys("\t");
                // Several updates, then the end.
                thread::sleep(Duration::from_millis(300));
                top.keys("q");
            }
            None
        });
        let code = top.wait();
        let said = top.said();
        let is_switched = |text: &str| said.matches(text).count();
        assert_eq!(is_switched("\x1b[?1049h"), is_switched("\x1b[?1049l"), "{said}");
        assert!(top.is_cooked() && !said.contains("panicked"), "{said}");
        code
    };
    let found = moments("top", holds, |options| assert_eq!(top(options), 0));
    each("top", &found, |options, signal, point| {
        let code = top(options);
        // Ctrl-C quits, as q does.
        let expected: &[i32] = if signal == Signal::SIGINT { &[0] } else { &[143, 0] };
        assert!(expected.contains(&code), "{point}: {code}");
        signal == Signal::SIGINT || code == 143
    });
}

#[test]
fn service_is_interrupted() {
    let lab = lab();
    let directory = open_directory("crafter-moments-");
    let [socket, policy] = ["crafter.sock", "crafter.toml"].map(|name| directory.path().join(name));
    fs::write(&policy, POLICY).unwrap();
    let (socket_path, policy_path) = (socket.to_str().unwrap(), policy.to_str().unwrap());
    let args = ["serve", "--socket", socket_path, "--policy", policy_path];
    // Runs the service until a client has been served, or until it is interrupted; returns whether it was.
    let serve = |options: &[&str], point: &str| {
        let mut strace = traced(lab.command("strace"), options, &args);
        let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let is_there = || UnixStream::connect(&socket).is_ok();
        eventually(|| (is_there() || strace.try_wait().unwrap().is_some()).then_some(()));
        let served = run(command(&lab, &["sr1", "--socket", socket_path, "--timeout", "5", SYN]));
        assert!(!served.stderr.contains("panicked"), "{point}: {served:?}");
        let is_interrupted = eventually(|| {
            // It may be about to end.
            thread::sleep(Duration::from_millis(100));
            let has_ended = strace.try_wait().unwrap().is_some();
            (has_ended || is_there()).then_some(has_ended)
        });
        if !is_interrupted {
            assert_eq!(served.code, 0, "{point}: {served:?}");
            kill(tracee(&strace), Signal::SIGTERM).unwrap();
        }
        let code = wait(&mut strace);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut strace.stderr.take().unwrap(), &mut said).unwrap();
        let is_log = |line: &str| line.starts_with("crafter: event=");
        assert!(code == 0 && said.lines().all(is_log), "{point}: {code}, {said}");
        let reason = if is_interrupted && point.contains("SIGINT") { "SIGINT" } else { "SIGTERM" };
        let last = said.lines().last().unwrap_or_default();
        assert!(
            said.is_empty() || last.starts_with(&format!("crafter: event=stop reason={reason} ")),
            "{point}: {said}"
        );
        assert!(!socket.exists(), "{point}");
        assert_eq!(attached(lab.client(), INTERFACE), Vec::<String>::new(), "{point}");
        is_interrupted
    };
    // The last of its handlers.
    let begins = |call: &str, arguments: &str| call == "rt_sigaction" && arguments.starts_with("SIGHUP, {");
    let found = moments("serve", begins, |options| assert!(!serve(options, "without a signal")));
    each("serve", &found, |options, _, point| serve(options, point));
}

/// The process that strace has started.
fn tracee(strace: &Child) -> Pid {
    let mut processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let number = strace.id().to_string();
    let child = processes.find(|process| parent(process).as_ref() == Some(&number)).unwrap();
    Pid::from_raw(child.file_name().unwrap().to_str().unwrap().parse().unwrap())
}

#[test]
fn lab_is_interrupted() {
    // A word by which the processes of this lab are found.
    let word = format!("moments-of-{}", std::process::id());
    let mut interrupted = 0;
    for json in [true, false] {
        let form: &[&str] = if json { &["--json"] } else { &[] };
        let script = ["--", "sh", "-c", "echo begun; sleep 0.3; echo ended", &word];
        let args = [&["lab", "run"][..], form, &script].concat();
        // The mask of the lab, in the order of the numbers.
        let begins = |call: &str, arguments: &str| {
            call == "rt_sigprocmask" && arguments.starts_with("SIG_BLOCK, [HUP INT QUIT TERM]")
        };
        let found = moments("lab run", begins, |options| {
            let done = run(traced(Command::new("strace"), options, &args));
            assert_eq!((done.code, done.text()), (0, "begun\nended\n"), "{done:?}");
        });
        for (at, moment) in found.iter().enumerate() {
            let signal = [Signal::SIGINT, Signal::SIGTERM][at % 2];
            let point = format!("lab run {form:?}, {signal} at {moment:?}");
            let done = stopped(moment, signal, &args, &word);
            let is_interrupted = done.code == 128 + signal as i32;
            assert!(is_interrupted || done.code == 0 && at > 0, "{point}: {done:?}");
            let expected: &[&str] = if is_interrupted { &["", "begun\n"] } else { &["begun\nended\n"] };
            assert!(expected.contains(&done.text()), "{point}: {done:?}");
            match json {
                true => assert_eq!(valid("lab-run", &done.stderr)["exit_code"], done.code, "{point}: {done:?}"),
                false => assert_eq!(done.stderr, "lab: RST segments that reached the server: 0\n", "{point}: {done:?}"),
            }
            assert_eq!(processes_with(&word).count(), 0, "{point}");
            interrupted += usize::from(is_interrupted);
        }
        assert!(interrupted >= found.len() / 2, "interrupted {interrupted} times of {}", found.len());
    }
}

/// Runs the binary, stops it at a moment, sends it a signal and continues it. A signal of strace would seem to be one of
/// the terminal, which a lab does not forward.
fn stopped((call, number): &(String, usize), signal: Signal, args: &[&str], word: &str) -> Done {
    let file = tempfile::NamedTempFile::new().unwrap();
    let inject = format!("inject={call}:signal=SIGSTOP:when={number}");
    let options = ["-o", file.path().to_str().unwrap(), "-e", &format!("trace={call}"), "-e", &inject];
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let is_stopped = || fs::read_to_string(file.path()).unwrap().contains("--- stopped by SIGSTOP");
            while !is_stopped() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_millis(2));
            }
            for process in processes_with(word).filter(|process| parent_name(process) == "strace") {
                let process = Pid::from_raw(process.file_name().unwrap().to_str().unwrap().parse().unwrap());
                kill(process, signal).unwrap();
                kill(process, Signal::SIGCONT).unwrap();
            }
        });
        let done = run(traced(Command::new("strace"), &options, args));
        is_over.store(true, Ordering::Relaxed);
        done
    })
}

/// The processes, as `/proc/PID`, with this word in their command line.
fn processes_with(word: &str) -> impl Iterator<Item = PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let line = |process: &PathBuf| fs::read_to_string(process.join("cmdline")).unwrap_or_default();
    processes.filter(move |process| line(process).contains(word))
}

/// The name of the parent of a process; empty if it has ended.
fn parent_name(process: &Path) -> String {
    let parent = parent(process).unwrap_or_default();
    fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default().trim().to_owned()
}

/// The number of the parent of `/proc/PID`.
fn parent(process: &Path) -> Option<String> {
    // pid (comm) state ppid, see proc_pid_stat(5).
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned())
}
