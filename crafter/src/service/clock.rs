//! Two clocks, of which one may be set at any moment: when something began, as a time since 1970 that outlives that, and
//! what the kernel stamped by it, in the order of the other one.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// Less than that apart, two readings of two clocks, or one that is slewed, say the same: a time that was told once is
/// told the same again. In microseconds.
const SAME: i64 = 100_000;

/// What is between CLOCK_BOOTTIME and CLOCK_REALTIME, in microseconds, as far as it was told.
static BOOTED: AtomicI64 = AtomicI64::new(0);

/// A moment, by CLOCK_BOOTTIME: nobody sets that, and it goes on while the host sleeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(i64);

impl Moment {
    /// This one.
    pub(super) fn now() -> Self {
        Self(read(ClockId::CLOCK_BOOTTIME))
    }

    /// In microseconds since 1970, as the clock is set now: who subtracts it from the time gets its age.
    pub(super) fn since_1970_us(self) -> u64 {
        let booted = read(ClockId::CLOCK_REALTIME) - read(ClockId::CLOCK_BOOTTIME);
        let told = BOOTED.load(Ordering::Relaxed);
        let booted = if told.abs_diff(booted) < SAME.unsigned_abs() { told } else { booted };
        BOOTED.store(booted, Ordering::Relaxed);
        u64::try_from(booted + self.0).unwrap_or(0)
    }
}

/// The times of packets one after the other, which the kernel stamps by CLOCK_REALTIME, by CLOCK_MONOTONIC.
#[derive(Debug)]
pub(super) struct Timestamps {
    /// What was between the two at the last look, in nanoseconds.
    offset: i64,
    last: u64,
}

impl Timestamps {
    /// For packets from now on.
    pub(super) fn begin() -> Self {
        let [now, offset] = Self::look();
        Self { offset, last: now.max(0) as u64 }
    }

    /// CLOCK_MONOTONIC nanoseconds of a packet that was stamped with this time since 1970: not before the packet before
    /// it, and not later than now. If the clock was set once since that one, it is exact.
    pub(super) fn monotonic_ns(&mut self, stamped: Option<Duration>) -> u64 {
        let stamped = stamped.and_then(|time| i64::try_from(time.as_nanos()).ok());
        self.put(stamped, Self::look())
    }

    fn put(&mut self, stamped: Option<i64>, [now, offset]: [i64; 2]) -> u64 {
        let possible = self.last..=(now.max(0) as u64).max(self.last);
        // By the clock as it is now, or as it was before.
        let offsets = [offset, std::mem::replace(&mut self.offset, offset)];
        let mut times = offsets.iter().filter_map(|offset| u64::try_from(stamped?.checked_sub(*offset)?).ok());
        self.last = times.find(|time| possible.contains(time)).unwrap_or_else(|| {
            // Or of a clock that was set twice; but for that, two clocks are not read at once.
            let time = stamped.map_or(now, |stamped| stamped.saturating_sub(offset));
            (time.max(0) as u64).clamp(*possible.start(), *possible.end())
        });
        self.last
    }

    /// CLOCK_MONOTONIC, and how much more CLOCK_REALTIME is, in nanoseconds.
    fn look() -> [i64; 2] {
        let nanos = |clock| {
            let now = clock_gettime(clock).map_or(Duration::ZERO, Into::into);
            i64::try_from(now.as_nanos()).unwrap_or(i64::MAX / 2)
        };
        let now = nanos(ClockId::CLOCK_MONOTONIC);
        [now, nanos(ClockId::CLOCK_REALTIME) - now]
    }
}

/// Microseconds since 1970, by CLOCK_REALTIME.
pub(super) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// In microseconds.
fn read(clock: ClockId) -> i64 {
    let now = clock_gettime(clock).map_or(Duration::ZERO, Into::into);
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_the_same_again() {
        let moment = Moment::now();
        let told = moment.since_1970_us();
        let age = read(ClockId::CLOCK_REALTIME) - i64::try_from(told).expect("a time");
        assert!((0..5_000_000).contains(&age), "{age}");
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(moment.since_1970_us(), told);
        assert!(Moment::now().since_1970_us() > told);
    }

    #[test]
    fn stamps_go_on_whatever_becomes_of_the_clock() {
        const DAY: i64 = 86_400_000_000_000;
        const EPOCH: i64 = 20_000 * DAY;
        let mut timestamps = Timestamps { offset: EPOCH, last: 1000 };
        // Stamped, looked at, and what was between the two clocks then.
        let mut put = |stamped, now, offset| timestamps.put(Some(stamped), [now, offset]);
        assert_eq!(put(EPOCH + 1500, 1600, EPOCH), 1500);
        // Set forward between the stamp and the look, and then once more right.
        assert_eq!(put(EPOCH + 1700, 1800, EPOCH + DAY), 1700);
        assert_eq!(put(EPOCH + DAY + 1900, 2000, EPOCH + DAY), 1900);
        // Back, before and after the stamp.
        assert_eq!(put(EPOCH + DAY + 2100, 2200, EPOCH), 2100);
        assert_eq!(put(EPOCH - DAY + 2300, 2400, EPOCH - DAY), 2300);
        // Twice, and by less than there is between two packets: never before the last one, never later than now.
        assert_eq!(put(EPOCH + 3 * DAY, 2500, EPOCH), 2500);
        assert_eq!(put(EPOCH - 3 * DAY, 2600, EPOCH), 2500);
        assert_eq!(put(EPOCH + 2400, 2700, EPOCH), 2500);
        assert_eq!(timestamps.put(None, [2800, EPOCH]), 2800);
    }
}
