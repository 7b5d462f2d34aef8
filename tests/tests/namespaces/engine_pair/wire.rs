//! The wire between both ends: it loses, duplicates, reorders, delays, corrupts and coalesces packets, and checks that
//! each sender respects its MTU, the peer's MSS and the peer's window.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crafter::packet::{Checksum, Flags, checksum};
use crafter_packet::testing::Segment;

use super::random::Random;

/// Faults of one direction; rates are probabilities.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    /// Probability of a delay of up to `jitter`.
    pub reorder: f64,
    pub jitter: Duration,
    pub corrupt: f64,
    /// Probability that adjacent segments of a burst are coalesced, as by GRO.
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

/// State of one end as derived from the segments that it sent.
#[derive(Debug, Default)]
struct Sender {
    mtu: usize,
    mss: Option<u16>,
    /// Window scale of its SYN; `None`: not offered.
    scale: Option<u8>,
    syn: bool,
    /// The highest right window edge that it announced.
    edge: Option<u32>,
}

/// Number of packets by what happened to them, in both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct PacketCounts {
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
    /// By sending end.
    pub faults: [Faults; 2],
    /// Intervals in which every packet is lost.
    pub blackouts: Vec<(Instant, Instant)>,
    /// Bare SYNs of the second end are lost, so that it answers the first one's SYN instead of a simultaneous open.
    pub second_listens: bool,
    in_flight: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    order: u64,
    senders: [Sender; 2],
    pub counts: PacketCounts,
    /// Start of the printed trace; `None`: no trace.
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
            in_flight: BTreeMap::new(),
            order: 0,
            senders: mtu.map(|mtu| Sender { mtu, ..Sender::default() }),
            counts: PacketCounts::default(),
            shown: None,
        }
    }

    fn show(&self, now: Instant, what: &str, packet: &[u8]) {
        if let (Some(start), Ok(segment)) = (self.shown, Segment::parse(packet)) {
            println!("{:12.6} {what} {segment}", (now - start).as_secs_f64());
        }
    }

    /// Accepts a burst of packets sent by `from`.
    pub fn send(&mut self, now: Instant, from: usize, burst: Vec<Vec<u8>>) {
        for packet in &burst {
            self.check(from, packet);
        }
        for packet in self.join(from, burst) {
            self.carry(now, from, packet);
        }
    }

    fn carry(&mut self, now: Instant, from: usize, mut packet: Vec<u8>) {
        let faults = self.faults[from];
        let black = self.blackouts.iter().any(|(start, end)| (*start..*end).contains(&now));
        let is_bare_syn = Segment::parse(&packet).is_ok_and(|segment| segment.flags == Flags::SYN);
        if black || self.rng.chance(faults.loss) || self.second_listens && from == 1 && is_bare_syn {
            self.counts.lost += 1;
            return self.show(now, "lost   ", &packet);
        }
        self.show(now, "sent   ", &packet);
        if self.rng.chance(faults.corrupt) {
            // One byte, which the checksum is certain to detect.
            let at = self.rng.below(packet.len() as u64) as usize;
            packet[at] ^= 1 + self.rng.below(255) as u8;
            self.counts.corrupted += 1;
        }
        let copies = if self.rng.chance(faults.duplicate) { 2 } else { 1 };
        self.counts.repeated += copies - 1;
        for _ in 0..copies {
            let mut at = now + faults.latency;
            if self.rng.chance(faults.reorder) {
                at += self.rng.time(faults.jitter);
                self.counts.late += 1;
            }
            self.order += 1;
            self.in_flight.insert((at, self.order), (1 - from, packet.clone()));
        }
    }

    /// The next packet that has arrived by `now`, and the receiving end.
    pub fn arrive(&mut self, now: Instant) -> Option<(usize, Vec<u8>)> {
        while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, packet) = entry.remove();
            // Drops invalid packets as the driver does. No checksum covers the IPv6 header, and so its next header
            // field.
            if checksum::verify(&packet, false) != Checksum::Invalid && Segment::parse(&packet).is_ok() {
                self.counts.carried += 1;
                self.show(now, "arrives", &packet);
                return Some((to, packet));
            }
        }
        None
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.in_flight.first_key_value().map(|(key, _)| key.0)
    }

    /// Coalesces consecutive data segments of a burst, as GRO would.
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
                    self.counts.joined += 1;
                }
                _ => joined.push(segment),
            }
        }
        joined.iter().map(Segment::build).collect()
    }

    /// Checks what every sender must respect under all network conditions.
    fn check(&mut self, from: usize, packet: &[u8]) {
        assert_eq!(checksum::verify(packet, false), Checksum::Valid, "sent with a wrong checksum");
        let segment = Segment::parse(packet).expect("a segment");
        let length = segment.payload.len() as u32;
        let peer_scale = self.senders[1 - from].scale;
        let (mss, peer_edge) = (self.senders[1 - from].mss, self.senders[1 - from].edge);
        let sender = &mut self.senders[from];
        assert!(packet.len() <= sender.mtu, "sent {} bytes with an MTU of {}", packet.len(), sender.mtu);
        let is_syn = segment.flags.contains(Flags::SYN);
        if is_syn {
            assert!(segment.payload.is_empty());
            sender.syn = true;
            sender.mss = segment.mss();
            sender.scale = segment.window_scale();
        }
        if segment.flags.contains(Flags::RST) {
            return;
        }
        if segment.flags.contains(Flags::ACK) {
            let shift = if is_syn { 0 } else { sender.scale.and(peer_scale).and(sender.scale).unwrap_or(0) };
            let edge = segment.ack.wrapping_add(u32::from(segment.window) << shift);
            self.counts.zero_windows += u64::from(segment.window == 0);
            if sender.edge.is_none_or(|known| before(known, edge)) {
                sender.edge = Some(edge);
            }
        }
        if length > 0 {
            assert!(length <= u32::from(mss.unwrap_or(536)), "sent {length} bytes of data, the peer's MSS is {mss:?}");
            let edge = peer_edge.expect("a window of the peer before data is sent");
            let end = segment.seq.wrapping_add(length);
            // One byte beyond it is a zero-window probe (RFC 9293, section 3.8.6.1).
            let beyond = end.wrapping_sub(edge) as i32;
            self.counts.probes += u64::from(length == 1 && beyond == 1);
            // A scaled window is rounded down, so the edge may move back by less than one unit (RFC 7323, section 2.4).
            let coarse = peer_scale.map_or(0, |scale| (1 << scale) - 1);
            assert!(
                beyond <= coarse || length == 1 && beyond == 1,
                "{beyond} of {length} bytes beyond the window: {segment}"
            );
        }
    }
}
