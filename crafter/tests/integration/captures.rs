//! Capture files, compared with tshark and capinfos, and captures that are read while they are written. Needs neither
//! root nor network.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::cli::schema::valid;

use crafter::{
    capture::{Direction, Entry, Format, Writer},
    layer::{Ether, Icmp, Ip, Kind, Packet, Udp},
};

const TIME: Duration = Duration::new(1_700_000_000, 123_456_789);

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// tshark's values of some fields, one line per packet.
fn tshark(path: &Path, fields: &[&str]) -> String {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-T", "fields", "-E", "separator=|"]);
    for field in fields {
        command.args(["-e", field]);
    }
    output(&mut command)
}

fn ping(seq: u16) -> Vec<u8> {
    (Ip::to("192.0.2.1").src("192.0.2.2") / Icmp::new().id(7).seq(seq)).build().unwrap()
}

#[test]
fn pcapng_matches_tshark() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pcapng");
    let frame = (Ether::new() / Ip::to("192.0.2.1") / Udp::to(7)).build().unwrap();
    let ip = ping(1);
    let later = TIME + Duration::from_nanos(1);
    let mut writer = Writer::create(&path).unwrap();
    let entries = [
        Entry {
            interface: Some("eth0"),
            comment: Some("redirected, matched"),
            direction: Some(Direction::In),
            ..Entry::new(TIME, Kind::Ether, &frame)
        },
        Entry { interface: Some("tun0"), direction: Some(Direction::Out), ..Entry::new(later, Kind::Ip, &ip) },
        Entry { interface: Some("eth0"), original_length: Some(1500), ..Entry::new(TIME, Kind::Ether, &frame) },
        Entry { comment: Some("kernel RST suppressed: \u{e4}"), ..Entry::new(TIME, Kind::Ip, &ip) },
    ];
    entries.iter().for_each(|entry| writer.write(entry).unwrap());
    writer.finish().unwrap();
    let fields = [
        "frame.time_epoch",
        "frame.interface_name",
        "frame.comment",
        "frame.len",
        "frame.cap_len",
        "frame.packet_flags_direction",
        "frame.protocols",
    ];
    let seen = tshark(&path, &fields);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(
        lines,
        [
            "1700000000.123456789|eth0|redirected, matched|42|42|0x00000001|eth:ethertype:ip:udp",
            "1700000000.123456790|tun0||28|28|0x00000002|raw:ip:icmp",
            "1700000000.123456789|eth0||1500|42||eth:ethertype:ip:udp",
            "1700000000.123456789|unknown|kernel RST suppressed: \u{e4}|28|28||raw:ip:icmp",
        ]
    );
    let about = output(Command::new("capinfos").arg(&path));
    let application = format!("Capture application: crafter {}", env!("CARGO_PKG_VERSION"));
    for part in [application.as_str(), "pcapng", "nanoseconds (9)", "Number of packets:   4", "Name = tun0"] {
        assert!(about.contains(part), "no '{part}': {about}");
    }
}

#[test]
fn pcap_matches_tshark() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pcap");
    let mut writer = Writer::create(&path).unwrap();
    let ip = ping(3);
    writer.write(&Entry { original_length: Some(99), ..Entry::new(TIME, Kind::Ip, &ip) }).unwrap();
    writer.finish().unwrap();
    let fields = ["frame.time_epoch", "frame.len", "frame.cap_len", "icmp.seq", "frame.protocols"];
    assert_eq!(tshark(&path, &fields), "1700000000.123456789|99|28|3|raw:ip:icmp\n");
    assert!(output(Command::new("capinfos").arg(&path)).contains("nanoseconds (9)"));
    let empty = folder.path().join("empty.pcap");
    Writer::create(&empty).unwrap().finish().unwrap();
    assert_eq!(tshark(&empty, &["frame.len"]), "");
}

#[test]
fn build_writes_captures() {
    let folder = tempfile::tempdir().unwrap();
    for (name, seen) in [("a.pcap", "raw:ip:icmp\n".repeat(3)), ("a.pcapng", "raw:ip:icmp\n".repeat(3))] {
        let path = folder.path().join(name);
        let expression = r#"IP(dst="192.0.2.1")/ICMP(id=1, seq=(1,3))"#;
        output(Command::new(env!("CARGO_BIN_EXE_crafter")).args(["build", expression, "-w"]).arg(&path));
        assert_eq!(tshark(&path, &["frame.protocols"]), seen);
        let magic = if name == "a.pcap" { 0xa1b2_3c4d_u32.to_ne_bytes() } else { [0x0a, 0x0d, 0x0d, 0x0a] };
        assert_eq!(fs::read(&path).unwrap()[..4], magic);
    }
    // Frames of all link types in one file, which only pcapng allows.
    let both = r#"IPv6(dst="::1")/UDP()"#;
    let path = folder.path().join("both.pcapng");
    output(Command::new(env!("CARGO_BIN_EXE_crafter")).args(["build", both, "--pcap"]).arg(&path));
    assert_eq!(tshark(&path, &["frame.protocols"]), "raw:ipv6:udp\n");
}

/// Writes packets one by one, and checks that `reader` prints each before the next is written.
fn live(mut reader: Command, line: impl Fn(u16) -> String) {
    let mut reader =
        reader.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it is there");
    let mut writer = Writer::new(reader.stdin.take().unwrap(), Format::PcapNg).unwrap().live(true);
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    for seq in 1..=3 {
        writer.write(&Entry::new(TIME, Kind::Ip, &ping(seq))).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), line(seq));
    }
    drop(writer.finish().unwrap());
    assert!(lines.next().is_none());
    assert!(reader.wait().unwrap().success());
}

#[test]
fn tshark_reads_a_growing_capture() {
    let mut tshark = Command::new("tshark");
    tshark.args(["-r", "-", "-l", "-T", "fields", "-e", "icmp.seq"]);
    live(tshark, |seq| seq.to_string());
}

#[test]
fn show_reads_a_growing_capture() {
    let mut show = Command::new(env!("CARGO_BIN_EXE_crafter"));
    show.args(["show", "-", "--as", "summary"]);
    live(show, |seq| format!("IP 192.0.2.2 > 192.0.2.1 / ICMP echo-request id 7 seq {seq}"));
}

#[test]
fn show_prints_comments_and_json() {
    let mut writer = Writer::new(Vec::new(), Format::PcapNg).unwrap();
    let ip = ping(1);
    let comment = Some("redirected\nmatched");
    let direction = Some(Direction::In);
    writer.write(&Entry { comment, direction, interface: Some("eth0"), ..Entry::new(TIME, Kind::Ip, &ip) }).unwrap();
    writer.write(&Entry::new(TIME, Kind::Ip, &ip)).unwrap();
    let file = writer.finish().unwrap();
    let show = |file: &[u8], args: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_crafter"))
            .args(["show", "-"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(file).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text, _) = show(&file, &["--as", "summary"]);
    let summary = Packet::from_ip(&ip).summary();
    assert_eq!((code, text), (Some(0), format!("{summary}  # redirected; matched\n{summary}\n")));
    let (_, text, _) = show(&file, &[]);
    assert!(text.contains("\n# redirected\n# matched\n"), "{text}");
    let (_, json, _) = show(&file, &["--json"]);
    let json: Vec<_> = json.lines().map(|line| valid("show", line)).collect();
    assert_eq!((json.len(), &json[2]["packets"]), (3, &2.into()));
    assert_eq!(json[0]["comment"], "redirected\nmatched");
    assert_eq!(json[0]["direction"], "in");
    assert_eq!(json[0]["interface"], "eth0");
    assert_eq!(json[1]["comment"], serde_json::Value::Null);
    // Truncated, with and without a preceding packet.
    for (length, packets) in [(file.len() - 1, 1), (100, 0)] {
        let (code, json, said) = show(&file[..length], &["--json"]);
        let json: Vec<_> = json.lines().map(|line| valid("show", line)).collect();
        assert_eq!((code, json.len(), &json[packets]["packets"]), (Some(2), packets + 1, &packets.into()));
        assert!(json[packets]["broken"].as_str().unwrap().starts_with("truncated at byte "), "{json:?}");
        assert!(said.starts_with("crafter: -: truncated at byte "), "{said}");
    }
    for (file, part) in [(&b"\x1f\x8b\x08\0\0\0"[..], "gunzip"), (&file[..9], "truncated within its header")] {
        let (code, text, said) = show(file, &["--json"]);
        assert_eq!((code, text.as_str()), (Some(2), ""));
        assert!(said.contains(part), "{said}");
    }
}
