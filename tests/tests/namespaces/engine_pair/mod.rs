//! Two stream engines joined by a faulty wire on a virtual clock: thousands of seeded conversations, each of which ends
//! byte-exact or with the correct error. Nothing is opened, and no real time passes.
//!
//! `CRAFTER_TEST_RUNS` sets the number of runs; `CRAFTER_TEST_SEED` runs a single seed and prints its packets.

mod end;
mod random;
mod wire;

use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use crafter::{
    engine::{AckPolicy, Error, StreamConfig, StreamEngine, StreamState},
    packet::Flags,
};
use crafter_packet::testing::Segment;
use crafter_tests::leak::Parallel;

use end::{End, Ending};
use random::Random;
use wire::{Faults, PacketCounts, Wire};

/// Number of runs, unless `CRAFTER_TEST_RUNS` is set.
const RUNS: u64 = 1000;
/// Upper bound of the duration of a conversation, on the virtual clock.
const LONGEST: Duration = Duration::from_secs(12 * 3600);
/// Limits of steps per run, and of steps at one instant.
const STEPS: u64 = 3_000_000;
const STEPS_AT_ONCE: u64 = 2000;
/// Idle timeout and retransmission timeout of both ends.
const IDLE: Duration = Duration::from_secs(300);
const RETRANSMISSION: Duration = Duration::from_secs(60);

/// Totals of all runs.
#[derive(Debug, Default)]
struct Sum {
    runs: u64,
    clean: u64,
    aborted: u64,
    simultaneous: u64,
    both_closed: u64,
    timed_out: u64,
    bytes: u64,
    packets: PacketCounts,
}

struct Pair {
    start: Instant,
    now: Instant,
    ends: [End; 2],
    /// When each end opens its connection.
    begins: [Instant; 2],
    wire: Wire,
    /// Whether the host answers segments of an ended connection with a RST.
    resets: bool,
    crossed: bool,
    kind: Kind,
}

/// The conditions of a run, which determine the permitted outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No fault: it must complete.
    Fair,
    /// A faulty network.
    Faulty,
    /// One end aborts.
    Abort,
    /// The wire is cut permanently.
    Cut,
}

fn bytes(rng: &mut Random, length: usize) -> Vec<u8> {
    (0..length.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes()).take(length).collect()
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut rng = Random::new(seed);
        let start = Instant::now();
        let kind = match rng.below(100) {
            0..10 => Kind::Fair,
            10..75 => Kind::Faulty,
            75..95 => Kind::Abort,
            _ => Kind::Cut,
        };
        let v6 = rng.chance(0.5);
        let addresses: [SocketAddr; 2] = if v6 {
            ["[2001:db8::1]:49152", "[2001:db8::2]:50000"].map(|end| end.parse().expect("an address"))
        } else {
            ["192.0.2.1:49152", "192.0.2.2:50000"].map(|end| end.parse().expect("an address"))
        };
        let faults = match kind {
            Kind::Fair => {
                let latency = rng.time(Duration::from_millis(50));
                [Faults { latency, ..Faults::default() }; 2]
            }
            _ => [Faults::any(&mut rng), Faults::any(&mut rng)],
        };
        let configs = [0, 1].map(|end: usize| {
            let mtus: &[usize] = if v6 { &[1280, 1500, 9000] } else { &[576, 1280, 1500, 9000, 65_535] };
            StreamConfig {
                mtu: rng.pick(mtus),
                rx_buffer: rng.pick(&[1, 100, 536, 1000, 4096, 20_000, 65_535, 65_536, 70_000, 1 << 20, 4 << 20]),
                tx_buffer: rng.pick(&[1, 1000, 10_000, 512 << 10]),
                connect_timeout: Duration::from_secs(120),
                retransmission_timeout: RETRANSMISSION,
                idle_timeout: Some(IDLE),
                time_wait: rng.pick(&[Duration::ZERO, Duration::from_secs(1), Duration::from_secs(9)]),
                acks: rng.pick(&[AckPolicy::PerBurst, AckPolicy::Delayed(Duration::from_millis(40))]),
                no_delay: rng.chance(0.7),
                timestamps: rng.chance(0.6),
                ..StreamConfig::new(addresses[end], addresses[1 - end], rng.next())
            }
        });
        // Small windows are slow, so the length is limited in proportion to window and buffer.
        let lengths = [0, 1].map(|end: usize| {
            let most = configs[end].tx_buffer.min(configs[1 - end].rx_buffer).saturating_mul(300).min(300_000);
            if rng.chance(0.1) { 0 } else { rng.below(most as u64 + 1) as usize }
        });
        let texts = lengths.map(|length| bytes(&mut rng, length));
        let wire_rng = Random::new(rng.next());
        let mut wire = Wire::new(wire_rng, faults, [configs[0].mtu, configs[1].mtu]);
        wire.second_listens = rng.chance(0.6);
        if kind != Kind::Fair && rng.chance(0.3) {
            for _ in 0..=rng.below(2) {
                let from = start + rng.time(Duration::from_secs(10));
                wire.blackouts.push((from, from + rng.time(Duration::from_secs(30))));
            }
        }
        if kind == Kind::Cut {
            wire.blackouts.push((start + rng.time(Duration::from_secs(5)), start + 2 * LONGEST));
        }
        let mut endings = match rng.below(5) {
            0 => [Ending::Written, Ending::AfterPeer],
            1 => [Ending::AfterPeer, Ending::Written],
            2 => [Ending::Written; 2],
            _ => [Ending::AllDone; 2],
        };
        if kind == Kind::Abort {
            let after = rng.below((lengths[0] + lengths[1]) as u64 + 1);
            endings[rng.below(2) as usize] = Ending::Abort { after };
        }
        let late = rng.time(Duration::from_secs(2));
        let begins = if wire.second_listens { [start + late, start] } else { [start, start] };
        let [one, other] = texts;
        let mut texts = [[one.clone(), other.clone()], [other, one]].into_iter();
        let mut configs = configs.into_iter();
        let ends = [0, 1].map(|end: usize| {
            let config = configs.next().expect("two");
            let engine = StreamEngine::connect(config, None, begins[end]).expect("a valid configuration");
            let stalls = rng.below(4) as usize;
            let own = Random::new(rng.next());
            End::new(engine, own, texts.next().expect("two"), endings[end], stalls, begins[end])
        });
        let resets = rng.chance(0.5);
        Self { start, now: start, ends, begins, wire, resets, crossed: false, kind }
    }

    fn run(&mut self) {
        let (mut steps, mut at_once) = (0, 0);
        while !self.ends.iter().all(End::is_done) {
            self.work();
            let own = [0, 1].map(|end: usize| {
                let this = &mut self.ends[end];
                let due = if self.begins[end] > self.now {
                    Some(self.begins[end])
                } else {
                    this.engine.poll_timeout(self.now)
                };
                due.into_iter().chain(this.next_at()).min()
            });
            let next = own.into_iter().flatten().chain(self.wire.next_at()).min();
            let Some(next) = next else {
                let states = [0, 1].map(|end: usize| (self.ends[end].engine.state(), self.ends[end].engine.stats()));
                assert!(self.ends.iter().all(End::is_done), "no event is pending: {states:?}");
                break;
            };
            at_once = if next > self.now { 0 } else { at_once + 1 };
            self.now = next.max(self.now);
            steps += 1;
            let states = || [0, 1].map(|end: usize| (self.ends[end].engine.state(), self.ends[end].engine.stats()));
            assert!(at_once < STEPS_AT_ONCE, "no progress in time: {:?}", states());
            assert!(
                steps < STEPS && self.now - self.start < LONGEST,
                "the run does not end: {:?} {:?}",
                self.now - self.start,
                states()
            );
        }
        self.check();
    }

    /// Processes everything that is due now.
    fn work(&mut self) {
        while let Some((to, packet)) = self.wire.arrive(self.now) {
            let end = &mut self.ends[to];
            if self.begins[to] > self.now {
                continue;
            }
            if end.engine.is_finished() {
                self.answer_unknown(to, &packet);
                continue;
            }
            assert!(
                end.engine.handle_packet(self.now, &packet),
                "the engine did not accept a segment of its connection"
            );
            end.last_received = self.now;
        }
        for number in 0..2 {
            if self.begins[number] > self.now {
                continue;
            }
            let end = &mut self.ends[number];
            end.engine.handle_timeout(self.now);
            end.work(self.now);
            let mut burst = Vec::new();
            end.engine.poll_transmit(self.now, &mut |packet| burst.push(packet.to_vec()));
            if end.failure().is_some() {
                end.failed_at.get_or_insert(self.now);
            }
            // Sending may have freed buffer space.
            end.work(self.now);
            let needs_ack =
                |packet: &Vec<u8>| Segment::parse(packet).is_ok_and(|segment| segment.sequence_length() > 0);
            end.sent.extend(burst.iter().any(needs_ack).then_some(self.now));
            self.wire.send(self.now, number, burst);
        }
        let states = [0, 1].map(|end: usize| self.ends[end].engine.state());
        self.crossed |= states == [StreamState::Closing; 2] && self.ends.iter().all(|end| end.closed);
    }

    /// Answers a segment of an ended connection on behalf of the host.
    fn answer_unknown(&mut self, from: usize, packet: &[u8]) {
        let Ok(segment) = Segment::parse(packet) else { return };
        if !self.resets || segment.flags.contains(Flags::RST) {
            return;
        }
        let mut reset = Segment::new(segment.destination, segment.source);
        if segment.flags.contains(Flags::ACK) {
            (reset.flags, reset.seq) = (Flags::RST, segment.ack);
        } else {
            (reset.flags, reset.ack) = (Flags::RST | Flags::ACK, segment.seq.wrapping_add(segment.sequence_length()));
        }
        self.wire.send(self.now, from, vec![reset.build()]);
    }

    /// Checks that each end is complete or has the correct error.
    fn check(&self) {
        for (end, peer) in [(&self.ends[0], &self.ends[1]), (&self.ends[1], &self.ends[0])] {
            let failure = end.failure();
            let describe = || {
                format!(
                    "{:?}: this end {failure:?}, written {}, read {}, closed {}, aborted {}, eof {}, {:?}; \
                     the peer {:?}, written {}, read {}, closed {}, aborted {}, eof {}, {:?}; {:?} in {:?}",
                    self.kind,
                    end.written,
                    end.read,
                    end.closed,
                    end.aborted,
                    end.eof,
                    end.engine.stats(),
                    peer.failure(),
                    peer.written,
                    peer.read,
                    peer.closed,
                    peer.aborted,
                    peer.eof,
                    peer.engine.stats(),
                    self.wire.counts,
                    self.now - self.start,
                )
            };
            if end.eof {
                assert!(peer.closed && end.read == peer.written, "end of stream before all data: {}", describe());
            }
            if end.closed && failure.is_none() {
                assert!(
                    peer.read == end.written || peer.aborted || !peer.eof && peer.error.is_none(),
                    "acknowledged data was not delivered: {}",
                    describe()
                );
                assert_eq!(end.engine.unacknowledged(), 0, "{}", describe());
            }
            match &failure {
                None => assert!(end.eof || end.aborted, "neither end of stream nor error: {}", describe()),
                Some(Error::Io { .. }) => assert!(end.aborted, "{}", describe()),
                Some(Error::Reset { .. } | Error::Refused { .. }) => assert!(
                    peer.aborted || peer.failure().is_some() || self.resets && peer.engine.is_finished(),
                    "reset without a cause: {}",
                    describe()
                ),
                Some(Error::TimedOut { waiting_for, after, .. }) => {
                    self.check_timeout(end, *after, waiting_for, &describe)
                }
                Some(error) => panic!("{error}: {}", describe()),
            }
            if self.kind == Kind::Fair {
                assert!(failure.is_none(), "{}", describe());
            }
        }
    }

    /// An end that timed out must have received nothing for that time, and must have retransmitted.
    fn check_timeout(&self, end: &End, after: Duration, waiting_for: &str, describe: &dyn Fn() -> String) {
        if waiting_for == "SYN-ACK" {
            return assert!(end.sent.len() >= 3, "gave up after {} SYNs: {}", end.sent.len(), describe());
        }
        let silence = end.failed_at.expect("the time of its failure") - end.last_received;
        assert!(silence >= after, "gave up only {silence:?} after the last segment: {}", describe());
        if waiting_for == "acknowledgment" {
            let attempts = end.sent_since(end.last_received);
            assert!(attempts >= 5, "{attempts} attempts in {silence:?}: {}", describe());
        }
    }
}

fn run(seed: u64, sum: &mut Sum) {
    let mut pair = Pair::new(seed);
    pair.wire.shown = number("CRAFTER_TEST_SEED").map(|_| pair.start);
    let ran = catch_unwind(AssertUnwindSafe(|| pair.run()));
    if let Err(panic) = ran {
        println!("seed {seed} ({:?}); repeat it with CRAFTER_TEST_SEED={seed}", pair.kind);
        resume_unwind(panic);
    }
    let whole = pair.ends.iter().all(|end| end.failure().is_none() && !end.aborted);
    sum.runs += 1;
    sum.clean += u64::from(whole);
    sum.aborted += u64::from(pair.ends.iter().any(|end| end.aborted));
    sum.simultaneous += u64::from(!pair.wire.second_listens);
    sum.both_closed += u64::from(whole && pair.crossed);
    sum.timed_out += u64::from(pair.ends.iter().any(|end| matches!(end.failure(), Some(Error::TimedOut { .. }))));
    sum.bytes += pair.ends.iter().map(|end| end.read as u64).sum::<u64>();
    let (all, one) = (&mut sum.packets, pair.wire.counts);
    for (total, count) in [
        (&mut all.carried, one.carried),
        (&mut all.lost, one.lost),
        (&mut all.repeated, one.repeated),
        (&mut all.late, one.late),
        (&mut all.corrupted, one.corrupted),
        (&mut all.joined, one.joined),
        (&mut all.probes, one.probes),
        (&mut all.zero_windows, one.zero_windows),
    ] {
        *total += count;
    }
}

/// A number from an environment variable.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn random_conversations_complete_or_fail_correctly() {
    let _parallel = Parallel::begin();
    let mut sum = Sum::default();
    let began = Instant::now();
    if let Some(seed) = number("CRAFTER_TEST_SEED") {
        run(seed, &mut sum);
        return println!("{sum:?}");
    }
    let runs = number("CRAFTER_TEST_RUNS").unwrap_or(RUNS);
    for seed in 0..runs {
        run(seed, &mut sum);
    }
    println!("{sum:?} in {:?}", began.elapsed());
    // A fault that never occurred was not tested.
    if runs >= RUNS {
        let PacketCounts { lost, repeated, late, corrupted, joined, probes, zero_windows, .. } = sum.packets;
        for (what, count) in [
            ("lost", lost),
            ("repeated", repeated),
            ("late", late),
            ("corrupted", corrupted),
            ("joined", joined),
            ("probes", probes),
            ("zero windows", zero_windows),
        ] {
            assert!(count > runs / 4, "{what}: {count}");
        }
        assert!(sum.clean * 10 > runs * 6, "{sum:?}");
        assert!(sum.both_closed > 20 && sum.timed_out > 20 && sum.aborted > 100, "{sum:?}");
    }
}
