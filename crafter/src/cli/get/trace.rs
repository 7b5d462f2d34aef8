//! The segment hook of `crafter get`: prints segments (`-v`) and impairs them (`--loss`, ...).

use std::time::Instant;

use crate::cli::print;
use crafter::{
    engine::{Action, Direction, Impair, SegmentHook},
    packet::{Checksum, Segment, checksum},
};

/// Impairs segments, and prints each with its impairment.
pub struct Trace {
    verbose: bool,
    impair: Option<Impair>,
    first: Option<Instant>,
}

impl Trace {
    /// The hook; `None` if it has nothing to do, which saves the copy of each segment.
    pub fn hook(verbose: bool, impair: Option<Impair>) -> Option<Box<dyn SegmentHook>> {
        (verbose || impair.is_some()).then(|| Box::new(Self { verbose, impair, first: None }) as _)
    }
}

impl SegmentHook for Trace {
    fn segment(&mut self, now: Instant, direction: Direction, ip: &mut Vec<u8>) -> Action {
        let action = self.impair.as_mut().map_or(Action::Pass, |impair| impair.segment(now, direction, ip));
        if self.verbose {
            let time = now.duration_since(*self.first.get_or_insert(now));
            let clock = format!("{}.{:06}", print::clock(time), time.subsec_micros());
            let segment = match Segment::parse(ip) {
                Ok(mut segment) => {
                    // A checksum left to offload is not an error if the packet did not pass a device.
                    if checksum::verify(ip, true) != Checksum::Invalid {
                        segment.checksum = None;
                    }
                    segment.to_string()
                }
                Err(error) => error.to_string(),
            };
            let impairment = match action {
                Action::Pass => String::new(),
                Action::Drop => " [dropped by --loss]".to_owned(),
                Action::Delay(time) => format!(" [delayed {time:?} by --reorder]"),
                Action::Duplicate(_) => " [duplicated by --duplicate]".to_owned(),
            };
            print::stderr(format_args!("{clock} {segment}{impairment}"));
        }
        action
    }
}
