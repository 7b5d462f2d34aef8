use std::net::Ipv4Addr;

use super::*;
use crate::{
    layer::{Ip, Kind, Tcp, Udp},
    session::Outcome,
};
use crafter_common::reason::Reason;

const HERE: [u8; 4] = [192, 0, 2, 1];
const THERE: [u8; 4] = [192, 0, 2, 2];

fn back() -> Ip {
    Ip::to(Ipv4Addr::from(HERE)).src(Ipv4Addr::from(THERE))
}

/// A ping on a virtual clock; keeps what it sends.
struct Stage {
    ping: Ping,
    start: Instant,
    now: Instant,
    sent: Vec<(Duration, Packet)>,
    unanswered: Vec<Packet>,
    done: bool,
}

impl Stage {
    fn new(change: impl FnOnce(&mut PingOptions)) -> Self {
        let mut options = PingOptions::new(IpAddr::from(THERE));
        change(&mut options);
        let now = Instant::now();
        let ping = Ping::new(options).unwrap();
        Self { ping, start: now, now, sent: Vec::new(), unanswered: Vec::new(), done: false }
    }

    /// Runs until this many milliseconds after the start.
    fn run(&mut self, millis: u64) {
        let end = self.start + Duration::from_millis(millis);
        loop {
            match self.ping.next(self.now) {
                Step::Send(packet) => {
                    let bytes = packet.build().unwrap();
                    self.sent.push((self.now - self.start, Packet::from_ip(&bytes)));
                    let request = self.sent.len() + self.unanswered.len() - 1;
                    self.event(&bytes, Outcome::Sent { request, attempt: 0 });
                }
                Step::SendUnanswered(packet) => self.unanswered.push(packet),
                Step::Wait(until) if until > end => break,
                Step::Wait(until) => {
                    assert!(until > self.now, "it waits for a time in the past");
                    self.now = until;
                }
                Step::Done => {
                    self.done = true;
                    return;
                }
            }
        }
        self.now = end;
    }

    fn event(&mut self, bytes: &[u8], outcome: Outcome) {
        let event = Event {
            time: Duration::ZERO,
            interface: "x",
            first: Kind::of_ip(bytes),
            bytes,
            request: None,
            reply: None,
            outcome,
        };
        self.ping.handle(&event, self.now);
    }

    /// Replies to a request after a millisecond.
    fn answer(&mut self, request: usize, packet: Packet) {
        let rtt = Duration::from_millis(1);
        self.event(&packet.build().unwrap(), Outcome::Matched { request, reason: Reason::Redirected, rtt });
    }

    fn echo(&self, at: usize) -> Packet {
        let request = &self.sent[at].1;
        let load = request.get::<Raw>().unwrap().clone();
        let seq = request.get::<Icmp>().unwrap().seq.unwrap();
        back() / Icmp::echo(7, seq).r#type(0) / load
    }

    fn outcomes(&mut self) -> Vec<PingOutcome> {
        std::iter::from_fn(|| self.ping.poll_outcome()).collect()
    }
}

#[test]
fn probes_keep_the_interval_and_late_replies_are_reported() {
    let mut stage = Stage::new(|options| options.count = Some(4));
    stage.run(2500);
    assert_eq!(stage.sent.iter().map(|(at, _)| at.as_millis()).collect::<Vec<_>>(), [0, 1000, 2000]);
    let seqs: Vec<_> = stage.sent.iter().map(|(_, packet)| packet.get::<Icmp>().unwrap().seq.unwrap()).collect();
    assert_eq!(seqs, [1, 2, 3]);
    // The first times out after 2 s; the second is answered while the third is in flight.
    assert_eq!(stage.outcomes(), [PingOutcome { number: 1, outcome: ProbeOutcome::Lost }]);
    assert_eq!(stage.ping.oldest(), 1);
    stage.answer(1, stage.echo(1));
    let late = stage.echo(0).build().unwrap();
    stage.event(&late, Outcome::Unmatched { reason: Reason::Redirected });
    let outcomes = stage.outcomes();
    assert!(matches!(
        outcomes[0],
        PingOutcome { number: 2, outcome: ProbeOutcome::Reply { bytes: 64, corrupt: None, .. } }
    ));
    assert_eq!(outcomes[1..], [PingOutcome { number: 1, outcome: ProbeOutcome::Late }]);
    stage.run(10_000);
    assert!(stage.done);
    assert_eq!((stage.now - stage.start).as_millis(), 5000, "2 s after the last");
    let summary = stage.ping.summary();
    assert_eq!((summary.sent, summary.received, summary.late, summary.loss()), (4, 1, 1, 0.75));
    assert_eq!(summary.times(), Some([0.001, 0.001, 0.001, 0.0]));
}

#[test]
fn ping_ends_when_all_probes_are_answered() {
    let mut stage = Stage::new(|options| (options.count, options.interval) = (Some(2), Duration::from_millis(1)));
    stage.run(5);
    for at in 0..2 {
        stage.answer(at, stage.echo(at));
    }
    stage.run(5);
    assert!(stage.done);
    assert_eq!(stage.ping.summary().received, 2);
}

#[test]
fn corrupt_payloads_and_duplicates_are_reported() {
    let mut stage = Stage::new(|options| (options.count, options.size) = (Some(1), 20));
    stage.run(0);
    let mut damaged = stage.echo(0);
    damaged.get_mut::<Raw>().unwrap().load.as_mut().unwrap()[13] ^= 1;
    let mut short = stage.echo(0);
    short.get_mut::<Raw>().unwrap().load.as_mut().unwrap().truncate(9);
    for packet in [damaged, short, stage.echo(0)] {
        stage.answer(0, packet);
    }
    let reported: Vec<_> = stage
        .outcomes()
        .into_iter()
        .map(|outcome| match outcome.outcome {
            ProbeOutcome::Reply { corrupt, duplicate, .. } => (corrupt, duplicate),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reported, [(Some(13), false), (Some(9), true), (None, true)]);
    let summary = stage.ping.summary();
    assert_eq!((summary.received, summary.duplicates, summary.corrupt), (1, 2, 2));
}

#[test]
fn icmp_errors_count_as_replies_only_from_the_destination() {
    let mut stage = Stage::new(|options| (options.count, options.method) = (Some(2), Method::Udp(7)));
    assert!(stage.ping.fresh_ports());
    stage.run(1000);
    let error = |from: [u8; 4], code: u8, request: &Packet| {
        Ip::to(Ipv4Addr::from(HERE)).src(Ipv4Addr::from(from)) / Icmp::new().r#type(3).code(code) / request.clone()
    };
    stage.answer(0, error([203, 0, 113, 1], 1, &stage.sent[0].1));
    stage.answer(1, error(THERE, 3, &stage.sent[1].1));
    stage.run(1000);
    assert!(stage.done);
    let summary = stage.ping.summary();
    assert_eq!((summary.sent, summary.received, summary.errors, summary.unreachable), (2, 1, 1, 1));
    // A reply after an error counts.
    let mut stage = Stage::new(|options| (options.count, options.method) = (Some(1), Method::Udp(7)));
    stage.run(0);
    stage.answer(0, error([203, 0, 113, 1], 1, &stage.sent[0].1));
    stage.answer(0, back() / Udp::to(5000).sport(7));
    assert_eq!((stage.ping.summary().received, stage.ping.summary().duplicates), (1, 0));
}

#[test]
fn syn_ack_is_reset() {
    let mut stage = Stage::new(|options| (options.count, options.method) = (Some(2), Method::Tcp(80)));
    stage.run(0);
    let seq = stage.sent[0].1.get::<Tcp>().unwrap().seq.unwrap();
    let ack = seq.wrapping_add(1);
    stage.answer(0, back() / Tcp::to(5000).sport(80).flags("SA").seq(99_u32).ack(ack));
    stage.run(500);
    let reset = stage.unanswered[0].get::<Tcp>().unwrap();
    assert_eq!((reset.sport, reset.dport, reset.seq), (Some(5000), Some(80), Some(ack)));
    assert_eq!(stage.unanswered[0].get::<Ip>().unwrap().dst, Some(THERE.into()));
    // A RST counts as a reply; steps without a probe are numbered too.
    stage.run(1000);
    stage.answer(2, back() / Tcp::to(5001).sport(80).flags("RA").ack(1_u32));
    stage.run(1000);
    assert!(stage.done && stage.unanswered.len() == 1);
    assert_eq!(stage.ping.summary().received, 2);
}

#[test]
fn more_probes_in_flight_than_can_be_matched_are_rejected() {
    let slow = |interval: u64, method, count| {
        let interval = Duration::from_micros(interval);
        Ping::new(PingOptions { interval, method, count, ..PingOptions::new(THERE.into()) }).map(drop)
    };
    assert!(slow(1000, Method::Icmp, None).is_ok());
    let error = slow(10, Method::Icmp, None).unwrap_err().to_string();
    assert!(error.starts_with("interval: 200000 probes would be in flight"), "{error}");
    assert!(slow(10, Method::Icmp, Some(1000)).is_ok());
    assert!(slow(1000, Method::Tcp(80), None).is_err());
}
