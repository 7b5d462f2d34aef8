//! What a user has, and how fast the user sends.

use std::time::Instant;

/// Packets a second, and how many may leave at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// From 1 to 1,000,000,000.
    pub packets_per_second: u32,
    /// From 1.
    pub burst: u32,
}

/// What one user (one numeric user id, over all of the user's leases) has at the moment. The daemon keeps one for
/// each user and counts; the policy compares.
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
    /// One packet at `now`, if the rate allows it.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.bucket.take(rate, now)
    }
}

/// A token bucket, full at first, kept as the time at which it will be full again (ITU-T I.371's virtual
/// scheduling). It holds no rate, so a new policy's applies to it at once. Not [`crate::engine::Pacer`], which tells
/// a sender when to send and begins with one packet, not with a burst.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    start: Option<Instant>,
    /// Picoseconds after `start`.
    full: u128,
}

impl Bucket {
    /// One at `now`, if the rate allows it.
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
    fn a_burst_at_first_then_the_rate() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let rate = Rate { packets_per_second: 1000, burst: 5 };
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, rate, start), 5);
        assert_eq!(taken(&mut bucket, rate, at(1)), 1);
        assert_eq!(taken(&mut bucket, rate, at(4)), 3);
        assert_eq!(taken(&mut bucket, rate, at(1000)), 5, "no more than a burst is saved");
        assert_eq!(taken(&mut bucket, rate, at(999)), 0, "a clock that steps back gives nothing");
        // Another rate, at once.
        let faster = Rate { packets_per_second: 1_000_000, burst: 1 };
        assert_eq!(taken(&mut bucket, faster, at(1006)), 1);
    }

    #[test]
    fn rates_are_kept() {
        for packets_per_second in [1, 3, 7_000, 1_000_000] {
            let rate = Rate { packets_per_second, burst: 2 };
            let (mut bucket, start) = (Bucket::default(), Instant::now());
            let span = Duration::from_secs(1) / packets_per_second;
            // Asked ten times as often as it gives.
            let sent = (0..=1000).filter(|step| bucket.take(rate, start + span * *step / 100)).count();
            assert!((10 + 1..=10 + 3).contains(&sent), "{sent} at {packets_per_second}");
        }
        let never = Rate { packets_per_second: 0, burst: 0 };
        assert!(Bucket::default().take(never, Instant::now()), "out of range, and no panic");
    }
}
