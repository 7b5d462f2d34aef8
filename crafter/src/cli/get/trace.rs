//! The segment hook of `crafter get`: prints segments (`-v`), records them (`-w`) and impairs them (`--loss`, ...).

use std::time::Instant;

use crate::cli::{print, recording::Recording};
use crafter::{
    capture,
    engine::{Action, Direction, Impair, SegmentHook},
    packet::TcpView,
};

/// Impairs segments; prints and records each with its impairment.
pub struct Trace {
    verbose: bool,
    impair: Option<Impair>,
    recording: Recording,
    interface: String,
    first: Option<Instant>,
}

impl Trace {
    /// The hook; `None` if it has nothing to do, which saves the copy of each segment.
    pub fn hook(
        verbose: bool,
        impair: Option<Impair>,
        recording: &Recording,
        interface: &str,
    ) -> Option<Box<dyn SegmentHook>> {
        let has_work = verbose || impair.is_some() || recording.is_active();
        let (recording, interface) = (recording.clone(), interface.to_owned());
        has_work.then(|| Box::new(Self { verbose, impair, recording, interface, first: None }) as _)
    }
}

impl SegmentHook for Trace {
    fn segment(&mut self, now: Instant, direction: Direction, ip: &mut Vec<u8>) -> Action {
        let action = self.impair.as_mut().map_or(Action::Pass, |impair| impair.segment(now, direction, ip));
        if !self.verbose && !self.recording.is_active() {
            return action;
        }
        let impairment = match action {
            Action::Pass => String::new(),
            Action::Drop => "dropped by --loss".to_owned(),
            Action::Delay(time) => format!("delayed {time:?} by --reorder"),
            Action::Duplicate(_) => "duplicated by --duplicate".to_owned(),
        };
        let (direction, verb) = match direction {
            Direction::Sent => (capture::Direction::Out, "sent"),
            Direction::Received => (capture::Direction::In, "received"),
        };
        let comment = if impairment.is_empty() { verb.to_owned() } else { format!("{verb}, {impairment}") };
        self.recording.packet(&self.interface, direction, ip, &comment);
        if self.verbose {
            let time = now.duration_since(*self.first.get_or_insert(now));
            let clock = format!("{}.{:06}", print::clock(time), time.subsec_micros());
            let segment = TcpView::parse(ip).map_or_else(|error| error.to_string(), |segment| segment.to_string());
            let impairment = if impairment.is_empty() { impairment } else { format!(" [{impairment}]") };
            print::stderr(format_args!("{clock} {segment}{impairment}"));
        }
        action
    }
}
