//! Timestamps (RFC 7323): this end's clock, and TS.Recent.
//!
//! smoltcp writes the option, unless the peer has not offered it; everything else is here.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::Rewrite;
use crafter_packet::view::option::{ListItem, NOP, OptionList, TIMESTAMPS, TIMESTAMPS_LENGTH};
use crafter_packet::view::{Flags, Seq, TcpView, tcp};

/// Time after which TS.Recent is invalid: a clock in milliseconds may have wrapped (RFC 7323, section 5.5).
const OUTDATED: Duration = Duration::from_secs(24 * 24 * 3600);

thread_local! {
    static CLOCK: Cell<u32> = const { Cell::new(0) };
}

/// The TSval for smoltcp: the last value set by [`Timestamps::set_clock`] on this thread.
pub(crate) fn clock() -> u32 {
    CLOCK.get()
}

/// Both clocks of a connection that offers timestamps. Values are compared like sequence numbers (RFC 7323, section
/// 5.2).
#[derive(Debug)]
pub(crate) struct Timestamps {
    /// Random offset of this end's clock in milliseconds, so that the peer does not learn the uptime of the host (RFC
    /// 7323, section 7.1).
    offset: u32,
    /// TS.Recent and when it was set. `None`: the peer has no timestamps.
    recent: Option<(Seq, Instant)>,
    /// Last.ACK.sent.
    acknowledged: Option<Seq>,
}

impl Timestamps {
    /// State of a new connection; `seed` is random.
    pub fn new(seed: u64) -> Self {
        // The initial sequence number is derived from the seed too, and neither must reveal the other: the upper half
        // of a multiplication by 2^64 divided by the golden ratio.
        let offset = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        Self { offset, recent: None, acknowledged: None }
    }

    /// Sets the clock in milliseconds for the segments that smoltcp sends next on this thread (RFC 7323, section 5.4).
    ///
    /// - smoltcp: `set_tsval_generator` takes a function pointer, which has access neither to the connection nor to the
    ///   time of the poll.
    /// - Required: a clock that is at least roughly proportional to real time (RFC 7323, section 5.4), and an offset of
    ///   its own for each connection (section 7.1).
    /// - Otherwise: every TSval is the same, and the peer can neither measure round-trip times nor detect old segments.
    /// - Remove when the generator is a closure, or receives the time.
    pub fn set_clock(&self, since_start: Duration) {
        CLOCK.set(self.offset.wrapping_add(since_start.as_millis() as u32));
    }

    /// Notes the peer's SYN, which determines whether timestamps are used.
    pub fn begin(&mut self, now: Instant, syn: &TcpView<'_>) {
        self.recent = find(syn.options()).map(|at| (value(&syn.options()[at..]), now));
    }

    /// Notes a sent segment.
    pub fn note_sent(&mut self, view: &TcpView<'_>) {
        if view.flags.contains(Flags::ACK) {
            self.acknowledged = Some(Seq(view.ack));
        }
    }

    /// PAWS: whether a received segment is not older than TS.Recent. Updates TS.Recent if the segment begins at or
    /// before the last acknowledged number (RFC 7323, section 4.3).
    ///
    /// - smoltcp: `process` never looks at a TSval.
    /// - Required: an older segment is dropped and answered by an ACK (RFC 7323, section 5.3 R1).
    /// - Otherwise: a segment that is delayed for 4 GiB of data, until its sequence numbers are used again, corrupts
    ///   the stream.
    /// - Remove when smoltcp has PAWS.
    pub fn is_timely(&mut self, now: Instant, view: &TcpView<'_>) -> bool {
        let Some(recent) = self.recent.as_mut().filter(|_| !view.flags.contains(Flags::RST)) else { return true };
        // A segment without the option is accepted, as in Linux.
        let Some(value) = find(view.options()).map(|at| value(&view.options()[at..])) else { return true };
        let is_outdated = now.saturating_duration_since(recent.1) > OUTDATED;
        if value.before(recent.0) && !is_outdated {
            return false;
        }
        if self.acknowledged.is_none_or(|acknowledged| !Seq(view.seq).after(acknowledged)) {
            *recent = (value, now);
        }
        true
    }

    /// Replaces the TSval of a received segment by TS.Recent, for smoltcp.
    ///
    /// - smoltcp: `process` stores the TSval of every segment for the next echo, and `ack_reply` echoes that of the
    ///   current segment.
    /// - Required: TS.Recent (RFC 7323, section 4.3): a segment after a gap does not count.
    /// - Otherwise: the peer measures too short a round-trip time for a lost segment, and retransmits too early.
    /// - Remove when smoltcp has TS.Recent.
    pub fn echoed(&self, view: &TcpView<'_>, rewrite: Rewrite) -> Rewrite {
        let Some(((recent, _), at)) = self.recent.zip(find(view.options())) else { return rewrite };
        let mut packet = match rewrite {
            Rewrite::Drop => return Rewrite::Drop,
            Rewrite::Keep if value(&view.options()[at..]) == recent => return Rewrite::Keep,
            Rewrite::Keep => view.ip.bytes().to_vec(),
            Rewrite::Replace(packet) => packet,
        };
        packet[view.ip.payload.start + tcp::HEADER + at..][..size_of::<Seq>()].copy_from_slice(&recent.to_be_bytes());
        Rewrite::Replace(packet)
    }
}

/// The TSval at the start of the bytes.
fn value(bytes: &[u8]) -> Seq {
    Seq(bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)))
}

/// Offset of the TSval in the options of a segment.
fn find(options: &[u8]) -> Option<usize> {
    const BODY: usize = TIMESTAMPS_LENGTH as usize - 2;
    // The usual layout (RFC 7323, appendix A).
    if options.len() >= BODY + 4 && options.starts_with(&[NOP, NOP, TIMESTAMPS, TIMESTAMPS_LENGTH]) {
        return Some(4);
    }
    let mut list = OptionList::new(options);
    while let Some(item) = list.next() {
        if let ListItem::Option { kind: TIMESTAMPS, data } = item
            && data.len() == BODY
        {
            return Some(options.len() - list.remaining().len() - BODY);
        }
    }
    None
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use crafter_packet::{layer::TcpOption, testing::Segment};

    fn segment(flags: Flags, seq: u32, value: Option<u32>) -> Vec<u8> {
        let ends = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:49152".parse().unwrap());
        let options = value.map(|value| TcpOption::Timestamp(value, 7)).into_iter().collect();
        Segment { flags, seq, ack: 1, options, payload: b"data".to_vec(), ..Segment::new(ends.0, ends.1) }.build()
    }

    /// The peer's SYN had 1000 and its byte 100 is the next to be acknowledged.
    fn timestamps() -> Timestamps {
        let mut timestamps = Timestamps::new(1);
        timestamps.begin(Instant::now(), &TcpView::parse(&segment(Flags::SYN, 99, Some(1000))).unwrap());
        timestamps.acknowledged = Some(Seq(100));
        timestamps
    }

    fn takes(timestamps: &mut Timestamps, flags: Flags, seq: u32, value: Option<u32>) -> (bool, Option<u32>) {
        takes_later(timestamps, Duration::ZERO, flags, seq, value)
    }

    fn takes_later(
        timestamps: &mut Timestamps,
        later: Duration,
        flags: Flags,
        seq: u32,
        value: Option<u32>,
    ) -> (bool, Option<u32>) {
        let now = Instant::now() + later;
        let timely = timestamps.is_timely(now, &TcpView::parse(&segment(flags, seq, value)).unwrap());
        (timely, timestamps.recent.map(|(recent, _)| recent.0))
    }

    #[test]
    fn older_timestamps_are_not_timely() {
        let mut timestamps = timestamps();
        assert_eq!(takes(&mut timestamps, Flags::ACK, 100, Some(999)), (false, Some(1000)));
        assert_eq!(takes(&mut timestamps, Flags::ACK, 100, Some(1000)), (true, Some(1000)));
        assert_eq!(takes(&mut timestamps, Flags::ACK, 100, Some(2000)), (true, Some(2000)));
        // The clock wraps at 2^32; a value 2^31 ahead is old.
        assert_eq!(takes(&mut timestamps, Flags::ACK, 100, Some(2000 + (1 << 31))), (false, Some(2000)));
        assert_eq!(takes(&mut timestamps, Flags::ACK, 100, Some(1999 + (1 << 31))), (true, Some(1999 + (1 << 31))));
        assert_eq!(takes(&mut timestamps, Flags::ACK, 100, Some(5)), (true, Some(5)));
    }

    #[test]
    fn ts_recent_expires_after_24_days() {
        let mut timestamps = timestamps();
        let (behind, minute) = (Some(999), Duration::from_secs(60));
        assert_eq!(takes_later(&mut timestamps, OUTDATED - minute, Flags::ACK, 100, behind), (false, Some(1000)));
        let later = OUTDATED + minute;
        assert_eq!(takes_later(&mut timestamps, later, Flags::ACK, 100, behind), (true, behind));
        assert_eq!(takes_later(&mut timestamps, later, Flags::ACK, 100, Some(998)), (false, behind));
    }

    #[test]
    fn rst_and_segments_without_timestamp_are_accepted() {
        let mut timestamps = timestamps();
        assert_eq!(takes(&mut timestamps, Flags::RST, 100, Some(1)), (true, Some(1000)));
        assert_eq!(takes(&mut timestamps, Flags::ACK, 100, None), (true, Some(1000)));
        let mut none = Timestamps::new(1);
        none.begin(Instant::now(), &TcpView::parse(&segment(Flags::SYN, 99, None)).unwrap());
        assert_eq!(takes(&mut none, Flags::ACK, 100, Some(1)), (true, None));
    }

    #[test]
    fn timestamp_after_gap_is_not_echoed() {
        let mut timestamps = timestamps();
        assert_eq!(takes(&mut timestamps, Flags::ACK, 101, Some(1500)), (true, Some(1000)));
        let ahead = segment(Flags::ACK, 101, Some(1500));
        let Rewrite::Replace(packet) = timestamps.echoed(&TcpView::parse(&ahead).unwrap(), Rewrite::Keep) else {
            panic!("1500 would be echoed")
        };
        let options = Segment::parse(&packet).unwrap().options;
        assert!(options.contains(&TcpOption::Timestamp(1000, 7)), "{options:?}");
        let next = segment(Flags::ACK, 100, Some(1000));
        assert_eq!(timestamps.echoed(&TcpView::parse(&next).unwrap(), Rewrite::Keep), Rewrite::Keep);
        assert_eq!(timestamps.echoed(&TcpView::parse(&ahead).unwrap(), Rewrite::Drop), Rewrite::Drop);
    }

    #[test]
    fn timestamp_is_found_at_any_position() {
        let value = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let with = |before: &[u8], behind: &[u8]| find(&[before, &value, behind].concat());
        assert_eq!(with(&[1, 1], &[]), Some(4));
        assert_eq!(with(&[], &[]), Some(2));
        assert_eq!(with(&[2, 4, 5, 180, 4, 2], &[1, 3, 3, 7]), Some(8));
        for cut in 0..10 {
            assert_eq!(find(&value[..cut]), None);
            assert_eq!(find(&[&[1, 1], &value[..cut]].concat()), None);
        }
        // The end of the list; a length below 2; a length that exceeds the list.
        assert_eq!([with(&[0], &[]), with(&[2, 0], &[]), with(&[2, 1], &[]), with(&[2, 40], &[])], [None; 4]);
    }
}
