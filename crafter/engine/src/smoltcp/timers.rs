//! smoltcp's clock, and timers that it lacks.

use std::time::{Duration, Instant};

use smoltcp::time::Instant as SmolInstant;

use crate::config::{AckPolicy, StreamConfig};

/// Minimum number of attempts before the stream gives up, after the timeout.
const MIN_ATTEMPTS: u32 = 5;
/// Time for [`MIN_ATTEMPTS`] of smoltcp without earlier losses: retransmissions after 1, 2, 4 and 8 s.
const ALL_ATTEMPTS: Duration = Duration::from_secs(15);
/// Longest time between two attempts (`RTTE_MAX_RTO` of smoltcp).
const MAX_RTO: Duration = Duration::from_secs(60);
/// Time to wait for the answer to the last attempt.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Converts between smoltcp's clock (microseconds) and [`Instant`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    zero: Instant,
}

impl Clock {
    /// A clock whose zero is one second before `start`.
    ///
    /// - smoltcp: `send_impl` does not know the time and starts the zero-window probe timer at time 0, so that it has
    ///   expired, except in the first second of the clock. `challenge_ack_timer` begins at 0 as well.
    /// - Required: probes of a closed window (RFC 9293, section 3.8.6.1), at the same pace at any time.
    /// - Otherwise: the first probe of an initially closed window is delayed by up to one second.
    /// - Remove when smoltcp starts that timer at the current time.
    pub fn new(start: Instant) -> Self {
        Self { zero: start.checked_sub(Duration::from_secs(1)).unwrap_or(start) }
    }

    /// Converts to smoltcp's time.
    pub fn to_smoltcp(self, now: Instant) -> SmolInstant {
        SmolInstant::from_micros(now.saturating_duration_since(self.zero).as_micros() as i64)
    }

    /// Converts from smoltcp's time.
    pub fn to_instant(self, at: SmolInstant) -> Instant {
        self.zero + Duration::from_micros(at.total_micros().max(0) as u64)
    }
}

/// When a TIME-WAIT that begins at `now` ends.
///
/// - smoltcp: its `CLOSE_DELAY` is 10 s and cannot be set.
/// - Required: two maximum segment lifetimes, as configured (RFC 9293, section 3.6.1). Here it is shorter by default:
///   see [`StreamConfig::time_wait`].
/// - Otherwise: a program that has closed its stream keeps the leased port for 10 s.
/// - Remove when smoltcp's delay can be set.
pub(crate) fn time_wait_end(now: Instant, config: &StreamConfig) -> Instant {
    // The ACK of the FIN may be delayed.
    let ack_delay = match config.acks {
        AckPolicy::PerBurst => Duration::ZERO,
        AckPolicy::Delayed(delay) => delay,
    };
    now + config.time_wait.max(ack_delay).min(StreamConfig::MAX_TIME_WAIT)
}

/// Number of attempts to get an acknowledgment since the last segment from the peer. All segments sent at one time are
/// one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attempts {
    count: u32,
    last: Option<Instant>,
}

impl Attempts {
    /// Notes a sent segment that occupies sequence space.
    pub fn note(&mut self, now: Instant) {
        if self.last != Some(now) {
            *self = Self { count: self.count + 1, last: Some(now) };
        }
    }

    /// When to give up on a peer that is silent since `silent_since` with data to acknowledge, for a timeout of
    /// `timeout`.
    ///
    /// - smoltcp: `set_timeout` ends a connection a fixed time after the last segment from the peer, regardless of
    ///   retransmissions in that time; on a lossy network its retransmission timeout grows to a minute.
    /// - Required: a threshold R2 of at least 100 s, in time or in retransmissions (RFC 9293, section 3.8.3; RFC 1122,
    ///   section 4.2.3.5). [`StreamConfig::retransmission_timeout`] is that threshold.
    /// - Otherwise: one lost retransmission ends a connection to a reachable peer.
    /// - Remove when smoltcp's timeout counts retransmissions.
    pub fn give_up_at(self, silent_since: Instant, timeout: Duration) -> Instant {
        match self {
            _ if timeout < ALL_ATTEMPTS => silent_since + timeout,
            // A single lost attempt must not be the last one.
            Self { count: 0..MIN_ATTEMPTS, .. } => silent_since + timeout.max((MIN_ATTEMPTS + 1) * MAX_RTO),
            Self { last, .. } => (silent_since + timeout).max(last.unwrap_or(silent_since) + LAST_ANSWER),
        }
    }
}
