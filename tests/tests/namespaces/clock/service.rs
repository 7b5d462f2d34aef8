//! The service: how old its leases are, what its policy gives, when it was idle for long enough, what it relays.

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
    peer::{Process, wait_for},
    service::{PATIENCE, ROOT, Service, Socket, Who},
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

/// Of the policy.
const RATE: f64 = 100.0;
const BURST: f64 = 20.0;

fn udp() -> LeaseCall {
    LeaseCall { interface: Some(INTERFACE.to_owned()), protocol: "udp".to_owned(), ..LeaseCall::default() }
}

/// How long ago that was, in microseconds since 1970.
fn age(then: u64) -> Duration {
    wall().saturating_sub(Duration::from_micros(then))
}

/// Wherever the clock goes, a lease lives, is as old as it is, is of a process that is known by name, and carries
/// packets both ways.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn leases_live_and_are_as_old_as_they_are() {
    let _serial = begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let began = Instant::now();
    let echo = lab.server().run(|| UdpSocket::bind((SERVER_V4, 0))).expect("the server").expect("a socket");
    echo.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let far = echo.local_addr().expect("its address");
    service.session(ROOT, async |control| {
        let lease = Socket::lease(&control, &udp()).await.expect("a lease");
        let near = SocketAddr::new(CLIENT_V4.into(), lease.leased.first_port.expect("a port"));
        let mut told = Vec::new();
        for step in STEPS {
            for (at, step) in [step, -step].into_iter().enumerate() {
                shift(step);
                let leases = control.call(&ListLeasesCall::default()).await.expect("the leases").leases;
                let [listed] = &leases[..] else { panic!("{step} s: {leases:?}") };
                let info = control.call(&InfoCall {}).await.expect("the service");
                let most = began.elapsed() + Duration::from_secs(2);
                for (what, then) in [("lease", listed.began), ("service", info.started)] {
                    let age = age(then);
                    assert!(age > Duration::ZERO && age < most, "{what}, {step} s: {age:?} of {most:?}");
                }
                told.push((at, listed.began));
                let name: Value = serde_json::from_str(&service.succeed(ROOT, &["leases", "--json"])).expect("JSON");
                assert!(name[0]["process"].is_string(), "{step} s: {name}");
                lease.send(&udp_ip(near, far, b"to")).expect("send");
                let (_, from) = echo.recv_from(&mut [0; 16]).expect("what was sent");
                assert_eq!(from, near);
                echo.send_to(b"fro", near).expect("send");
                let came = lease.receive(PATIENCE).expect("the lease").expect("the answer");
                assert!(came.packet().is_some_and(|packet| packet.ends_with(b"fro")), "{step} s: {came:?}");
            }
        }
        // Where the clock is right, it is told as before, but for what setting the clock has cost.
        let right: Vec<u64> = told.iter().filter(|(at, _)| *at == 1).map(|(_, began)| *began).collect();
        assert!(right.iter().all(|began| began.abs_diff(right[0]) < 1_000_000), "{right:?}");
    });
}

/// A clock that is set forward fills no bucket, and one that is set back does not keep it empty.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn the_policy_gives_so_many_packets_a_second() {
    let _serial = begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let jumps = Jumps::every(Duration::from_millis(30));
    let (asked, sent, refused, took) = service.session(Who { user: 71_001, group: 71_001 }, async |control| {
        let lease = Socket::lease(&control, &udp()).await.expect("a lease");
        let near = SocketAddr::new(CLIENT_V4.into(), lease.leased.first_port.expect("a port"));
        let (began, mut asked) = (Instant::now(), 0_u16);
        while began.elapsed() < Duration::from_secs(3) {
            lease.send(&udp_ip(near, SocketAddr::new(silent(), 1000 + asked % 64), b"often")).expect("send");
            asked += 1;
            // Twice and more of what may leave, on an emulated processor too.
            std::thread::sleep(Duration::from_millis(2));
        }
        let deadline = Instant::now() + allow(PATIENCE);
        let listed = loop {
            while lease.receive(Duration::from_millis(1)).expect("the lease").is_some() {}
            let listed = control.call(&ListLeasesCall::default()).await.expect("the leases").leases.remove(0);
            if listed.sent + listed.refused + listed.not_sent == u64::from(asked) {
                break listed;
            }
            assert!(Instant::now() < deadline, "{listed:?} of {asked}");
        };
        assert_eq!(listed.not_sent, 0, "{listed:?}");
        (asked, listed.sent, listed.refused, began.elapsed())
    });
    let count = jumps.end();
    println!("{asked} packets, {sent} sent, {refused} refused in {took:?}, the clock set {count} times");
    let (most, least) = (took.as_secs_f64() * RATE + BURST, 3.0 * RATE * 0.6);
    assert!((least..=most + 1.0).contains(&(sent as f64)), "{sent} sent, between {least} and {most} may be");
    assert!(refused > 0 && count >= 20, "{refused} refused, the clock set {count} times");
}

#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn it_ends_when_it_was_idle_for_long_enough() {
    const IDLE: Duration = Duration::from_secs(2);
    let _serial = begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let jumps = Jumps::every(Duration::from_millis(40));
    let mut command = lab.client().command(&service.binary);
    command.args(["serve", "--idle", &IDLE.as_secs().to_string(), "--socket"]).arg(&service.socket);
    let mut process = Process::start(command.arg("--policy").arg(&service.policy).stdout(Stdio::null()));
    wait_for("its socket", PATIENCE, || std::os::unix::net::UnixStream::connect(&service.socket).ok());
    // Somebody is connected, for longer than it may be idle.
    service.session(ROOT, async |control| {
        let lease = Socket::lease(&control, &udp()).await.expect("a lease");
        tokio::time::sleep(IDLE + Duration::from_millis(500)).await;
        assert!(control.call(&ListLeasesCall::default()).await.expect("the leases").leases.len() == 1);
        drop(lease);
    });
    let began = Instant::now();
    let status = wait_for("its end", PATIENCE, || process.0.try_wait().expect("its state"));
    let took = began.elapsed();
    println!("idle for {took:?}: {status}, the clock set {} times", jumps.end());
    assert!(status.success());
    let enough = IDLE - Duration::from_millis(100)..=IDLE + allow(Duration::from_secs(1));
    assert!(enough.contains(&took), "{took:?} instead of {IDLE:?}");
}

/// What is relayed, replies and what was only looked on at, bears the monotonic clock, in its order, also where the
/// clock was set between the packet and the look at it.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn records_are_in_order() {
    let _serial = begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let from = lab.server().run(|| UdpSocket::bind((SERVER_V4, 0))).expect("the server").expect("a socket");
    let began = monotonic();
    let (mut replies, mut seen) = (Vec::new(), Vec::new());
    service.session(ROOT, async |control| {
        let lease = Socket::lease(&control, &udp()).await.expect("a lease");
        let to = SocketAddr::new(CLIENT_V4.into(), lease.leased.first_port.expect("a port"));
        // Not that port: what comes to it is no longer there to be looked on at.
        let filter = Some("udp dst port 7777".to_owned());
        let call = ObserveCall { interface: INTERFACE.to_owned(), filter, direction: Some("in".to_owned()) };
        let (_, mut descriptors) = control.call_for_descriptors(&call).await.expect("observe");
        let watch = Socket { leased: Default::default(), fd: descriptors.remove(0) };
        for step in STEPS {
            for step in [step, -step] {
                // It looks only when it goes on.
                service.signal(Signal::SIGSTOP);
                let before = monotonic();
                from.send_to(b"to the lease", to).expect("send");
                from.send_to(b"to be seen", (CLIENT_V4, 7777)).expect("send");
                std::thread::sleep(Duration::from_millis(20));
                shift(step);
                service.signal(Signal::SIGCONT);
                for (socket, times) in [(&lease, &mut replies), (&watch, &mut seen)] {
                    let came = socket.receive(PATIENCE).expect("the socket").expect("the datagram");
                    assert!(came.packet().is_some(), "{came:?}");
                    let time = came.header.time_ns;
                    assert!((before..=monotonic()).contains(&time), "{step} s: {time} of {before} to {}", monotonic());
                    times.push(time);
                }
            }
        }
        // And from another thread at any moment.
        let jumps = Jumps::every(Duration::from_millis(2));
        for _ in 0..200 {
            from.send_to(b"to the lease", to).expect("send");
            from.send_to(b"to be seen", (CLIENT_V4, 7777)).expect("send");
            for (socket, times) in [(&lease, &mut replies), (&watch, &mut seen)] {
                let came = socket.receive(PATIENCE).expect("the socket").expect("the datagram");
                times.push(came.header.time_ns);
            }
        }
        println!("the clock set {} times", jumps.end());
    });
    let ended = monotonic();
    for (what, times) in [("replies", replies), ("seen", seen)] {
        assert!(times.is_sorted(), "{what}: {times:?}");
        assert!(times.iter().all(|time| (began..=ended).contains(time)), "{what}: {times:?} of {began} to {ended}");
        println!("{what}: {} in order, in {} ms", times.len(), (ended - began) / 1_000_000);
    }
}
