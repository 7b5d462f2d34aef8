//! A sequence of the differential test: owners, packets, other owners, more packets; and its reduction to a minimal
//! failing example.

use std::fmt::Write as _;

use crafter::datapath::program::Hook;
use crafter_common::reason::Reason;

use super::{
    Rng,
    damage::damage,
    packet::{self, Direction},
    world::World,
};
use crate::differential::{Differential, LONGEST_SKB, hex};

/// A step of the sequence.
#[derive(Clone, Debug)]
pub enum Event {
    /// Replaces all owners; flows and fragments stay.
    Owners(World),
    /// Runs a packet.
    Packet {
        /// The hook.
        hook: Hook,
        /// The packet, with its link-layer header if there is one.
        frame: Vec<u8>,
        /// The mark of the skb.
        mark: u32,
    },
}

/// The steps of one round.
pub struct Sequence {
    /// In order of execution.
    pub events: Vec<Event>,
}

/// Percentage of damaged packets.
const DAMAGED: usize = 35;

impl Sequence {
    /// A random sequence with `count` packets, for a kernel half with or without Ethernet headers and socket, and its
    /// mark.
    pub fn new(rng: &mut Rng, count: usize, (ethernet, _, mark): (bool, bool, u32)) -> Self {
        let mut events = Vec::with_capacity(count + 2);
        let mut world = World::new(rng);
        events.push(Event::Owners(world.clone()));
        for position in 0..count {
            if position == count / 2 {
                world = World::new(rng);
                events.push(Event::Owners(world.clone()));
            }
            events.push(random_packet(rng, &world, ethernet, mark, position % 2 == 1));
        }
        Self { events }
    }

    /// Removes all owners from the sequence.
    pub fn disown_all(&mut self) {
        for event in &mut self.events {
            if let Event::Owners(world) = event {
                world.holdings.clear();
            }
        }
    }

    /// Runs the sequence and counts the reasons.
    ///
    /// # Errors
    /// Index of the event whose result differs from the oracle's, and the differences.
    pub fn run(&self, differential: &mut Differential, reasons: &mut [u64]) -> Result<(), (usize, String)> {
        differential.set_owners(&World::default());
        differential.clear();
        for (at, event) in self.events.iter().enumerate() {
            match event {
                Event::Owners(world) => differential.set_owners(world),
                Event::Packet { hook, frame, mark } => {
                    let predicted = differential.step(*hook, frame, *mark).map_err(|why| (at, why))?;
                    reasons[predicted.reason as usize] += 1;
                }
            }
        }
        differential.compare_maps().map_err(|why| (self.events.len() - 1, why))
    }

    /// Reduces the sequence up to event `last` to what is needed to fail, and describes it.
    pub fn minimized(&self, last: usize, differential: &mut Differential) -> String {
        let mut fails = |events: &[Event]| {
            let sequence = Self { events: events.to_vec() };
            sequence.run(differential, &mut [0; Reason::ALL.len()]).err()
        };
        let mut events = self.events[..=last].to_vec();
        if fails(&events).is_none() {
            return "the failure is not reproducible".into();
        }
        // Removes events, in ever smaller groups.
        let mut piece = events.len() / 2;
        while piece > 0 {
            let mut at = 0;
            while at < events.len() {
                let mut fewer = events.clone();
                fewer.drain(at..(at + piece).min(events.len()));
                if fails(&fewer).is_some() { events = fewer } else { at += piece }
            }
            piece /= 2;
        }
        // Shortens packets and zeroes their bytes.
        for at in 0..events.len() {
            shrink_packet(&mut events, at, &mut |events| fails(events).is_some());
        }
        let why = fails(&events).map_or_else(String::new, |(_, why)| why);
        let mut report = format!("minimal failing sequence: {why}\n");
        for event in &events {
            match event {
                Event::Owners(world) => {
                    let _ = writeln!(report, "owners: {:?}\nlocal: {:?}", world.holdings, world.local());
                }
                Event::Packet { hook, frame, mark } => {
                    let _ = writeln!(report, "{hook:?}, mark {mark:#x}: {}", hex(frame));
                }
            }
        }
        report
    }
}

/// Shortens and zeroes the packet of event `at` as far as the sequence still fails.
fn shrink_packet(events: &mut Vec<Event>, at: usize, fails: &mut impl FnMut(&[Event]) -> bool) {
    let mut attempt = |events: &mut Vec<Event>, change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = events.clone();
        let Event::Packet { hook, frame, .. } = &mut changed[at] else { return false };
        let before = frame.clone();
        change(frame);
        if *frame == before || frame.len() < Differential::shortest(*hook, frame) || !fails(&changed) {
            return false;
        }
        *events = changed;
        true
    };
    let Event::Packet { frame, .. } = &events[at] else { return };
    let (mut cut, length) = (frame.len() / 2, frame.len());
    while cut > 0 {
        if !attempt(events, &|frame| frame.truncate(frame.len().saturating_sub(cut))) {
            cut /= 2;
        }
    }
    for position in 0..length {
        attempt(events, &|frame| {
            if let Some(byte) = frame.get_mut(position) {
                *byte = 0;
            }
        });
    }
}

fn random_packet(rng: &mut Rng, world: &World, ethernet: bool, mark: u32, egress: bool) -> Event {
    let hook = match egress {
        true => Hook::Egress,
        false => rng.pick(&[Hook::Xdp, Hook::Xdp, Hook::Ingress]),
    };
    // Some go in the opposite direction: a host may receive its own packets.
    let direction = if egress != rng.chance(5) { Direction::Out } else { Direction::In };
    let mut frame = packet::frame(rng, world, direction, ethernet);
    if rng.chance(DAMAGED) {
        damage(rng, world, &mut frame, 14);
    }
    // Longer than the linear part of a buffer.
    if hook == Hook::Xdp && rng.below(2_000) == 0 {
        let count = 3_000 + rng.below(6_000);
        frame.extend(rng.bytes(count));
    }
    if hook != Hook::Xdp {
        frame.truncate(LONGEST_SKB);
    }
    let least = Differential::shortest(hook, &frame);
    if frame.len() < least {
        frame.resize(least, 0);
        let least = Differential::shortest(hook, &frame);
        frame.resize(frame.len().max(least), 0);
    }
    let mark = match rng.below(10) {
        _ if !egress => 0,
        0..3 => mark,
        3 => mark ^ (1 << rng.below(32)),
        4 => rng.bits() as u32,
        _ => 0,
    };
    Event::Packet { hook, frame, mark }
}
