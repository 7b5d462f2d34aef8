//! Send times of packets.

use std::time::{Duration, Instant};

use crafter::{Error, Result, engine::Pacer};

use super::tape::Tape;

/// Shortest sleep at a rate: packets due within it are sent in one batch.
const MIN_SLEEP: Duration = Duration::from_micros(250);

/// Decides when each packet is sent.
pub enum Schedule {
    /// At once.
    TopSpeed,
    /// At a constant rate.
    Rate(Pacer),
    /// At its offset from the first packet, which was sent at `begun`.
    Times { begun: Option<Instant>, offsets: Vec<Duration> },
}

impl Schedule {
    pub fn top_speed() -> Self {
        Self::TopSpeed
    }

    /// # Errors
    /// [`Error::Invalid`] for a rate out of range.
    pub fn rate(rate: f64) -> Result<Self> {
        let pacer = Pacer::per_second(rate).map_err(|error| match error.into() {
            Error::Invalid { reason, .. } => Error::invalid("--rate", reason),
            other => other,
        })?;
        Ok(Self::Rate(pacer))
    }

    /// By the times of a capture; the time between two packets is divided by `speed`. A packet with an earlier time than
    /// its predecessor is sent together with it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a packet without a time.
    pub fn times(tape: &Tape, speed: f64) -> Result<Self> {
        let mut offsets = Vec::with_capacity(tape.items.len());
        let (mut before, mut offset) = (None, Duration::ZERO);
        for (index, item) in tape.items.iter().enumerate() {
            let time = item.time.ok_or_else(|| {
                Error::invalid(tape.name(index), "it has no time in the capture; use --rate or --top-speed")
            })?;
            let gap = before.map_or(Duration::ZERO, |before| time.saturating_sub(before));
            // A year replaces gaps that a Duration or the clock cannot hold.
            let gap = Duration::try_from_secs_f64(gap.as_secs_f64() / speed).unwrap_or(Duration::MAX);
            offset += gap.min(Duration::from_secs(365 * 24 * 3600));
            before = Some(time);
            offsets.push(offset);
        }
        Ok(Self::Times { begun: None, offsets })
    }

    /// Number of packets from `at` on that are due.
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

    /// Reports `count` packets as sent; `last`: the last packet of the tape is among them.
    pub fn sent(&mut self, count: usize, last: bool) {
        match self {
            Self::Rate(pacer) => pacer.take(count),
            // The next repetition begins at the end of this one.
            Self::Times { begun, offsets } if last => {
                *begun = begun.map(|begun| begun + offsets.last().copied().unwrap_or_default());
            }
            Self::TopSpeed | Self::Times { .. } => {}
        }
    }

    /// When to call [`Self::ready`] again.
    pub fn next(&mut self, now: Instant, at: usize) -> Instant {
        match self {
            Self::TopSpeed => now,
            Self::Rate(pacer) => pacer.next(now).max(now + MIN_SLEEP),
            Self::Times { begun, offsets } => begun.unwrap_or(now) + offsets[at],
        }
    }
}
