//! `crafter traceroute`, through Linux routers.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crafter::lab::NetNs;
use crafter_tests::exit;
use serde_json::{Value, json};

use super::{
    Done, crafter, lab, on_server,
    routers::{HOPS, NOWHERE, Routers, SERVER, bracketed, tool},
};

/// The distinct addresses of each hop from `crafter traceroute --json`; `*` if there is none.
fn hops(records: &[Value]) -> Vec<Vec<String>> {
    let hop = |hop: &Value| {
        let mut from: Vec<String> = Vec::new();
        for probe in hop["probes"].as_array().unwrap() {
            let address = probe["from"].as_str().unwrap_or("*").to_owned();
            if !from.contains(&address) {
                from.push(address);
            }
        }
        from
    };
    records.iter().map(hop).collect()
}

/// The same from the host's `traceroute -n`.
fn judged(namespace: &NetNs, args: &[&str]) -> Vec<Vec<String>> {
    let text = tool(namespace, "traceroute", &[&["-n", "-q", "1", "-w", "2"], args].concat());
    let address = |line: &str| vec![line.split_whitespace().nth(1).unwrap().to_owned()];
    text.lines().skip(1).map(address).collect()
}

fn is_complete(records: &[Value]) -> bool {
    let probes = |hop: &Value| hop["probes"].as_array().unwrap().iter().all(|probe| !probe.is_null());
    records.iter().all(probes)
}

fn agrees(done: &Done) {
    for difference in ["delivered_difference", "crafted_difference"] {
        assert_eq!(done.records("traceroute").1["account"]["kernel"][difference], 0, "{done:?}");
    }
}

#[test]
fn hops_match_those_of_traceroute() {
    let routers = Routers::new();
    routers.answer_all();
    let listeners: Vec<TcpListener> = routers
        .server()
        .run(|| ["0.0.0.0:80", "[::]:81"].map(|address| TcpListener::bind(address).unwrap()).into())
        .unwrap();
    for (version, server) in SERVER.iter().enumerate() {
        let expected: Vec<Vec<String>> = HOPS[version].iter().map(|hop| vec![(*hop).to_owned()]).collect();
        let (open, port) = [("--tcp=80", "80"), ("--tcp=81", "81")][version];
        for (ours, theirs) in [
            (&["--icmp"][..], &["-I"][..]),
            (&[], &[]),
            (&["--udp=53"], &["-U", "-p", "53"]),
            (&[open], &["-T", "-p", port]),
            (&["--tcp=9"], &["-T", "-p", "9"]),
        ] {
            let done = routers.crafter(&[&["traceroute", "--json", server], ours].concat());
            done.succeeds();
            let (records, report) = done.records("traceroute");
            assert_eq!(report["ending"], "reached");
            assert_eq!(hops(&records), expected, "{ours:?}");
            assert!(is_complete(&records), "{ours:?}: {records:?}");
            agrees(&done);
            assert_eq!(judged(routers.client(), &[theirs, &[server]].concat()), expected, "{theirs:?}");
        }
        // Half-open connections are closed, so a new SYN to the port is not affected by them.
        let half_open = tool(routers.server(), "ss", &["-Htan", "state", "syn-recv"]);
        assert_eq!(half_open, "");
    }
    drop(listeners);
}

#[test]
fn repeated_text_output_despite_icmp_rate_limits() {
    let routers = Routers::new();
    for (version, server) in SERVER.iter().enumerate() {
        for _ in 0..3 {
            let start = Instant::now();
            let done = routers.crafter(&["traceroute", server]);
            done.succeeds();
            assert!(start.elapsed() < Duration::from_secs(20));
            let lines: Vec<&str> = done.text().lines().collect();
            assert_eq!(lines[0], format!("{server}: at most 30 hops, UDP from port 33434 on"));
            assert_eq!(lines.len(), 5, "{done:?}");
            for (line, (ttl, hop)) in lines[1..].iter().zip((1..).zip(HOPS[version])) {
                assert!(line.starts_with(&format!("{ttl:2}  {hop}  ")), "{line}");
                assert_eq!(line.matches(" ms").count(), 3, "{line}");
                assert!(!line.contains(['*', '!']), "{line}");
            }
        }
    }
}

#[test]
fn silent_router_is_printed_as_asterisk() {
    let routers = Routers::new();
    for iptables in ["iptables", "ip6tables"] {
        let (protocol, option) =
            if iptables == "iptables" { ("icmp", "--icmp-type") } else { ("icmpv6", "--icmpv6-type") };
        let drop = ["-A", "OUTPUT", "-p", protocol, option, "time-exceeded", "-j", "DROP"];
        tool(routers.router(2), iptables, &drop);
    }
    for (version, server) in SERVER.iter().enumerate() {
        let done = routers.crafter(&["traceroute", "--wait", "0.3", "--retry", "1", server]);
        done.succeeds();
        let lines: Vec<&str> = done.text().lines().skip(1).collect();
        assert_eq!((lines.len(), lines[1]), (4, " 2  * * *"), "{done:?}");
        assert!(lines[2].contains(HOPS[version][2]) && lines[3].contains(server), "{done:?}");
    }
}

#[test]
fn unreachable_destinations_are_reported() {
    let routers = Routers::new();
    routers.answer_all();
    tool(routers.router(2), "ip", &["route", "add", "prohibit", "198.51.100.0/24"]);
    tool(routers.router(2), "ip", &["route", "add", "unreachable", "192.0.2.0/24"]);
    for (destination, hop, annotation, error) in [
        (NOWHERE[0], HOPS[0][2], "!N", "network unreachable"),
        (NOWHERE[1], HOPS[1][2], "!N", "network unreachable"),
        ("198.51.100.1", HOPS[0][1], "!X", "communication prohibited"),
        ("192.0.2.1", HOPS[0][1], "!H", "host unreachable"),
    ] {
        let done = routers.crafter(&["traceroute", destination]);
        assert_eq!(done.code, i32::from(exit::REFUSED), "{done:?}");
        let last = done.text().lines().last().unwrap();
        assert!(last.contains(hop) && last.matches(&format!(" ms {annotation}")).count() == 3, "{done:?}");
        let report = routers.crafter(&["traceroute", "--json", "--icmp", destination]).records("traceroute").1;
        assert_eq!((&report["ending"], &report["icmp_error"]), (&json!("unreachable"), &json!(error)));
    }
    // No answer at all: every hop is listed.
    let drop = ["-A", "INPUT", "-j", "DROP"];
    tool(routers.server(), "iptables", &drop);
    let done = routers.crafter(&["traceroute", "--max", "6", "--wait", "0.3", "--retry", "0", SERVER[0]]);
    assert_eq!((done.code, done.text().lines().count()), (i32::from(exit::TIMED_OUT), 7), "{done:?}");
    assert_eq!(done.text().lines().last(), Some(" 6  * * *"));
    // Only the later hops.
    let done = routers.crafter(&["traceroute", "--first", "2", "--max", "3", "-q", "1", SERVER[0]]);
    let lines: Vec<&str> = done.text().lines().skip(1).collect();
    assert!(lines.len() == 2 && lines[0].starts_with(&format!(" 2  {}", HOPS[0][1])), "{done:?}");
}

/// The server's tap sees no RST of the kernel for the ports of the probes, and one crafted RST per SYN-ACK.
#[test]
fn syn_ack_is_reset_once() {
    let lab = lab();
    for server in ["192.0.2.1", "2001:db8::1"] {
        let before = lab.tap().count().unwrap();
        let done = crafter(&lab, &["traceroute", "--tcp", "--json", server]);
        done.succeeds();
        let account = &done.records("traceroute").1["account"];
        assert_eq!((&account["suppressed"], &account["answered"]), (&json!(0), &json!(3)));
        // SYNs, and one RST per SYN-ACK.
        assert_eq!(account["requests"], json!(6), "{account}");
        assert_eq!(lab.tap().count().unwrap() - before, 3);
        let sockets = lab.server().command("ss").args(["-Htan", "state", "syn-recv"]).output().unwrap();
        assert!(sockets.stdout.is_empty(), "{sockets:?}");
    }
}

/// A router that adds MPLS labels, and a destination, both simulated by Scapy.
const LABELS: &str = r#"
import sys
from scapy.all import *
from scapy.contrib.icmp_extensions import *
from scapy.contrib.mpls import MPLS
def answer(request):
    labels = [MPLS(label=24001, cos=5, s=0, ttl=1), MPLS(label=16, cos=0, s=1, ttl=254)]
    quote = bytes(request[IP])[:128].ljust(128, b"\0")
    extensions = bytes(ICMPExtensionHeader() / ICMPExtensionMPLS(stack=labels))
    back = Ether(src=request[Ether].dst, dst=request[Ether].src) / IP(dst=request[IP].src, ttl=60)
    back[IP].src = "198.51.100.1" if request[IP].ttl == 1 else request[IP].dst
    error = ICMP(type=11, length=32) if request[IP].ttl == 1 else ICMP(type=3, code=3)
    load = quote + extensions if request[IP].ttl == 1 else bytes(request[IP])[:28]
    sendp(back / error / Raw(load), iface="lab0", verbose=False)
sniff(iface="lab0", filter="udp and dst host 203.0.113.5", prn=answer, started_callback=lambda: print("ready", flush=True))
"#;

#[test]
fn mpls_labels_are_printed() {
    let lab = lab();
    let mut python = lab.server().command("/usr/bin/python3");
    let mut scapy = Scapy::start(python.args(["-c", LABELS]));
    let done = crafter(&lab, &["traceroute", "203.0.113.5"]);
    done.succeeds();
    let lines: Vec<&str> = done.text().lines().skip(1).collect();
    let first = " 1  198.51.100.1 <MPLS:L=24001,E=5,S=0,T=1/L=16,E=0,S=1,T=254>  ";
    assert!(lines.len() == 2 && lines[0].starts_with(first), "{done:?}");
    assert!(lines[1].starts_with(" 2  203.0.113.5  "), "{done:?}");
    let (hops, _) = crafter(&lab, &["traceroute", "--json", "-q", "1", "203.0.113.5"]).records("traceroute");
    let labels = json!([{ "label": 24001, "exp": 5, "s": 0, "ttl": 1 }, { "label": 16, "exp": 0, "s": 1, "ttl": 254 }]);
    assert_eq!(hops[0]["probes"][0]["mpls"], labels);
    assert_eq!(hops[1]["probes"][0]["mpls"], json!([]));
    scapy.end();
}

/// A Scapy script that prints a line when it is ready.
pub struct Scapy(Child);

impl Scapy {
    pub fn start(command: &mut std::process::Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "python3-scapy is installed by `cargo xtask setup`");
        Self(child)
    }

    pub fn end(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Scapy {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn bad_options_and_hosts_are_refused() {
    let lab = lab();
    let traceroute = |args: &[&str]| crafter(&lab, &[&["traceroute"], args].concat());
    traceroute(&["--first", "9", "--max", "8", "192.0.2.1"]).fails(exit::USAGE, "hops from 9 to 8");
    traceroute(&["--tcp=http", "192.0.2.1"]).fails(exit::USAGE, "not a port");
    traceroute(&["--tcp=80", "--udp=53", "192.0.2.1"]).fails(exit::USAGE, "cannot be used with");
    traceroute(&["host.invalid"]).fails(exit::NO_ROUTE, "no address of host 'host.invalid'");
    traceroute(&["-6", "192.0.2.1"]).fails(exit::USAGE, "it has no IPv6 address");
    traceroute(&["192.0.2.77"]).fails(exit::NO_ROUTE, "192.0.2.77 does not answer on lab0");
    on_server(&lab, "ip", &["link", "set", "lab0", "down"]);
    traceroute(&["192.0.2.1"]).fails(exit::NO_ROUTE, "no carrier");
    assert_eq!(bracketed("::1"), "[::1]");
}
