//! Ctrl-C and SIGTERM at different moments: the output is complete, and the account agrees with what the server saw.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crafter::{
    capture::{Entry, Format, Writer},
    layer::{Ether, Ip, Udp},
};
use nix::{
    pty::Winsize,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Done, command, crafter, eventually, lab, on_server, schema::valid, terminal::Terminal, wait};

/// Times after the process handles signals, in milliseconds: while it attaches, sends, waits and after that.
const MOMENTS: [u64; 10] = [0, 20, 60, 120, 180, 240, 300, 400, 600, 900];

/// Waits until the process handles Ctrl-C: before that, the signal ends it without output.
fn handles_signals(child: &Child) {
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

#[test]
fn each_command_ends_with_its_results_so_far() {
    let lab = lab();
    let drop = ["-A", "INPUT", "-p", "tcp", "--dport", "83", "-j", "DROP"];
    on_server(&lab, "iptables", &drop);
    let directory = tempfile::tempdir().unwrap();
    let slow = directory.path().join("slow.pcapng");
    let mut writer = Writer::new(fs::File::create(&slow).unwrap(), Format::PcapNg).unwrap();
    let frame = Ether::new().dst("02:00:00:00:00:99") / Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(9);
    for second in 0..100 {
        let bytes = frame.build().unwrap();
        let time = Duration::from_millis(1_700_000_000_000 + 50 * second);
        writer.write(&Entry::new(time, frame.layers()[0].kind(), &bytes)).unwrap();
    }
    writer.finish().unwrap();
    let scan = r#"IP(dst="192.0.2.1")/TCP(dport=[80,81,82,83], flags="S")"#;
    let datagrams = r#"IP(dst="192.0.2.1")/UDP(dport=9)"#;
    let silent = r#"IP(dst="192.0.2.1")/TCP(dport=83, flags="S")"#;
    for (at, moment) in MOMENTS.into_iter().enumerate() {
        let moment = Duration::from_millis(moment);
        let (signal, code) = [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)][at % 2];
        let run = |args: &[&str]| interrupted(command(&lab, args), moment, signal);

        let done = run(&["sr", "--json", scan, "-c", "100", "--rate", "100", "--timeout", "60"]);
        let (records, summary) = done.records("sr");
        is_complete(&summary, &done, code);
        let count = |kind: &str| records.iter().filter(|record| record["type"] == kind).count() as u64;
        let account = &summary["account"];
        assert_eq!((count("answer"), count("no_answer")), (number(account, "answered"), number(account, "unanswered")));
        let states: u64 = summary["states"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(states, number(account, "requests"), "{summary}");

        let done = run(&["sr1", "--json", silent, "--timeout", "60"]);
        is_complete(&done.object("sr1"), &done, code);

        let done = run(&["send", "--json", datagrams, "-c", "1000", "--rate", "50"]);
        is_complete(&done.object("send"), &done, code);

        let done = run(&["ping", "--json", "--interval", "0.05", "192.0.2.1"]);
        let (records, summary) = done.records("ping");
        is_complete(&summary, &done, code);
        assert_eq!(records.len() as u64, number(&summary, "received"), "{done:?}");

        let done = run(&["traceroute", "--json", "--wait", "5", "203.0.113.5"]);
        is_complete(&done.records("traceroute").1, &done, code);

        let done = run(&["replay", "--json", "-i", "lab0", slow.to_str().unwrap()]);
        let summary = done.object("replay");
        assert_eq!((done.code, &summary["exit_code"]), (code.into(), &code.into()), "{done:?}");
        assert!(number(&summary, "sent") <= 100 && summary["error"] == "interrupted", "{summary}");

        let body = directory.path().join("body");
        let done = run(&["get", "--json", "-o", body.to_str().unwrap(), "http://192.0.2.1/bytes/100G"]);
        let summary = done.object("get");
        assert_eq!((done.code, &summary["exit_code"]), (code.into(), &code.into()), "{done:?}");
        if summary["status"] == 200 {
            assert_eq!(number(&summary, "body_bytes"), fs::metadata(&body).unwrap().len());
            assert!(number(&summary, "bytes_received") >= number(&summary, "body_bytes"), "{summary}");
            assert!(summary["bytes_per_second"].as_f64() > Some(0.0) && summary["handshake_ns"].is_u64(), "{summary}");
        }
    }
}

#[track_caller]
fn number(object: &Value, key: &str) -> u64 {
    object[key].as_u64().unwrap_or_else(|| panic!("no {key}: {object}"))
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

#[test]
fn progress_line_is_drawn_on_a_terminal_only() {
    let lab = lab();
    let set = r#"IP(dst="192.0.2.1")/TCP(dport=(1,200), flags="S")"#;
    let args = ["sr", set, "--rate", "200", "--timeout", "1"];
    for size in [(40, 140), (0, 0), (1, 1)] {
        let size = Winsize { ws_row: size.0, ws_col: size.1, ws_xpixel: 0, ws_ypixel: 0 };
        let mut terminal = Terminal::with_size(command(&lab, &args), size);
        assert_eq!(wait(&mut terminal.child), 0, "{}", terminal.said());
        if size.ws_col == 140 {
            terminal.shows(" of 200 sent, ");
            terminal.shows(" left");
            terminal.shows(";; 2 open, 198 closed");
        }
    }
    let done = crafter(&lab, &args);
    done.succeeds();
    let lines: Vec<&str> = done.text().lines().collect();
    assert_eq!(
        lines[2..],
        ["192.0.2.1: 200 TCP ports", "  open          53, 80", "  closed        1-52, 54-79, 81-200",]
    );
    assert!(lines[0].contains(":53 S ==> ") && lines[1].contains(":80 S ==> "), "{done:?}");
    assert!(!done.stderr.contains('\r') && done.stderr.starts_with(";; 2 open, 198 closed\n"), "{done:?}");
    for (show, count) in [("open", 2), ("answered", 200), ("all", 200)] {
        let done = crafter(&lab, &[&args[..], &["--show", show]].concat());
        assert_eq!(done.text().lines().filter(|line| line.contains(" ==> ")).count(), count, "{done:?}");
    }
}

/// A reader that closes the pipe ends the command without a message; a full disk is one sentence.
#[test]
fn closed_pipe_is_quiet_and_full_disk_is_an_error() {
    let lab = lab();
    let binary = env!("CARGO_BIN_EXE_crafter");
    let syn = r#"'IP(dst="192.0.2.1")/TCP(dport=80, flags="S")'"#;
    for (line, pipe) in [
        (format!("sr --show all -c 2000 --rate 2000 {syn}"), true),
        (format!("sr --json -c 2000 --rate 2000 {syn}"), true),
        ("ping --interval 0.02 192.0.2.1".to_owned(), true),
        ("ping --json --interval 0.02 192.0.2.1".to_owned(), true),
        ("traceroute 192.0.2.1".to_owned(), true),
        (format!("sr1 {syn}"), true),
        (format!("build {syn}"), true),
        ("ls".to_owned(), true),
        (format!("sr -w /dev/full {syn}"), false),
        (format!("sr1 -w /dev/full {syn}"), false),
        (format!("send -w /dev/full {syn}"), false),
        ("ping -c 1 -w /dev/full 192.0.2.1".to_owned(), false),
        ("traceroute -w /dev/full 192.0.2.1".to_owned(), false),
        ("sniff -i lab0 -w /dev/full".to_owned(), false),
        (format!("build --pcap /dev/full {syn}"), false),
        (format!("sr {syn} >/dev/full"), false),
        (format!("sr1 {syn} >/dev/full"), false),
        ("ping -c 1 192.0.2.1 >/dev/full".to_owned(), false),
        ("ls >/dev/full".to_owned(), false),
    ] {
        let script = match pipe {
            true => format!("{binary} {line} | :; echo ${{PIPESTATUS[0]}} >&2"),
            false => format!("{binary} {line}; echo $? >&2"),
        };
        let mut shell = lab.command("bash");
        shell.args(["-c", &script]);
        let done = super::run(shell);
        let said: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("crafter: ")).collect();
        let code = done.stderr.lines().last();
        match pipe {
            true => assert!(said.is_empty() && code == Some("0"), "{line}: {done:?}"),
            false => {
                assert!(matches!(said[..], [one] if one.contains("No space left on device")), "{line}: {done:?}");
                assert_eq!(code, Some("1"), "{line}: {done:?}");
            }
        }
    }
}
