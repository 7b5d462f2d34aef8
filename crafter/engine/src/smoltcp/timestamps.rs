//! Timestamps (RFC 7323): this end's clock, and what is believed of the peer's.
//!
//! smoltcp writes the option, and leaves it out where the peer has not offered it. The time it takes from a function
//! without a state, and it echoes whatever has come last, and never looks whether that is old: the rest is here.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::repair::Seen;
use crate::filter::before;
use crafter_packet::header::{Flags, TcpView};

/// As old as this, what came last says nothing any more: a clock that ticks each millisecond seems to go back then (RFC
/// 7323, section 5.5).
const OUTDATED: Duration = Duration::from_secs(24 * 24 * 3600);

thread_local! {
    static CLOCK: Cell<u32> = const { Cell::new(0) };
}

/// The time as smoltcp asks for it: what [`Stamps::set_clock`] has set last on this thread.
pub(crate) fn clock() -> u32 {
    CLOCK.get()
}

/// Both clocks of a connection that offers timestamps.
#[derive(Debug)]
pub(crate) struct Stamps {
    /// Where this end's clock begins: nobody is to learn how long the host runs (RFC 7323, section 7.1).
    offset: u32,
    /// `TS.Recent`: what is echoed, and what is older is of a former time; and when it came. `None`: the peer has no
    /// timestamps.
    recent: Option<(u32, Instant)>,
    /// `Last.ACK.sent`.
    acknowledged: Option<u32>,
}

impl Stamps {
    /// For a connection that begins; `seed` is random.
    pub fn new(seed: u64) -> Self {
        // The first sequence number comes from the seed too, and one must not tell the other: half of a multiplication
        // by 2^64 over the golden ratio.
        let offset = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        Self { offset, recent: None, acknowledged: None }
    }

    /// Sets the clock for what smoltcp sends next on this thread: milliseconds (RFC 7323, section 5.4).
    pub fn set_clock(&self, since_start: Duration) {
        CLOCK.set(self.offset.wrapping_add(since_start.as_millis() as u32));
    }

    /// The peer's SYN, which says whether it has timestamps.
    pub fn begin(&mut self, now: Instant, syn: &TcpView<'_>) {
        self.recent = find(syn.options()).map(|at| (word(&syn.options()[at..]), now));
    }

    /// Notes a segment of this end's.
    pub fn note_sent(&mut self, view: &TcpView<'_>) {
        if view.flags.contains(Flags::ACK) {
            self.acknowledged = Some(view.ack);
        }
    }

    /// Whether a received segment is of this time, and not a copy that comes when its numbers are in use again: PAWS
    /// (RFC 7323, section 5.3). Takes its time for the peer's where it has nothing behind what is acknowledged (4.3).
    pub fn is_timely(&mut self, now: Instant, view: &TcpView<'_>) -> bool {
        let Some(recent) = self.recent.as_mut().filter(|_| !view.flags.contains(Flags::RST)) else { return true };
        // One that lacks it is taken all the same, as Linux does.
        let Some(value) = find(view.options()).map(|at| word(&view.options()[at..])) else { return true };
        let is_outdated = now.saturating_duration_since(recent.1) > OUTDATED;
        if before(value, recent.0) && !is_outdated {
            return false;
        }
        if self.acknowledged.is_none_or(|acknowledged| !before(acknowledged, view.seq)) {
            *recent = (value, now);
        }
        true
    }

    /// A received segment for smoltcp, with the time in it that is to be echoed.
    pub fn echoed(&self, view: &TcpView<'_>, seen: Seen) -> Seen {
        let Some(((recent, _), at)) = self.recent.zip(find(view.options())) else { return seen };
        let mut packet = match seen {
            Seen::Nothing => return Seen::Nothing,
            Seen::Whole if word(&view.options()[at..]) == recent => return Seen::Whole,
            Seen::Whole => view.ip.bytes().to_vec(),
            Seen::Changed(packet) => packet,
        };
        let at = view.ip.payload.start + crafter_packet::header::tcp::HEADER + at;
        packet[at..at + 4].copy_from_slice(&recent.to_be_bytes());
        Seen::Changed(packet)
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Where in the options of a segment the timestamp's value is.
fn find(options: &[u8]) -> Option<usize> {
    // As everybody lays it out (RFC 7323, appendix A).
    if options.len() >= 12 && options.starts_with(&[1, 1, 8, 10]) {
        return Some(4);
    }
    let mut at = 0;
    loop {
        at += match options.get(at..)? {
            [1, ..] => 1,
            [8, 10, rest @ ..] => return (rest.len() >= 8).then_some(at + 2),
            [kind, length, ..] if *kind != 0 && *length >= 2 => usize::from(*length),
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crafter_packet::header::{Segment, TcpOption};

    fn segment(flags: Flags, seq: u32, value: Option<u32>) -> Vec<u8> {
        let ends = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:49152".parse().unwrap());
        let options = value.map(|value| TcpOption::Timestamps { value, echo: 7 }).into_iter().collect();
        Segment { flags, seq, ack: 1, options, payload: b"data".to_vec(), ..Segment::new(ends.0, ends.1) }.build()
    }

    /// The peer's SYN had 1000 and its byte 100 is the next to be acknowledged.
    fn stamps() -> Stamps {
        let mut stamps = Stamps::new(1);
        stamps.begin(Instant::now(), &TcpView::parse(&segment(Flags::SYN, 99, Some(1000))).unwrap());
        stamps.acknowledged = Some(100);
        stamps
    }

    fn takes(stamps: &mut Stamps, flags: Flags, seq: u32, value: Option<u32>) -> (bool, Option<u32>) {
        takes_later(stamps, Duration::ZERO, flags, seq, value)
    }

    fn takes_later(
        stamps: &mut Stamps,
        later: Duration,
        flags: Flags,
        seq: u32,
        value: Option<u32>,
    ) -> (bool, Option<u32>) {
        let now = Instant::now() + later;
        let timely = stamps.is_timely(now, &TcpView::parse(&segment(flags, seq, value)).unwrap());
        (timely, stamps.recent.map(|(recent, _)| recent))
    }

    #[test]
    fn what_is_older_is_of_a_former_time() {
        let mut stamps = stamps();
        assert_eq!(takes(&mut stamps, Flags::ACK, 100, Some(999)), (false, Some(1000)));
        assert_eq!(takes(&mut stamps, Flags::ACK, 100, Some(1000)), (true, Some(1000)));
        assert_eq!(takes(&mut stamps, Flags::ACK, 100, Some(2000)), (true, Some(2000)));
        // The clock passes 2^32, and 2^31 ahead is behind.
        assert_eq!(takes(&mut stamps, Flags::ACK, 100, Some(2000 + (1 << 31))), (false, Some(2000)));
        assert_eq!(takes(&mut stamps, Flags::ACK, 100, Some(1999 + (1 << 31))), (true, Some(1999 + (1 << 31))));
        assert_eq!(takes(&mut stamps, Flags::ACK, 100, Some(5)), (true, Some(5)));
    }

    #[test]
    fn after_24_days_nothing_is_old() {
        let mut stamps = stamps();
        let (behind, minute) = (Some(999), Duration::from_secs(60));
        assert_eq!(takes_later(&mut stamps, OUTDATED - minute, Flags::ACK, 100, behind), (false, Some(1000)));
        let later = OUTDATED + minute;
        assert_eq!(takes_later(&mut stamps, later, Flags::ACK, 100, behind), (true, behind));
        assert_eq!(takes_later(&mut stamps, later, Flags::ACK, 100, Some(998)), (false, behind));
    }

    #[test]
    fn resets_and_segments_without_a_time_are_taken() {
        let mut stamps = stamps();
        assert_eq!(takes(&mut stamps, Flags::RST, 100, Some(1)), (true, Some(1000)));
        assert_eq!(takes(&mut stamps, Flags::ACK, 100, None), (true, Some(1000)));
        let mut none = Stamps::new(1);
        none.begin(Instant::now(), &TcpView::parse(&segment(Flags::SYN, 99, None)).unwrap());
        assert_eq!(takes(&mut none, Flags::ACK, 100, Some(1)), (true, None));
    }

    #[test]
    fn what_is_ahead_is_not_echoed() {
        let mut stamps = stamps();
        assert_eq!(takes(&mut stamps, Flags::ACK, 101, Some(1500)), (true, Some(1000)));
        let ahead = segment(Flags::ACK, 101, Some(1500));
        let Seen::Changed(packet) = stamps.echoed(&TcpView::parse(&ahead).unwrap(), Seen::Whole) else {
            panic!("1500 would be echoed")
        };
        let options = Segment::parse(&packet).unwrap().options;
        assert!(options.contains(&TcpOption::Timestamps { value: 1000, echo: 7 }), "{options:?}");
        let next = segment(Flags::ACK, 100, Some(1000));
        assert_eq!(stamps.echoed(&TcpView::parse(&next).unwrap(), Seen::Whole), Seen::Whole);
        assert_eq!(stamps.echoed(&TcpView::parse(&ahead).unwrap(), Seen::Nothing), Seen::Nothing);
    }

    #[test]
    fn it_is_found_wherever_it_is() {
        let value = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let with = |before: &[u8], behind: &[u8]| find(&[before, &value, behind].concat());
        assert_eq!(with(&[1, 1], &[]), Some(4));
        assert_eq!(with(&[], &[]), Some(2));
        assert_eq!(with(&[2, 4, 5, 180, 4, 2], &[1, 3, 3, 7]), Some(8));
        for cut in 0..10 {
            assert_eq!(find(&value[..cut]), None);
            assert_eq!(find(&[&[1, 1], &value[..cut]].concat()), None);
        }
        // The list has ended; a length that is none; one that goes beyond.
        assert_eq!([with(&[0], &[]), with(&[2, 0], &[]), with(&[2, 1], &[]), with(&[2, 40], &[])], [None; 4]);
    }
}
