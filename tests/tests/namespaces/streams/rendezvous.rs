//! A rendezvous of two threads with a timeout.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// A rendezvous of two threads.
#[derive(Debug, Default)]
pub struct Rendezvous {
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Rendezvous {
    /// Arrives without waiting for the other thread.
    pub fn arrive(&self) {
        *self.arrived.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Waits for the other thread; returns whether it arrived. Unlike a barrier, it does not wait forever for a thread
    /// that has failed.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.arrive();
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let (arrived, _) = self
            .changed
            .wait_timeout_while(arrived, timeout, |arrived| *arrived < 2)
            .unwrap_or_else(PoisonError::into_inner);
        *arrived >= 2
    }
}
