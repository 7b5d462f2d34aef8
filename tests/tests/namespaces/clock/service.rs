//! Clock steps and the service: age of leases, rate limits, idle timeout, timestamps of relayed packets.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Stdio,
    time::{Duration, Instant},
};

use crafter::{
    lab::{CLIENT_V4, INTERFACE, SERVER_V4},
    protocol::wire::{InfoCall, LeaseCall, ListLeasesCall, ObserveCall},
};
use crafter_tests::{
    frame::udp_ip,
    peer::Process,
    service::{Credentials, REPLY_TIMEOUT, ROOT, Service, Socket, lease_call},
    slow::allow,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Jumps, STEPS, begin, lab, monotonic, shift, silent, wall};

const POLICY: &str = r#"
[[rule]]
user = 0
protocols = ["any"]
observe = true
packets_per_second = "unlimited"

[[rule]]
user = 71001
packets_per_second = 100
burst = 20
"#;

/// Packets per second and burst of the policy.
const RATE: f64 = 100.0;
const BURST: f64 = 20.0;

fn udp() -> LeaseCall {
    lease_call("udp", None, None)
}

/// Time since `then`, which is in microseconds since 1970.
fn age(then: u64) -> Duration {
    wall().saturating_sub(Duration::from_micros(then))
}

/// Under every clock step the lease stays active, its reported age is correct, its process is identified, and it
/// carries packets in both directions.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn leases_and_their_ages_survive_clock_steps() {
    let _serial = begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let began = Instant::now();
    let echo = lab.server().run(|| UdpSocket::bind((SERVER_V4, 0))).expect("the server").expect("a socket");
    echo.set_read_timeout(Some(REPLY_TIMEOUT)).expect("a timeout");
    let far = echo.local_addr().expect("its address");
    service.session(ROOT, async |control| {
        let lease = Socket::lease(&control, &udp()).await.expect("a lease");
        let near = SocketAddr::new(CLIENT_V4.into(), lease.leased.first_port.expect("a port"));
        let mut reported = Vec::new();
        for step in STEPS {
            for (at, step) in [step, -step].into_iter().enumerate() {
                shift(step);
                let leases = control.call(&ListLeasesCall::default()).await.expect("the leases").leases;
                let [listed] = &leases[..] else { panic!("{step} s: {leases:?}") };
                let info = control.call(&InfoCall {}).await.expect("the service");
                let most = began.elapsed() + Duration::from_secs(2);
                for (what, then) in [("lease", listed.began), ("service", info.started)] {
                    let age = age(then);
                    assert!(age > Duration::ZERO && age < most, "{what}, {step} s: age {age:?}, at most {most:?}");
                }
                reported.push((at, listed.began));
                let name: Value = serde_json::from_str(&service.succeed(ROOT, &["leases", "--json"])).expect("JSON");
                assert!(name["leases"][0]["process"].is_string(), "{step} s: {name}");
                lease.send(&udp_ip(near, far, b"to")).expect("send");
                let (_, from) = echo.recv_from(&mut [0; 16]).expect("what was sent");
                assert_eq!(from, near);
                echo.send_to(b"fro", near).expect("send");
                let reply = lease.receive(REPLY_TIMEOUT).expect("the lease").expect("the answer");
                assert!(reply.packet().is_some_and(|packet| packet.ends_with(b"fro")), "{step} s: {reply:?}");
            }
        }
        // With the correct clock the reported start is the same, except for the time that the steps take.
        let right: Vec<u64> = reported.iter().filter(|(at, _)| *at == 1).map(|(_, began)| *began).collect();
        assert!(right.iter().all(|began| began.abs_diff(right[0]) < 1_000_000), "{right:?}");
    });
}

/// A step forward must not fill the token bucket, a step back must not keep it empty.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn rate_limit_ignores_clock_steps() {
    let _serial = begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let jumps = Jumps::every(Duration::from_millis(30));
    let (attempted, sent, refused, took) =
        service.session(Credentials { user: 71_001, group: 71_001 }, async |control| {
            let lease = Socket::lease(&control, &udp()).await.expect("a lease");
            let near = SocketAddr::new(CLIENT_V4.into(), lease.leased.first_port.expect("a port"));
            let (began, mut attempted) = (Instant::now(), 0_u16);
            while began.elapsed() < Duration::from_secs(3) {
                lease.send(&udp_ip(near, SocketAddr::new(silent(), 1000 + attempted % 64), b"often")).expect("send");
                attempted += 1;
                // At least twice the permitted rate, on an emulated CPU too.
                std::thread::sleep(Duration::from_millis(2));
            }
            let deadline = Instant::now() + allow(REPLY_TIMEOUT);
            let listed = loop {
                while lease.receive(Duration::from_millis(1)).expect("the lease").is_some() {}
                let listed = control.call(&ListLeasesCall::default()).await.expect("the leases").leases.remove(0);
                if listed.sent + listed.refused + listed.not_sent == u64::from(attempted) {
                    break listed;
                }
                assert!(Instant::now() < deadline, "{listed:?} does not add up to {attempted}");
            };
            assert_eq!(listed.not_sent, 0, "{listed:?}");
            (attempted, listed.sent, listed.refused, began.elapsed())
        });
    let count = jumps.end();
    println!("{attempted} packets, {sent} sent, {refused} refused in {took:?}, the clock set {count} times");
    let (most, least) = (took.as_secs_f64() * RATE + BURST, 3.0 * RATE * 0.6);
    assert!((least..=most + 1.0).contains(&(sent as f64)), "{sent} packets sent, expected between {least} and {most}");
    assert!(refused > 0 && count >= 20, "{refused} refused, the clock set {count} times");
}

#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn idle_timeout_ignores_clock_steps() {
    const IDLE: Duration = Duration::from_secs(2);
    let _serial = begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let jumps = Jumps::every(Duration::from_millis(40));
    let mut command = lab.client().command(&service.binary);
    command.args(["serve", "--idle", &IDLE.as_secs().to_string(), "--socket"]).arg(&service.socket);
    let mut process = Process::start(command.arg("--policy").arg(&service.policy).stdout(Stdio::null()));
    service.wait_for_socket();
    // A client is connected for longer than the idle timeout.
    service.session(ROOT, async |control| {
        let lease = Socket::lease(&control, &udp()).await.expect("a lease");
        tokio::time::sleep(IDLE + Duration::from_millis(500)).await;
        assert!(control.call(&ListLeasesCall::default()).await.expect("the leases").leases.len() == 1);
        drop(lease);
    });
    let began = Instant::now();
    let status = process.wait_for_exit(REPLY_TIMEOUT);
    let took = began.elapsed();
    println!("exited {took:?} after the last client: {status}, the clock set {} times", jumps.end());
    assert!(status.success());
    let enough = IDLE - Duration::from_millis(100)..=IDLE + allow(Duration::from_secs(1));
    assert!(enough.contains(&took), "{took:?} instead of {IDLE:?}");
}

/// Relayed replies and observed packets have monotonic timestamps in order, also if the clock steps between the arrival
/// of a packet and the time at which the service reads it.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn record_timestamps_are_monotonic() {
    let _serial = begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let from = lab.server().run(|| UdpSocket::bind((SERVER_V4, 0))).expect("the server").expect("a socket");
    let began = monotonic();
    let (mut replies, mut observed) = (Vec::new(), Vec::new());
    service.session(ROOT, async |control| {
        let lease = Socket::lease(&control, &udp()).await.expect("a lease");
        let to = SocketAddr::new(CLIENT_V4.into(), lease.leased.first_port.expect("a port"));
        // Not the leased port: its packets are delivered to the lease and never reach the observer.
        let filter = Some("udp dst port 7777".to_owned());
        let call = ObserveCall { interface: INTERFACE.to_owned(), filter, direction: Some("in".to_owned()) };
        let (_, mut descriptors) = control.call_for_descriptors(&call).await.expect("observe");
        let watch = Socket { leased: Default::default(), fd: descriptors.remove(0) };
        for step in STEPS {
            for step in [step, -step] {
                // Stopped, so that it reads the packets after the step.
                service.signal(Signal::SIGSTOP);
                let before = monotonic();
                from.send_to(b"to the lease", to).expect("send");
                from.send_to(b"to the observer", (CLIENT_V4, 7777)).expect("send");
                std::thread::sleep(Duration::from_millis(20));
                shift(step);
                service.signal(Signal::SIGCONT);
                for (socket, times) in [(&lease, &mut replies), (&watch, &mut observed)] {
                    let message = socket.receive(REPLY_TIMEOUT).expect("the socket").expect("the datagram");
                    assert!(message.packet().is_some(), "{message:?}");
                    let time = message.header.time_ns;
                    assert!(
                        (before..=monotonic()).contains(&time),
                        "{step} s: timestamp {time}, not within {before} to {}",
                        monotonic()
                    );
                    times.push(time);
                }
            }
        }
        // The same with steps at arbitrary moments, from another thread.
        let jumps = Jumps::every(Duration::from_millis(2));
        for _ in 0..200 {
            from.send_to(b"to the lease", to).expect("send");
            from.send_to(b"to the observer", (CLIENT_V4, 7777)).expect("send");
            for (socket, times) in [(&lease, &mut replies), (&watch, &mut observed)] {
                let message = socket.receive(REPLY_TIMEOUT).expect("the socket").expect("the datagram");
                times.push(message.header.time_ns);
            }
        }
        println!("the clock set {} times", jumps.end());
    });
    let ended = monotonic();
    for (what, times) in [("replies", replies), ("observed", observed)] {
        assert!(times.is_sorted(), "{what}: {times:?}");
        assert!(
            times.iter().all(|time| (began..=ended).contains(time)),
            "{what}: {times:?}, not within {began} to {ended}"
        );
        println!("{what}: {} in order, in {} ms", times.len(), (ended - began) / 1_000_000);
    }
}
