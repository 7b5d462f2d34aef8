//! Signals at ten moments of each command: what it prints and records is complete, and agrees with the packets that the
//! server counted; nothing is left behind.
//!
//! A moment is a system call. strace sends the signal when the command makes a call of this name for the n-th time, so
//! that the moments are spread over what the command does, and not over time. `CRAFTER_TEST_POINTS=0`, which `--long`
//! sets: 40 moments, each with both signals and both forms of the output.

use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crafter::{
    capture::{Capture, Direction, Entry, Format, Writer},
    lab::{INTERFACE, Lab},
    layer::{Ip, Udp},
};
use crafter_tests::{leak::attached, slow};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Done, Traffic, eventually, lab, on_server, run, schema::valid, served::Served};

/// Calls that communicate, wait, or acquire and release something. `?`: not every architecture has it.
pub const CALLS: [&str; 18] = [
    "rt_sigaction",
    "bpf",
    "socket",
    "bind",
    "connect",
    "setsockopt",
    "ioctl",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "?epoll_wait",
    "epoll_pwait",
    "write",
    "close",
    "clone3",
];

/// How a command prints its results with `--json`.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Records, then a summary with the account.
    Records,
    /// One object with the account.
    Object,
    /// Records, with a summary only if the schema has one; no account.
    Plain,
    /// One object at the end; nothing after a signal.
    Nothing,
}

/// A command that ends by itself with exit code 0, and sends few packets.
struct Case {
    name: &'static str,
    args: Vec<String>,
    form: Form,
    /// The packets that it sends: a match of iptables(8) in the server's INPUT.
    sends: Option<&'static str>,
    /// Whether it has the option `-w`.
    records: bool,
}

impl Case {
    fn new(line: &[&str], form: Form, sends: Option<&'static str>) -> Self {
        let name = ["sr1", "sr", "send", "ping", "traceroute", "replay", "get", "dns", "shell", "sniff"];
        let name = name.into_iter().find(|name| *name == line[0]).unwrap();
        let records = ["sr1", "sr", "send", "ping", "traceroute"].contains(&name);
        Self { name, args: line.iter().map(|word| (*word).to_owned()).collect(), form, sends, records }
    }
}

const SYNS: Option<&str> = Some("-p tcp --syn --dport 80:83");

fn cases(directory: &Path) -> Vec<Case> {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let slow = path("slow.pcap");
    let mut writer = Writer::new(fs::File::create(&slow).unwrap(), Format::Pcap).unwrap();
    for number in 0..20_u16 {
        let datagram = Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(10 + number);
        let bytes = datagram.build().unwrap();
        let time = std::time::Duration::from_millis(1_700_000_000_000 + 10 * u64::from(number));
        writer.write(&Entry::new(time, datagram.layers()[0].kind(), &bytes)).unwrap();
    }
    writer.finish().unwrap();
    let four = r#"IP(dst="192.0.2.1")/TCP(dport=[80,81,82,83], flags="S")"#;
    let open = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags="S")"#;
    let script =
        r#"x = sr1(IP(dst="192.0.2.1")/TCP(dport=80, flags="S")); x.ack; send(IP(dst="192.0.2.1")/UDP(dport=9)); 7"#;
    vec![
        Case::new(&["sr1", open], Form::Object, SYNS),
        Case::new(&["sr", four, "-c", "5", "--rate", "200", "--wait", "0.2"], Form::Records, SYNS),
        Case::new(
            &["send", r#"IP(dst="192.0.2.1")/UDP(dport=9)"#, "-c", "20", "--rate", "200"],
            Form::Object,
            Some("-p udp --dport 9"),
        ),
        Case::new(&["replay", &slow], Form::Object, Some("-p udp --dport 10:29")),
        Case::new(
            &["ping", "-c", "6", "--interval", "0.03", "192.0.2.1"],
            Form::Records,
            Some("-p icmp --icmp-type echo-request"),
        ),
        Case::new(&["ping", "-c", "4", "--interval", "0.03", "--tcp", "80", "192.0.2.1"], Form::Records, SYNS),
        Case::new(&["traceroute", "192.0.2.1"], Form::Records, Some("-p udp --dport 33434:33523")),
        Case::new(&["get", "-o", &path("body"), "http://192.0.2.1/bytes/3M"], Form::Object, None),
        Case::new(&["dns", "@192.0.2.1", "www.lab.test"], Form::Nothing, None),
        Case::new(&["shell", "-c", script], Form::Plain, None),
        Case::new(&["sniff", "-i", "lab0", "--count", "4"], Form::Plain, None),
    ]
}

/// Whether all signals and forms are tried at each moment.
fn is_long() -> bool {
    env::var("CRAFTER_TEST_POINTS").is_ok_and(|points| points == "0")
}

/// Number of moments.
pub fn count() -> usize {
    match crafter_tests::slow::slowness() {
        1 if is_long() => 40,
        1 => 10,
        // An emulated processor.
        _ => 4,
    }
}

/// `count` calls of a trace, spread over those from the first on for which `begins` is true. A series of calls with the
/// same name counts as one, so that each phase of a command is hit.
pub fn spread(name: &str, trace: &str, begins: impl Fn(&str, &str) -> bool, count: usize) -> Vec<(String, usize)> {
    let (mut counts, mut phases, mut has_begun) = (HashMap::new(), Vec::<(String, usize)>::new(), false);
    for line in trace.lines() {
        let Some((call, arguments)) = line.split_once('(') else { continue };
        let number = counts.entry(call.to_owned()).and_modify(|number| *number += 1).or_insert(1);
        has_begun |= begins(call, arguments);
        if has_begun {
            phases.push((call.to_owned(), *number));
        }
    }
    let mut series = phases.clone();
    series.dedup_by(|one, before| one.0 == before.0);
    // A command that waits for another thread makes few different calls.
    if series.len() > count {
        phases = series;
    }
    assert!(phases.len() >= count.min(6), "{name}: {phases:?}");
    let last = phases.len() - 1;
    let mut moments: Vec<_> = (0..count).map(|at| phases[at * last / (count - 1)].clone()).collect();
    moments.dedup();
    moments
}

/// How a command is run: in its own process, or through a service.
struct Setup<'l> {
    lab: &'l Lab,
    directory: TempDir,
    socket: Option<PathBuf>,
}

impl<'l> Setup<'l> {
    fn new(lab: &'l Lab, socket: Option<PathBuf>) -> Self {
        on_server(lab, "iptables", &["-A", "INPUT", "-p", "tcp", "--dport", "83", "-j", "DROP"]);
        Self { lab, directory: tempfile::tempdir().unwrap(), socket }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The command under strace with these options.
    fn command(&self, case: &Case, json: bool, strace: &[&str]) -> Command {
        let mut command = self.lab.command("strace");
        // Without -f: the calls of the first thread, which alone handles signals.
        command.arg("-qq").args(strace).arg("--").arg(env!("CARGO_BIN_EXE_crafter")).args(&case.args);
        if json {
            command.arg("--json");
        }
        if case.records {
            command.arg("-w").arg(self.path("w.pcapng"));
        }
        if let Some(socket) = self.socket.as_ref().filter(|_| case.name != "replay") {
            command.arg("--socket").arg(socket);
        }
        command
    }

    /// `count` calls, spread over those after the handlers are installed.
    fn moments(&self, case: &Case, json: bool, count: usize) -> Vec<(String, usize)> {
        let trace = self.path("trace");
        let options = ["-o", trace.to_str().unwrap(), "-e", &format!("trace={}", CALLS.join(","))];
        let traffic = (case.name == "sniff").then(|| Traffic::start(self.lab));
        let done = run(self.command(case, json, &options));
        drop(traffic);
        done.succeeds();
        let trace = fs::read_to_string(&trace).unwrap();
        // The handler of SIGTERM is the last of the two.
        spread(
            case.name,
            &trace,
            |call, arguments| call == "rt_sigaction" && arguments.starts_with("SIGTERM, {"),
            count,
        )
    }

    /// Interrupts a command at each of its moments.
    fn check(&self, case: &Case) {
        let (count, is_long) = (count(), is_long());
        let all = [(true, "SIGINT", 130), (false, "SIGTERM", 143), (true, "SIGTERM", 143), (false, "SIGINT", 130)];
        let mut interrupted = 0;
        for json in [true, false] {
            let moments = self.moments(case, json, count);
            for (at, moment) in moments.iter().enumerate() {
                for (index, form) in all.into_iter().enumerate() {
                    if form.0 == json && (is_long || index == at % 4) {
                        let is_interrupted = self.interrupt(case, form, moment);
                        assert!(is_interrupted || at > 0, "{}: the first {} was lost", case.name, form.1);
                        interrupted += usize::from(is_interrupted);
                    }
                }
            }
        }
        assert!(interrupted >= count / 4, "{}: interrupted {interrupted} times", case.name);
    }

    /// Interrupts a command at a moment, and checks its results; returns whether it was interrupted, and not complete
    /// before the signal.
    fn interrupt(
        &self,
        case: &Case,
        (json, signal, code): (bool, &str, i32),
        (call, number): &(String, usize),
    ) -> bool {
        let point = format!("{} json {json}, {signal} at {call} {number}", case.name);
        for file in ["w.pcapng", "body"] {
            let _ = fs::remove_file(self.path(file));
        }
        let rule: Vec<&str> = case.sends.unwrap_or("-p tcp --dport 1").split(' ').collect();
        on_server(self.lab, "iptables", &[&["-I", "INPUT", "1"], &rule[..]].concat());
        self.lab.tap().clear().unwrap();
        let injection = format!("inject={call}:signal={signal}:when={number}");
        let trace = format!("trace={call}");
        let mut command = self.command(case, json, &["-o", "/dev/null", "-e", &trace, "-e", &injection]);
        let traffic = (case.name == "sniff").then(|| Traffic::start(self.lab));
        command.current_dir(self.directory.path());
        let done = run(command);
        drop(traffic);
        let is_interrupted = done.code == code;
        assert!(is_interrupted || done.code == 0, "{point}: {done:?}");
        assert!(!done.stderr.contains("panicked"), "{point}: {done:?}");
        let summary = if json { summary(case, &done, is_interrupted, &point) } else { text(case, &done, &point) };
        self.account(case, &summary, is_interrupted, &point);
        on_server(self.lab, "iptables", &["-D", "INPUT", "1"]);
        self.nothing_left(&point);
        is_interrupted
    }

    /// Compares the numbers of a summary with those of the server, and with the capture.
    fn account(&self, case: &Case, summary: &Value, is_interrupted: bool, point: &str) {
        let account = if summary["account"].is_object() { &summary["account"] } else { summary };
        // The account of ping --tcp has its RSTs, too.
        let sent = summary["sent"].as_u64().or(account["sent"].as_u64());
        if let Some(sent) = sent.filter(|_| case.sends.is_some()) {
            let counted = || {
                let output = self.lab.server().command("iptables").args(["-nvxL", "INPUT", "1"]).output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                text.split_whitespace().next().and_then(|count| count.parse::<u64>().ok()).unwrap()
            };
            // The server's kernel may receive the last packet after the command has ended.
            let (mut count, mut rounds) = (counted(), 0);
            while count < sent && rounds < 200 {
                std::thread::sleep(std::time::Duration::from_millis(5));
                (count, rounds) = (counted(), rounds + 1);
            }
            assert_eq!(sent, count, "{point}: sent, and packets at the server: {summary}");
        }
        let reset = account["half_open_reset"].as_u64().unwrap_or(0);
        assert!(self.lab.tap().count().unwrap() >= reset, "{point}: {summary}");
        if case.name == "get" && summary["status"] == 200 {
            let body = fs::metadata(self.path("body")).map_or(0, |file| file.len());
            assert_eq!(summary["body_bytes"].as_u64(), Some(body), "{point}: {summary}");
            // The service sends the RST after the command has ended.
            let is_reset = || slow::wait_until(Duration::from_secs(5), || self.lab.tap().count().unwrap() > 0);
            assert!(
                !is_interrupted || body == 3 << 20 || is_reset(),
                "{point}: the connection was not reset: {summary}"
            );
        }
        let file = self.path("w.pcapng");
        if let Ok(bytes) = fs::read(&file) {
            let capture = Capture::read(&bytes).unwrap();
            assert!(capture.broken.is_none(), "{point}: {:?}", capture.broken);
            let outgoing =
                capture.packets.iter().filter(|packet| packet.direction == Some(Direction::Out)).count() as u64;
            if let Some(sent) = account["sent"].as_u64() {
                // Those of ping --tcp are not half open, and not counted in the account.
                let is_ping = case.name == "ping" && case.sends == SYNS;
                assert!(outgoing == sent + reset || is_ping && outgoing >= sent, "{point}: {outgoing} sent: {summary}");
            }
            if !point.contains("write") {
                return;
            }
            let tshark = Command::new("tshark").arg("-r").arg(&file).args(["-c", "1"]).output().unwrap();
            assert!(tshark.status.success(), "{point}: {tshark:?}");
        }
    }

    fn nothing_left(&self, point: &str) {
        let sockets = |state: &str| {
            let sockets = self.lab.server().command("ss").args(["-Htan", "state", state]).output().unwrap();
            String::from_utf8(sockets.stdout).unwrap()
        };
        let mut left = String::new();
        // A SYN-ACK that arrives after the end is answered by the kernel when the server repeats it.
        let is_closed = crafter_tests::slow::wait_until(std::time::Duration::from_secs(10), || {
            left = sockets("syn-recv") + &sockets("established");
            left.is_empty()
        });
        assert!(is_closed, "{point}: connections of the server: {left}");
        match &self.socket {
            None => assert_eq!(attached(self.lab.client(), INTERFACE), Vec::<String>::new(), "{point}"),
            Some(socket) => eventually(|| {
                let mut leases = self.lab.command(env!("CARGO_BIN_EXE_crafter"));
                leases.args(["leases", "--json", "--socket"]).arg(socket);
                (run(leases).object("leases")["leases"] == json!([])).then_some(())
            }),
        }
    }
}

/// Checks the JSON output; returns the summary.
fn summary(case: &Case, done: &Done, is_interrupted: bool, point: &str) -> Value {
    let lines: Vec<Value> = done.text().lines().map(|line| valid(case.name, line)).collect();
    let summary = lines.last().cloned().unwrap_or_default();
    match case.form {
        Form::Records | Form::Object => {
            let error = if is_interrupted { json!("interrupted") } else { Value::Null };
            assert_eq!((&summary["error"], &summary["exit_code"]), (&error, &json!(done.code)), "{point}: {done:?}");
            assert!(case.form == Form::Records || lines.len() == 1, "{point}: {done:?}");
            let kernel = &summary["account"]["kernel"];
            if kernel.is_object() {
                let differences = (&kernel["crafted_difference"], &kernel["delivered_difference"]);
                assert_eq!(differences, (&json!(0), &json!(0)), "{point}: {summary}");
            }
            let of_type = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
            if case.name == "sr" {
                let account = &summary["account"];
                let printed = (json!(of_type("answer")), json!(of_type("no_answer")));
                assert_eq!(printed, (account["answered"].clone(), account["unanswered"].clone()), "{point}: {summary}");
                let states = summary["states"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
                assert_eq!(json!(states), account["requests"], "{point}: {summary}");
            }
            if case.name == "ping" {
                let replies = lines.iter().filter(|line| line["type"] == "probe" && line["status"] != "lost").count();
                assert_eq!(json!(replies), summary["received"], "{point}: {summary}");
            }
        }
        Form::Plain => {}
        Form::Nothing => assert_eq!(lines.len(), usize::from(!is_interrupted), "{point}: {done:?}"),
    }
    summary
}

/// Checks the text output; returns the number of packets that it says were sent, as a summary.
fn text(case: &Case, done: &Done, point: &str) -> Value {
    let messages: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("crafter: ")).collect();
    let may_say = |line: &&str| ["get", "replay"].contains(&case.name) && line.starts_with("crafter: interrupted");
    assert!(messages.iter().all(may_say), "{point}: {done:?}");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let said = [words(done.text()), words(&done.stderr)].concat();
    let before = |word: &str| {
        let at = said.iter().rposition(|one| one.trim_end_matches([',', ';']) == word)?;
        said.get(at.checked_sub(1)?)?.parse::<u64>().ok()
    };
    let reset = said.windows(2).rev().find(|pair| pair[0] == "reset").and_then(|pair| pair[1].parse::<u64>().ok());
    let sent = if case.name == "replay" {
        done.text().split_whitespace().next().and_then(|count| count.parse().ok())
    } else {
        before("sent")
    };
    match case.name {
        "sr" | "sr1" | "send" | "ping" | "replay" => assert!(sent.is_some(), "{point}: no account: {done:?}"),
        "get" | "traceroute" => return Value::Null,
        _ => {}
    }
    json!({ "sent": sent, "half_open_reset": reset })
}

/// Checks one command, in process.
fn check(name: &str) {
    let lab = lab();
    let setup = Setup::new(&lab, None);
    for case in cases(setup.directory.path()).iter().filter(|case| case.name == name) {
        setup.check(case);
    }
}

#[test]
fn exchanges_are_interrupted() {
    ["sr1", "sr", "send"].into_iter().for_each(check);
}

#[test]
fn probes_are_interrupted() {
    ["ping", "traceroute"].into_iter().for_each(check);
}

#[test]
fn downloads_and_queries_are_interrupted() {
    ["get", "dns"].into_iter().for_each(check);
}

#[test]
fn captures_and_scripts_are_interrupted() {
    ["replay", "sniff", "shell"].into_iter().for_each(check);
}

#[test]
fn commands_through_the_service_are_interrupted() {
    let served = Served::new();
    let setup = Setup::new(&served.lab, Some(served.socket.clone()));
    for case in cases(setup.directory.path()).iter().filter(|case| ["sr", "ping", "get"].contains(&case.name)) {
        setup.check(case);
    }
}
