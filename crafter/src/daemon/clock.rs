//! When something began, so that it can be told as a time since 1970 whatever became of the clock meanwhile.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
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
}
