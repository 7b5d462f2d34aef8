//! When packets are due.

use std::time::{Duration, Instant};

use crafter::{Error, Result, engine::Pacer};

use super::tape::Tape;

/// Shorter sleeps at a rate cost more than they are worth: what is due by then goes in one batch.
const NAP: Duration = Duration::from_micros(250);

/// When each packet is due.
pub enum Schedule {
    /// Now.
    TopSpeed,
    /// At a rate.
    Rate(Pacer),
    /// At its time behind the first one, which was sent at `begun`.
    Times { begun: Option<Instant>, offsets: Vec<Duration> },
}

impl Schedule {
    pub fn top_speed() -> Self {
        Self::TopSpeed
    }

    /// # Errors
    /// That there is no such rate.
    pub fn rate(rate: f64) -> Result<Self> {
        let pacer = Pacer::per_second(rate).map_err(|error| match error.into() {
            Error::Invalid { reason, .. } => Error::invalid("--rate", reason),
            other => other,
        })?;
        Ok(Self::Rate(pacer))
    }

    /// By the times of a capture, those between packets divided by `speed`. A packet that is earlier than the one
    /// before it leaves with that.
    ///
    /// # Errors
    /// That a packet has no time.
    pub fn times(tape: &Tape, speed: f64) -> Result<Self> {
        let mut offsets = Vec::with_capacity(tape.items.len());
        let (mut before, mut offset) = (None, Duration::ZERO);
        for (index, item) in tape.items.iter().enumerate() {
            let time = item.time.ok_or_else(|| {
                Error::invalid(tape.name(index), "it has no time in the capture: give --rate or --top-speed")
            })?;
            let gap = before.map_or(Duration::ZERO, |before| time.saturating_sub(before));
            // A year is as good as what does not fit.
            let gap = Duration::try_from_secs_f64(gap.as_secs_f64() / speed).unwrap_or(Duration::MAX);
            offset += gap.min(Duration::from_secs(365 * 24 * 3600));
            before = Some(time);
            offsets.push(offset);
        }
        Ok(Self::Times { begun: None, offsets })
    }

    /// How many packets from `at` on may leave.
    pub fn ready(&mut self, now: Instant, at: usize) -> usize {
        match self {
            Self::TopSpeed => usize::MAX,
            Self::Rate(pacer) => pacer.ready(now),
            Self::Times { begun, offsets } => {
                let since = now.saturating_duration_since(*begun.get_or_insert(now));
                offsets[at..].iter().take_while(|offset| **offset <= since).count()
            }
        }
    }

    /// That they have left; `last`: the last of the tape among them.
    pub fn sent(&mut self, count: usize, last: bool) {
        match self {
            Self::Rate(pacer) => pacer.take(count),
            // The next turn begins where this one ends.
            Self::Times { begun, offsets } if last => {
                *begun = begun.map(|begun| begun + offsets.last().copied().unwrap_or_default());
            }
            Self::TopSpeed | Self::Times { .. } => {}
        }
    }

    /// When to ask again.
    pub fn next(&mut self, now: Instant, at: usize) -> Instant {
        match self {
            Self::TopSpeed => now,
            Self::Rate(pacer) => pacer.next(now).max(now + NAP),
            Self::Times { begun, offsets } => begun.unwrap_or(now) + offsets[at],
        }
    }
}
