//! Log records to stderr, one line each.

use std::io::Write as _;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        // The libraries underneath report to their users, not to ours, short of trace.
        metadata.target().starts_with("crafter") || log::max_level() == log::LevelFilter::Trace
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // Nothing is left to complain to when stderr is gone.
            let _ = writeln!(std::io::stderr().lock(), "crafter: {level}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Logs records up to `level` from now on.
pub fn start(level: log::LevelFilter) {
    // It fails only when a logger is set already: then that one stays.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
