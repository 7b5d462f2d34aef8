//! `crafter sniff`, compared with tcpdump and tshark.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crafter::{
    capture::{Capture, Captured},
    lab::Lab,
};
use crafter_tests::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{command, crafter, crafter_without, eventually, lab, schema::valid, wait};

/// A capturing program, ended when dropped.
struct Listener {
    process: Child,
    stderr: BufReader<ChildStderr>,
}

impl Listener {
    /// Starts it and waits until it reports that it is capturing.
    fn start(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("listening on") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        Self { process, stderr }
    }

    fn sniff(lab: &Lab, args: &[&str]) -> Self {
        Self::start(command(lab, &[&["sniff", "-i", "lab0"], args].concat()).stdout(Stdio::piped()))
    }

    /// Ends it with SIGINT; returns its exit code and stderr.
    fn end(&mut self) -> (i32, String) {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGINT).unwrap();
        self.ended()
    }

    fn ended(&mut self) -> (i32, String) {
        let code = wait(&mut self.process);
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (code, said)
    }

    /// Its standard output.
    fn printed(&mut self) -> String {
        let mut text = String::new();
        self.process.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends datagrams from the client's kernel, port 7000, to a port of the server.
fn send(lab: &Lab, port: u16, texts: &[&str]) {
    let send = || {
        // A process that another test starts may hold the previous socket between fork() and exec().
        let socket = eventually(|| UdpSocket::bind("192.0.2.2:7000").ok());
        for text in texts {
            socket.send_to(text.as_bytes(), ("192.0.2.1", port)).unwrap();
        }
    };
    lab.client().run(send).unwrap();
}

/// Downloads a page with the client's kernel.
fn fetch(lab: &Lab) {
    let fetch = || {
        let mut stream = TcpStream::connect("192.0.2.1:80").unwrap();
        stream.write_all(b"GET /bytes/300K HTTP/1.0\r\n\r\n").unwrap();
        let mut page = Vec::new();
        stream.read_to_end(&mut page).unwrap();
        assert!(page.len() > 300_000, "{} bytes", page.len());
    };
    lab.client().run(fetch).unwrap();
}

#[test]
fn each_packet_that_matches_the_filter_is_printed() {
    let lab = lab();
    let mut sniff = Listener::sniff(&lab, &["udp", "dst", "port", "5001", "--count", "2"]);
    send(&lab, 5000, &["not this"]);
    send(&lab, 5001, &["one", "two", "three"]);
    let (code, said) = sniff.ended();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("2 packets seen") && said.ends_with(" 0 dropped by the kernel\n"), "{said}");
    let printed = sniff.printed();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2, "{printed}");
    for line in lines {
        let (time, summary) = line.split_once(' ').unwrap();
        assert!(time.len() == "12:34:56.123456789".len() && time.as_bytes()[8] == b'.', "{line}");
        assert!(summary.starts_with("Ether / IP / UDP 192.0.2.2:7000 > 192.0.2.1:5001"), "{line}");
    }
    // Other output formats, and JSON with one line per packet.
    for (args, part) in [
        (&["--as", "fields"][..], "###[ UDP ]###"),
        (&["--as", "expr"], "UDP(sport=7000, dport=5001"),
        (&["--as", "hexdump"], "hello"),
        (&["--json"], "\"expression\":"),
    ] {
        let mut sniff = Listener::sniff(&lab, &[&["udp dst port 5001", "-c", "1"], args].concat());
        send(&lab, 5001, &["hello"]);
        assert_eq!(sniff.ended().0, 0);
        let printed = sniff.printed();
        assert!(printed.contains(part), "{args:?}: {printed}");
        if args == ["--json"] {
            let lines: Vec<_> = printed.lines().map(|line| valid("sniff", line)).collect();
            let [object, summary] = &lines[..] else { panic!("{printed}") };
            assert!(object["time_ns"].as_u64() > Some(1 << 60), "{object}");
            assert_eq!((&summary["type"], &summary["packets"]), (&"summary".into(), &1.into()), "{summary}");
            assert_eq!((&object["interface"], &object["original_length"]), (&"lab0".into(), &47.into()));
        }
    }
}

#[test]
fn lines_are_printed_while_running() {
    let lab = lab();
    let mut sniff = Listener::sniff(&lab, &["udp dst port 5001"]);
    let stdout = sniff.process.stdout.take().unwrap();
    let (lines, printed) = mpsc::channel();
    let reading =
        thread::spawn(move || BufReader::new(stdout).lines().for_each(|line| drop(lines.send(line.unwrap()))));
    for _ in 0..3 {
        send(&lab, 5001, &["x"]);
        let line = printed.recv_timeout(Duration::from_secs(20)).expect("no line while it runs");
        assert!(line.contains("UDP"), "{line}");
    }
    let (code, said) = sniff.end();
    assert!(code == 0 && said.contains("3 packets seen, 3 received by the filter, 0 dropped"), "{code} {said}");
    reading.join().unwrap();
}

#[test]
fn tcpdump_captures_the_same_packets() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    for (name, filter) in [("all.pcapng", ""), ("some.pcap", "tcp dst port 80 or udp")] {
        let [theirs, ours] = ["tcpdump.pcap", name].map(|name| directory.path().join(name));
        let mut tcpdump = lab.client().command("tcpdump");
        tcpdump.args(["-i", "lab0", "-n", "-U", "--nano", "-B", "16384", "-Z", "root", "-w"]).arg(&theirs).arg(filter);
        let mut tcpdump = Listener::start(&mut tcpdump);
        let mut sniff = Listener::sniff(&lab, &["--buffer", "16", "-w", ours.to_str().unwrap(), filter]);
        send(&lab, 5001, &["first of all"]);
        fetch(&lab);
        send(&lab, 5001, &["last of all"]);
        // One of them starts earlier and ends later than the other.
        let read = |path| {
            let mut capture = Capture::read(&fs::read(path).unwrap()).unwrap();
            let [first, last] = ["first of all", "last of all"].map(|text| {
                let is_it = |packet: &&Captured| packet.bytes.ends_with(text.as_bytes());
                capture.packets.iter().find(is_it).unwrap().time
            });
            capture.packets.retain(|packet| (first..=last).contains(&packet.time));
            capture
        };
        // Both buffer packets and write them while running; when the last packet is written, all are.
        eventually(|| {
            let has_last = |path| fs::read(path).unwrap().windows(11).any(|window| window == b"last of all");
            (has_last(&ours) && has_last(&theirs)).then_some(())
        });
        let (code, said) = sniff.end();
        assert!(code == 0 && said.ends_with(" 0 dropped by the kernel\n"), "{said}");
        assert_eq!(sniff.printed(), "");
        assert!(tcpdump.end().1.contains("\n0 packets dropped by kernel"));
        let (ours, theirs) = (read(&ours), read(&theirs));
        assert!(ours.broken.is_none() && ours.packets.len() > 10, "{:?}, {}", ours.broken, ours.packets.len());
        // Packets sent at the same time on two processors may be captured in a different order, also at the beginning
        // and the end.
        let by_sender = |capture: &Capture| {
            let mut senders: BTreeMap<Vec<u8>, Vec<Captured>> = BTreeMap::new();
            for packet in &capture.packets {
                senders.entry(packet.bytes[6..12].to_vec()).or_default().push(packet.clone());
            }
            senders
        };
        let mut theirs = by_sender(&theirs);
        for (sender, ours) in by_sender(&ours) {
            let mut theirs = theirs.remove(&sender).unwrap_or_default();
            let mut only_ours = Vec::new();
            for packet in ours {
                match theirs.iter().position(|other| other.bytes == packet.bytes) {
                    Some(at) => {
                        // Both use the kernel's timestamps.
                        let (one, other) = (packet.time.unwrap(), theirs.remove(at).time.unwrap());
                        assert!(one.abs_diff(other) < Duration::from_secs(1), "{one:?} {other:?}");
                    }
                    None => only_ours.push(packet),
                }
            }
            assert!(only_ours.len().max(theirs.len()) <= 1, "{sender:x?}: {only_ours:?}, tcpdump {theirs:?}");
        }
        assert!(theirs.values().all(|packets| packets.len() <= 1), "only tcpdump has seen {theirs:?}");
        if name == "all.pcapng" {
            assert!(ours.packets.iter().all(|packet| packet.interface.as_deref() == Some("lab0")));
        }
    }
}

#[test]
fn tshark_reads_the_capture_while_running() {
    let lab = lab();
    let mut sniff = Listener::sniff(&lab, &["-w", "-", "udp dst port 5001"]);
    let mut tshark = Command::new("tshark");
    tshark.args(["-l", "-n", "-r", "-", "-T", "fields", "-e", "udp.dstport", "-e", "frame.interface_name"]);
    tshark.stdin(sniff.process.stdout.take().unwrap()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tshark = tshark.spawn().unwrap();
    let stdout = tshark.stdout.take().unwrap();
    let (lines, printed) = mpsc::channel();
    let reading =
        thread::spawn(move || BufReader::new(stdout).lines().for_each(|line| drop(lines.send(line.unwrap()))));
    for _ in 0..3 {
        send(&lab, 5001, &["running"]);
        let line = printed.recv_timeout(Duration::from_secs(20)).expect("tshark sees nothing while the sniffer runs");
        assert_eq!(line, "5001\tlab0");
    }
    assert!(sniff.process.try_wait().unwrap().is_none());
    let (code, said) = sniff.end();
    assert!(code == 0 && said.contains("3 packets seen"), "{said}");
    assert_eq!(wait(&mut tshark), 0);
    reading.join().unwrap();
}

#[test]
fn only_ctrl_c_without_a_count_ends_with_success() {
    let lab = lab();
    for (args, signal, code) in [
        (&[][..], Signal::SIGINT, 0),
        (&["--timeout", "60"], Signal::SIGINT, 0),
        (&[], Signal::SIGTERM, 143),
        (&[], Signal::SIGHUP, 129),
        (&["--count", "3"], Signal::SIGINT, 130),
        // The time has not passed.
        (&["--count", "3", "--timeout", "60"], Signal::SIGINT, 130),
    ] {
        let mut sniff = Listener::sniff(&lab, &[&["udp port 1"], args].concat());
        super::interrupted::handles_signals(&sniff.process);
        kill(Pid::from_raw(sniff.process.id() as i32), signal).unwrap();
        let (ended, said) = sniff.ended();
        assert!(ended == code && said.contains("0 packets seen"), "{args:?}, {signal}: {ended}: {said}");
    }
}

#[test]
fn broken_pipe_ends_the_command() {
    let lab = lab();
    for args in [&["udp"][..], &["udp", "-w", "-"]] {
        let mut sniff = Listener::sniff(&lab, args);
        drop(sniff.process.stdout.take());
        // Several packets: a child that another test is starting may hold the pipe open until its exec.
        for _ in 0..100 {
            send(&lab, 5001, &["into the void"]);
            if sniff.process.try_wait().unwrap().is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(sniff.ended().0, 0, "{args:?}");
    }
}

#[test]
fn failures_have_exit_codes_and_messages() {
    let lab = lab();
    let syntax = "filter: can't parse filter expression: syntax error";
    crafter(&lab, &["sniff", "tcp prot 80"]).fails(exit::USAGE, syntax);
    crafter_without(&lab, "-net_raw", &["sniff", "tcp prot 80"]).fails(exit::USAGE, syntax);
    crafter_without(&lab, "-net_raw", &["sniff", "tcp"]).fails(exit::PERMISSION, "CAP_NET_RAW");
    crafter(&lab, &["sniff", "-i", "lab7"]).fails(exit::NO_ROUTE, "no interface named 'lab7'");
    crafter(&lab, &["sniff", "--snaplen", "0"]).fails(exit::USAGE, "snaplen");
    crafter(&lab, &["sniff", "-w", "-", "--json"]).fails(exit::USAGE, "--write");
    let late = crafter(&lab, &["sniff", "-c", "1", "--timeout", "0.2", "udp port 1"]);
    assert!(late.code == i32::from(exit::TIMED_OUT) && late.stderr.contains("0 packets seen"), "{late:?}");
    crafter(&lab, &["sniff", "--timeout", "0.2", "udp port 1"]).succeeds();
}
