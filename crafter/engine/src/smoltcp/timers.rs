//! smoltcp's clock, and the timers that it lacks.

use std::time::{Duration, Instant};

use smoltcp::time::Instant as SmolInstant;

use crate::config::{AckPolicy, StreamConfig};

/// A peer is given up after that many attempts to have something acknowledged, if the time is over too.
const MIN_ATTEMPTS: u32 = 5;
/// In this time smoltcp makes [`MIN_ATTEMPTS`] if nothing was lost before: repeated after 1, 2, 4 and 8 s.
const ALL_ATTEMPTS: Duration = Duration::from_secs(15);
/// Two attempts are no further apart (smoltcp's `RTTE_MAX_RTO`).
const MAX_RTO: Duration = Duration::from_secs(60);
/// How long the answer to the last attempt may take.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// The time of smoltcp, in microseconds of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    zero: Instant,
}

impl Clock {
    /// A clock whose zero is one second before `start`.
    ///
    /// - smoltcp: `send_impl` does not know the time and starts the timer of a zero-window probe at time 0, so that it
    ///   has long expired, save in the first second of the clock. `challenge_ack_timer` begins at 0 as well.
    /// - Asked for: probes of a closed window (RFC 9293, section 3.8.6.1), at the same pace whenever it is closed.
    /// - Without it: the first probe of a window that is closed from the start waits for up to one second.
    /// - Can go when smoltcp starts that timer at the current time.
    pub fn new(start: Instant) -> Self {
        Self { zero: start.checked_sub(Duration::from_secs(1)).unwrap_or(start) }
    }

    /// `now` as smoltcp's time.
    pub fn to_smoltcp(self, now: Instant) -> SmolInstant {
        SmolInstant::from_micros(now.saturating_duration_since(self.zero).as_micros() as i64)
    }

    /// smoltcp's time as one of this process (monotonic).
    pub fn to_instant(self, at: SmolInstant) -> Instant {
        self.zero + Duration::from_micros(at.total_micros().max(0) as u64)
    }
}

/// When a TIME-WAIT that begins at `now` ends.
///
/// - smoltcp: its `CLOSE_DELAY` is 10 s and cannot be set.
/// - Asked for: two maximum segment lifetimes, as configured (RFC 9293, section 3.6.1). Here it is shorter by default:
///   see [`StreamConfig::time_wait`].
/// - Without it: a program that has closed its stream keeps the leased port for 10 s.
/// - Can go when smoltcp's delay can be set.
pub(crate) fn time_wait_end(now: Instant, config: &StreamConfig) -> Instant {
    // The ACK of the FIN may be a delayed one.
    let ack_delay = match config.acks {
        AckPolicy::PerBurst => Duration::ZERO,
        AckPolicy::Delayed(delay) => delay,
    };
    now + config.time_wait.max(ack_delay).min(StreamConfig::MAX_TIME_WAIT)
}

/// How often something was sent that the peer has to acknowledge, since it was heard last. All that is sent at one
/// time is one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attempts {
    count: u32,
    last: Option<Instant>,
}

impl Attempts {
    /// Notes a sent segment that takes sequence space.
    pub fn note(&mut self, now: Instant) {
        if self.last != Some(now) {
            *self = Self { count: self.count + 1, last: Some(now) };
        }
    }

    /// When to give up a peer that was silent since `silent_since`, with something to acknowledge, if it is to be
    /// allowed `patience`.
    ///
    /// - smoltcp: `set_timeout` ends a connection a fixed time after the peer was heard last, whether or not anything
    ///   was repeated in that time; its retransmission timeout has grown to a minute by then on a network that loses
    ///   much.
    /// - Asked for: a threshold R2 of at least 100 s, in time or in retransmissions (RFC 9293, section 3.8.3; RFC 1122,
    ///   section 4.2.3.5). [`StreamConfig::retransmission_timeout`] is that threshold.
    /// - Without it: one lost retransmission ends a connection to a peer that is there.
    /// - Can go when smoltcp's timeout counts retransmissions.
    pub fn give_up_at(self, silent_since: Instant, patience: Duration) -> Instant {
        match self {
            _ if patience < ALL_ATTEMPTS => silent_since + patience,
            // The one attempt that is lost must not be the last.
            Self { count: 0..MIN_ATTEMPTS, .. } => silent_since + patience.max((MIN_ATTEMPTS + 1) * MAX_RTO),
            Self { last, .. } => (silent_since + patience).max(last.unwrap_or(silent_since) + LAST_ANSWER),
        }
    }
}
