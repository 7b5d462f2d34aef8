//! Queues of packets: delayed by a hook, and to be sent next.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::hook::Direction;

/// A packet delayed by a hook.
#[derive(Debug, PartialEq, Eq)]
struct Delayed {
    at: Instant,
    /// Packets with the same time leave in order of arrival.
    order: u64,
    direction: Direction,
    packet: Vec<u8>,
}

impl Ord for Delayed {
    /// The earliest is the greatest, because [`BinaryHeap`] is a max-heap.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Delayed packets, the earliest first.
#[derive(Debug, Default)]
pub(super) struct DelayQueue {
    heap: BinaryHeap<Delayed>,
    pushed: u64,
}

impl DelayQueue {
    pub fn push(&mut self, at: Instant, direction: Direction, packet: Vec<u8>) {
        self.pushed += 1;
        self.heap.push(Delayed { at, order: self.pushed, direction, packet });
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|first| first.at)
    }

    pub fn pop_due(&mut self, now: Instant) -> Option<(Direction, Vec<u8>)> {
        if self.next_at()? > now {
            return None;
        }
        self.heap.pop().map(|first| (first.direction, first.packet))
    }

    pub fn has_outgoing(&self) -> bool {
        self.heap.iter().any(|delayed| delayed.direction == Direction::Sent)
    }
}

/// Packets to be sent, concatenated in one buffer that is reused.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Outbox {
    pub fn push(&mut self, packet: &[u8]) {
        self.bytes.extend_from_slice(packet);
        self.lengths.push(packet.len());
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub fn drain(&mut self, out: &mut dyn FnMut(&[u8])) -> usize {
        let mut rest = self.bytes.as_slice();
        for length in &self.lengths {
            let (packet, behind) = rest.split_at(*length);
            out(packet);
            rest = behind;
        }
        let count = self.lengths.len();
        self.bytes.clear();
        self.lengths.clear();
        count
    }
}
