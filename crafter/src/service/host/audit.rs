//! The audit log: a record for each lease, its end, each refusal, and the events of the service itself.
//!
//! Records go to journald with fields, so that `journalctl CRAFTER_EVENT=refusal CRAFTER_USER=1000` finds them. Without
//! a journal they go to stderr, one line of logfmt each.
//!
//! A client can cause any number of leases, ends and refusals, so each user has a rate of records, [`LEASES`] and
//! [`REFUSALS`], and all users together have one, [`ALL`]. Events above it are counted; every few seconds, and before
//! the last record of the service, a summary has the counts. A refusal that is recorded contains the number of those
//! before it (`CRAFTER_COUNT`). The counts are exact: what the journal does not accept is counted again, for the next
//! summary. Writing never blocks. A record contains the number of records before it that were not accepted
//! (`CRAFTER_UNWRITTEN`).

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

mod record;
mod sink;

#[cfg(test)]
mod tests;

pub use self::record::{Cause, Counts, Record, RequestKind, Resource, Who};
use self::{
    record::{Fields, Summary, more_refusals},
    sink::Sink,
};
use crate::{
    error::{Error, Result},
    policy::{Bucket, Rate},
};

/// The journal's socket for records with fields.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// The rate of refusal records for each user: 5 per second, bursts of 20.
pub const REFUSALS: Rate = Rate { packets_per_second: 5, burst: 20 };

/// The rate of records of leases and of their ends for each user: 20 per second, bursts of 200.
pub const LEASES: Rate = Rate { packets_per_second: 20, burst: 200 };

/// The rate of records of all users together: 250 per second, bursts of 2,500. One user does not reach it; many numeric
/// ids of one person do.
pub const ALL: Rate = Rate { packets_per_second: 250, burst: 2500 };

/// Time until a user's buckets are full again.
const FULL_AGAIN: Duration = Duration::from_secs(LEASES.burst as u64 / LEASES.packets_per_second as u64 + 1);

/// Number of users above which idle ones are removed.
const USERS: usize = 1024;

/// The maximum number of users with counts of their own; those of further users are added up.
const MOST_USERS: usize = 4096;

/// The maximum number of users with a summary of their own at a time; the counts of further users are added up.
const SUMMARIES: usize = 256;

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    sink: Sink,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<u32, User>,
    /// Events of users beyond [`MOST_USERS`].
    others: Summary,
    all: Bucket,
    /// Records lost since the last written one.
    unwritten: u64,
    lost: u64,
}

#[derive(Debug)]
struct User {
    leases: Bucket,
    refusals: Bucket,
    last: Instant,
    /// Events without a record.
    counted: Summary,
}

impl Audit {
    /// Opens the host's journal, or stderr.
    ///
    /// # Errors
    /// [`Error::Io`] if the process is out of descriptors.
    pub fn open() -> Result<Self> {
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        Self::at(JOURNAL, stderr.map_err(|source| Error::Io { action: "open the audit log".to_owned(), source })?)
    }

    /// Opens the journal with the socket `journal`, which may disappear and reappear. Meanwhile `otherwise` receives
    /// lines.
    ///
    /// # Errors
    /// [`Error::Io`] if the process is out of descriptors.
    pub fn at(journal: impl AsRef<Path>, otherwise: OwnedFd) -> Result<Self> {
        let sink = Sink::new(PathBuf::from(journal.as_ref()), otherwise)
            .map_err(|source| Error::Io { action: "open the audit log".to_owned(), source })?;
        Ok(Self { sink, state: Mutex::default() })
    }

    /// Writes a record, or counts the event. `now` is for the rates.
    pub fn record(&self, record: &Record<'_>, now: Instant) {
        let mut state = self.state();
        let (user, rate) = match record {
            Record::Lease { who, .. } | Record::End { who, .. } => (who.user, LEASES),
            Record::Refusal { who, .. } => (who.user, REFUSALS),
            Record::Stop { .. } => {
                self.write_counts(&mut state, now);
                self.write(&mut state, &record.fields(1));
                return;
            }
            // Only root and the service itself cause these.
            Record::Start { .. } | Record::Reload { .. } | Record::ReloadFailed { .. } => {
                self.write(&mut state, &record.fields(1));
                return;
            }
        };
        let may = state.may_record(user, rate, now);
        let before = match record {
            Record::Refusal { .. } if may => state.counted(user, now).take_refusals(),
            _ => 0,
        };
        if !may || !self.write(&mut state, &record.fields(1 + before)) {
            let counted = state.counted(user, now);
            counted.refusals += before;
            counted.add(record, now);
        }
    }

    /// Writes the counts of each user who has some. Call it every few seconds, so that the end of a flood is recorded.
    pub fn flush_counts(&self, now: Instant) {
        let mut state = self.state();
        self.write_counts(&mut state, now);
        state.forget(now);
    }

    /// The number of records that neither the journal nor stderr accepted.
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Counters stay valid after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_counts(&self, state: &mut State, now: Instant) {
        let mut own = 0;
        let mut rest = std::mem::take(&mut state.others);
        let users: Vec<u32> =
            state.users.iter().filter(|(_, user)| !user.counted.is_empty()).map(|(&user, _)| user).collect();
        for user in users {
            let counted = std::mem::take(state.counted(user, now));
            own += 1;
            if own > SUMMARIES {
                rest.merge(counted);
            } else {
                let left = self.write_summary(state, Some(user), counted, now);
                state.counted(user, now).merge(left);
            }
        }
        if !rest.is_empty() {
            let left = self.write_summary(state, None, rest, now);
            state.others.merge(left);
        }
    }

    /// Writes a user's counts; returns those that were not accepted.
    fn write_summary(&self, state: &mut State, user: Option<u32>, mut counted: Summary, now: Instant) -> Summary {
        let seconds = counted.seconds(now);
        if counted.refusals > 0 && self.write(state, &more_refusals(user, counted.refusals, seconds)) {
            counted.refusals = 0;
        }
        if counted.leases + counted.ends > 0 && self.write(state, &counted.fields(user, seconds)) {
            counted = Summary { refusals: counted.refusals, since: counted.since, ..Summary::default() };
        }
        counted
    }

    /// `false` if the record was not accepted.
    fn write(&self, state: &mut State, fields: &Fields) -> bool {
        let is_written = self.sink.write(fields, state.unwritten);
        if is_written {
            state.unwritten = 0;
        } else {
            state.unwritten += 1;
            state.lost += 1;
        }
        is_written
    }
}

impl State {
    /// Whether the rates allow a record of this user.
    fn may_record(&mut self, user: u32, rate: Rate, now: Instant) -> bool {
        let Some(known) = self.user(user, now) else { return false };
        known.last = now;
        let bucket = if rate == LEASES { &mut known.leases } else { &mut known.refusals };
        bucket.take(rate, now) && self.all.take(ALL, now)
    }

    /// The counts of a user.
    fn counted(&mut self, user: u32, now: Instant) -> &mut Summary {
        if self.user(user, now).is_none() {
            return &mut self.others;
        }
        self.users.get_mut(&user).map_or(&mut self.others, |known| &mut known.counted)
    }

    /// The entry of a user; `None` if there are too many.
    fn user(&mut self, user: u32, now: Instant) -> Option<&mut User> {
        if self.users.len() >= USERS && !self.users.contains_key(&user) {
            self.forget(now);
            if self.users.len() >= MOST_USERS {
                return None;
            }
        }
        let new =
            || User { leases: Bucket::default(), refusals: Bucket::default(), last: now, counted: Summary::default() };
        Some(self.users.entry(user).or_insert_with(new))
    }

    /// Removes users whose buckets are full and who have no counted events.
    fn forget(&mut self, now: Instant) {
        self.users.retain(|_, user| !user.counted.is_empty() || now.saturating_duration_since(user.last) < FULL_AGAIN);
    }
}
