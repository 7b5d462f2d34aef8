//! The audit log: one record for each lease, its end, each refusal, and what happens to the service itself.
//!
//! Records go to journald with fields, so that `journalctl CRAFTER_EVENT=refusal CRAFTER_USER=1000` finds them; where
//! there is no journal they go to stderr, a line each, in logfmt.
//!
//! Refusals come as fast as a client sends, so each user has [`REFUSALS`]; what is beyond is counted, and the number is
//! in the user's next record of a refusal. The sum of `CRAFTER_COUNT` is the number of refusals, whatever the rate.
//! Nothing here waits: what the journal has no room for is lost, and the next record tells how many were
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

pub use self::record::{Counts, Record, RequestKind, Resource, Who};
use self::{
    record::{Fields, MoreRefusals},
    sink::Sink,
};
use crate::{
    error::{Error, Result},
    policy::{Bucket, Rate},
};

/// journald's socket for records with fields.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// Records of refusals for each user: 5 a second, 20 at once.
pub const REFUSALS: Rate = Rate { packets_per_second: 5, burst: 20 };

/// After which a user's bucket is full again, whatever was taken.
const FULL_AGAIN: Duration = Duration::from_secs(REFUSALS.burst as u64 / REFUSALS.packets_per_second as u64 + 1);

/// Users to know before those who are quiet are forgotten without being asked.
const USERS: usize = 1024;

/// The log.
#[derive(Debug)]
pub struct Audit {
    sink: Sink,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<u32, User>,
    /// Not taken by the journal since the last record that was.
    unwritten: u64,
    lost: u64,
}

#[derive(Debug)]
struct User {
    bucket: Bucket,
    last: Instant,
    /// Refusals without a record since the last one.
    uncounted: u64,
}

impl Audit {
    /// The host's journal, else stderr.
    ///
    /// # Errors
    /// [`Error::Io`] if there are no descriptors left.
    pub fn open() -> Result<Self> {
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        Self::at(JOURNAL, stderr.map_err(|source| Error::Io { action: "open the audit log".to_owned(), source })?)
    }

    /// A journal's socket at `journal`; what listens there may come and go. `otherwise` gets the lines while nothing
    /// does.
    ///
    /// # Errors
    /// [`Error::Io`] if there are no descriptors left.
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

    /// Writes how many refusals were only counted, of users who have been quiet since or may have a record again. To
    /// be called every few seconds, so that the end of a flood is told too.
    pub fn flush_counts(&self, now: Instant) {
        let mut state = self.state();
        self.write_counts(&mut state, |user| user.bucket.take(REFUSALS, now));
        state.forget(now);
    }

    /// Records that the journal, or stderr, did not take, in all.
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Numbers, which are sound whoever panicked.
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
    /// How many refusals a record at `now` tells; `None`: there is to be none.
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

    /// Users whose buckets are full and who have nothing to be told are as those who never came.
    fn forget(&mut self, now: Instant) {
        self.users.retain(|_, user| user.uncounted > 0 || now.saturating_duration_since(user.last) < FULL_AGAIN);
    }
}
