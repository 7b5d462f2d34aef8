//! Log records to stderr, one line each. Clients of the service can cause warnings, so their rate is limited; those
//! above it are counted, and the next line has the number.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    print,
    style::{self, Paint},
};

/// The maximum number of warnings and errors in each [`WINDOW`].
const MOST: u32 = 100;
const WINDOW: Duration = Duration::from_secs(5);

struct Stderr(Mutex<Limit>);

/// The warnings and errors of a window of time.
struct Limit {
    began: Option<Instant>,
    printed: u32,
    dropped: u64,
}

impl Limit {
    const NEW: Self = Self { began: None, printed: 0, dropped: 0 };

    /// Counts a record at `now`. If it may be printed: the number of those before it that were not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            (self.began, self.printed) = (Some(now), 0);
        }
        if self.printed == MOST {
            self.dropped += 1;
            return None;
        }
        self.printed += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

fn print_dropped(dropped: u64) {
    if dropped > 0 {
        print::message(format_args!("warn: {dropped} further warnings were not printed"));
    }
}

impl Stderr {
    fn limit(&self) -> std::sync::MutexGuard<'_, Limit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        // Records of dependencies are for developers: only at level trace.
        metadata.target().starts_with("crafter") || log::max_level() == log::LevelFilter::Trace
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            if record.level() <= log::Level::Warn {
                let Some(dropped) = self.limit().admit(Instant::now()) else { return };
                print_dropped(dropped);
            }
            let level = record.level().as_str().to_ascii_lowercase();
            let style = match record.level() {
                log::Level::Error => style::ERROR,
                log::Level::Warn => style::WARNING,
                _ => style::FAINT,
            };
            let level = Paint::stderr().styled(style, format_args!("{level}:"));
            print::message(format_args!("{level} {}", record.args()));
        }
    }

    /// Prints the number of records that were not printed.
    fn flush(&self) {
        print_dropped(std::mem::take(&mut self.limit().dropped));
    }
}

/// Enables the logger for records up to `level`.
pub fn start(level: log::LevelFilter) {
    static STDERR: Stderr = Stderr(Mutex::new(Limit::NEW));
    // Fails only if a logger is set already.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_above_the_limit_are_counted() {
        let (mut limit, start) = (Limit::NEW, Instant::now());
        let printed = (0..1000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(printed, MOST as usize);
        assert_eq!(limit.admit(start + WINDOW), Some(900));
        assert_eq!(limit.admit(start + WINDOW), Some(0), "counted once");
    }
}
