//! SIGHUP: the terminal of the command has disappeared.

use std::{
    fs, io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether the signal has arrived.
static ARRIVED: AtomicBool = AtomicBool::new(false);

/// Receives SIGHUP once. A shell and the kernel may both send it.
pub struct HangUp(Option<Signal>);

impl HangUp {
    /// Handles the signal unless this process was started with the signal ignored, as nohup(1) does.
    ///
    /// # Errors
    /// If the handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        let handled = if is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self(handled))
    }

    /// Waits for the signal. Safe to cancel.
    pub async fn arrive(&mut self) {
        match &mut self.0 {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        };
        self.0 = None;
        ARRIVED.store(true, Ordering::Relaxed);
    }
}

/// Whether the signal has arrived: then no terminal shows messages, and writing to it fails.
pub fn has_arrived() -> bool {
    ARRIVED.load(Ordering::Relaxed)
}

/// Whether the process was started with the signal ignored.
fn is_ignored() -> bool {
    static IGNORED: OnceLock<bool> = OnceLock::new();
    *IGNORED.get_or_init(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("SigIgn:")).is_some_and(|mask| contains(mask, libc::SIGHUP))
    })
}

/// Whether a mask of signals in hexadecimal, as the kernel prints it, contains a signal.
fn contains(mask: &str, signal: i32) -> bool {
    u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_signals_are_read() {
        let mask = "\t0000000000001001";
        assert!(contains(mask, libc::SIGHUP) && contains(mask, libc::SIGPIPE));
        assert!(!contains(mask, libc::SIGINT) && !contains("", libc::SIGHUP));
    }
}
