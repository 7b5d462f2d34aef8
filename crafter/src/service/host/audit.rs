//! The audit log: a record for each lease, its end, each refusal, and the events of the service itself.
//!
//! Records go to journald with fields, so that `journalctl CRAFTER_EVENT=refusal CRAFTER_USER=1000` finds them. Without
//! a journal they go to stderr, one line of logfmt each.
//!
//! A client can cause any number of refusals, so each user has a rate of records, [`REFUSALS`]. Refusals above it are
//! counted, and the user's next record contains the count. The sum of `CRAFTER_COUNT` is the number of refusals.
//! Writing never blocks: a record that the journal has no room for is lost, and the next record contains the number of
//! lost ones (`CRAFTER_UNWRITTEN`).

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

pub use self::record::{Counts, Record, RequestKind, Resource, Who};
use self::{
    record::{Fields, MoreRefusals},
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

/// Time until a user's bucket is full again.
const FULL_AGAIN: Duration = Duration::from_secs(REFUSALS.burst as u64 / REFUSALS.packets_per_second as u64 + 1);

/// Number of users above which idle ones are removed.
const USERS: usize = 1024;

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    sink: Sink,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<u32, User>,
    /// Records lost since the last written one.
    unwritten: u64,
    lost: u64,
}

#[derive(Debug)]
struct User {
    bucket: Bucket,
    last: Instant,
    /// Refusals without a record since the last record.
    uncounted: u64,
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

    /// Writes a record, or counts it. `now` is for the rate of refusals.
    pub fn record(&self, record: &Record<'_>, now: Instant) {
        let mut state = self.state();
        match record {
            Record::Refusal { who, .. } => {
                if let Some(count) = state.refusal(who.user, now) {
                    self.write(&mut state, &record.fields(count));
                }
            }
            Record::Stop { .. } => {
                self.write_counts(&mut state, |_| true);
                self.write(&mut state, &record.fields(1));
            }
            _ => self.write(&mut state, &record.fields(1)),
        }
    }

    /// Writes the number of counted refusals of each user whose rate allows a record. Call it every few seconds, so
    /// that the end of a flood is recorded.
    pub fn flush_counts(&self, now: Instant) {
        let mut state = self.state();
        self.write_counts(&mut state, |user| user.bucket.take(REFUSALS, now));
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

    fn write_counts(&self, state: &mut State, mut may: impl FnMut(&mut User) -> bool) {
        let mut counts = Vec::new();
        for (&user, known) in &mut state.users {
            if known.uncounted > 0 && may(known) {
                counts.push(MoreRefusals { user, count: std::mem::take(&mut known.uncounted) });
            }
        }
        for more in counts {
            self.write(state, &more.fields());
        }
    }

    fn write(&self, state: &mut State, fields: &Fields) {
        if self.sink.write(fields, state.unwritten) {
            state.unwritten = 0;
        } else {
            state.unwritten += 1;
            state.lost += 1;
        }
    }
}

impl State {
    /// The number of refusals that a record at `now` covers; `None` if the rate does not allow a record.
    fn refusal(&mut self, user: u32, now: Instant) -> Option<u64> {
        if self.users.len() >= USERS && !self.users.contains_key(&user) {
            self.forget(now);
        }
        let known =
            self.users.entry(user).or_insert_with(|| User { bucket: Bucket::default(), last: now, uncounted: 0 });
        known.last = now;
        if known.bucket.take(REFUSALS, now) {
            Some(1 + std::mem::take(&mut known.uncounted))
        } else {
            known.uncounted += 1;
            None
        }
    }

    /// Removes users whose bucket is full and who have no counted refusals.
    fn forget(&mut self, now: Instant) {
        self.users.retain(|_, user| user.uncounted > 0 || now.saturating_duration_since(user.last) < FULL_AGAIN);
    }
}
