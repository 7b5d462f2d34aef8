//! What one user's leases cost the service and the log, and limits that count leases which were just closed.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use crafter::{
    Error,
    lab::{CLIENT_V4, SERVER_V4},
    protocol::{
        record::Code,
        wire::{AccountCall, LeaseCall, PolicyCall, ReleaseCall},
    },
};
use crafter_tests::{
    frame,
    leak::{Parallel, descriptors},
    raw::Raw,
    service::{REPLY_TIMEOUT, ROOT, Service, Socket, lease_call},
    slow,
    testbed::{lab, run},
};

use nix::sys::signal::Signal;

use super::{ONE, TWO};

const POLICY: &str = "
[[rule]]
user = 71001
max_leases = 1
max_ports = 4

[[rule]]
user = 71002
max_leases = \"unlimited\"
max_ports = \"unlimited\"

[[rule]]
user = 0
max_ports = \"unlimited\"
max_leases = \"unlimited\"
";

fn row(protocol: &str, count: u64) -> LeaseCall {
    LeaseCall { count: Some(count), ..lease_call(protocol, None, None) }
}

fn sockets(service: &Service) -> usize {
    descriptors(service.pid()).get("socket").copied().unwrap_or(0)
}

/// A row in the log of the service: `event=KIND user=NUMBER ... field=NUMBER`.
fn sum(log: &str, event: &str, field: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains(&format!("event={event} ")));
    lines
        .filter_map(|line| {
            line.split(' ').find_map(|word| word.strip_prefix(field)?.strip_prefix('=')?.parse::<u64>().ok())
        })
        .sum()
}

#[test]
fn too_few_consecutive_ports_are_refused_and_recorded() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let plain = lab.client().run(|| -> Vec<UdpSocket> {
        let bind = |at: u16| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 49_152 + at * 910)).expect("a plain socket");
        (1..=17).map(bind).collect()
    });
    let plain = plain.expect("enter the namespace");
    let refused = service.session(TWO, async |control| Socket::lease(&control, &row("udp", 1024)).await.unwrap_err());
    let Error::NoFreePorts { protocol: "UDP", count: 1024, .. } = &refused else { panic!("{refused:?}") };
    let log = service.log();
    let record = log.lines().find(|line| line.contains("verdict=no-free-ports")).expect("a record");
    assert!(record.contains("user=71002 ") && record.contains("ask for fewer"), "{record}");
    drop(plain);
    let leased = service.session(TWO, async |control| {
        Socket::lease(&control, &row("udp", 1024)).await.expect("a row once the ports are free").leased
    });
    assert_eq!(leased.last_port.unwrap() - leased.first_port.unwrap(), 1023);
}

#[test]
fn addresses_of_the_host_do_not_multiply_descriptors() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let batch: String =
        (0..600).map(|at| format!("addr add 198.18.{}.{}/32 dev lo\n", at / 250, at % 250 + 1)).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), batch).expect("a batch for ip");
    run(lab.client().command("ip").arg("-batch").arg(file.path()));
    let service = Service::start(lab.client(), POLICY);
    for protocol in ["tcp", "udp"] {
        service.session(ROOT, async |control| {
            // The first lease attaches to the interface.
            let _first = Socket::lease(&control, &row(protocol, 1)).await.expect("a lease");
            let before = sockets(&service);
            let mut leases = Vec::new();
            for _ in 0..64 {
                leases.push(Socket::lease(&control, &row(protocol, 10)).await.expect("a lease"));
            }
            let more = sockets(&service) - before;
            // The client's end of a lease may be open at the first count or at the second.
            let each = 64 * (10 + 1);
            assert!((each - 1..=each + 1).contains(&more), "{protocol}: {more}, not one for each port and each lease");
            drop(leases);
            let back = slow::wait_until(REPLY_TIMEOUT, || sockets(&service) <= before);
            assert!(back, "{protocol}: {} of {before} sockets", sockets(&service));
        });
    }
}

#[test]
fn leases_in_a_loop_are_summarised_exactly() {
    const ROUNDS: u64 = 1500;
    let _parallel = Parallel::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    service.session(TWO, async |control| {
        for _ in 0..ROUNDS {
            let socket = Socket::lease(&control, &row("tcp", 1)).await.expect("a lease");
            control.call(&ReleaseCall { lease: socket.leased.lease }).await.expect("a release");
        }
    });
    assert_eq!(service.stop(), Some(0));
    let log = service.log();
    let records = |event: &str| log.lines().filter(|line| line.contains(&format!("event={event} "))).count() as u64;
    assert_eq!(records("lease") + sum(&log, "summary", "leases"), ROUNDS);
    assert_eq!(records("end") + sum(&log, "summary", "ends"), ROUNDS);
    assert!(records("lease") < ROUNDS && records("summary") > 0, "{log}");
    assert!(log.lines().last().is_some_and(|line| line.contains("event=stop")), "{log}");
    service.restart();
}

#[test]
fn a_lease_closed_and_taken_again_at_once_does_not_count_twice() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    service.session(ONE, async |control| {
        // At max_leases and at max_ports: the service reads the call before it notices the closed lease, or after.
        for round in 0..200 {
            let socket = Socket::lease(&control, &row("udp", 4)).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
            drop(socket);
        }
        let _held = Socket::lease(&control, &row("udp", 4)).await.expect("a lease");
        let refused = Socket::lease(&control, &row("udp", 1)).await.unwrap_err();
        assert!(matches!(&refused, Error::Forbidden { verdict, .. } if verdict == "max-leases"), "{refused:?}");
    });
    // Others are served meanwhile.
    assert!(Raw::connect(&service.socket).call("Info", &serde_json::json!({}))["error"].is_null());
}

/// The ports of a row, and those of a lease in observe mode, are closed on another thread.
#[test]
fn ports_that_are_closed_or_released_can_be_leased_again_at_once() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let long = lease_call("udp", Some(20_000), Some(20_999));
    let observed = LeaseCall { observe: Some(true), ..lease_call("tcp", Some(21_000), None) };
    service.session(TWO, async |control| {
        for (round, call) in (0..40).flat_map(|round| [(round, &long), (round, &observed)]) {
            let socket = Socket::lease(&control, call).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
            if round % 2 == 0 {
                control.call(&ReleaseCall { lease: socket.leased.lease }).await.expect("a release");
            }
        }
        let deadline = Instant::now() + slow::allow(REPLY_TIMEOUT);
        loop {
            let own = control.call(&PolicyCall {}).await.expect("its policy");
            if (own.leases, own.ports) == (0, 0) {
                break;
            }
            assert!(Instant::now() < deadline, "{own:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// The service may read the packet of a new flow before it notices the end of the lease whose flow it replaces.
#[test]
fn flows_of_a_closed_lease_do_not_count() {
    const ROUNDS: u16 = 20;
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), "[[rule]]\nuser = 0\nmax_flows = 1\n");
    service.session(ROOT, async |control| {
        let send = |lease: &Socket, to: u16| {
            let from = (CLIENT_V4, lease.leased.first_port.expect("a port"));
            lease.send(&frame::udp_ip(from.into(), (SERVER_V4, to).into(), b"x")).expect("send");
        };
        let sent = async |count: u64| {
            let deadline = Instant::now() + slow::allow(REPLY_TIMEOUT);
            loop {
                let account = control.call(&AccountCall {}).await.expect("the counters");
                assert_eq!(account.refused, 0, "at {count}");
                if account.sent == count {
                    break;
                }
                assert!(Instant::now() < deadline, "{account:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let mut old = Socket::lease(&control, &row("udp", 1)).await.expect("a lease");
        send(&old, 1000);
        sent(1).await;
        for round in 1..=ROUNDS {
            let new = Socket::lease(&control, &row("udp", 1)).await.expect("a lease");
            service.signal(Signal::SIGSTOP);
            drop(old);
            send(&new, 1000 + round);
            service.signal(Signal::SIGCONT);
            sent(u64::from(round) + 1).await;
            old = new;
        }
        // It still is a limit.
        send(&old, 2000);
        let (code, _, sentence) = old.refusal();
        assert_eq!(code, Code::Policy, "{sentence}");
    });
}
