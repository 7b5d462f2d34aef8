//! `crafter send`, `sr` and `sr1`

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use crafter_tests::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{command, crafter, crafter_without, eventually, lab, on_server, wait};

const SYN: &str = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags="S")"#;

/// tshark's fields of a capture: one line per packet, columns separated by tabs.
fn tshark(file: &std::path::Path, columns: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-n", "-T", "fields", "-o", "ip.check_checksum:TRUE"]);
    for column in columns {
        command.args(["-e", column]);
    }
    let output = command.output().expect("tshark is installed by `cargo xtask setup`");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn sr1_shows_one_answer() {
    let lab = lab();
    let done = crafter(&lab, &["sr1", SYN]);
    done.succeeds();
    assert!(done.text().starts_with("###[ IP ]###\n"), "{done:?}");
    assert!(done.text().contains("flags           = \"SA\"\n"), "{done:?}");
    let [verdict, account, reset] = done.stderr.lines().collect::<Vec<_>>().try_into().unwrap();
    let time =
        verdict.strip_prefix(";; 80/tcp is open: SYN-ACK from 192.0.2.1 in ").and_then(|s| s.strip_suffix(" ms"));
    assert!(time.and_then(|time| time.parse::<f64>().ok()).is_some_and(|time| time > 0.0), "{done:?}");
    assert_eq!(account, ";; 1 request, 1 sent; 1 received, 1 answered, 0 unanswered; the kernel half counted the same");
    assert_eq!(reset, ";; reset 1 half-open connection");
    let done = crafter(&lab, &["--json", "sr1", SYN]);
    done.succeeds();
    let json = done.object("sr1");
    assert_eq!(json["reply"]["layers"][1]["fields"]["flags"], "SA", "{json}");
    assert!(json["rtt_ns"].as_u64().unwrap() > 0, "{json}");
    assert_eq!(json["account"]["kernel"]["delivered_difference"], 0, "{json}");
    assert_eq!(json["account"]["half_open_reset"], 1, "{json}");
    assert_eq!(json["mechanism"][0]["interface"], "lab0", "{json}");
}

/// One line on stderr interprets the answer, also if a capture is written to stdout; the JSON has a key for it.
#[test]
fn sr1_prints_a_verdict() {
    let lab = lab();
    on_server(&lab, "iptables", &["-A", "INPUT", "-p", "tcp", "--dport", "82", "-j", "DROP"]);
    let prohibit = ["--dport", "83", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited"];
    on_server(&lab, "iptables", &[&["-A", "INPUT", "-p", "tcp"], &prohibit[..]].concat());
    for (layers, state, said) in [
        ("TCP(dport=80, flags=\"S\")", "open", "80/tcp is open: SYN-ACK from 192.0.2.1 in "),
        ("TCP(dport=81, flags=\"S\")", "closed", "81/tcp is closed: RST from 192.0.2.1 in "),
        ("TCP(dport=82, flags=\"S\")", "no_answer", "82/tcp: no answer within 0.5 s"),
        (
            "TCP(dport=83, flags=\"S\")",
            "unreachable",
            "83/tcp is unreachable: communication prohibited (ICMP type 3, code 13) from 192.0.2.1 in ",
        ),
        ("UDP(dport=9)", "closed", "9/udp is closed: port unreachable (ICMP type 3, code 3) from 192.0.2.1 in "),
        (
            "UDP(dport=53)/DNS(rd=1, qd=DNSQR(qname=\"www.lab.test\"))",
            "open",
            "53/udp is open: DNS answer, NOERROR with 2 records, from 192.0.2.1 in ",
        ),
        ("ICMP()", "up", "192.0.2.1 is up: echo reply from 192.0.2.1 in "),
    ] {
        let packet = format!("IP(dst=\"192.0.2.1\")/{layers}");
        let json = crafter(&lab, &["--json", "sr1", "--timeout", "0.5", &packet]).object("sr1");
        assert_eq!(json["verdict"]["state"], state, "{json}");
        assert!(json["verdict"]["text"].as_str().is_some_and(|text| text.starts_with(said)), "{json}");
        assert_eq!(json["verdict"]["from"], if state == "no_answer" { Value::Null } else { "192.0.2.1".into() });
        let done = crafter(&lab, &["sr1", "--timeout", "0.5", "-w", "-", &packet]);
        let verdict = done.stderr.lines().find_map(|line| line.strip_prefix(";; ")).unwrap();
        assert!(verdict.starts_with(said), "{done:?}");
        assert!(done.stdout.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "pcapng and nothing else: {done:?}");
    }
}

/// The only RST is crafter's, and the command sends it before it ends. Positive control: the kernel resets connections
/// that are left open.
#[test]
fn half_open_connections_are_reset() {
    let lab = lab();
    let set = r#"IP(dst="192.0.2.1")/TCP(dport=[53,80,81], flags="S")"#;
    let acknowledged = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags=["A", "S"])"#;
    let commands: [(&[&str], usize); 5] = [
        (&["sr1", SYN], 1),
        (&["sr", set], 2),
        // The first answer arrives before the second request is sent.
        (&["send", SYN, "--count", "2", "--interval", "0.2"], 1),
        (&["shell", "-c", r#"x = sr1(IP(dst="192.0.2.1")/TCP(dport=80, flags="S")); x.ack"#], 1),
        // ping resets each connection after its SYN-ACK, so no half-open connection remains.
        (&["ping", "--tcp", "80", "-c", "1", "192.0.2.1"], 0),
    ];
    for (arguments, resets) in commands {
        lab.tap().clear().unwrap();
        let done = crafter(&lab, arguments);
        done.succeeds();
        let sent = lab.tap().count().unwrap() as usize;
        assert_eq!(sent, resets.max(1), "before it ends: {done:?}");
        let said = match resets {
            0 => None,
            1 => Some(";; reset 1 half-open connection"),
            _ => Some(";; reset 2 half-open connections"),
        };
        assert_eq!(done.stderr.lines().find(|line| line.contains("half-open")), said, "{done:?}");
        let sockets = lab.server().command("ss").args(["-Htan", "state", "syn-recv"]).output().unwrap();
        assert!(sockets.stdout.is_empty(), "{arguments:?}: {sockets:?}");
    }
    // The peer's RST answers the ACK that precedes the SYN, not the connection.
    let done = crafter(&lab, &["sr", acknowledged]);
    done.succeeds();
    assert!(done.stderr.contains(";; reset 1 half-open connection"), "{done:?}");
    // Ctrl-C ends the command with the same clean-up.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sr.pcapng");
    let path = file.to_str().unwrap();
    let waiting = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags=["S", "R"])"#;
    let mut running = command(&lab, &["sr", waiting, "--timeout", "60", "-w", path]);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let half_open = || {
        let sockets = lab.server().command("ss").args(["-Htan", "state", "syn-recv"]).output().unwrap();
        (!sockets.stdout.is_empty()).then_some(())
    };
    // The RST expects no answer, and its sequence number does not reset the connection.
    eventually(half_open);
    lab.tap().clear().unwrap();
    kill(Pid::from_raw(running.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(wait(&mut running), 130);
    assert_eq!(lab.tap().count().unwrap(), 1, "before it ends");
    assert_eq!(half_open(), None);
    let mut said = String::new();
    running.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let said: Vec<&str> = said.lines().collect();
    assert!(said[1].starts_with(";; 2 requests, 2 sent; 1 received, 1 answered, 1 unanswered; "), "{said:?}");
    assert_eq!((said[0], said[2]), (";; 1 open, 1 without an answer", ";; reset 1 half-open connection"));
    let lines = tshark(&file, &["tcp.flags", "frame.comment"]);
    assert_eq!(lines.last().map(String::as_str), Some("0x0004\tsent, resets a half-open connection"), "{lines:?}");
    lab.tap().clear().unwrap();
    let control = crafter(&lab, &["sr1", SYN, "--leave-open"]);
    control.succeeds();
    assert!(!control.stderr.contains("half-open"), "{control:?}");
    eventually(|| (lab.tap().count().unwrap() == 1).then_some(()));
    // By now, the peers would have retransmitted earlier SYN-ACKs.
    let kernels = lab.tap().segments().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(lab.tap().segments().unwrap(), kernels, "only the RST of the control");
}

#[test]
fn sr_prints_answered_and_unanswered_requests() {
    let lab = lab();
    on_server(&lab, "iptables", &["-A", "INPUT", "-p", "tcp", "--dport", "82", "-j", "DROP"]);
    let set = r#"IP(dst="192.0.2.1")/TCP(dport=(80,82), flags="S")"#;
    for mode in ["native", "generic", "tc"] {
        let done = crafter(&lab, &["sr", set, "--timeout", "0.2", "--attach", mode]);
        done.succeeds();
        let lines: Vec<&str> = done.text().lines().collect();
        assert_eq!(lines.len(), 3, "{done:?}");
        assert!(
            lines[0].contains("> 192.0.2.1:80 S ==> IP / TCP 192.0.2.1:80 > ") && lines[0].contains(" SA  "),
            "{done:?}"
        );
        assert!(lines[1].contains(" RA  ") && lines[1].ends_with(" ms"), "{done:?}");
        assert!(lines[2].ends_with("> 192.0.2.1:82 S ==> no answer"), "{done:?}");
        assert!(done.stderr.contains("3 requests, 3 sent; 2 received, 2 answered, 1 unanswered; "), "{done:?}");
    }
    let none = r#"IP(dst="192.0.2.1")/TCP(dport=82, flags="S")"#;
    let done = crafter(&lab, &["--json", "sr", none, "--timeout", "0.1", "--retry", "2"]);
    assert_eq!(done.code, i32::from(exit::TIMED_OUT), "{done:?}");
    let (records, json) = done.records("sr");
    assert_eq!((&json["account"]["sent"], &json["account"]["requests"]), (&3.into(), &1.into()), "{json}");
    assert!(matches!(&records[..], [one] if one["type"] == "no_answer" && one["number"] == 0), "{records:?}");
}

/// Each packet in the capture has a comment with its verdict, and tshark finds no error in any packet.
#[test]
fn capture_comments_contain_verdicts() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sr.pcapng");
    let path = file.to_str().unwrap();
    let set = r#"IP(dst="192.0.2.1")/TCP(dport=[80,81], flags="S")"#;
    crafter(&lab, &["sr", set, "-w", path]).succeeds();
    let lines = tshark(&file, &["frame.interface_name", "tcp.flags", "frame.comment", "_ws.malformed"]);
    let expected = [
        "lab0\t0x0002\tsent, request 1\t",
        "lab0\t0x0002\tsent, request 2\t",
        "lab0\t0x0012\tredirected, matched: answers request 1\t",
        "lab0\t0x0014\tredirected, matched: answers request 2\t",
        "lab0\t0x0004\tsent, resets a half-open connection\t",
    ];
    assert_eq!(lines, expected);
    // In observe mode, the kernel receives the SYN-ACK; its RST is in the capture but not on the wire.
    let done = crafter(&lab, &["sr", SYN, "-w", path, "--observe", "--multi", "--timeout", "0.3"]);
    done.succeeds();
    assert!(done.stderr.contains(" of the kernel suppressed; the kernel half counted the same"), "{done:?}");
    let lines = tshark(&file, &["tcp.flags", "frame.comment"]);
    assert!(lines.contains(&"0x0004\tkernel RST suppressed".to_owned()), "{lines:?}");
    assert!(lines.contains(&"0x0012\tobserved, matched: answers request 1".to_owned()), "{lines:?}");
    // With the policy `pass`, the RST is sent, and no comment says that it was suppressed.
    lab.tap().clear().unwrap();
    let done = crafter(&lab, &["sr", SYN, "-w", path, "--observe", "--rst", "pass", "--multi", "--timeout", "0.3"]);
    done.succeeds();
    // The kernel has already reset it.
    assert!(!done.stderr.contains("half-open"), "{done:?}");
    let lines = tshark(&file, &["tcp.flags", "frame.comment"]);
    assert!(!lines.iter().any(|line| line.contains("suppressed")), "{lines:?}");
    assert_eq!(lab.tap().count().unwrap(), 1, "the RST reached the server");
}

#[test]
fn send_does_not_wait_for_answers() {
    let lab = lab();
    let datagram = r#"IP(dst="192.0.2.1")/UDP(dport=9)/"hello""#;
    let done = crafter(&lab, &["send", datagram, "--count", "5", "--interval", "0.01"]);
    done.succeeds();
    assert_eq!(done.stderr, ";; 5 requests, 5 sent\n", "{done:?}");
    let json = crafter(&lab, &["--json", "send", datagram]).object("send");
    assert_eq!(json["account"]["kernel"]["crafted"], 1, "{json}");
    // A host name instead of an address.
    crafter(&lab, &["send", r#"IP(dst="localhost")/UDP(dport=9)"#]).succeeds();
}

#[test]
fn bad_input_is_refused_before_sending() {
    let lab = lab();
    for (args, code, part) in [
        (
            &["sr1", r#"IP(dst="192.0.2.1")/TCP(dprt=80)"#][..],
            exit::USAGE,
            "expression, column 25: TCP has no field 'dprt'; did you mean dport?",
        ),
        (&["sr1", r#"IP(dst="192.0.2.1")/TCP(dport=70000)"#], exit::USAGE, "TCP.dport"),
        (&["sr1", r#"IP(dst="192.0.2.1")/TCP(dport=[80,81])"#], exit::USAGE, "got a set of 2"),
        (&["sr", r#"IP(dst="10.0.0.0/8")/TCP(dport=(1,1024))"#], exit::USAGE, "at most 1000000 are allowed"),
        (&["send", "TCP(dport=80)"], exit::USAGE, "it begins with TCP: IP, IPv6, Ether or ARP is needed"),
        (&["send", SYN, "--source", "192.0.2.9"], exit::USAGE, "--source: 192.0.2.9 is not an address of this host"),
        (&["send", SYN, "--interface", "nothere"], exit::NO_ROUTE, "no interface named 'nothere'"),
        (&["sr1", r#"IP(dst="192.0.2.77")/ICMP()"#], exit::NO_ROUTE, "192.0.2.77 does not answer on lab0"),
    ] {
        crafter(&lab, args).fails(code, part);
    }
    let large = format!(r#"IP(dst="192.0.2.1",flags="DF")/UDP(dport=9)/"{}""#, "x".repeat(1473));
    crafter(&lab, &["sr", &large])
        .fails(exit::USAGE, "1501 bytes do not fit the MTU towards 192.0.2.1, which is 1500 bytes on lab0");
    for (capability, name) in
        [("-net_raw", "CAP_NET_RAW"), ("-net_admin,-sys_admin", "CAP_NET_ADMIN"), ("-bpf,-sys_admin", "CAP_BPF")]
    {
        crafter_without(&lab, capability, &["sr1", SYN]).fails(exit::PERMISSION, name);
    }
    let taken = lab.client().run(|| std::net::TcpListener::bind("192.0.2.2:7000")).unwrap().unwrap();
    let done = crafter(&lab, &["sr1", r#"IP(dst="192.0.2.1")/TCP(sport=7000, dport=80, flags="S")"#]);
    done.fails(exit::PORT_TAKEN, "TCP port 7000 on 192.0.2.2 is in use");
    drop(taken);
}

#[test]
fn timeout_bounds_the_wait_for_the_next_hop() {
    let lab = lab();
    for args in [
        &["sr1", "--timeout", "0.3", r#"IP(dst="192.0.2.70")/ICMP()"#][..],
        &["ping", "--timeout", "0.3", "--count", "1", "192.0.2.71"],
        &["traceroute", "--timeout", "0.1", "--retry", "2", "192.0.2.72"],
        &["get", "--timeout", "0.3", "http://192.0.2.73/"],
        &["dns", "--timeout", "0.3", "--tries", "1", "@192.0.2.74", "web.lab.test"],
    ] {
        let done = crafter(&lab, args);
        done.fails(exit::NO_ROUTE, "does not answer on lab0");
        // The time in the message is that of the wait; the rest of the command takes longer on a busy machine.
        let (_, after) = done.stderr.split_once("reply within ").unwrap();
        assert!(after.split(';').next().unwrap().ends_with("ms"), "as long as the kernel, 3 s: {args:?}: {done:?}");
    }
}

/// The server's kernel reassembles and answers; its replies, in fragments too, are matched.
#[test]
fn packets_larger_than_the_mtu_are_sent_as_fragments() {
    let lab = lab();
    for host in ["192.0.2.1", "2001:db8::1"] {
        let done = crafter(&lab, &["ping", "-c", "2", "-s", "3000", host]);
        done.succeeds();
        assert!(done.text().contains("3008 bytes from ") && done.text().contains("2 sent, 2 received"), "{done:?}");
    }
    // As many bytes as fit an IPv4 packet.
    crafter(&lab, &["ping", "-c", "1", "-s", "65507", "192.0.2.1"]).succeeds();

    let echo = lab.server().run(|| std::net::UdpSocket::bind("192.0.2.1:7").unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut datagram = vec![0; 65536];
        while let Ok((length, peer)) = echo.recv_from(&mut datagram) {
            let _ = echo.send_to(&datagram[..length], peer);
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fragments.pcap");
    let path = file.to_str().unwrap();
    let payload = "x".repeat(3000);
    // Options, lengths of the fragments sent.
    for (options, lengths) in [
        (&[][..], &[1500, 1500, 68][..]),
        (&["--fragment"], &[1500, 1500, 68]),
        (&["--fragment=1000"], &[996, 996, 996, 100]),
    ] {
        let expression = format!(r#"IP(dst="192.0.2.1")/UDP(dport=7)/"{payload}""#);
        let done = crafter(&lab, &[&["sr1", "-w", path], options, &[&expression]].concat());
        done.succeeds();
        assert!(done.stderr.contains(&format!("1 request, {} sent", lengths.len())), "{options:?}: {}", done.stderr);
        assert!(done.stderr.contains("the kernel half counted the same"), "{options:?}: {}", done.stderr);
        let shown = std::process::Command::new("tshark")
            .args(["-r", path, "-Y", "ip.src == 192.0.2.2", "-T", "fields", "-e", "ip.len", "-e", "ip.id"])
            .output()
            .unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        let sent: Vec<(u32, &str)> = text
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(length, id)| (length.parse().unwrap(), id))
            .collect();
        assert_eq!(sent.iter().map(|(length, _)| *length).collect::<Vec<_>>(), lengths, "{options:?}");
        assert!(sent.iter().all(|(_, id)| *id == sent[0].1), "one identification: {sent:?}");
    }
    // TCP, and packets that forbid it, only on request.
    for first in [r#"IP(dst="192.0.2.1",flags="DF")/UDP(dport=7)"#, r#"IP(dst="192.0.2.1")/TCP(dport=80)"#] {
        let expression = format!(r#"{first}/"{payload}""#);
        crafter(&lab, &["sr1", &expression]).fails(exit::USAGE, "send it in fragments");
        crafter(&lab, &["sr1", "--fragment", &expression]).succeeds();
    }
    crafter(&lab, &["sr1", "--fragment=20", SYN]).fails(exit::USAGE, "28 to 65535");
}
