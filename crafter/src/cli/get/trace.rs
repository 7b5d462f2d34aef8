//! `-v`, and the impairments: the hook of the stream.

use std::{
    io::{self, Write as _},
    time::Instant,
};

use crafter::{
    engine::{Action, Direction, Impair, SegmentHook},
    packet::TcpView,
};

/// Impairs segments, and prints each one with what became of it.
pub struct Trace {
    verbose: bool,
    impair: Option<Impair>,
    first: Option<Instant>,
}

impl Trace {
    /// The hook, if one is needed: without one, segments are not copied for it.
    pub fn hook(verbose: bool, impair: Option<Impair>) -> Option<Box<dyn SegmentHook>> {
        (verbose || impair.is_some()).then(|| Box::new(Self { verbose, impair, first: None }) as _)
    }
}

impl SegmentHook for Trace {
    fn segment(&mut self, now: Instant, direction: Direction, ip: &mut Vec<u8>) -> Action {
        let action = self.impair.as_mut().map_or(Action::Pass, |impair| impair.segment(now, direction, ip));
        if self.verbose {
            let time = now.duration_since(*self.first.get_or_insert(now));
            let seconds = time.as_secs();
            let clock = format!(
                "{:02}:{:02}:{:02}.{:06}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60,
                time.subsec_micros()
            );
            let segment = TcpView::parse(ip).map_or_else(|error| error.to_string(), |segment| segment.to_string());
            let fate = match action {
                Action::Pass => String::new(),
                Action::Drop => " [lost by --loss]".to_owned(),
                Action::Delay(time) => format!(" [held back {time:?} by --reorder]"),
                Action::Duplicate(_) => " [twice by --duplicate]".to_owned(),
            };
            // Nothing is left to complain to when stderr is gone.
            let _ = io::stderr().lock().write_all(format!("{clock} {segment}{fate}\n").as_bytes());
        }
        action
    }
}
