//! Pacing of packets, without a clock of its own.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Fractional bits of a nanosecond in intervals: at any rate, rounding costs less than one packet per day.
const FRACTION: u32 = 32;
/// How far [`Pacer::per_second`] catches up, in seconds.
const CATCH_UP: f64 = 0.1;
const NANOS: f64 = 1e9;

/// Computes how many packets may be sent now, and when the next one is due.
///
/// Packet `n` is due `n` intervals after the start, so that late wake-ups do not reduce the rate: up to `burst` packets
/// are sent at once to catch up; the rest is skipped.
///
/// ```
/// use std::time::{Duration, Instant};
/// use crafter_engine::Pacer;
///
/// let now = Instant::now();
/// let mut pacer = Pacer::new(1000.0, 10)?;
/// assert_eq!(pacer.ready(now), 1);
/// pacer.take(1);
/// assert_eq!(pacer.next(now), now + Duration::from_millis(1));
/// assert_eq!(pacer.ready(now + Duration::from_millis(3)), 3);
/// # Ok::<(), crafter_engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Pacer {
    /// Nanoseconds between packets, as fixed point with [`FRACTION`] fractional bits.
    interval: u128,
    burst: u64,
    /// When packet 0 was due; unset until the first query.
    start: Option<Instant>,
    /// Number of the next packet.
    next: u64,
}

impl Pacer {
    /// `rate` packets per second, at most `burst` (at least 1) at once. The schedule starts with the first query.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the rate is not between 0.000001 and 1,000,000,000 packets per second.
    pub fn new(rate: f64, burst: usize) -> Result<Self> {
        if !(1e-6..=1e9).contains(&rate) {
            let reason = format!("{rate} packets/s: a number from 0.000001 to 1000000000 is needed");
            return Err(Error::invalid("rate", reason));
        }
        let interval = (NANOS / rate * f64::from(2_u32).powi(FRACTION as i32)) as u128;
        Ok(Self { interval, burst: burst.max(1) as u64, start: None, next: 0 })
    }

    /// `rate` packets per second, with a burst of at most a tenth of a second.
    ///
    /// # Errors
    /// Those of [`Pacer::new`].
    pub fn per_second(rate: f64) -> Result<Self> {
        Self::new(rate, (rate * CATCH_UP) as usize)
    }

    /// Number of packets that may be sent now, at most `burst`. Report sent ones with [`take`](Self::take).
    pub fn ready(&mut self, now: Instant) -> usize {
        let start = *self.start.get_or_insert(now);
        let elapsed = now.saturating_duration_since(start).as_nanos() << FRACTION;
        let due = u64::try_from(elapsed / self.interval).unwrap_or(u64::MAX).saturating_add(1);
        self.next = self.next.max(due.saturating_sub(self.burst));
        due.saturating_sub(self.next) as usize
    }

    /// Records that `count` packets were sent. If they were more than [`ready`](Self::ready), later packets are
    /// delayed.
    pub fn take(&mut self, count: usize) {
        self.next = self.next.saturating_add(count as u64);
    }

    /// When the next packet may be sent: `now` if one is ready.
    ///
    /// At high rates this is microseconds ahead, below the resolution of timers. After a longer sleep, more packets are
    /// ready.
    pub fn next(&mut self, now: Instant) -> Instant {
        let start = *self.start.get_or_insert(now);
        let after = u128::from(self.next).saturating_mul(self.interval).div_ceil(1 << FRACTION);
        let due = Duration::from_nanos(u64::try_from(after).unwrap_or(u64::MAX));
        start.checked_add(due).map_or(now + Duration::from_secs(1), |due| due.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets sent within `span` if each wake-up is `late`.
    fn sent(rate: f64, burst: usize, span: Duration, late: Duration) -> (usize, usize) {
        let start = Instant::now();
        let mut pacer = Pacer::new(rate, burst).unwrap();
        let (mut now, mut sent, mut wakes) = (start, 0, 0);
        while now < start + span {
            let ready = pacer.ready(now);
            pacer.take(ready);
            sent += ready;
            wakes += 1;
            let next = pacer.next(now);
            assert!(next > now, "nothing is ready, yet the next is due");
            now = next + late;
        }
        (sent, wakes)
    }

    #[test]
    fn rate_is_kept_with_late_wake_ups() {
        let second = Duration::from_secs(1);
        for rate in [1.0, 3.0, 10.0, 999.0, 44_100.0, 500_000.0, 2e6] {
            let (count, wakes) = sent(rate, 1, second, Duration::ZERO);
            assert_eq!((count, wakes), (rate as usize, rate as usize));
        }
        // Timers of a millisecond: a thousand batches of 500 instead of 500,000 packets. The packets of the last
        // millisecond are not sent yet after one second.
        let (count, wakes) = sent(500_000.0, 50_000, second, Duration::from_millis(1));
        assert!((499_000..=500_001).contains(&count) && wakes <= 1000, "{count} in {wakes}");
        let (count, wakes) = sent(10.0, 1, second, Duration::from_millis(1));
        assert_eq!((count, wakes), (10, 10));
        assert_eq!(sent(1.0 / 3.0, 1, Duration::from_secs(9 * 3600), Duration::ZERO).0, 3 * 3600);
    }

    #[test]
    fn packets_beyond_burst_are_skipped() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pacer = Pacer::new(1000.0, 5).unwrap();
        assert_eq!(pacer.ready(start), 1);
        pacer.take(1);
        assert_eq!(pacer.ready(at(0)), 0);
        assert_eq!(pacer.ready(at(3)), 3);
        assert_eq!(pacer.ready(at(1000)), 5);
        // Queries have no side effects.
        assert_eq!(pacer.ready(at(1000)), 5);
        assert_eq!(pacer.next(at(1000)), at(1000));
        pacer.take(5);
        assert_eq!((pacer.ready(at(1000)), pacer.next(at(1000))), (0, at(1001)));
        // Packets taken in advance delay later ones; the clock may stop or go back.
        pacer.take(10);
        assert_eq!((pacer.ready(at(1010)), pacer.next(at(1010))), (0, at(1011)));
        assert_eq!(pacer.ready(at(5)), 0);
        assert_eq!(pacer.ready(at(1011)), 1);
    }

    #[test]
    fn invalid_rates_are_rejected() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10, 1e-7] {
            assert!(Pacer::new(rate, 1).unwrap_err().to_string().starts_with("rate: "), "{rate}");
        }
        let mut never = Pacer::per_second(1e-6).unwrap();
        let now = Instant::now();
        assert_eq!(never.ready(now), 1);
        never.take(usize::MAX);
        assert!(never.next(now) > now);
        assert_eq!(never.ready(now + Duration::from_secs(1 << 31)), 0);
    }
}
