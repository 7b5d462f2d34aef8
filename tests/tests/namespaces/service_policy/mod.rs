//! Every word of the policy against a running service: what is refused, and the same thing allowed. A packet that is
//! refused is not on the wire; tcpdump on the other side says so.

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
    frame::udp_ip,
    judge::{Capture, Packet},
    leak::Parallel,
    service::{PATIENCE, ROOT, Service, Socket, Who},
    stage::lab,
    wire::mac,
};
use rows::{ROWS, Row, Sent, Stage, far, is_allowed, port, ported};

/// A policy in which the rule of `who` is the second.
fn policy(who: &str, lines: &str) -> String {
    format!("[[rule]]\nuser = 1\nports = [7]\n\n[[rule]]\n{who}\n{lines}\n")
}

fn reload(service: &Service, policy: &str) {
    service.write_policy(policy);
    service.session(ROOT, async |control| control.call(&ReloadCall {}).await.map(drop).expect("reload"));
}

async fn listed(control: &Control, number: u64) -> Lease {
    let leases = control.call(&ListLeasesCall::default()).await.expect("one's own leases").leases;
    leases.into_iter().find(|lease| lease.lease == number).expect("the lease")
}

/// What a refusal says of a verdict by rule 2.
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

/// One try, as a user who has done nothing before; what has to be on the wire, and what must not.
async fn attempt(row: &Row, stage: &Stage, n: u8, control: &Control) -> (Vec<Sent>, Vec<Sent>) {
    let (name, allowed) = (row.name, is_allowed(n));
    let mut calls = (row.leases)(n);
    let last = calls.pop().expect("a lease");
    let mut held = Vec::new();
    for call in &calls {
        held.push(Socket::lease(control, call).await.unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    let mut packets = (row.packets)(stage, n);
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
        settled(control, &lease, packets.len(), 0, name).await;
        let said = lease.receive(Duration::ZERO).expect("the lease");
        assert_eq!(said.and_then(|said| said.refusal()), None, "{name}");
        return (packets, Vec::new());
    }
    assert_eq!(lease.refusal(), (Code::Policy, 2, sentence(row.verdict)), "{name}");
    let refused = packets.split_off(packets.len() - 1);
    settled(control, &lease, packets.len(), 1, name).await;
    assert_eq!(lease.receive(Duration::from_millis(1)).expect("the lease"), None, "{name}: one refusal");
    (packets, refused)
}

/// Waits until so many packets were sent and refused, and no more.
async fn settled(control: &Control, lease: &Socket, sent: usize, refused: u64, name: &str) {
    let deadline = Instant::now() + PATIENCE;
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
fn every_word_refuses_and_allows() {
    let _parallel = Parallel::begin();
    let lab = lab();
    // Without names of others' addresses on the wire, and no route of its own for groups: by the default route.
    let macs = [lab.client(), lab.server()].map(|end| end.run(|| mac(INTERFACE)).expect("enter a namespace"));
    let stage = Stage { lab, macs };
    let service = Service::start(stage.lab.client(), &policy("user = 2", ""));
    let capture = Capture::start(stage.lab.server(), INTERFACE, None);
    let (mut allowed, mut refused) = (Vec::new(), Vec::new());
    for (at, row) in ROWS.iter().enumerate() {
        for (is_allowed, rule) in row.rules.iter().enumerate() {
            let n = (at * 2 + is_allowed) as u8 + 2;
            let who = Who { user: 70_000 + u32::from(n), group: 54_321 };
            let lines = rule.replace("{n}", &n.to_string()).replace("{port}", &port(n).to_string());
            reload(&service, &policy(&format!("user = {}", who.user), &lines));
            let (sent, not_sent) = service.session(who, async |control| attempt(row, &stage, n, &control).await);
            assert_eq!(not_sent.is_empty(), is_allowed == 1 || sent.is_empty() && not_sent.is_empty(), "{}", row.name);
            allowed.extend(sent.into_iter().map(|sent| (row.name, sent)));
            refused.extend(not_sent.into_iter().map(|sent| (row.name, sent)));
        }
    }
    let wire = capture.finish();
    for (name, sent) in &allowed {
        assert_eq!(count(&wire, sent), 1, "{name}: {} to {} was allowed", sent.from, sent.to);
    }
    for (name, sent) in &refused {
        assert_eq!(count(&wire, sent), 0, "{name}: {} to {} was refused", sent.from, sent.to);
    }
    println!("{} rows, {} packets seen, {} refused and not seen", ROWS.len(), allowed.len(), refused.len());
    // What the other tests here have.
    let others = ["allowed", "no-rule", "observe", "rate"];
    let reached: BTreeSet<&str> = ROWS.iter().map(|row| row.verdict).chain(others).collect();
    let known: BTreeSet<&str> = Verdict::ALL.iter().map(|verdict| verdict.name()).collect();
    assert_eq!(reached, known);
}

#[test]
fn users_groups_and_whom_no_rule_names() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let me = Who { user: 70_000, group: 54_321 };
    let lease = || {
        service.session(me, async |control| {
            Socket::lease(&control, &ported("tcp", 50_000)).await.map(|socket| socket.leased.first_port)
        })
    };
    for (who, no_one) in [
        ("user = 70000", "user = [70001, 54321]"),
        ("user = [3, 70000]", "group = 70000"),
        ("group = 54321", "group = [54320, 54322]"),
        ("everybody = true", "user = 70002\ngroup = 54322"),
    ] {
        reload(&service, &policy(no_one, ""));
        assert_forbidden(&lease().expect_err(no_one), None, "no-rule", no_one);
        reload(&service, &policy(who, ""));
        assert_eq!(lease().unwrap_or_else(|error| panic!("{who}: {error}")), Some(50_000));
    }
    // The first rule that names somebody decides, whatever later ones say.
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

/// Packets may come from foreign addresses; ports of them are not this host's to lease, whatever the policy says.
#[test]
fn leases_of_foreign_addresses() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let lease = |lines: &str| {
        reload(&service, &policy("user = 70000", lines));
        service.session(Who { user: 70_000, group: 54_321 }, async |control| {
            let call = LeaseCall { address: Some("203.0.113.7".to_owned()), ..ported("tcp", 50_000) };
            Socket::lease(&control, &call).await.map(drop).expect_err("a foreign address")
        })
    };
    assert_forbidden(&lease("foreign_sources = [\"203.0.112.0/24\"]"), Some(2), "foreign-source", "a lease");
    let error = lease("foreign_sources = [\"203.0.113.0/24\"]");
    assert!(matches!(&error, Error::Invalid { .. }), "{error:?}");
}

#[test]
fn observing() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let me = Who { user: 70_000, group: 54_321 };
    let call = ObserveCall {
        interface: INTERFACE.to_owned(),
        filter: Some("udp dst port 7777".to_owned()),
        direction: Some("in".to_owned()),
    };
    reload(&service, &policy("user = 70000", "observe = false"));
    let refused = service.session(me, async |control| control.call(&call).await.map(drop));
    assert_forbidden(&refused.expect_err("observing"), Some(2), "observe", "observe");

    reload(&service, &policy("user = 70000", "observe = true"));
    // It stays a socket of the server, whoever uses it.
    let other = lab.server().run(|| std::net::UdpSocket::bind("0.0.0.0:0")).expect("enter the server").expect("bind");
    let came = other.local_addr().expect("its address").port();
    let seen = service.session(me, async |control| {
        let (observing, mut fds) = control.call_for_descriptors(&call).await.expect("observe");
        assert_eq!(observing.link_type, 1, "Ethernet");
        let socket = Socket { leased: Default::default(), fd: fds.remove(0) };
        other.send_to(b"seen by others", (CLIENT_V4, 7777)).expect("send");
        let message = socket.receive(PATIENCE).expect("the socket").expect("a frame");
        // A frame: behind 14 bytes of Ethernet and 20 of IPv4, the source port of UDP.
        message.packet().expect("a frame").to_vec()
    });
    assert_eq!(seen[12..15], [8, 0, 0x45]);
    assert_eq!(seen[34..36], came.to_be_bytes());
    assert!(seen.ends_with(b"seen by others"));
}

/// So many packets at once under a rule; how many were sent, and how many refused as too fast.
fn burst(service: &Service, user: u32, lines: &str, count: u8) -> (u64, u64, Vec<SocketAddr>) {
    reload(service, &policy(&format!("user = {user}"), lines));
    let who = Who { user, group: 54_321 };
    service.session(who, async |control| {
        let from = SocketAddr::new(CLIENT_V4.into(), user as u16);
        let lease = Socket::lease(&control, &ported("udp", from.port())).await.expect("a lease");
        for number in 0..count {
            let to = SocketAddr::new(far(200), 1000 + u16::from(number));
            lease.send(&udp_ip(from, to, &[number])).expect("send");
        }
        let mut refused = Vec::new();
        let counted = loop {
            while let Some(message) = lease.receive(Duration::from_millis(20)).expect("the lease") {
                let (code, rule, said) = message.refusal().expect("a refusal");
                assert_eq!((code, rule, said), (Code::Rate, 2, sentence("rate")));
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
fn packets_per_second_and_burst() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("user = 2", ""));
    let capture = Capture::start(lab.server(), INTERFACE, Some("udp and dst net 198.51.100.0/24"));
    let mut expected = Vec::new();
    // One packet in a hundred seconds is not to be had: in these tests the burst is all there is.
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
        // Where the machine was busy, another one may have become due.
        assert!((sends..=sends + 3).contains(&sent) && sent + refused == 40, "{lines}: {sent}");
        expected.push((user as u16, sent, which));
    }
    // The rate, not the burst: 60 packets at 5 ms from each other, of which 100 per second may leave.
    reload(&service, &policy("user = 50007", "packets_per_second = 100\nburst = 1"));
    let who = Who { user: 50_007, group: 54_321 };
    let slowly = || {
        service.session(who, async |control| {
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
                    // Here, as the service may have been late.
                    break (now.sent, began.elapsed());
                }
            }
        })
    };
    let mut total = 0;
    // Never more; on a busy machine less now and then, as the burst is short.
    let enough = (0..5).any(|_| {
        let (sent, took) = slowly();
        total += sent;
        let most = took.as_secs_f64() * 100.0;
        println!("100 a second: {sent} of 60 in {took:?}");
        assert!(sent as f64 <= most + 1.0, "{sent} in {took:?}");
        sent as f64 >= most * 0.6
    });
    assert!(enough, "less than the rate each time");

    let wire = capture.finish();
    let seen = |port: u16| wire.iter().filter(|packet| packet.source.port() == port).count() as u64;
    for (port, sent, refused) in expected {
        assert_eq!(seen(port), sent, "on the wire from {port}");
        let is_there =
            |to: &SocketAddr| wire.iter().any(|packet| packet.source.port() == port && packet.destination == *to);
        assert!(!refused.iter().any(is_there), "refused, and on the wire");
    }
    assert_eq!(seen(50_007), total);
}
