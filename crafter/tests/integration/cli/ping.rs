//! `crafter ping`

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
    time::{Duration, Instant},
};

use crafter_tests::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{
    command, crafter, lab, on_server,
    routers::{HOPS, NOWHERE, Routers, SERVER},
    traceroute::Scapy,
    wait,
};

const SERVERS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

#[test]
fn echo_over_both_ip_versions_and_all_receive_modes() {
    let lab = lab();
    for mode in ["auto", "generic", "tc"] {
        for server in SERVERS {
            let start = Instant::now();
            let done = crafter(&lab, &["ping", "--attach", mode, "-c", "5", "--interval", "0.1", "-s", "1000", server]);
            done.succeeds();
            assert!(start.elapsed() >= Duration::from_millis(400));
            let lines: Vec<&str> = done.text().lines().collect();
            assert_eq!(lines[0], format!("{server}: ICMP echo, 1000 bytes of payload"));
            for (number, line) in (1..=5).zip(&lines[1..6]) {
                let begin = format!("1008 bytes from {server}: seq={number} ttl=64 time=");
                assert!(line.starts_with(&begin) && line.ends_with(" ms"), "{line}");
            }
            assert_eq!(lines[6], format!("--- {server}: 5 sent, 5 received, 0% lost"));
            assert!(lines.len() == 8 && lines[7].starts_with("rtt min/avg/max/mdev = "), "{done:?}");
        }
    }
}

#[test]
fn host_name_with_json_and_capture() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ping.pcapng");
    let file = file.to_str().unwrap();
    let args = ["ping", "-c", "3", "--interval", "0.05", "--json", "-w", file, "localhost", "-4"];
    let done = crafter(&lab, &args);
    done.succeeds();
    let (replies, report) = done.records("ping");
    for (key, value) in
        [("address", json!("127.0.0.1")), ("sent", json!(3)), ("received", json!(3)), ("loss", json!(0.0))]
    {
        assert_eq!(report[key], value, "{key}: {report}");
    }
    assert_eq!(replies.iter().map(|reply| &reply["seq"]).collect::<Vec<_>>(), [1, 2, 3]);
    let [min, avg, max] = ["min", "avg", "max"].map(|name| report["rtt_ns"][name].as_u64().unwrap());
    assert!(0 < min && min <= avg && avg <= max, "{report}");
    assert_eq!(report["account"]["kernel"]["delivered_difference"], 0);
    // tshark counts the packets in the capture.
    let read = std::process::Command::new("tshark").args(["-r", file, "-T", "fields", "-e", "icmp.type"]).output();
    assert_eq!(String::from_utf8(read.unwrap().stdout).unwrap(), "8\n0\n8\n0\n8\n0\n");
}

#[test]
fn ping_by_tcp_and_udp() {
    let lab = lab();
    for server in SERVERS {
        let ping = |args: &[&str]| crafter(&lab, &[&["ping", "-c", "2", "--interval", "0.05", server], args].concat());
        let before = lab.tap().count().unwrap();
        for (args, answer) in [
            (&["--tcp", "80"][..], "seq=2 SYN-ACK ttl=64"),
            (&["--tcp", "81"], "seq=2 RST ttl=64"),
            (&["--udp", "9"], "seq=2 port unreachable ttl=64"),
        ] {
            let done = ping(args);
            done.succeeds();
            assert!(done.text().contains(answer) && done.text().contains("2 sent, 2 received, 0% lost"), "{done:?}");
        }
        // One RST of crafter per SYN-ACK, none of the kernel.
        assert_eq!(lab.tap().count().unwrap() - before, 2);
    }
}

#[test]
fn lost_probes_time_out_and_are_counted() {
    let lab = lab();
    let deaf = |deaf: &str| {
        lab.server().run(|| std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", deaf)).unwrap().unwrap();
    };
    // The test has one second to make the server drop packets.
    let args = |interval| ["ping", "-c", "6", "--interval", interval, "--wait", "0.5", "192.0.2.1"];
    let start = Instant::now();
    let mut child = command(&lab, &args("1")).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    for _ in 0..4 {
        stdout.read_line(&mut text).unwrap();
    }
    deaf("1");
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(wait(&mut child), 0, "{text}");
    assert!(start.elapsed() < Duration::from_secs(15), "a missing answer delays no other");
    assert!(text.contains("6 sent, 3 received, 50% lost"), "{text}");
    assert_eq!(text.matches(": no answer within 500ms").count(), 3, "{text}");
    let done = crafter(&lab, &args("0.2"));
    assert_eq!(done.code, i32::from(exit::TIMED_OUT), "{done:?}");
    assert!(done.text().ends_with("6 sent, 0 received, 100% lost\n"), "{done:?}");
}

#[test]
fn icmp_errors_of_routers_are_reported() {
    let routers = Routers::new();
    for version in [0, 1] {
        let done = routers.crafter(&["ping", "-c", "2", "--interval", "0.1", SERVER[version]]);
        done.succeeds();
        assert!(done.text().contains("seq=2 ttl=61"), "{done:?}");
        let done = routers.crafter(&["ping", "-c", "1", "--ttl", "1", SERVER[version]]);
        assert_eq!(done.code, i32::from(exit::TIMED_OUT), "{done:?}");
        let error = format!("from {}: seq=1 time to live exceeded ttl=", HOPS[version][0]);
        assert!(done.text().contains(&error) && done.text().contains("100% lost, 1 errors"), "{done:?}");
        let done = routers.crafter(&["ping", "-c", "1", NOWHERE[version]]);
        assert_eq!(done.code, i32::from(exit::REFUSED), "{done:?}");
        let error = format!("from {}: seq=1 network unreachable", HOPS[version][2]);
        assert!(done.text().contains(&error), "{done:?}");
    }
}

#[test]
fn ctrl_c_prints_the_summary() {
    let lab = lab();
    let mut child = command(&lab, &["ping", "--interval", "0.05", "192.0.2.1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..5 {
        stdout.read_line(&mut String::new()).unwrap();
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(wait(&mut child), 130, "{rest}");
    assert!(rest.contains("0% lost") && rest.contains("rtt min/avg/max/mdev"), "{rest}");
}

/// The first answer has a changed byte, the second is sent twice, and the third has another sequence number.
const LIAR: &str = r#"
from scapy.all import *
def answer(request):
    icmp = request[ICMP]
    load = bytearray(bytes(icmp.payload))
    if icmp.seq == 1: load[20] ^= 1
    seq = icmp.seq + 100 if icmp.seq == 3 else icmp.seq
    back = Ether(src=request[Ether].dst, dst=request[Ether].src) / IP(src=request[IP].dst, dst=request[IP].src)
    back = back / ICMP(type=0, id=icmp.id, seq=seq) / Raw(bytes(load))
    for _ in range(2 if icmp.seq == 2 else 1): sendp(back, iface="lab0", verbose=False)
sniff(iface="lab0", filter="icmp[0] == 8", prn=answer, started_callback=lambda: print("ready", flush=True))
"#;

#[test]
fn altered_duplicate_and_unexpected_answers_are_reported() {
    let lab = lab();
    on_server(&lab, "iptables", &["-A", "INPUT", "-p", "icmp", "-j", "DROP"]);
    let mut scapy = Scapy::start(lab.server().command("/usr/bin/python3").args(["-c", LIAR]));
    let done = crafter(&lab, &["ping", "-c", "3", "--interval", "0.5", "192.0.2.1"]);
    scapy.end();
    done.succeeds();
    for part in
        ["ms (payload differs from byte 20)", "ms (duplicate)", "seq=3: no answer within 2s", "1 duplicates, 1 corrupt"]
    {
        assert!(done.text().contains(part), "no '{part}': {done:?}");
    }
}

#[test]
fn bad_options_and_hosts_are_refused() {
    let lab = lab();
    let ping = |args: &[&str]| crafter(&lab, &[&["ping", "-c", "1"], args].concat());
    ping(&["192.0.2.77"]).fails(exit::NO_ROUTE, "192.0.2.77 does not answer on lab0");
    ping(&["host.invalid"]).fails(exit::NO_ROUTE, "no address of host 'host.invalid'");
    ping(&["--interval", "0", "192.0.2.1"]).fails(exit::USAGE, "--interval");
    ping(&["--ttl", "0", "192.0.2.1"]).fails(exit::USAGE, "--ttl");
    crafter(&lab, &["ping", "--interval", "0.00001", "192.0.2.1"]).fails(exit::USAGE, "would be in flight");
}
