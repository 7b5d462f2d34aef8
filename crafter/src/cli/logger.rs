//! Log records to stderr, one line each.

use super::{
    print,
    style::{self, Paint},
};

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        // Records of dependencies are for developers: only at level trace.
        metadata.target().starts_with("crafter") || log::max_level() == log::LevelFilter::Trace
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
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

    fn flush(&self) {}
}

/// Enables the logger for records up to `level`.
pub fn start(level: log::LevelFilter) {
    // Fails only if a logger is set already.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
