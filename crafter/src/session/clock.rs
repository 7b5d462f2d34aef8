//! The clocks of packets: timestamps of the kernel half are monotonic, those of captures are wall-clock time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC now, the clock of `bpf_ktime_get_ns()`.
pub(super) fn monotonic() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Into::into)
}

/// Wall-clock time now, since 1970.
pub(super) fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
