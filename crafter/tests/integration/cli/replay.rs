//! `crafter replay`; tcpdump captures at the server.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use crafter::{
    capture::{Capture, Captured, Entry, Format, Writer},
    lab::Lab,
    layer::{Ether, Ip, Ipv6, Packet, Udp},
};
use crafter_tests::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Done, command, crafter, crafter_without, eventually, lab, wait};

/// A running tcpdump in the server's namespace.
struct Judge {
    process: Child,
    file: PathBuf,
}

impl Judge {
    fn start(lab: &Lab, directory: &TempDir, filter: &str) -> Self {
        let file = directory.path().join("judge.pcap");
        // Remove an earlier file: tcpdump writes the header when it starts to capture.
        let _ = fs::remove_file(&file);
        let mut command = lab.server().command("tcpdump");
        // A short snapshot length, since each slot of the ring has that length.
        command.args(["-i", "lab0", "-n", "-U", "--immediate-mode", "--nano", "-s", "2048", "-B", "16384"]);
        command.args(["-Z", "root", "-w"]);
        let process = command.arg(&file).arg(filter).stderr(Stdio::null()).spawn().unwrap();
        // It writes the header when it starts to capture.
        eventually(|| fs::metadata(&file).is_ok_and(|file| file.len() >= 24).then_some(()));
        Self { process, file }
    }

    /// Waits for this number of packets and returns them.
    fn saw(&mut self, count: usize) -> Vec<Captured> {
        let read = || Capture::read(&fs::read(&self.file).unwrap()).unwrap().packets;
        let deadline = Instant::now() + Duration::from_secs(30);
        while read().len() < count {
            assert!(Instant::now() < deadline, "tcpdump saw {} of {count} packets", read().len());
            thread::sleep(Duration::from_millis(20));
        }
        // Wait for packets that should not be there.
        thread::sleep(Duration::from_millis(50));
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGINT).unwrap();
        wait(&mut self.process);
        let packets = read();
        assert_eq!(packets.len(), count);
        packets
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn frame(port: u16) -> Packet {
    let ip = Ip::to("192.0.2.1").src("192.0.2.2");
    Ether::new().dst("02:00:00:00:00:99").src("02:00:00:00:00:01") / ip / Udp::to(port).sport(7) / "again"
}

/// A pcapng file of packets with times in seconds.
fn write(path: &Path, packets: impl IntoIterator<Item = (f64, Packet)>) {
    let mut writer = Writer::new(fs::File::create(path).unwrap(), Format::PcapNg).unwrap();
    for (time, packet) in packets {
        let first = packet.layers()[0].kind();
        let time = Duration::from_secs_f64(1_700_000_000.0 + time);
        writer.write(&Entry::new(time, first, &packet.build().unwrap())).unwrap();
    }
    writer.finish().unwrap();
}

fn replay(lab: &Lab, file: &Path, args: &[&str]) -> Done {
    crafter(lab, &[&["replay", file.to_str().unwrap()], args].concat())
}

#[test]
fn frames_arrive_unchanged() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let file = directory.path().join("frames.pcapng");
    write(&file, (0..700).map(|i| (f64::from(i) * 0.0001, frame(1000 + i as u16))));
    for args in [&["--speed", "2"][..], &["--rate", "20000"], &["--loop", "3", "--speed", "10"]] {
        let mut judge = Judge::start(&lab, &directory, "udp src port 7");
        let done = replay(&lab, &file, &[&["--interface", "lab0", "--json"], args].concat());
        done.succeeds();
        let times = if args[0] == "--loop" { 3 } else { 1 };
        let report = done.object("replay");
        assert_eq!((&report["sent"], &report["refused"]), (&(700 * times).into(), &0.into()), "{report}");
        let saw = judge.saw(700 * times);
        let expected = (0..700 * times).map(|i| frame(1000 + (i % 700) as u16).build().unwrap());
        assert!(saw.iter().map(|captured| &captured.bytes).eq(&expected.collect::<Vec<_>>()), "{args:?}");
    }
    // At full speed, tcpdump may drop packets for lack of processor time.
    let done = replay(&lab, &file, &["-i", "lab0", "--top-speed", "--loop", "10"]);
    assert!(done.code == 0 && done.text().starts_with("7000 packets sent in "), "{done:?}");
    assert!(done.text().ends_with("; 0 rejected by the kernel\n"), "{done:?}");
}

#[test]
fn replay_keeps_or_scales_the_timing() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let file = directory.path().join("times.pcapng");
    // The third packet has an earlier time than the second, so it is sent together with it.
    write(&file, [0.0, 0.3, 0.2, 0.8].map(|time| (time, frame(9))));
    for (args, expected) in [
        (&[][..], [0, 300, 300, 900]),
        (&["--speed", "3"], [0, 100, 100, 300]),
        (&["--rate", "10"], [0, 100, 200, 300]),
        (&["--top-speed"], [0; 4]),
    ] {
        // A wrong pace fails every time; a busy machine is late only occasionally.
        let mut late = Vec::new();
        let in_time = (0..5).any(|_| {
            let mut judge = Judge::start(&lab, &directory, "udp src port 7");
            let start = Instant::now();
            replay(&lab, &file, &[&["-i", "lab0"], args].concat()).succeeds();
            assert!(start.elapsed() >= Duration::from_millis(expected[3]));
            let times: Vec<Duration> = judge.saw(4).iter().map(|captured| captured.time.unwrap()).collect();
            let off = |(time, expected): (&Duration, u64)| {
                (time.as_secs_f64() - times[0].as_secs_f64() - expected as f64 / 1000.0).abs()
            };
            late.push(times.iter().zip(expected).map(off).fold(0.0, f64::max));
            late.last().is_some_and(|off| *off < 0.09)
        });
        assert!(in_time, "{args:?}: off by {late:?} s at most");
    }
}

#[test]
fn ip_packets_are_routed() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let file = directory.path().join("ip.pcapng");
    let four = |i: u16| Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(5000).sport(i) / "four";
    let six = |i: u16| Ipv6::to("2001:db8::1").src("2001:db8::2") / Udp::to(5000).sport(i) / "six";
    write(&file, (1..=20).map(|i| (0.0, if i % 2 == 0 { four(i) } else { six(i) })));
    let receivers =
        lab.server().run(|| ["192.0.2.1:5000", "[2001:db8::1]:5000"].map(|to| UdpSocket::bind(to).unwrap()));
    let receivers = receivers.unwrap();
    replay(&lab, &file, &[]).succeeds();
    for (receiver, text) in receivers.iter().zip(["four", "six"]) {
        receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for i in 0..10 {
            let mut buffer = [0; 16];
            let (length, from) = receiver.recv_from(&mut buffer).unwrap();
            let port = 2 * i + if text == "four" { 2 } else { 1 };
            assert_eq!((&buffer[..length], from.port()), (text.as_bytes(), port));
        }
    }
    let far = directory.path().join("far.pcapng");
    write(&far, [(0.0, Ip::to("203.0.113.1").src("192.0.2.2") / Udp::to(9))]);
    let delete = lab.client().command("ip").args(["route", "del", "default"]).status().unwrap();
    assert!(delete.success());
    replay(&lab, &far, &[]).fails(exit::NO_ROUTE, "no route to 203.0.113.1");
}

#[test]
fn unsendable_capture_is_refused_before_sending() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let file = directory.path().join("bad.pcapng");
    let mut judge = Judge::start(&lab, &directory, "udp src port 7");
    let long = |size: usize| frame(9) / "x".repeat(size).as_str();
    // 20 + 8 + 5 + 1467 = 1500 bytes fit the MTU.
    write(&file, [(0.0, frame(9)), (0.0, long(1467)), (0.0, long(1468))]);
    let said = "packet 3: 1515 bytes are too long for lab0: an MTU of 1500 allows 1514";
    replay(&lab, &file, &["-i", "lab0"]).fails(exit::USAGE, said);
    write(&file, [(0.0, Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(9).sport(7) / "x".repeat(1473).as_str())]);
    replay(&lab, &file, &[])
        .fails(exit::USAGE, "packet 1: 1501 bytes are too long for the route to 192.0.2.1: lab0 has an MTU of 1500");
    write(&file, [(0.0, frame(9))]);
    replay(&lab, &file, &[]).fails(exit::USAGE, "--interface: the capture holds Ethernet frames");
    replay(&lab, &file, &["-i", "lab7"]).fails(exit::NO_ROUTE, "no interface named 'lab7'");
    for (rate, part) in [("0", "--rate: 0 packets/s"), ("x", "'--rate <PPS>'"), ("inf", "--rate: inf packets/s")] {
        replay(&lab, &file, &["-i", "lab0", "--rate", rate]).fails(exit::USAGE, part);
    }
    crafter_without(&lab, "-net_raw", &["replay", file.to_str().unwrap(), "-i", "lab0"])
        .fails(exit::PERMISSION, "CAP_NET_RAW");
    crafter(&lab, &["replay", "/nonexistent"]).fails(exit::FAILURE, "/nonexistent");
    crafter(&lab, &["replay", env!("CARGO_BIN_EXE_crafter")]).fails(exit::USAGE, "neither pcap nor pcapng");
    let empty = Writer::new(Vec::new(), Format::Pcap).unwrap().finish().unwrap();
    fs::write(&file, empty).unwrap();
    replay(&lab, &file, &["-i", "lab0"]).fails(exit::USAGE, "the capture holds no packet");

    // The only packet that is sent; only the capability that the error names is needed.
    write(&file, [(0.0, frame(9))]);
    crafter_without(&lab, "-net_admin,-bpf,-sys_admin,-perfmon", &["replay", file.to_str().unwrap(), "-i", "lab0"])
        .succeeds();
    judge.saw(1);
}

#[test]
fn truncated_capture_is_sent_up_to_the_cut() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let file = directory.path().join("cut.pcapng");
    write(&file, (0..10).map(|i| (0.0, frame(1000 + i))));
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    let mut judge = Judge::start(&lab, &directory, "udp src port 7");
    let done = replay(&lab, &file, &["-i", "lab0", "--json"]);
    done.fails(exit::USAGE, "truncated at byte");
    let report = done.object("replay");
    assert!(
        report["sent"] == 9 && report["broken"].as_str().is_some_and(|text| text.contains("truncated")),
        "{report}"
    );
    judge.saw(9);
    // The same from stdin.
    let mut command = command(&lab, &["replay", "-", "-i", "lab0", "--json"]);
    let done = {
        command.stdin(fs::File::open(&file).unwrap());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert!(done.0 == Some(2) && done.1.contains("\"sent\":9"), "{done:?}");
}

#[test]
fn ctrl_c_prints_a_summary() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let file = directory.path().join("slow.pcapng");
    write(&file, [(0.0, frame(9)), (3600.0, frame(9))]);
    for args in [&["--speed", "1"][..], &["--rate", "0.001"], &["--top-speed", "--loop", "4000000000"]] {
        let judge = Judge::start(&lab, &directory, "udp src port 7");
        let mut command = command(&lab, &["replay", file.to_str().unwrap(), "-i", "lab0"]);
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // After the first packet has arrived.
        eventually(|| fs::metadata(&judge.file).is_ok_and(|file| file.len() > 24).then_some(()));
        let start = Instant::now();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(wait(&mut child), 130);
        // The next packet is due in 15 minutes or later.
        assert!(start.elapsed() < Duration::from_secs(10), "{args:?}: {:?}", start.elapsed());
        let said = child.wait_with_output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(text.contains(" packets sent in ") && !text.starts_with("0 "), "{args:?}: {text}");
        assert_eq!(String::from_utf8(said.stderr).unwrap(), "crafter: interrupted\n");
    }
}

#[test]
fn link_down_ends_the_replay() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let file = directory.path().join("down.pcapng");
    write(&file, [(0.0, frame(9)), (0.0, frame(9))]);
    let down = lab.client().command("ip").args(["link", "set", "lab0", "down"]).status().unwrap();
    assert!(down.success());
    let done = replay(&lab, &file, &["-i", "lab0", "--json"]);
    done.fails(exit::FAILURE, "send through lab0: Network is down");
    assert!(done.object("replay")["refused"] == 2 && done.object("replay")["sent"] == 0, "{done:?}");
}
