//! A rate kept, without a clock of its own.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Fractions of a nanosecond in which intervals are counted: at any rate, rounding costs less than a packet a day.
const FRACTION: u32 = 32;
/// What [`Pacer::per_second`] catches up with at most.
const CATCH_UP: f64 = 0.1;
const NANOS: f64 = 1e9;

/// Says how many packets may leave now, and when the next may.
///
/// Packet `n` is due at the beginning plus `n` intervals, so that waking late does not slow the rate down: what was
/// missed is made up for, up to `burst` packets at once; what is beyond that is forgiven, not sent in a rush.
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
    /// Nanoseconds between packets, with [`FRACTION`] bits behind the point.
    interval: u128,
    burst: u64,
    /// When packet 0 was due; unset until somebody asks.
    start: Option<Instant>,
    /// The packet that is next.
    next: u64,
}

impl Pacer {
    /// `rate` packets a second, of which at most `burst` (at least 1) leave at once. The clock starts with the first
    /// question.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rate that is not a number from 0.000001 to 1,000,000,000.
    pub fn new(rate: f64, burst: usize) -> Result<Self> {
        if !(1e-6..=1e9).contains(&rate) {
            let reason = format!("{rate} packets/s: a number from 0.000001 to 1000000000 is needed");
            return Err(Error::invalid("rate", reason));
        }
        let interval = (NANOS / rate * f64::from(2_u32).powi(FRACTION as i32)) as u128;
        Ok(Self { interval, burst: burst.max(1) as u64, start: None, next: 0 })
    }

    /// `rate` packets a second, making up for at most a tenth of a second.
    ///
    /// # Errors
    /// As [`Pacer::new`].
    pub fn per_second(rate: f64) -> Result<Self> {
        Self::new(rate, (rate * CATCH_UP) as usize)
    }

    /// Packets that may leave now, at most `burst`. They stay allowed until [taken](Self::take).
    pub fn ready(&mut self, now: Instant) -> usize {
        let start = *self.start.get_or_insert(now);
        let elapsed = now.saturating_duration_since(start).as_nanos() << FRACTION;
        let due = u64::try_from(elapsed / self.interval).unwrap_or(u64::MAX).saturating_add(1);
        self.next = self.next.max(due.saturating_sub(self.burst));
        due.saturating_sub(self.next) as usize
    }

    /// `count` packets have left. More than were [ready](Self::ready) are paid for later.
    pub fn take(&mut self, count: usize) {
        self.next = self.next.saturating_add(count as u64);
    }

    /// When the next packet may leave: `now` if one may already.
    ///
    /// At high rates this is microseconds ahead, less than timers can tell: whoever sleeps somewhat longer finds as
    /// many more packets ready.
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

    /// Packets sent in `span` by somebody who wakes `late` after each time that the pacer names.
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
    fn the_rate_is_kept_slow_and_fast_and_woken_late() {
        let second = Duration::from_secs(1);
        for rate in [1.0, 3.0, 10.0, 999.0, 44_100.0, 500_000.0, 2e6] {
            let (count, wakes) = sent(rate, 1, second, Duration::ZERO);
            assert_eq!((count, wakes), (rate as usize, rate as usize));
        }
        // Timers of a millisecond: a thousand batches of 500 instead of 500,000 packets. The last millisecond's
        // packets are still to come when the second is over.
        let (count, wakes) = sent(500_000.0, 50_000, second, Duration::from_millis(1));
        assert!((499_000..=500_001).contains(&count) && wakes <= 1000, "{count} in {wakes}");
        let (count, wakes) = sent(10.0, 1, second, Duration::from_millis(1));
        assert_eq!((count, wakes), (10, 10));
        assert_eq!(sent(1.0 / 3.0, 1, Duration::from_secs(9 * 3600), Duration::ZERO).0, 3 * 3600);
    }

    #[test]
    fn what_a_burst_does_not_hold_is_forgiven() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pacer = Pacer::new(1000.0, 5).unwrap();
        assert_eq!(pacer.ready(start), 1);
        pacer.take(1);
        assert_eq!(pacer.ready(at(0)), 0);
        assert_eq!(pacer.ready(at(3)), 3);
        assert_eq!(pacer.ready(at(1000)), 5);
        // Asking takes nothing.
        assert_eq!(pacer.ready(at(1000)), 5);
        assert_eq!(pacer.next(at(1000)), at(1000));
        pacer.take(5);
        assert_eq!((pacer.ready(at(1000)), pacer.next(at(1000))), (0, at(1001)));
        // Taken in advance, paid for later; the clock may stand still or step back.
        pacer.take(10);
        assert_eq!((pacer.ready(at(1010)), pacer.next(at(1010))), (0, at(1011)));
        assert_eq!(pacer.ready(at(5)), 0);
        assert_eq!(pacer.ready(at(1011)), 1);
    }

    #[test]
    fn rates_that_are_none() {
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
