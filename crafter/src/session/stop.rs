//! Ends an exchange early.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// Ends the exchange of a [`Session`](super::Session) early, with the results and the account so far. Clones belong to
/// the same session.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_stopped: AtomicBool,
    stopped: Notify,
}

impl Stop {
    /// Ends the exchange that runs, and each later exchange of the session before its first packet.
    pub fn stop(&self) {
        self.0.is_stopped.store(true, Ordering::Release);
        self.0.stopped.notify_waiters();
    }

    /// Whether [`Stop::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.0.is_stopped.load(Ordering::Acquire)
    }

    /// Returns once [`Stop::stop`] is called.
    pub async fn stopped(&self) {
        let mut notified = std::pin::pin!(self.0.stopped.notified());
        // Registers before the flag is read, so that no call is missed in between.
        notified.as_mut().enable();
        if !self.is_stopped() {
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn waiters_return_before_and_after_the_call() {
        let stop = Stop::default();
        let (waiting, ()) = tokio::join!(async { stop.stopped().await }, async { stop.clone().stop() });
        assert_eq!((waiting, stop.is_stopped()), ((), true));
        stop.stopped().await;
    }
}
