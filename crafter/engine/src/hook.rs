//! Hooks: they see every segment of a stream in both directions and may change, drop, delay or duplicate it.

use std::time::{Duration, Instant};

/// Direction of a segment, seen from this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From this end to the peer.
    Sent,
    /// From the peer to this end.
    Received,
}

/// Action of a hook on a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Passes the segment.
    Pass,
    /// Drops the segment.
    Drop,
    /// Passes the segment after this time; later segments overtake it.
    Delay(Duration),
    /// Passes the segment, followed by this many copies, at most 1000.
    Duplicate(u32),
}

/// Sees every segment of a stream and may change it.
///
/// A sent segment is transmitted as the hook returns it; [`crafter_packet::view::checksum::fix`] corrects its
/// checksums. A received segment is processed as if it was received from the network: with a wrong checksum it is
/// dropped. A delayed segment does not pass the hook again.
pub trait SegmentHook: Send {
    /// `ip` is the whole IP packet.
    fn segment(&mut self, now: Instant, direction: Direction, ip: &mut Vec<u8>) -> Action;
}

/// A chain: each hook sees what the ones before it passed; the first that does not pass a segment ends the chain.
impl SegmentHook for Vec<Box<dyn SegmentHook>> {
    fn segment(&mut self, now: Instant, direction: Direction, ip: &mut Vec<u8>) -> Action {
        for hook in self {
            match hook.segment(now, direction, ip) {
                Action::Pass => {}
                action => return action,
            }
        }
        Action::Pass
    }
}

/// A hook that changes nothing.
pub struct Observer<F>(
    /// Called with each segment as an IP packet.
    pub F,
);

impl<F: FnMut(Direction, &[u8]) + Send> SegmentHook for Observer<F> {
    fn segment(&mut self, _: Instant, direction: Direction, ip: &mut Vec<u8>) -> Action {
        (self.0)(direction, ip);
        Action::Pass
    }
}

/// Impairment: drops, duplicates and reorders at random, reproducibly by a seed.
///
/// `loss`, `duplicate` and `reorder` are probabilities from 0 to 1; at most one applies to a segment.
#[derive(Debug, Clone)]
pub struct Impair {
    /// Probability that a segment is dropped, from 0 to 1.
    pub loss: f64,
    /// Probability that a segment is duplicated, from 0 to 1.
    pub duplicate: f64,
    /// Probability that a segment is delayed by [`delay`](Self::delay), from 0 to 1.
    pub reorder: f64,
    /// Delay of a reordered segment.
    pub delay: Duration,
    /// The seed, then the state of the generator.
    pub seed: u64,
}

impl Impair {
    /// No impairment; set the fields.
    pub fn new(seed: u64) -> Self {
        Self { loss: 0.0, duplicate: 0.0, reorder: 0.0, delay: Duration::from_millis(2), seed }
    }

    /// The next number of SplitMix64 (Steele, Lea and Flood, 2014), scaled to 0..1.
    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl SegmentHook for Impair {
    fn segment(&mut self, _: Instant, _: Direction, _: &mut Vec<u8>) -> Action {
        let drawn = self.random();
        if drawn < self.loss {
            Action::Drop
        } else if drawn < self.loss + self.duplicate {
            Action::Duplicate(1)
        } else if drawn < self.loss + self.duplicate + self.reorder {
            Action::Delay(self.delay)
        } else {
            Action::Pass
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(impair: &mut Impair, count: usize) -> Vec<Action> {
        let now = Instant::now();
        (0..count).map(|_| impair.segment(now, Direction::Sent, &mut Vec::new())).collect()
    }

    #[test]
    fn impair_follows_probabilities_and_seed() {
        let bad = Impair { loss: 0.1, duplicate: 0.05, reorder: 0.2, ..Impair::new(7) };
        let actions = run(&mut bad.clone(), 20_000);
        let share =
            |wanted: Action| actions.iter().filter(|action| **action == wanted).count() as f64 / actions.len() as f64;
        assert!((share(Action::Drop) - 0.1).abs() < 0.01);
        assert!((share(Action::Duplicate(1)) - 0.05).abs() < 0.01);
        assert!((share(Action::Delay(bad.delay)) - 0.2).abs() < 0.01);
        assert_eq!(actions, run(&mut bad.clone(), 20_000));
        assert_ne!(actions, run(&mut Impair { seed: 8, ..bad }, 20_000));
    }

    #[test]
    fn hook_chain_ends_at_first_action() {
        let (sender, seen) = std::sync::mpsc::channel();
        let after = sender.clone();
        let mut chain: Vec<Box<dyn SegmentHook>> = vec![
            Box::new(Observer(move |_, ip: &[u8]| sender.send(ip.len()).unwrap())),
            Box::new(Impair { loss: 1.0, ..Impair::new(1) }),
            Box::new(Observer(move |_, _: &[u8]| after.send(999).unwrap())),
        ];
        assert_eq!(chain.segment(Instant::now(), Direction::Received, &mut vec![1, 2, 3]), Action::Drop);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [3]);
    }
}
