//! The capture of a command whose packets pass the driver, not a session: `get` and `dns`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use crafter::{
    Result,
    capture::{Direction, Entry},
    layer::Kind,
};

use super::exchange::{Capture, Recorder};

/// A capture that the tasks of a command share. Does nothing if none was requested.
#[derive(Clone)]
pub struct Recording(Option<Arc<Mutex<Recorder>>>);

impl Recording {
    /// Creates the file.
    ///
    /// # Errors
    /// [`Error::Io`](crafter::Error::Io) if it cannot be created.
    pub fn create(capture: &Capture) -> Result<Self> {
        Ok(Self(match capture.is_requested() {
            true => Some(Arc::new(Mutex::new(capture.recorder()?))),
            false => None,
        }))
    }

    /// Whether packets are recorded.
    pub fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// Records an IP packet with the present time.
    pub fn packet(&self, interface: &str, direction: Direction, bytes: &[u8], comment: &str) {
        let Some(recorder) = &self.0 else { return };
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let first = if bytes.first().is_some_and(|first| first >> 4 == 6) { Kind::Ipv6 } else { Kind::Ip };
        let entry = Entry {
            interface: Some(interface),
            comment: Some(comment),
            direction: Some(direction),
            ..Entry::new(time, first, bytes)
        };
        recorder.lock().unwrap_or_else(PoisonError::into_inner).record(&entry);
    }

    /// Ends the file. Later packets are not recorded.
    ///
    /// # Errors
    /// The first error of writing.
    pub fn finish(&self) -> Result<()> {
        let Some(recorder) = &self.0 else { return Ok(()) };
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *recorder).finish()
    }
}
