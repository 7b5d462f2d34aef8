//! Where two threads meet, if both come.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// For two.
#[derive(Debug, Default)]
pub struct Meeting {
    here: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    /// Waits for the other; whether it has come. A barrier would wait for ever for one that has failed before.
    pub fn wait(&self, patience: Duration) -> bool {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        *here += 1;
        self.changed.notify_all();
        let (here, _) =
            self.changed.wait_timeout_while(here, patience, |here| *here < 2).unwrap_or_else(PoisonError::into_inner);
        *here >= 2
    }
}
