//! Clock steps in process: streams, exchanges, timestamps of captures.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, UdpSocket},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use crafter::{
    Error, LeaseRequest, Options, StreamOptions,
    capture::Reader,
    datapath::program::Attach,
    driver::Options as OpenOptions,
    engine::Impair,
    lab::{CLIENT_V4, INTERFACE, SERVER_V4},
    session::{Outcome, Pace, Session, SessionOptions, SrOptions},
};
use crafter_tests::{
    manual::{self, REPLY_TIMEOUT},
    packets,
    service::built,
    slow::allow,
    testbed::{self, ENDS, open},
    within,
};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::{Jumps, STEPS, begin, lab, monotonic, shift, silent, wall};

/// How long the clock stays at each step.
const PAUSE: Duration = Duration::from_millis(40);

/// Chunks of the download, and bytes of each.
const PIECES: usize = 200;
const PIECE: usize = 8192;

fn options(attach: Attach) -> SessionOptions {
    SessionOptions { open: OpenOptions { attach, ..Options::default() }, ..SessionOptions::default() }
}

/// Bytes that differ in every chunk.
fn piece(number: usize) -> Vec<u8> {
    (0..PIECE).map(|at| (at * 31 + number * 7 + (at >> 8)) as u8).collect()
}

/// A download of some seconds with packet loss, so that retransmission timers are used.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn download_survives_clock_steps() {
    let _serial = begin();
    let lab = lab();
    let listener = lab.server().run(|| TcpListener::bind((SERVER_V4, 0))).expect("the server").expect("a listener");
    let remote = listener.local_addr().expect("its address");
    let serving = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        let mut sum = Sha256::new();
        for number in 0..PIECES {
            let piece = piece(number);
            client.write_all(&piece).expect("send to the client");
            sum.update(&piece);
            std::thread::sleep(Duration::from_millis(10));
        }
        sum.finalize()
    });
    let jumps = Jumps::every(PAUSE);
    let (length, sum, took, stats) = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let hook = Impair { loss: 0.02, ..Impair::new(42) };
        // A timer based on CLOCK_REALTIME would count a year of silence.
        let options = StreamOptions {
            hook: Some(Box::new(hook)),
            idle_timeout: Some(allow(Duration::from_secs(20))),
            ..StreamOptions::default()
        };
        let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, options).await;
        let began = Instant::now();
        let (mut length, mut sum, mut buffer) = (0, Sha256::new(), vec![0; 1 << 16]);
        loop {
            let read = tokio::time::timeout(allow(Duration::from_secs(20)), stream.read(&mut buffer)).await;
            match read.expect("data in time").expect("an open stream") {
                0 => break,
                count => {
                    length += count;
                    sum.update(&buffer[..count]);
                }
            }
        }
        let took = began.elapsed();
        manual::close(&mut stream).await;
        (length, sum.finalize(), took, stream.stats())
    });
    let count = jumps.end();
    println!("{length} bytes in {took:?}, the clock set {count} times, {stats:?}");
    assert_eq!((length, sum), (PIECES * PIECE, serving.join().expect("the server")));
    assert!(count >= 20, "the clock was set {count} times");
    assert!(stats.hook_drops > 0, "{stats:?}");
    assert!(took < allow(Duration::from_secs(20)), "{took:?}");
}

/// Asserts that waiting took `expected`, plus at most the delay of a busy machine.
#[track_caller]
fn assert_took(what: &str, took: Duration, expected: Duration) {
    println!("{what}: {took:?} expected {expected:?}");
    let enough: RangeInclusive<Duration> = expected..=expected + allow(Duration::from_millis(500));
    assert!(enough.contains(&took), "{what}: {took:?} instead of {expected:?}");
}

#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn timeouts_ignore_clock_steps() {
    let _serial = begin();
    let lab = lab();
    let syn = format!(r#"IP(dst="{}")/TCP(dport=9, flags="S")"#, silent());
    let jumps = Jumps::every(PAUSE);
    within(lab.client(), async || {
        let session = Session::new(options(Attach::Auto));
        // Opens the interface first, so that its time is not measured.
        session.send(packets(&syn), Pace::default()).await.expect("sent");
        let (expected, began) = (Duration::from_millis(1500), Instant::now());
        let wait = SrOptions { timeout: expected, ..SrOptions::default() };
        assert!(session.sr1(packets(&syn).remove(0), &wait).await.expect("sent").is_none());
        assert_took("sr1", began.elapsed(), expected);

        let (expected, began) = (Duration::from_millis(400), Instant::now());
        let wait = SrOptions { timeout: expected, retry: 2, ..SrOptions::default() };
        let exchanged = session.sr(packets(&syn), &wait).await.expect("sent");
        assert_eq!((exchanged.unanswered.len(), exchanged.account.sent), (1, 3), "{}", exchanged.account);
        assert_took("sent three times", began.elapsed(), expected * 3);

        // 26 packets at 50 per second: 25 intervals.
        let (expected, began) = (Duration::from_millis(500), Instant::now());
        session.send(packets(&syn.replace("dport=9", "dport=(1,26)")), Pace { rate: Some(50.0) }).await.expect("sent");
        assert_took("paced", began.elapsed(), expected * 9 / 10);
        session.close().await;

        let crafter = open(Attach::Auto).await;
        let lease = crafter.lease(LeaseRequest::udp()).await.expect("a lease");
        let (expected, began) = (Duration::from_millis(700), Instant::now());
        assert!(lease.recv_timeout(expected).await.expect("the lease").is_none());
        assert_took("recv", began.elapsed(), expected);

        let (expected, began) = (Duration::from_millis(1200), Instant::now());
        let connect = StreamOptions { connect_timeout: Some(expected), ..StreamOptions::default() };
        let lease = crafter.lease(LeaseRequest::tcp()).await.expect("a lease");
        let error = lease.connect(SocketAddr::new(silent(), 80), connect).await.map(drop).expect_err("no host answers");
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        assert_took("connect", began.elapsed(), expected);
    });
    // The command line: four echo requests at their interval.
    let began = Instant::now();
    let server = SERVER_V4.to_string();
    let mut ping = lab.client().command(built());
    ping.args(["ping", "--direct", "-c", "4", "--interval", "0.2", "--wait", "5", "--json", &server]);
    let text = testbed::run(&mut ping);
    let report: serde_json::Value = serde_json::from_str(text.lines().last().expect("a summary")).expect("JSON");
    let took = began.elapsed();
    let longest = report["rtt_ns"]["max"].as_u64().expect("a time");
    println!("ping: {took:?}, {}", report["rtt_ns"]);
    assert_eq!(report["received"], 4, "{report}");
    assert!(longest > 0 && Duration::from_nanos(longest) <= took, "{report}");
    assert!(took >= Duration::from_millis(600) && took < allow(Duration::from_secs(5)), "{took:?}");
    let count = jumps.end();
    assert!(count >= 20, "the clock was set {count} times");
}

/// Steps the clock between a request and its answer. Round-trip times are not affected; timestamps are those of the
/// wall clock when the packet was sent or received, also in capture files.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn round_trip_times_and_wall_clock_timestamps_are_correct() {
    let _serial = begin();
    let lab = lab();
    let server = SERVER_V4;
    // Received through AF_XDP, through the ring buffer, and through the tap, which uses timestamps of the kernel.
    let receivers = [
        (Attach::Native, format!(r#"IP(dst="{server}")/TCP(dport=9, flags="S")"#)),
        (Attach::Tc, format!(r#"IP(dst="{server}")/TCP(dport=9, flags="S")"#)),
        (Attach::Auto, format!(r#"ARP(pdst="{server}")"#)),
    ];
    for (attach, text) in receivers {
        within(lab.client(), async || {
            let session = Session::new(options(attach));
            for step in STEPS {
                let mut at = None;
                let mut observer = |event: &crafter::session::Event<'_>| {
                    if matches!(event.outcome, Outcome::Sent { .. }) {
                        let before = wall();
                        shift(step);
                        at = Some((before, wall(), Instant::now()));
                    }
                };
                let began = wall();
                let options = SrOptions { timeout: REPLY_TIMEOUT, ..SrOptions::default() };
                let exchanged = session.sr_with(packets(&text), &options, &mut observer).await.expect("an exchange");
                let (ended, (before, after, moment)) = (wall(), at.expect("it was sent"));
                let pair = exchanged.answered.first().unwrap_or_else(|| panic!("{text}: {}", exchanged.account));
                let (rtt, most) = (pair.rtt, moment.elapsed() + Duration::from_secs(1));
                assert!(rtt > Duration::ZERO && rtt <= most, "{attach:?} {text}, {step} s: {rtt:?} of {most:?}");
                assert!((began..=before).contains(&pair.sent), "{text}, {step} s: sent at {:?}", pair.sent);
                let received = pair.reply.time;
                assert!(
                    (after..=ended).contains(&received),
                    "{text}, {step} s: received at {received:?}, not within {after:?} to {ended:?}"
                );
                shift(-step);
            }
            session.close().await;
        });
    }
    let directory = tempfile::tempdir().expect("a directory");
    for (name, step) in [("day.pcapng", STEPS[0]), ("year.pcap", STEPS[2]), ("back.pcapng", STEPS[1])] {
        let path = directory.path().join(name);
        shift(step);
        let began = wall();
        let mut command = lab.client().command(built());
        command.args([
            "sr",
            "--direct",
            "--json",
            &format!(r#"IP(dst="{server}")/TCP(dport=[9,10], flags="S")"#),
            "-w",
        ]);
        testbed::run(command.arg(&path));
        let ended = wall();
        shift(-step);
        let times: Vec<Duration> = Reader::open(&path)
            .expect("a capture")
            .map(|captured| captured.expect("a packet").time.expect("a time"))
            .collect();
        assert_eq!(times.len(), 4, "two requests, two answers: {times:?}");
        // pcap timestamps have a resolution of microseconds.
        let began = began - Duration::from_micros(1);
        assert!(times.iter().all(|time| (began..=ended).contains(time)), "{step} s: {times:?}, {began:?} to {ended:?}");
    }
}

/// The kernel half's timestamps of packets and flows are CLOCK_MONOTONIC.
#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test --program clock`"]
fn kernel_half_timestamps_are_monotonic() {
    let _serial = begin();
    let lab = lab();
    // Records of the ring buffer have timestamps; AF_XDP frames do not.
    within(lab.client(), async || {
        let crafter = open(Attach::Tc).await;
        let lease = crafter.lease(LeaseRequest::udp()).await.expect("a lease");
        let from = lab.server().run(|| UdpSocket::bind((ENDS[0].1, 0))).expect("the server").expect("a socket");
        let began = monotonic();
        let mut stamps = Vec::new();
        for step in STEPS {
            for step in [step, -step] {
                shift(step);
                let before = monotonic();
                from.send_to(b"datagram", (CLIENT_V4, lease.port())).expect("send");
                let received = lease.recv_timeout(REPLY_TIMEOUT).await.expect("the lease").expect("the datagram");
                let stamp = received.timestamp_ns.expect("a timestamp");
                assert!(
                    (before..=monotonic()).contains(&stamp),
                    "{step} s: timestamp {stamp}, not within {before} to {}",
                    monotonic()
                );
                stamps.push(stamp);
            }
        }
        assert!(stamps.is_sorted(), "{stamps:?}");
        let flows = crafter.flows();
        let flow = flows.iter().find(|flow| flow.local.port() == lease.port()).expect("the flow");
        assert!((began..=stamps[1]).contains(&flow.first_seen_ns), "{flow:?}: {stamps:?}");
        let last = stamps[stamps.len() - 2]..=monotonic();
        assert!(last.contains(&flow.last_seen_ns), "{flow:?}: {stamps:?}");
        println!("{} timestamps in {} ms, {INTERFACE}", stamps.len(), (monotonic() - began) / 1_000_000);
    });
}
