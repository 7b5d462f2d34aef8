//! Fuzz targets of the service: it survives any input on its sockets, and sends nothing that the policy forbids.
//!
//! Like the module `fuzz`, but with a real service in network namespaces, which needs root.

use std::{
    env,
    io::Write as _,
    net::{IpAddr, Shutdown, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crafter::{
    capture::Direction,
    datapath::tap::{Tap, TapOptions},
    lab::INTERFACE,
    protocol::{
        record::Kind,
        wire::{LeaseCall, METHODS},
    },
};
use crafter_tests::{
    frame,
    leak::Serial,
    peer::wait_for,
    raw::Raw,
    service::{NOBODY, REPLY_TIMEOUT, Service, Socket},
    testbed::{ENDS, lab},
    wire::mac,
};
use serde_json::json;

use super::fuzz::{Change, seconds};

/// A rule that grants everything, so that every method has an effect.
const GENEROUS: &str = r#"
[[rule]]
everybody = true
protocols = ["any"]
max_leases = "unlimited"
max_ports = "unlimited"
raw_ethernet = true
observe = true
"#;

/// One protocol, one range of ports and one destination per IP version; frames are granted, so that they are checked
/// too.
const NARROW: &str = r#"
[[rule]]
everybody = true
protocols = ["udp"]
ports = ["20000-20009"]
allow = ["192.0.2.1", "2001:db8::1"]
deny = [{ prefix = "any", ports = [53] }]
packets_per_second = "unlimited"
max_flows = "unlimited"
raw_ethernet = true
observe = true
"#;

/// Tokens that are significant in calls.
const WORDS: &[&str] = &[
    "\0",
    "{",
    "}",
    "[",
    "\"",
    ",",
    ":",
    "null",
    "true",
    "-1",
    "1e400",
    "18446744073709551616",
    "\"more\":true,",
    "\"oneway\":true,",
    "\"parameters\":{}",
    "\"lab0\"",
    "\"lo\"",
    "\"protocol\":\"udp\"",
    "\"port\":65535,",
    "\"last_port\":1,",
    "\\u0000",
    "\\ud800",
    "\u{e4}",
    "org.crafter.v1.",
    "org.varlink.service.GetInfo",
];

fn damage(bytes: &mut Vec<u8>, changes: &[Change], words: &[&str]) {
    for &(at, value, kind) in changes {
        // Half of the changes are in the headers of a packet, where they have the most effect.
        let range = if kind & 0x80 != 0 { bytes.len().min(48) } else { bytes.len() };
        let at = usize::from(at) % (range + 1);
        let to = (at + usize::from(value)).min(bytes.len());
        match kind & 7 {
            0 if kind & 0x30 == 0 => bytes.truncate(at),
            1 => bytes.insert(at, value),
            2 if kind & 0x30 == 0 => drop(bytes.drain(at..to)),
            3 => {
                let piece = bytes[at..to].to_vec();
                bytes.splice(at..at, piece);
            }
            4 | 5 if !words.is_empty() => {
                bytes.splice(at..at, words[usize::from(value) % words.len()].bytes());
            }
            6 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
            _ if at < bytes.len() => bytes[at] = value,
            _ => bytes.push(value),
        }
    }
}

/// Calls of every method with all of its parameters.
fn calls() -> Vec<Vec<u8>> {
    let parameters = |method: &str| match method.rsplit_once('.').map(|(_, name)| name) {
        Some("Lease") => json!({
            "interface": "lab0", "protocol": "tcp", "address": "192.0.2.2", "port": 20_000, "last_port": 20_003,
            "frames": false, "observe": true, "suppress": true, "report": true,
        }),
        Some("Observe") => json!({ "interface": "lab0", "filter": "tcp port 80", "direction": "in" }),
        Some("Route") => json!({ "destination": "192.0.2.1", "interface": "lab0", "source": "192.0.2.2" }),
        Some("Release") => json!({ "lease": 1 }),
        Some("Interfaces") => json!({ "name": "lab0" }),
        Some("ListLeases") => json!({ "mine": true, "interface": "lab0", "after": 1, "limit": 10 }),
        Some("ListFlows") => json!({
            "interface": "lab0", "protocol": "tcp", "port": 80, "remote": "192.0.2.1", "after": 1, "limit": 10,
        }),
        Some("Monitor") => json!({ "interval_ms": 100 }),
        _ => json!({}),
    };
    let mut calls: Vec<_> =
        METHODS.iter().map(|name| json!({ "method": name, "parameters": parameters(name) })).collect();
    calls.push(json!({ "method": "org.crafter.v1.Monitor", "parameters": {}, "more": true }));
    calls.push(json!({ "method": "org.crafter.v1.ListFlows", "parameters": { "limit": 1 }, "more": true }));
    calls.push(json!({ "method": "org.crafter.v1.Lease", "oneway": true,
        "parameters": { "destination": "192.0.2.1", "protocol": "udp" } }));
    calls.push(json!({ "method": "org.varlink.service.GetInfo" }));
    calls.push(json!({ "method": "org.varlink.service.GetInterfaceDescription",
        "parameters": { "interface": "org.crafter.v1" } }));
    calls.iter().map(|call| [call.to_string().as_bytes(), b"\0"].concat()).collect()
}

#[test]
fn control_socket() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), GENEROUS);
    let (socket, pid) = (service.socket.clone(), service.pid());
    let serves = || {
        let info = Raw::connect(&socket).call("Info", &json!({}));
        assert_eq!(info["parameters"]["pid"], pid, "{info}");
    };
    let calls = calls();
    let (rounds, answers) = (AtomicU64::new(0), AtomicU64::new(0));
    bolero::check!().with_type::<(Vec<(u8, Vec<Change>)>, Vec<u8>)>().with_test_time(seconds()).for_each(
        |(wanted, noise)| {
            let mut client = Raw::connect(&socket);
            for (seed, changes) in wanted.iter().take(4) {
                let mut call = calls[usize::from(*seed) % calls.len()].clone();
                damage(&mut call, &changes[..changes.len() % 5], WORDS);
                // The service may already have closed the connection because of an earlier call.
                let _ = client.write(&call);
            }
            let _ = client.stream().write_all(noise);
            let _ = client.stream().shutdown(Shutdown::Write);
            // After this end's shutdown every call is answered, or the connection is closed.
            while let Some(answer) = client.answer() {
                assert!(
                    answer["error"].is_string() || answer["parameters"].is_object() || answer == json!({}),
                    "{answer}"
                );
                answers.fetch_add(1, Ordering::Relaxed);
            }
            if rounds.fetch_add(1, Ordering::Relaxed) % 64 == 0 {
                serves();
            }
        },
    );
    serves();
    wait_for("the release of all leases", REPLY_TIMEOUT, || service.leases().is_empty().then_some(()));
    println!("{} connections, {} answers", rounds.load(Ordering::Relaxed), answers.load(Ordering::Relaxed));
    assert!(answers.load(Ordering::Relaxed) > rounds.load(Ordering::Relaxed) / 10, "too few calls were answered");
}

/// Why a frame sent by the client violates [`NARROW`]; `None` if it does not, or if the client's kernel sent it.
fn violation(frame: &[u8]) -> Option<&'static str> {
    let mut at = 12;
    while matches!(frame.get(at..at + 2)?, [0x81, 0] | [0x88, 0xa8] | [0x91, 0]) {
        at += 4;
    }
    let kind = frame.get(at..at + 2)?;
    let ip = &frame[at + 2..];
    let (source, destination, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match kind {
        [8, 0] => {
            let header = ip.first_chunk::<20>();
            let Some(header) = header else { return Some("truncated IPv4 header") };
            let four = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes");
            if u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
                return Some("a later fragment");
            }
            let length = usize::from(header[0] & 15) * 4;
            (four(12).into(), four(16).into(), header[9], ip.get(length..).unwrap_or_default())
        }
        [0x86, 0xdd] => {
            let header = ip.first_chunk::<40>();
            let Some(header) = header else { return Some("truncated IPv6 header") };
            let sixteen = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes");
            // The kernel sends neighbour discovery, and listener reports after a hop-by-hop header.
            if header[6] == frame::ICMPV6 || (header[6] == 0 && sixteen(24)[0] == 0xff) {
                return None;
            }
            (sixteen(8).into(), sixteen(24).into(), header[6], &ip[40..])
        }
        _ => return None,
    };
    let Some(&(client, server)) = ENDS.iter().find(|(client, _)| *client == source) else {
        return Some("a foreign source");
    };
    if destination != server {
        return Some("another destination");
    }
    if protocol != frame::UDP {
        // The datagram may follow extension headers.
        return (client.is_ipv4() || protocol == frame::TCP).then_some("another protocol");
    }
    let port = |at: usize| rest.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    match (port(0), port(2)) {
        (Some(20_000 | 20_001 | 20_009), Some(destination)) if destination != 53 => None,
        _ => Some("another port"),
    }
}

/// Observes all frames sent by the client until `stop` is set. Returns their number and up to five violations.
async fn observe(stop: &AtomicBool) -> (u64, Vec<String>) {
    let options = TapOptions { direction: Some(Direction::In), buffer: 64 << 20, ..TapOptions::default() };
    let mut tap = Tap::open(INTERFACE, &options).await.expect("open the tap");
    let (mut seen, mut bad) = (0, Vec::new());
    loop {
        match tokio::time::timeout(Duration::from_millis(100), tap.next()).await {
            Ok(captured) => {
                let bytes = captured.expect("a frame").bytes;
                seen += 1;
                if let Some(reason) = violation(&bytes).filter(|_| bad.len() < 5) {
                    bad.push(format!("{reason}: {bytes:02x?}"));
                }
            }
            Err(_) if stop.load(Ordering::Relaxed) => break,
            Err(_) => {}
        }
    }
    (seen, bad)
}

/// Sends a message and reads all pending messages; returns the number of refusals among them.
fn exchange(socket: &Socket, message: &[u8]) -> u64 {
    socket.send(message).expect("the lease");
    let mut refusals = 0;
    while let Some(answer) = socket.receive(Duration::ZERO).expect("the lease") {
        refusals += u64::from(matches!(answer.header.kind, Kind::Refusal { .. }));
    }
    refusals
}

fn take(service: &Service, call: &LeaseCall) -> Socket {
    let call = LeaseCall { interface: Some(INTERFACE.to_owned()), ..call.clone() };
    service.session(NOBODY, async |control| Socket::lease(&control, &call).await).expect("a lease")
}

fn packets() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (client, server) in ENDS {
        for (from, to) in [(20_000, 9), (20_001, 4000), (20_000, 53), (20_005, 9)] {
            let ends = (SocketAddr::new(client, from), SocketAddr::new(server, to));
            packets.push(frame::udp_ip(ends.0, ends.1, b"payload"));
        }
        let elsewhere: IpAddr =
            if client.is_ipv4() { [192, 0, 2, 9].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 9].into() };
        packets.push(frame::udp_ip(SocketAddr::new(elsewhere, 20_000), SocketAddr::new(server, 9), b"x"));
        packets.push(frame::udp_ip(SocketAddr::new(client, 20_000), SocketAddr::new(elsewhere, 9), b"x"));
        packets.push(frame::Tcp::new(frame::SYN, 1, 0).ip(SocketAddr::new(client, 20_000), SocketAddr::new(server, 9)));
    }
    packets
}

#[test]
fn lease_socket() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), NARROW);
    let [own, peer] =
        [lab.client(), lab.server()].map(|namespace| namespace.run(|| mac(INTERFACE)).expect("enter the namespace"));
    let ports =
        LeaseCall { protocol: "udp".to_owned(), port: Some(20_000), last_port: Some(20_001), ..LeaseCall::default() };
    let whole = take(&service, &ports);
    let frames = take(
        &service,
        &LeaseCall { protocol: "udp".to_owned(), port: Some(20_009), frames: Some(true), ..LeaseCall::default() },
    );
    let seeds = packets();
    let framed: Vec<Vec<u8>> =
        seeds.iter().map(|ip| [&peer[..], &own[..], &frame::framed(ip)[12..]].concat()).collect();
    let stop = AtomicBool::new(false);
    let (messages, refused) = ([AtomicU64::new(0), AtomicU64::new(0)], Mutex::new([0_u64; 2]));
    std::thread::scope(|scope| {
        let observer =
            scope.spawn(|| lab.server().run(|| crafter_tests::block_on(observe(&stop))).expect("enter the server"));
        // Waits until the tap is open.
        std::thread::sleep(Duration::from_millis(300));
        bolero::check!().with_type::<(bool, u8, Vec<Change>)>().with_test_time(seconds()).for_each(
            |(as_frame, seed, changes)| {
                let (socket, seeds) = if *as_frame { (&frames, &framed) } else { (&whole, &seeds) };
                let mut message = seeds[usize::from(*seed) % seeds.len()].clone();
                damage(&mut message, &changes[..changes.len() % 6], &[]);
                if changes.len() % 31 == 30 {
                    message.resize(1400 + usize::from(*seed) * 260, *seed);
                }
                // The service treats too many empty messages as a disconnect.
                if message.is_empty() {
                    return;
                }
                messages[usize::from(*as_frame)].fetch_add(1, Ordering::Relaxed);
                refused.lock().expect("the counts")[usize::from(*as_frame)] += exchange(socket, &message);
            },
        );
        let listed = |socket: &Socket| {
            let leases = service.leases();
            leases.into_iter().find(|lease| lease.lease == socket.leased.lease).expect("the lease")
        };
        let mut sent = 0;
        for (socket, messages) in [(&whole, &messages[0]), (&frames, &messages[1])] {
            let messages = messages.load(Ordering::Relaxed);
            // Every message was either sent or refused.
            let lease = wait_for("the last message", REPLY_TIMEOUT, || {
                Some(listed(socket)).filter(|lease| lease.sent + lease.refused + lease.not_sent == messages)
            });
            println!("{messages} messages: {lease:?}");
            assert!(lease.sent > 0 && lease.refused > 0, "{lease:?}");
            sent += lease.sent;
        }
        stop.store(true, Ordering::Relaxed);
        let (seen, bad) = observer.join().expect("the observer");
        println!("{seen} frames arrived at the server, {sent} were crafted");
        assert!(seen >= sent / 2, "the observer saw only {seen} of {sent} frames");
        assert!(bad.is_empty(), "{bad:#?}");
    });
    let info = Raw::connect(&service.socket).call("Info", &json!({}));
    assert_eq!(info["parameters"]["pid"], service.pid());
}
