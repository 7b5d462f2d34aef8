//! Conversions between clocks. CLOCK_REALTIME may be set at any moment; the others are not. Start times remain correct
//! when it is set, and packet times remain in order.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// Differences between two clock readings below this, in microseconds, count as none, so that a start time is reported
/// unchanged.
const SAME: i64 = 100_000;

/// The last reported difference between CLOCK_REALTIME and CLOCK_BOOTTIME, in microseconds.
static BOOTED: AtomicI64 = AtomicI64::new(0);

/// A time of CLOCK_BOOTTIME in microseconds: it cannot be set, and it counts while the host sleeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(i64);

impl Moment {
    /// The current time.
    pub(super) fn now() -> Self {
        Self(read(ClockId::CLOCK_BOOTTIME))
    }

    /// Microseconds since 1970 by the current CLOCK_REALTIME, so that the difference to the current time is the age.
    pub(super) fn since_1970_us(self) -> u64 {
        let booted = read(ClockId::CLOCK_REALTIME) - read(ClockId::CLOCK_BOOTTIME);
        let reported = BOOTED.load(Ordering::Relaxed);
        let booted = if reported.abs_diff(booted) < SAME.unsigned_abs() { reported } else { booted };
        BOOTED.store(booted, Ordering::Relaxed);
        u64::try_from(booted + self.0).unwrap_or(0)
    }
}

/// Converts the CLOCK_REALTIME stamps of consecutive packets to CLOCK_MONOTONIC.
#[derive(Debug)]
pub(super) struct Timestamps {
    /// The last difference between the clocks, in nanoseconds.
    offset: i64,
    last: u64,
}

impl Timestamps {
    /// For packets from now on.
    pub(super) fn begin() -> Self {
        let [now, offset] = Self::look();
        Self { offset, last: now.max(0) as u64 }
    }

    /// CLOCK_MONOTONIC nanoseconds of a packet that was stamped `stamped` after 1970: not before the previous packet,
    /// and not later than now. Exact if the clock was set at most once since the previous packet.
    pub(super) fn monotonic_ns(&mut self, stamped: Option<Duration>) -> u64 {
        let stamped = stamped.and_then(|time| i64::try_from(time.as_nanos()).ok());
        self.put(stamped, Self::look())
    }

    fn put(&mut self, stamped: Option<i64>, [now, offset]: [i64; 2]) -> u64 {
        let possible = self.last..=(now.max(0) as u64).max(self.last);
        // With the current difference of the clocks, or the previous one.
        let offsets = [offset, std::mem::replace(&mut self.offset, offset)];
        let mut times = offsets.iter().filter_map(|offset| u64::try_from(stamped?.checked_sub(*offset)?).ok());
        self.last = times.find(|time| possible.contains(time)).unwrap_or_else(|| {
            // The clock was set twice, or between the two readings.
            let time = stamped.map_or(now, |stamped| stamped.saturating_sub(offset));
            (time.max(0) as u64).clamp(*possible.start(), *possible.end())
        });
        self.last
    }

    /// CLOCK_MONOTONIC, and the difference of CLOCK_REALTIME to it, in nanoseconds.
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

/// Reads a clock, in microseconds.
fn read(clock: ClockId) -> i64 {
    let now = clock_gettime(clock).map_or(Duration::ZERO, Into::into);
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_reported_unchanged() {
        let moment = Moment::now();
        let reported = moment.since_1970_us();
        let age = read(ClockId::CLOCK_REALTIME) - i64::try_from(reported).expect("a time");
        assert!((0..5_000_000).contains(&age), "{age}");
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(moment.since_1970_us(), reported);
        assert!(Moment::now().since_1970_us() > reported);
    }

    #[test]
    fn packet_times_stay_in_order_when_the_clock_is_set() {
        const DAY: i64 = 86_400_000_000_000;
        const EPOCH: i64 = 20_000 * DAY;
        let mut timestamps = Timestamps { offset: EPOCH, last: 1000 };
        // Stamp, monotonic time of the call, and the difference of the clocks then.
        let mut put = |stamped, now, offset| timestamps.put(Some(stamped), [now, offset]);
        assert_eq!(put(EPOCH + 1500, 1600, EPOCH), 1500);
        // Set forward between the stamp and the call; then unchanged.
        assert_eq!(put(EPOCH + 1700, 1800, EPOCH + DAY), 1700);
        assert_eq!(put(EPOCH + DAY + 1900, 2000, EPOCH + DAY), 1900);
        // Set back before and after the stamp.
        assert_eq!(put(EPOCH + DAY + 2100, 2200, EPOCH), 2100);
        assert_eq!(put(EPOCH - DAY + 2300, 2400, EPOCH - DAY), 2300);
        // Set twice, and by less than the time between two packets: never before the last packet, never later than now.
        assert_eq!(put(EPOCH + 3 * DAY, 2500, EPOCH), 2500);
        assert_eq!(put(EPOCH - 3 * DAY, 2600, EPOCH), 2500);
        assert_eq!(put(EPOCH + 2400, 2700, EPOCH), 2500);
        assert_eq!(timestamps.put(None, [2800, EPOCH]), 2800);
    }
}
