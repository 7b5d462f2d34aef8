//! `--timeout`: each command ends by its time limit, whatever it waits for, with its results so far. Nothing here
//! measures time: without the limit, the outcome is another one.

use std::{fs, process::Command, time::Duration};

use crafter::{
    capture::{Entry, Format, Writer},
    lab::Lab,
    layer::{Ether, Ip, Udp},
};
use crafter_tests::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{Done, command, crafter, eventually, lab, on_server, run, served::Served, terminal::Terminal, wait};

/// Drops what matches at the server, which then does not answer.
pub fn mute(lab: &Lab, protocol: &str, port: &str) {
    on_server(lab, "iptables", &["-A", "INPUT", "-p", protocol, "--dport", port, "-j", "DROP"]);
}

/// The object that ends the output of a command with `--json`, which the schema allows.
fn summary(name: &str, done: &Done) -> Value {
    match name {
        "sr" | "ping" | "traceroute" => done.records(name).1,
        _ => done.object(name),
    }
}

/// Checks that the limit has ended the command: exit code, message, and the same in JSON.
#[track_caller]
fn is_timed_out(name: &str, done: &Done, part: &str) -> Value {
    done.fails(exit::TIMED_OUT, part);
    let summary = summary(name, done);
    assert_eq!(summary["exit_code"], exit::TIMED_OUT, "{done:?}");
    assert!(summary["error"].as_str().is_some_and(|error| error.contains(part)), "{done:?}");
    summary
}

const SYN: &str = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags="S")"#;

/// The binary where a name server is configured that does not answer: the resolver waits 10 s.
pub fn in_black_hole(lab: &Lab, args: &[&str]) -> Command {
    let mut command = lab.command("unshare");
    let script = "mount -t tmpfs none /etc && echo nameserver 192.0.2.1 > /etc/resolv.conf && \
                  echo 'hosts: dns' > /etc/nsswitch.conf && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_crafter")]);
    command.args(args);
    command
}

/// Runs it.
fn with_black_hole(lab: &Lab, args: &[&str]) -> Done {
    run(in_black_hole(lab, args))
}

#[test]
fn look_up_of_a_name_is_limited() {
    let lab = lab();
    mute(&lab, "udp", "53");
    mute(&lab, "tcp", "53");
    let named = SYN.replace("192.0.2.1", "web.lab.test");
    let part = "no answer to a look-up of a host name within 500ms (--timeout)";
    for (name, target) in [
        ("sr", &named[..]),
        ("sr1", &named),
        ("send", &named),
        ("ping", "web.lab.test"),
        ("traceroute", "web.lab.test"),
    ] {
        let done = with_black_hole(&lab, &[name, "--json", "--timeout", "500ms", target]);
        let summary = is_timed_out(name, &done, part);
        assert_eq!(summary["account"]["requests"], 0, "{done:?}");
    }
    let done = with_black_hole(&lab, &["get", "--json", "-o", "/dev/null", "-t", "0.5", "web.lab.test"]);
    assert_eq!(done.code, i32::from(exit::TIMED_OUT), "{done:?}");
    assert!(done.object("get")["error"].as_str().unwrap().starts_with(part), "{done:?}");
    // As text: the account and the message.
    let done = with_black_hole(&lab, &["sr", "--timeout", "0.5", &named]);
    done.fails(exit::TIMED_OUT, part);
    assert!(done.stderr.starts_with(";; 0 requests, 0 sent; "), "{done:?}");
}

#[test]
fn stopped_service_is_limited() {
    let served = Served::new();
    let service = Pid::from_raw(served.pid() as i32);
    kill(service, Signal::SIGSTOP).unwrap();
    let part = "not ready within 300ms (--timeout): the service";
    for (name, target) in [
        ("sr", SYN),
        ("sr1", SYN),
        ("send", r#"IP(dst="192.0.2.1")/UDP(dport=9)"#),
        ("ping", "192.0.2.1"),
        ("traceroute", "192.0.2.1"),
    ] {
        let done = served.root(&[name, "--json", "--timeout", "0.3", target]);
        let summary = is_timed_out(name, &done, part);
        assert_eq!((&summary["account"]["requests"], &summary["mechanism"]), (&json!(0), &json!([])), "{done:?}");
    }
    let done = served.root(&["get", "--json", "-o", "/dev/null", "--timeout", "0.3", "192.0.2.1"]);
    assert_eq!(done.code, i32::from(exit::TIMED_OUT), "{done:?}");
    assert!(done.object("get")["error"].as_str().unwrap().starts_with(part), "{done:?}");
    for args in
        [&["dns", "--timeout", "0.3", "@192.0.2.1", "lab.test"][..], &["sniff", "-i", "lab0", "--timeout", "0.3"]]
    {
        served.root(args).fails(exit::TIMED_OUT, part);
    }
    // It has subscribed, as far as it can see.
    served.root(&["monitor", "--timeout", "0.3"]).succeeds();
    assert_eq!(served.root(&["monitor", "--timeout", "0.3", "-c", "1"]).code, i32::from(exit::TIMED_OUT));
    kill(service, Signal::SIGCONT).unwrap();
    let leases = || served.root(&["leases", "--json"]).object("leases")["leases"].clone();
    eventually(|| (leases() == json!([])).then_some(()));
    served.root(&["sr1", "--timeout", "5", SYN]).succeeds();
}

#[test]
fn silent_peer_is_limited() {
    let lab = lab();
    mute(&lab, "tcp", "83");
    mute(&lab, "udp", "53");
    let silent = SYN.replace("80", "83");
    // All that there was to do is done: no answer is a result.
    for (name, count) in [("sr", 1), ("sr1", 1)] {
        let done = crafter(&lab, &[name, "--json", "--timeout", "2", &silent]);
        let summary = summary(name, &done);
        assert_eq!((done.code, done.stderr.as_str()), (exit::TIMED_OUT.into(), ""), "{done:?}");
        let account = &summary["account"];
        assert_eq!(
            (&account["sent"], &account["unanswered"], &summary["error"]),
            (&json!(count), &json!(1), &Value::Null)
        );
    }
    // The limit is divided among three attempts.
    let done = crafter(&lab, &["sr1", "--json", "--timeout", "3", "--retry", "2", &silent]);
    let verdict = done.object("sr1")["verdict"]["text"].clone();
    assert!(verdict.as_str().unwrap().contains("3 requests, within 1 s each"), "{done:?}");
    assert_eq!(done.object("sr1")["account"]["sent"], 3, "{done:?}");
    let done = crafter(&lab, &["get", "--timeout", "9", "--connect-timeout", "1", "http://192.0.2.1:83/"]);
    done.fails(exit::TIMED_OUT, "no answer from 192.0.2.1:83 within 1s (SYN-ACK)");
    let done = crafter(&lab, &["get", "--timeout", "4", "http://192.0.2.1/slow?ms=50000"]);
    done.fails(exit::TIMED_OUT, "not complete within 4s (--timeout)");
    let done = crafter(&lab, &["dns", "--timeout", "9", "--wait", "1", "@192.0.2.1", "lab.test"]);
    done.fails(exit::TIMED_OUT, "no answer from 192.0.2.1:53 within 3s (DNS answer)");
    let done =
        crafter(&lab, &["ping", "--tcp", "83", "--json", "-c", "2", "--interval", "0.1", "-t", "2", "192.0.2.1"]);
    assert_eq!((done.code, &done.records("ping").1["sent"]), (exit::TIMED_OUT.into(), &json!(2)), "{done:?}");
    // Nothing is attached any more, and no port leased.
    crafter(&lab, &["sr1", "--attach", "native", SYN]).succeeds();
}

/// A limit that passes before everything is sent.
#[test]
fn limit_ends_an_exchange_with_its_results() {
    let lab = lab();
    let part = "not complete within 3s (--timeout)";
    let datagram = r#"IP(dst="192.0.2.1")/UDP(dport=9)"#;
    let directory = tempfile::tempdir().unwrap();
    let slow = directory.path().join("slow.pcapng");
    let mut writer = Writer::new(fs::File::create(&slow).unwrap(), Format::PcapNg).unwrap();
    let frame = Ether::new().dst("02:00:00:00:00:99") / Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(9);
    for minute in 0..100 {
        let time = Duration::from_secs(1_700_000_000 + 60 * minute);
        writer.write(&Entry::new(time, frame.layers()[0].kind(), &frame.build().unwrap())).unwrap();
    }
    writer.finish().unwrap();
    for (name, args) in [
        ("sr", &["-c", "1000", "--interval", "0.2", SYN][..]),
        ("send", &["-c", "1000", "--interval", "0.2", datagram]),
        ("ping", &["-c", "1000", "--interval", "0.2", "192.0.2.1"]),
        ("replay", &["-i", "lab0", slow.to_str().unwrap()]),
    ] {
        let done = crafter(&lab, &[&[name, "--json", "--timeout", "3"], args].concat());
        let summary = is_timed_out(name, &done, part);
        let account = if name == "replay" { &summary } else { &summary["account"] };
        assert!((1..1000).contains(&account["sent"].as_u64().unwrap()), "{done:?}");
        let answered = account["answered"].as_u64().unwrap_or(1);
        assert!(answered > 0, "{done:?}");
    }
    // Without `--count`, the limit is the intended end, and not an error.
    let done = crafter(&lab, &["ping", "--json", "--interval", "0.1", "--timeout", "3", "192.0.2.1"]);
    done.succeeds();
    let (_, summary) = done.records("ping");
    assert!(summary["error"].is_null() && summary["received"].as_u64() > Some(0), "{done:?}");
    // A limit that is long enough changes nothing.
    let done = crafter(&lab, &["sr", "--json", "--timeout", "30", SYN]);
    done.succeeds();
    assert!(done.records("sr").1["error"].is_null());
}

/// Waits until the kernel holds SIGINT for a process that does not handle it yet.
fn held(child: &std::process::Child) -> bool {
    let path = format!("/proc/{}/status", child.id());
    let deadline = std::time::Instant::now() + Duration::from_secs(2);
    let bit = 1 << (Signal::SIGINT as i32 - 1);
    while std::time::Instant::now() < deadline {
        let Ok(status) = fs::read_to_string(&path) else { return false };
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
            u64::from_str_radix(line.trim_matches([':', '\t']), 16).unwrap_or(0)
        };
        if mask("SigBlk") & bit != 0 {
            return true;
        }
        if mask("SigCgt") & bit != 0 {
            return false;
        }
    }
    false
}

/// A signal that arrives before the command handles signals is not lost, and the output is complete.
#[test]
fn signal_at_the_start_ends_with_complete_output() {
    let lab = lab();
    for (name, args, code) in [
        ("sr", &["-c", "1000", "--rate", "10", SYN][..], 130),
        ("sr1", &[r#"IP(dst="192.0.2.77")/ICMP()"#], 130),
        ("send", &["-c", "1000", "--rate", "10", SYN], 130),
        ("ping", &["192.0.2.1"], 130),
        ("traceroute", &["203.0.113.5"], 130),
        ("get", &["-o", "/dev/null", "http://192.0.2.1/slow?ms=50000"], 130),
        ("sniff", &["-i", "lab0"], 0),
    ] {
        let output = (0..50).find_map(|_| {
            let mut process = command(&lab, &[&[name, "--json"], args].concat());
            process.stdin(std::process::Stdio::null());
            process.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            let mut child = process.spawn().unwrap();
            let is_held = held(&child);
            kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
            wait(&mut child);
            is_held.then(|| child.wait_with_output().unwrap())
        });
        let output = output.unwrap_or_else(|| panic!("{name} does not hold signals while it starts"));
        let done = Done {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        let object = if name == "sniff" { done.records(name).1 } else { summary(name, &done) };
        assert_eq!(done.code, code, "{done:?}");
        assert!(code == 0 || object["error"] == "interrupted" && object["exit_code"] == code, "{done:?}");
    }
}

#[test]
fn quiet_commands_print_only_results() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let tape = directory.path().join("tape.pcapng");
    crafter(&lab, &["build", "-w", tape.to_str().unwrap(), r#"IP(dst="192.0.2.1")/UDP(dport=9)"#]).succeeds();
    mute(&lab, "tcp", "83");
    for (args, is_quiet) in [
        (&["sr", SYN][..], false),
        (&["sr1", SYN], false),
        (&["send", r#"IP(dst="192.0.2.1")/UDP(dport=9)"#], true),
        (&["get", "http://192.0.2.1/bytes/5"], false),
        (&["dns", "@192.0.2.1", "lab.test"], false),
        (&["ping", "-c", "1", "192.0.2.1"], false),
        (&["traceroute", "192.0.2.1"], false),
        (&["sniff", "-i", "lab0", "--timeout", "0.2"], true),
        (&["replay", tape.to_str().unwrap()], false),
    ] {
        let loud = crafter(&lab, args);
        loud.succeeds();
        for args in [[&["--quiet"], args].concat(), [args, &["--quiet"]].concat()] {
            let done = crafter(&lab, &args);
            assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{args:?}");
            assert_eq!(done.stdout.is_empty(), is_quiet, "{args:?}: {done:?}");
        }
    }
    // Errors and exit codes stay.
    assert_eq!(crafter(&lab, &["sr1", "-q", "-W", "0.2", &SYN.replace("80", "83")]).code, i32::from(exit::TIMED_OUT));
    crafter(&lab, &["get", "-q", "http://192.0.2.1:81/"]).fails(exit::REFUSED, ":81 refused the connection");
    // ping prints only its summary, as the ping of iputils.
    let done = crafter(&lab, &["ping", "-q", "-c", "2", "--interval", "0.01", "192.0.2.1"]);
    assert_eq!(done.text().lines().nth(1), Some("--- 192.0.2.1: 2 sent, 2 received, 0% lost"), "{done:?}");
}

/// The numbers of the progress line are those of the account.
#[test]
fn progress_agrees_with_the_account() {
    let lab = lab();
    mute(&lab, "tcp", "83");
    let set = r#"IP(dst="192.0.2.1")/TCP(dport=(81,84), flags="S")"#;
    let args = ["sr", set, "--rate", "20", "--wait", "1"];
    let mut terminal = Terminal::new(command(&lab, &args));
    terminal.shows("4 of 4 sent, 3 answered, 1 unanswered, ");
    terminal.shows(" packets/s, 0:01 left");
    terminal.shows(";; 4 requests, 4 sent; ");
    terminal.shows("3 answered, 1 unanswered; ");
    assert_eq!(wait(&mut terminal.child), 0);
    let mut quiet = Terminal::new(command(&lab, &[&args[..], &["--quiet"]].concat()));
    assert_eq!(wait(&mut quiet.child), 0);
    assert!(!quiet.said().contains("unanswered"), "{}", quiet.said());
}

/// Reads columns of a capture with tshark.
fn tshark(file: &str, filter: &str) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-r", file, "-n", "-Y", filter, "-T", "fields", "-e", "frame.comment"]);
    let output = command.output().expect("tshark is installed by `cargo xtask setup`");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn captures_of_get_and_dns_have_both_directions() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("capture.pcapng");
    let file = file.to_str().unwrap();
    let count = |filter: &str, comment: &str| tshark(file, filter).iter().filter(|found| *found == comment).count();

    let get = ["get", "--json", "-o", "/dev/null", "-w", file, "http://192.0.2.1/bytes/100K"];
    let report = crafter(&lab, &get).object("get");
    let number = |key: &str| report[key].as_u64().unwrap() as usize;
    assert_eq!(count("tcp.dstport == 80", "sent"), number("segments_sent"), "{report}");
    assert_eq!(count("tcp.srcport == 80", "received"), number("segments_received"), "{report}");
    assert_eq!(tshark(file, "_ws.malformed"), [""; 0]);
    assert_eq!(tshark(file, "http.response.code == 200").len(), 1);

    let lossy = ["get", "-q", "--loss", "20%", "-o", "/dev/null", "-w", file, "http://192.0.2.1/bytes/1M"];
    crafter(&lab, &lossy).succeeds();
    assert!(count("tcp.srcport == 80", "received, dropped by --loss") > 0);

    for (tcp, filter) in [(&[][..], "udp"), (&["--tcp"], "tcp")] {
        let args = [&["dns", "-q", "-w", file, "@192.0.2.1", "lab.test"], tcp].concat();
        crafter(&lab, &args).succeeds();
        assert_eq!(tshark(file, &format!("{filter} && dns.flags.response == 0")), ["sent"]);
        assert_eq!(tshark(file, &format!("{filter} && dns.flags.response == 1")), ["received"]);
    }
    // So has a command that fails.
    mute(&lab, "udp", "53");
    crafter(&lab, &["dns", "-w", file, "--wait", "1", "--tries", "2", "@192.0.2.1", "lab.test"])
        .fails(exit::TIMED_OUT, "within 2s");
    assert_eq!(tshark(file, "dns"), ["sent", "sent"]);

    let done = crafter(&lab, &["get", "-w", "-", "http://192.0.2.1/"]);
    done.fails(exit::USAGE, "--write: - writes to stdout, where the body goes");
    crafter(&lab, &["get", "-w", "/dev/full", "-o", "/dev/null", "http://192.0.2.1/"])
        .fails(exit::FAILURE, "No space left on device");
}

#[test]
fn include_writes_the_head_of_the_response() {
    let lab = lab();
    for flag in ["-i", "--include"] {
        let done = crafter(&lab, &["get", flag, "--json", "http://192.0.2.1/bytes/5"]);
        done.succeeds();
        let end = done.stdout.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let (head, body) = (std::str::from_utf8(&done.stdout[..end]).unwrap(), &done.stdout[end + 4..]);
        let mut lines = head.split("\r\n");
        assert_eq!(lines.next(), Some("HTTP/1.1 200 OK"), "{done:?}");
        assert!(lines.any(|line| line.eq_ignore_ascii_case("content-length: 5")), "{done:?}");
        let report: Value = serde_json::from_str(&done.stderr).unwrap();
        assert_eq!((body.len(), &report["body_bytes"]), (5, &json!(5)), "{done:?}");
    }
    let done = crafter(&lab, &["get", "-i", "http://192.0.2.1/status/404"]);
    assert!(done.text().starts_with("HTTP/1.1 404 Not Found\r\n"), "{done:?}");
    crafter(&lab, &["get", "-q", "--iface", "lab0", "http://192.0.2.1/bytes/5"]).succeeds();
}

/// The summary of an interrupted transfer has its bytes, time and rate.
#[test]
fn summary_of_an_interrupted_get_is_right() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let body = directory.path().join("body");
    let mut process = command(&lab, &["get", "-o", body.to_str().unwrap(), "http://192.0.2.1/bytes/100G"]);
    let mut child = process.stderr(std::process::Stdio::piped()).spawn().unwrap();
    eventually(|| fs::metadata(&body).is_ok_and(|file| file.len() > 1 << 20).then_some(()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(wait(&mut child), 130);
    let stderr = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let length = fs::metadata(&body).unwrap().len();
    let rest =
        stderr.strip_prefix(&format!("200 OK: {length} bytes in ")).unwrap_or_else(|| panic!("{length}: {stderr}"));
    let (seconds, rest) = rest.split_once(" s, ").unwrap();
    let (rate, _) = rest.split_once(" MB/s\n").unwrap();
    let (seconds, rate): (f64, f64) = (seconds.parse().unwrap(), rate.parse().unwrap());
    assert!(seconds > 0.0 && (rate - length as f64 / 1e6 / seconds).abs() < 0.1 * rate, "{stderr}");
    assert!(
        stderr.contains(&format!("crafter: interrupted ({} has {length} of 107374182400 bytes", body.display())),
        "{stderr}"
    );
}
