//! Every key of the policy with a running service: a request that it refuses, and the same request allowed. A capture
//! on the server shows that refused packets are not sent.

mod rows;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crafter::{
    Error,
    lab::{CLIENT_V4, INTERFACE},
    policy::Verdict,
    protocol::{
        control::Control,
        record::Code,
        wire::{Lease, LeaseCall, ListLeasesCall, ObserveCall, ReloadCall},
    },
};
use crafter_tests::{
    capture::{Capture, Packet},
    frame::udp_ip,
    leak::Parallel,
    service::{Credentials, REPLY_TIMEOUT, ROOT, Service, Socket},
    testbed::lab,
    wire::mac,
};
use rows::{ROWS, Row, Sent, Setup, far, is_allowed, port, ported};

/// A policy whose second rule has the subject `subject`.
fn policy(subject: &str, lines: &str) -> String {
    format!("[[rule]]\nuser = 1\nports = [7]\n\n[[rule]]\n{subject}\n{lines}\n")
}

fn reload(service: &Service, policy: &str) {
    service.write_policy(policy);
    service.session(ROOT, async |control| control.call(&ReloadCall {}).await.map(drop).expect("reload"));
}

async fn listed(control: &Control, number: u64) -> Lease {
    let leases = control.call(&ListLeasesCall::default()).await.expect("own leases").leases;
    leases.into_iter().find(|lease| lease.lease == number).expect("the lease")
}

/// The sentence of a refusal by rule 2.
fn sentence(verdict: &str) -> String {
    let found = Verdict::ALL.iter().find(|known| known.name() == verdict).expect("a verdict of this name");
    format!("rule 2: {found}")
}

#[track_caller]
fn assert_forbidden(error: &Error, wanted_rule: Option<u32>, wanted: &str, name: &str) {
    let Error::Forbidden { rule, verdict, message } = error else { panic!("{name}: {error:?}") };
    assert_eq!((*rule, verdict.as_str()), (wanted_rule, wanted), "{name}: {message}");
    if let Some(rule) = wanted_rule {
        assert!(message.contains(&format!("rule {rule}")), "{name}: {message}");
    }
}

/// Runs one attempt as a user without leases; returns the packets that must be sent, and those that must not.
async fn attempt(row: &Row, setup: &Setup, n: u8, control: &Control) -> (Vec<Sent>, Vec<Sent>) {
    let (name, allowed) = (row.name, is_allowed(n));
    let mut calls = (row.leases)(n);
    let last = calls.pop().expect("a lease");
    let mut held = Vec::new();
    for call in &calls {
        held.push(Socket::lease(control, call).await.unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    let mut packets = (row.packets)(setup, n);
    let lease = Socket::lease(control, &last).await;
    if packets.is_empty() && !allowed {
        assert_forbidden(&lease.expect_err(name), Some(2), row.verdict, name);
        return (Vec::new(), Vec::new());
    }
    let lease = lease.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    for packet in &packets {
        lease.send(&packet.bytes).expect("send");
    }
    if allowed {
        wait_for_counts(control, &lease, packets.len(), 0, name).await;
        let message = lease.receive(Duration::ZERO).expect("the lease");
        assert_eq!(message.and_then(|message| message.refusal()), None, "{name}");
        return (packets, Vec::new());
    }
    assert_eq!(lease.refusal(), (Code::Policy, 2, sentence(row.verdict)), "{name}");
    let refused = packets.split_off(packets.len() - 1);
    wait_for_counts(control, &lease, packets.len(), 1, name).await;
    assert_eq!(lease.receive(Duration::from_millis(1)).expect("the lease"), None, "{name}: more than one refusal");
    (packets, refused)
}

/// Waits until the counts of packets sent and refused are reached, and asserts that they are not exceeded.
async fn wait_for_counts(control: &Control, lease: &Socket, sent: usize, refused: u64, name: &str) {
    let deadline = Instant::now() + REPLY_TIMEOUT;
    loop {
        let now = listed(control, lease.leased.lease).await;
        assert!(now.sent <= sent as u64 && now.refused <= refused && now.not_sent == 0, "{name}: {now:?}");
        if (now.sent, now.refused) == (sent as u64, refused) {
            return;
        }
        assert!(Instant::now() < deadline, "{name}: {now:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn count(wire: &[Packet], sent: &Sent) -> usize {
    wire.iter().filter(|packet| (packet.source, packet.destination) == (sent.from, sent.to)).count()
}

#[test]
fn every_key_refuses_and_allows() {
    let _parallel = Parallel::begin();
    let lab = lab();
    // MAC addresses for the frames of the rows.
    let macs = [lab.client(), lab.server()].map(|end| end.run(|| mac(INTERFACE)).expect("enter a namespace"));
    let setup = Setup { lab, macs };
    let service = Service::start(setup.lab.client(), &policy("user = 2", ""));
    let capture = Capture::start(setup.lab.server(), INTERFACE, None);
    let (mut allowed, mut refused) = (Vec::new(), Vec::new());
    for (at, row) in ROWS.iter().enumerate() {
        for (is_allowed, rule) in row.rules.iter().enumerate() {
            let n = (at * 2 + is_allowed) as u8 + 2;
            let credentials = Credentials { user: 70_000 + u32::from(n), group: 54_321 };
            let lines = rule.replace("{n}", &n.to_string()).replace("{port}", &port(n).to_string());
            reload(&service, &policy(&format!("user = {}", credentials.user), &lines));
            let (sent, not_sent) =
                service.session(credentials, async |control| attempt(row, &setup, n, &control).await);
            assert_eq!(not_sent.is_empty(), is_allowed == 1 || sent.is_empty() && not_sent.is_empty(), "{}", row.name);
            allowed.extend(sent.into_iter().map(|sent| (row.name, sent)));
            refused.extend(not_sent.into_iter().map(|sent| (row.name, sent)));
        }
    }
    let wire = capture.finish();
    for (name, sent) in &allowed {
        assert_eq!(count(&wire, sent), 1, "{name}: {} to {} was allowed but not sent once", sent.from, sent.to);
    }
    for (name, sent) in &refused {
        assert_eq!(count(&wire, sent), 0, "{name}: {} to {} was refused but sent", sent.from, sent.to);
    }
    println!(
        "{} rows, {} allowed packets captured, {} refused packets not captured",
        ROWS.len(),
        allowed.len(),
        refused.len()
    );
    // Verdicts covered by other tests of this module.
    let others = ["allowed", "no-rule", "observe", "rate"];
    let reached: BTreeSet<&str> = ROWS.iter().map(|row| row.verdict).chain(others).collect();
    let known: BTreeSet<&str> = Verdict::ALL.iter().map(|verdict| verdict.name()).collect();
    assert_eq!(reached, known);
}

#[test]
fn rules_select_by_user_and_group() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let me = Credentials { user: 70_000, group: 54_321 };
    let lease = || {
        service.session(me, async |control| {
            Socket::lease(&control, &ported("tcp", 50_000)).await.map(|socket| socket.leased.first_port)
        })
    };
    for (subject, other) in [
        ("user = 70000", "user = [70001, 54321]"),
        ("user = [3, 70000]", "group = 70000"),
        ("group = 54321", "group = [54320, 54322]"),
        ("everybody = true", "user = 70002\ngroup = 54322"),
    ] {
        reload(&service, &policy(other, ""));
        assert_forbidden(&lease().expect_err(other), None, "no-rule", other);
        reload(&service, &policy(subject, ""));
        assert_eq!(lease().unwrap_or_else(|error| panic!("{subject}: {error}")), Some(50_000));
    }
    // The first matching rule decides, regardless of later ones.
    for (first, second, is_allowed) in [("ports = [50000]", "refuse = true", true), ("refuse = true", "", false)] {
        reload(&service, &format!("{}[[rule]]\nuser = 70000\n{second}\n", policy("group = 54321", first)));
        match lease() {
            Ok(port) => assert!(is_allowed && port == Some(50_000)),
            Err(error) => {
                assert!(!is_allowed, "{error}");
                assert_forbidden(&error, Some(2), "refused", first);
            }
        }
    }
}

/// Foreign source addresses can be allowed for packets, but their ports cannot be leased.
#[test]
fn ports_of_foreign_addresses_cannot_be_leased() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let lease = |lines: &str| {
        reload(&service, &policy("user = 70000", lines));
        service.session(Credentials { user: 70_000, group: 54_321 }, async |control| {
            let call = LeaseCall { address: Some("203.0.113.7".to_owned()), ..ported("tcp", 50_000) };
            Socket::lease(&control, &call).await.map(drop).expect_err("a foreign address")
        })
    };
    assert_forbidden(&lease("foreign_sources = [\"203.0.112.0/24\"]"), Some(2), "foreign-source", "a lease");
    let error = lease("foreign_sources = [\"203.0.113.0/24\"]");
    assert!(matches!(&error, Error::Invalid { .. }), "{error:?}");
}

#[test]
fn observing_requires_permission() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let me = Credentials { user: 70_000, group: 54_321 };
    let call = ObserveCall {
        interface: INTERFACE.to_owned(),
        filter: Some("udp dst port 7777".to_owned()),
        direction: Some("in".to_owned()),
    };
    reload(&service, &policy("user = 70000", "observe = false"));
    let refused = service.session(me, async |control| control.call(&call).await.map(drop));
    assert_forbidden(&refused.expect_err("observing"), Some(2), "observe", "observe");

    reload(&service, &policy("user = 70000", "observe = true"));
    // The sender's socket, bound in the server's namespace.
    let other = lab.server().run(|| std::net::UdpSocket::bind("0.0.0.0:0")).expect("enter the server").expect("bind");
    let source_port = other.local_addr().expect("its address").port();
    let frame = service.session(me, async |control| {
        let (observing, mut fds) = control.call_for_descriptors(&call).await.expect("observe");
        assert_eq!(observing.link_type, 1, "Ethernet");
        let socket = Socket { leased: Default::default(), fd: fds.remove(0) };
        other.send_to(b"seen by others", (CLIENT_V4, 7777)).expect("send");
        let message = socket.receive(REPLY_TIMEOUT).expect("the socket").expect("a frame");
        // The frame: after 14 bytes of Ethernet and 20 of IPv4 follows the source port of UDP.
        message.packet().expect("a frame").to_vec()
    });
    assert_eq!(frame[12..15], [8, 0, 0x45]);
    assert_eq!(frame[34..36], source_port.to_be_bytes());
    assert!(frame.ends_with(b"seen by others"));
}

/// Sends `count` packets at once under a rule; returns the number sent, the number refused, and the refused
/// destinations.
fn burst(service: &Service, user: u32, lines: &str, count: u8) -> (u64, u64, Vec<SocketAddr>) {
    reload(service, &policy(&format!("user = {user}"), lines));
    let credentials = Credentials { user, group: 54_321 };
    service.session(credentials, async |control| {
        let from = SocketAddr::new(CLIENT_V4.into(), user as u16);
        let lease = Socket::lease(&control, &ported("udp", from.port())).await.expect("a lease");
        for number in 0..count {
            let to = SocketAddr::new(far(200), 1000 + u16::from(number));
            lease.send(&udp_ip(from, to, &[number])).expect("send");
        }
        let mut refused = Vec::new();
        let counted = loop {
            while let Some(message) = lease.receive(Duration::from_millis(20)).expect("the lease") {
                let (code, rule, reason) = message.refusal().expect("a refusal");
                assert_eq!((code, rule, reason), (Code::Rate, 2, sentence("rate")));
                let quoted = message.header.sentence(&message.rest).1;
                let port = u16::from_be_bytes([quoted[22], quoted[23]]);
                refused.push(SocketAddr::new(far(200), port));
            }
            let now = listed(&control, lease.leased.lease).await;
            if now.sent + now.refused == u64::from(count) && now.refused == refused.len() as u64 {
                break now;
            }
        };
        (counted.sent, counted.refused, refused)
    })
}

#[test]
fn packets_per_second_and_burst_are_enforced() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let capture = Capture::start(lab.server(), INTERFACE, Some("udp and dst net 198.51.100.0/24"));
    let mut expected = Vec::new();
    // At these rates almost no token is added during the test, so only the burst is sent.
    for (user, lines, sends) in [
        (50_001, "packets_per_second = 1\nburst = 5", 5),
        (50_002, "packets_per_second = 1\nburst = 1", 1),
        (50_003, "packets_per_second = 1\nburst = 40", 40),
        (50_004, "packets_per_second = \"unlimited\"", 40),
        (50_005, "packets_per_second = 400", 40),
        (50_006, "packets_per_second = 10\nburst = 40", 40),
    ] {
        let (sent, refused, which) = burst(&service, user, lines, 40);
        println!("{lines:?}: {sent} sent, {refused} refused");
        // On a busy machine a few more tokens may be added.
        assert!((sends..=sends + 3).contains(&sent) && sent + refused == 40, "{lines}: {sent}");
        expected.push((user as u16, sent, which));
    }
    // The rate without a burst: 60 packets in intervals of 5 ms, of which 100 per second may be sent.
    reload(&service, &policy("user = 50007", "packets_per_second = 100\nburst = 1"));
    let credentials = Credentials { user: 50_007, group: 54_321 };
    let slowly = || {
        service.session(credentials, async |control| {
            let from = SocketAddr::new(CLIENT_V4.into(), 50_007);
            let lease = Socket::lease(&control, &ported("udp", 50_007)).await.expect("a lease");
            let began = Instant::now();
            for number in 0..60 {
                let to = SocketAddr::new(far(200), 1000 + number);
                lease.send(&udp_ip(from, to, b"slowly")).expect("send");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            loop {
                let now = listed(&control, lease.leased.lease).await;
                if now.sent + now.refused == 60 {
                    // Measured after the service has processed all packets, because it may be late.
                    break (now.sent, began.elapsed());
                }
            }
        })
    };
    let mut total = 0;
    // The limit is never exceeded; on a busy machine less may be sent, as the burst is only 1.
    let enough = (0..5).any(|_| {
        let (sent, took) = slowly();
        total += sent;
        let most = took.as_secs_f64() * 100.0;
        println!("100 per second: {sent} of 60 in {took:?}");
        assert!(sent as f64 <= most + 1.0, "{sent} in {took:?}");
        sent as f64 >= most * 0.6
    });
    assert!(enough, "less than 60 % of the rate in every attempt");

    let wire = capture.finish();
    let seen = |port: u16| wire.iter().filter(|packet| packet.source.port() == port).count() as u64;
    for (port, sent, refused) in expected {
        assert_eq!(seen(port), sent, "on the wire from {port}");
        let is_there =
            |to: &SocketAddr| wire.iter().any(|packet| packet.source.port() == port && packet.destination == *to);
        assert!(!refused.iter().any(is_there), "a refused packet was sent");
    }
    assert_eq!(seen(50_007), total);
}
