//! The resources that a user holds, and the user's rate.

use std::time::Instant;

/// A packet rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// From 1 to 1,000,000,000.
    pub packets_per_second: u32,
    /// From 1.
    pub burst: u32,
}

/// The resources of one numeric user id, over all of the user's leases. The service counts them for each user; the
/// policy compares.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Leases held.
    pub leases: u32,
    /// Ports held, over all leases.
    pub ports: u32,
    /// Flows open, over all leases.
    pub flows: u32,
    bucket: Bucket,
}

impl Usage {
    /// Takes one packet at `now` from the rate. `false` if the rate is exceeded.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.bucket.take(rate, now)
    }
}

/// A token bucket, initially full, stored as the time when it is full again (virtual scheduling, ITU-T I.371). It does
/// not store the rate, so a new policy's rate applies at once. Unlike [`crate::engine::Pacer`], which tells a sender
/// when to send and starts with one packet, it starts with a burst.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    start: Option<Instant>,
    /// Picoseconds after `start`.
    full: u128,
}

impl Bucket {
    /// Takes one packet at `now`. `false` if the rate is exceeded.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let start = *self.start.get_or_insert(now);
        let now = now.saturating_duration_since(start).as_nanos() * 1000;
        let interval = u128::from(1_000_000_000_000 / u64::from(rate.packets_per_second.max(1)));
        let full = self.full.max(now) + interval;
        let fits = full <= now + interval * u128::from(rate.burst.max(1));
        if fits {
            self.full = full;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(bucket: &mut Bucket, rate: Rate, now: Instant) -> usize {
        (0..10_000).take_while(|_| bucket.take(rate, now)).count()
    }

    #[test]
    fn bucket_allows_a_burst_then_the_rate() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let rate = Rate { packets_per_second: 1000, burst: 5 };
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, rate, start), 5);
        assert_eq!(taken(&mut bucket, rate, at(1)), 1);
        assert_eq!(taken(&mut bucket, rate, at(4)), 3);
        assert_eq!(taken(&mut bucket, rate, at(1000)), 5, "no more than a burst is saved");
        assert_eq!(taken(&mut bucket, rate, at(999)), 0, "a clock that steps back adds no tokens");
        // Another rate applies at once.
        let faster = Rate { packets_per_second: 1_000_000, burst: 1 };
        assert_eq!(taken(&mut bucket, faster, at(1006)), 1);
    }

    #[test]
    fn sent_packets_match_the_rate() {
        for packets_per_second in [1, 3, 7_000, 1_000_000] {
            let rate = Rate { packets_per_second, burst: 2 };
            let (mut bucket, start) = (Bucket::default(), Instant::now());
            let span = Duration::from_secs(1) / packets_per_second;
            // Ten attempts per allowed packet.
            let sent = (0..=1000).filter(|step| bucket.take(rate, start + span * *step / 100)).count();
            assert!((10 + 1..=10 + 3).contains(&sent), "{sent} at {packets_per_second}");
        }
        let never = Rate { packets_per_second: 0, burst: 0 };
        assert!(Bucket::default().take(never, Instant::now()), "out of range, and no panic");
    }
}
