//! The wire between the two: it loses, repeats, reorders, delays, corrupts and joins packets, and it is a judge: what
//! an end puts on it has to keep to the peer's MSS and window.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crafter::packet::{Checksum, Flags, checksum};
use crafter_packet::testing::Segment;

use super::random::Random;

/// What happens to packets of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    /// A packet is held back by up to `jitter`.
    pub reorder: f64,
    pub jitter: Duration,
    pub corrupt: f64,
    /// Neighbours of a burst come as one super-frame, as behind GRO.
    pub join: f64,
    pub latency: Duration,
}

impl Faults {
    pub fn any(rng: &mut Random) -> Self {
        let mut rate = |likely: f64, most: f64| {
            if rng.chance(likely) { most * rng.below(1000) as f64 / 1000.0 } else { 0.0 }
        };
        let [loss, duplicate, reorder, corrupt, join] =
            [rate(0.7, 0.25), rate(0.5, 0.15), rate(0.6, 0.4), rate(0.3, 0.05), rate(0.3, 0.5)];
        let latency = Duration::from_micros(rng.pick(&[0, 50, 1000, 20_000, 200_000]));
        let jitter = rng.pick(&[latency * 3, Duration::from_millis(5), Duration::from_secs(2)]);
        Self { loss, duplicate, reorder, jitter, corrupt, join, latency }
    }
}

/// What is known of one end by what it sent.
#[derive(Debug, Default)]
struct Seen {
    mtu: usize,
    mss: Option<u16>,
    /// Of its SYN; `None`: it did not offer to scale.
    scale: Option<u8>,
    syn: bool,
    /// The right edge of the largest window that it offered.
    edge: Option<u32>,
}

/// How many packets met which fate; both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fates {
    pub carried: u64,
    pub lost: u64,
    pub repeated: u64,
    pub late: u64,
    pub corrupted: u64,
    pub joined: u64,
    pub probes: u64,
    pub zero_windows: u64,
}

pub struct Wire {
    rng: Random,
    /// By the end that sends.
    pub faults: [Faults; 2],
    /// Nothing gets through in these times.
    pub blackouts: Vec<(Instant, Instant)>,
    /// Bare SYNs of the second end are lost, so that it answers instead of opening at the same time.
    pub second_listens: bool,
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    order: u64,
    seen: [Seen; 2],
    pub fates: Fates,
    /// Since when each packet is shown; `None`: none is.
    pub shown: Option<Instant>,
}

fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Wire {
    pub fn new(rng: Random, faults: [Faults; 2], mtu: [usize; 2]) -> Self {
        Self {
            rng,
            faults,
            blackouts: Vec::new(),
            second_listens: false,
            flying: BTreeMap::new(),
            order: 0,
            seen: mtu.map(|mtu| Seen { mtu, ..Seen::default() }),
            fates: Fates::default(),
            shown: None,
        }
    }

    fn show(&self, now: Instant, what: &str, packet: &[u8]) {
        if let (Some(start), Ok(segment)) = (self.shown, Segment::parse(packet)) {
            println!("{:12.6} {what} {segment}", (now - start).as_secs_f64());
        }
    }

    /// Takes what `from` sends at once.
    pub fn send(&mut self, now: Instant, from: usize, burst: Vec<Vec<u8>>) {
        for packet in &burst {
            self.judge(from, packet);
        }
        for packet in self.join(from, burst) {
            self.fly(now, from, packet);
        }
    }

    fn fly(&mut self, now: Instant, from: usize, mut packet: Vec<u8>) {
        let faults = self.faults[from];
        let black = self.blackouts.iter().any(|(start, end)| (*start..*end).contains(&now));
        let is_bare_syn = Segment::parse(&packet).is_ok_and(|segment| segment.flags == Flags::SYN);
        if black || self.rng.chance(faults.loss) || self.second_listens && from == 1 && is_bare_syn {
            self.fates.lost += 1;
            return self.show(now, "lost   ", &packet);
        }
        self.show(now, "sent   ", &packet);
        if self.rng.chance(faults.corrupt) {
            // One byte: a change that the checksum is sure to tell.
            let at = self.rng.below(packet.len() as u64) as usize;
            packet[at] ^= 1 + self.rng.below(255) as u8;
            self.fates.corrupted += 1;
        }
        let copies = if self.rng.chance(faults.duplicate) { 2 } else { 1 };
        self.fates.repeated += copies - 1;
        for _ in 0..copies {
            let mut at = now + faults.latency;
            if self.rng.chance(faults.reorder) {
                at += self.rng.time(faults.jitter);
                self.fates.late += 1;
            }
            self.order += 1;
            self.flying.insert((at, self.order), (1 - from, packet.clone()));
        }
    }

    /// The next packet that arrives by `now`, and where.
    pub fn arrive(&mut self, now: Instant) -> Option<(usize, Vec<u8>)> {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, packet) = entry.remove();
            // As the driver does, before the engine; nothing covers the header of IPv6, and so its next header.
            if checksum::verify(&packet, false) != Checksum::Invalid && Segment::parse(&packet).is_ok() {
                self.fates.carried += 1;
                self.show(now, "arrives", &packet);
                return Some((to, packet));
            }
        }
        None
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.flying.first_key_value().map(|(key, _)| key.0)
    }

    /// Joins consecutive data of a burst, as GRO would.
    fn join(&mut self, from: usize, burst: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let likely = self.faults[from].join;
        if likely == 0.0 {
            return burst;
        }
        let mut joined: Vec<Segment> = Vec::new();
        for packet in &burst {
            let segment = Segment::parse(packet).expect("a segment");
            let plain = |segment: &Segment| {
                !segment.payload.is_empty() && !segment.flags.intersects(Flags::SYN | Flags::FIN | Flags::RST)
            };
            match joined.last_mut() {
                Some(last)
                    if plain(last)
                        && plain(&segment)
                        && last.seq.wrapping_add(last.payload.len() as u32) == segment.seq
                        && last.payload.len() + segment.payload.len() < 60_000
                        && self.rng.chance(likely) =>
                {
                    last.payload.extend(&segment.payload);
                    (last.ack, last.window) = (segment.ack, segment.window);
                    last.flags |= segment.flags;
                    self.fates.joined += 1;
                }
                _ => joined.push(segment),
            }
        }
        joined.iter().map(Segment::build).collect()
    }

    /// What no end may do, whatever the network does.
    fn judge(&mut self, from: usize, packet: &[u8]) {
        assert_eq!(checksum::verify(packet, false), Checksum::Valid, "a wrong checksum is sent");
        let segment = Segment::parse(packet).expect("a segment");
        let length = segment.payload.len() as u32;
        let peer_scale = self.seen[1 - from].scale;
        let (mss, peer_edge) = (self.seen[1 - from].mss, self.seen[1 - from].edge);
        let seen = &mut self.seen[from];
        assert!(packet.len() <= seen.mtu, "{} bytes are sent, the MTU is {}", packet.len(), seen.mtu);
        let is_syn = segment.flags.contains(Flags::SYN);
        if is_syn {
            assert!(segment.payload.is_empty());
            seen.syn = true;
            seen.mss = segment.mss();
            seen.scale = segment.window_scale();
        }
        if segment.flags.contains(Flags::RST) {
            return;
        }
        if segment.flags.contains(Flags::ACK) {
            let shift = if is_syn { 0 } else { seen.scale.and(peer_scale).and(seen.scale).unwrap_or(0) };
            let edge = segment.ack.wrapping_add(u32::from(segment.window) << shift);
            self.fates.zero_windows += u64::from(segment.window == 0);
            if seen.edge.is_none_or(|known| before(known, edge)) {
                seen.edge = Some(edge);
            }
        }
        if length > 0 {
            assert!(length <= u32::from(mss.unwrap_or(536)), "{length} bytes, the peer's MSS is {mss:?}");
            let edge = peer_edge.expect("no data before the peer has offered a window");
            let end = segment.seq.wrapping_add(length);
            // One byte beyond it probes a window that is closed (RFC 9293, 3.8.6.1).
            let beyond = end.wrapping_sub(edge) as i32;
            self.fates.probes += u64::from(length == 1 && beyond == 1);
            // What the peer says is rounded to its scale, and may so be less than it said before (RFC 7323, 2.4).
            let coarse = peer_scale.map_or(0, |scale| (1 << scale) - 1);
            assert!(
                beyond <= coarse || length == 1 && beyond == 1,
                "{beyond} of {length} bytes beyond the window: {segment}"
            );
        }
    }
}
