//! Signals while a command resolves, waits or is blocked. `moments` has signals at each phase of each command.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    Done, Traffic, command, eventually, lab,
    limits::{in_black_hole, mute},
    on_server,
    schema::valid,
    terminal::Terminal,
    wait,
};

/// Waits until the process handles Ctrl-C: before that, the signal ends it without output.
pub fn handles_signals(child: &Child) {
    let path = format!("/proc/{}/status", child.id());
    eventually(|| {
        let status = fs::read_to_string(&path).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or("0");
        (u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (Signal::SIGINT as i32 - 1) != 0).then_some(())
    });
}

fn send_signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// Starts a command, sends it a signal at a moment, and waits for its end.
fn interrupted(mut command: Command, moment: Duration, signal: Signal) -> Done {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    handles_signals(&child);
    std::thread::sleep(moment);
    send_signal(&child, signal);
    let start = Instant::now();
    let code = wait(&mut child);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    Done { code, stdout: reading.join().unwrap().unwrap(), stderr: text }
}

/// Checks exit code and account, whose counters add up.
#[track_caller]
fn is_complete(summary: &Value, done: &Done, code: u8) {
    assert_eq!((done.code, &summary["exit_code"]), (code.into(), &code.into()), "{done:?}");
    assert_eq!(summary["error"], "interrupted", "{done:?}");
    let account = &summary["account"];
    let number = |key: &str| account[key].as_u64().unwrap();
    assert!(number("sent") >= number("requests") || number("not_sent") > 0, "{account}");
    assert_eq!(account["kernel"]["crafted_difference"], 0, "{account}");
    assert_eq!(account["kernel"]["delivered_difference"], 0, "{account}");
}

/// The next hop does not answer for seconds; the first Ctrl-C ends the resolution.
#[test]
fn neighbour_resolution_is_interrupted() {
    let lab = lab();
    for args in [
        &["sr", "--json", r#"IP(dst="192.0.2.77")/TCP(dport=[80,81], flags="S")"#][..],
        &["ping", "--json", "192.0.2.77"],
        &["traceroute", "--json", "192.0.2.77"],
    ] {
        let start = Instant::now();
        let done = interrupted(command(&lab, args), Duration::from_millis(600), Signal::SIGINT);
        let (records, summary) = done.records(args[0]);
        is_complete(&summary, &done, 130);
        assert_eq!((records.len(), &summary["account"]["requests"]), (0, &0.into()), "{done:?}");
        assert!(start.elapsed() < Duration::from_millis(2900), "{:?}", start.elapsed());
    }
}

/// The resolver of the system waits 10 s for a name server; Ctrl-C ends the statement, or the script, before that. If
/// the shell waited for the resolver, the statement would end with its error instead.
#[test]
fn look_up_of_the_shell_is_interrupted() {
    let lab = lab();
    mute(&lab, "udp", "53");
    mute(&lab, "tcp", "53");
    let queries = || {
        let output = lab.server().command("iptables").args(["-nvxL", "INPUT", "1"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().next().and_then(|count| count.parse::<u64>().ok()).unwrap()
    };
    let asks = |before: u64| eventually(|| (queries() > before).then_some(()));
    let named = r#"IP(dst="web.lab.test").dst"#;
    let list = r#"x = ["192.0.2.1", "web.lab.test"]; IP(dst=x).dst"#;
    for (args, text) in [(&["shell", "-c", named][..], ""), (&["shell", "-c", list], ""), (&["shell"], named)] {
        let before = queries();
        let mut shell = in_black_hole(&lab, args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        // The pipe stays open until the end of the shell.
        let mut stdin = shell.stdin.take().unwrap();
        writeln!(stdin, "{text}").unwrap();
        asks(before);
        send_signal(&shell, Signal::SIGINT);
        assert_eq!(wait(&mut shell), 130, "{args:?}");
    }
    let before = queries();
    let state = tempfile::tempdir().unwrap();
    let mut prompt = in_black_hole(&lab, &["shell"]);
    prompt.env("XDG_STATE_HOME", state.path());
    let mut shell = Terminal::new(prompt);
    shell.shows("crafter> ");
    shell.keys(&format!("{named}\r"));
    asks(before);
    send_signal(&shell.child, Signal::SIGINT);
    shell.shows("interrupted");
    shell.shows("crafter> ");
    shell.keys("6 * 7\r");
    shell.shows("42");
    shell.keys("\x04");
    assert_eq!(shell.wait(), 0, "{}", shell.said());
}

/// Signals in quick succession end the command with the exit code of Ctrl-C, whatever it does at that time.
#[test]
fn repeated_signals_end_at_once() {
    let lab = lab();
    on_server(&lab, "iptables", &["-A", "INPUT", "-p", "tcp", "--dport", "83", "-j", "DROP"]);
    let waiting = r#"IP(dst="192.0.2.1")/TCP(dport=83, flags="S")"#;
    let mut child = command(&lab, &["sr", waiting, "--timeout", "60"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    handles_signals(&child);
    for _ in 0..5 {
        // A process that has ended, and is not waited for, receives signals too.
        send_signal(&child, Signal::SIGINT);
    }
    let start = Instant::now();
    assert_eq!(wait(&mut child), 130);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Each answer is printed when it arrives, long before the end.
#[test]
fn answers_are_printed_as_they_arrive() {
    let lab = lab();
    for json in [&[][..], &["--json"]] {
        let set = r#"IP(dst="192.0.2.1")/TCP(dport=[80,81,82], flags="S")"#;
        let args = [&["sr", set, "--interval", "0.3", "--timeout", "60", "--multi"], json].concat();
        let start = Instant::now();
        let mut child = command(&lab, &args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        for number in 0..3 {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            if !json.is_empty() {
                assert_eq!(valid("sr", &line)["number"], number);
            }
        }
        assert!(start.elapsed() < Duration::from_secs(30));
        send_signal(&child, Signal::SIGINT);
        assert_eq!(wait(&mut child), 130);
    }
}

/// A command that waits for the reader of its output cannot print, but the second signal ends it.
#[test]
fn second_signal_ends_a_blocked_command() {
    let lab = lab();
    let _traffic = Traffic::start(&lab);
    let closed = r#"IP(dst="192.0.2.1")/TCP(dport=(1,400), flags="S")"#;
    for args in [
        &["sr", "--json", closed, "--timeout", "60"][..],
        &["send", "-w", "-", closed, "-c", "10"],
        &["ping", "--json", "--interval", "0.001", "192.0.2.1"],
        &["sniff", "-i", "lab0", "--as", "fields"],
        &["shell", "-c", &"show(IP()/TCP());".repeat(300)],
    ] {
        // Nobody reads the pipe, but its reader is open.
        let (_reader, writer) = std::io::pipe().unwrap();
        let mut child = command(&lab, args).stdout(writer).stderr(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let writes = || {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
            call.split(' ').next() == Some(&libc::SYS_write.to_string())
        };
        // Blocked in two consecutive samples: a single one may be of a write that does not block.
        eventually(|| {
            let is_blocked = writes() && {
                std::thread::sleep(Duration::from_millis(300));
                writes()
            };
            is_blocked.then_some(())
        });
        send_signal(&child, Signal::SIGINT);
        is_handled(pid);
        assert!(child.try_wait().unwrap().is_none(), "{args:?}");
        send_signal(&child, Signal::SIGINT);
        assert_eq!(wait(&mut child), 130, "{args:?}");
    }
}

/// Waits until no signal is pending, and a thread that watches signals has seen it: two signals at the same time are
/// one.
fn is_handled(pid: u32) {
    let path = format!("/proc/{pid}/status");
    eventually(|| {
        let status = fs::read_to_string(&path).unwrap();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t")).unwrap();
        pending.trim_start_matches('0').is_empty().then_some(())
    });
    std::thread::sleep(Duration::from_millis(100));
}
