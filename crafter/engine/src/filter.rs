//! The path of every segment between smoltcp and the caller: counters, the hook, and the fix-ups of [`crate::smoltcp`].

use std::time::{Duration, Instant};

use super::config::StreamStats;
use super::delay::DelayQueue;
use super::hook::{Action, Direction, SegmentHook};
use super::smoltcp::Rewrite;
use super::smoltcp::segment_fixups::{self, Awaited, SegmentFixups};
use super::smoltcp::socket::SendSequence;
use super::smoltcp::timers::Attempts;
use super::smoltcp::timestamps::Timestamps;
use crafter_packet::view::{Flags, Seq, TcpView};

/// Maximum number of copies that a hook can request.
const MAX_COPIES: u32 = 1000;

pub(super) struct SegmentFilter {
    hook: Option<Box<dyn SegmentHook>>,
    pub delayed: DelayQueue,
    pub stats: StreamStats,
    /// The peer's sequence number after its SYN.
    first_expected: Option<Seq>,
    /// `None` until the SYN was sent.
    sent: Option<SendSequence>,
    fixups: SegmentFixups,
    /// Set if timestamps are offered.
    timestamps: Option<Timestamps>,
    attempts: Attempts,
}

impl SegmentFilter {
    pub fn new(hook: Option<Box<dyn SegmentHook>>, timestamps: Option<Timestamps>) -> Self {
        Self {
            hook,
            delayed: DelayQueue::default(),
            stats: StreamStats::default(),
            first_expected: None,
            sent: None,
            fixups: SegmentFixups::default(),
            timestamps,
            attempts: Attempts::default(),
        }
    }

    /// Sets the clock for the segments that smoltcp sends next on this thread.
    pub fn set_clock(&self, since_start: Duration) {
        if let Some(timestamps) = &self.timestamps {
            timestamps.set_clock(since_start);
        }
    }

    /// Attempts to get an acknowledgment since the last segment from the peer.
    pub fn attempts(&self) -> Attempts {
        self.attempts
    }

    pub fn has_hook(&self) -> bool {
        self.hook.is_some()
    }

    pub fn first_expected(&self) -> Option<Seq> {
        self.first_expected
    }

    /// Whether `seq` was sent and is not acknowledged.
    pub fn is_in_flight(&self, seq: Seq) -> bool {
        self.sent.is_some_and(|sent| sent.is_in_flight(seq))
    }

    /// Counts a received segment; `expected` is RCV.NXT; `None` before the peer's SYN was received. False for a segment
    /// with an old timestamp: nothing in it is noted.
    pub fn note_received(&mut self, now: Instant, view: &TcpView<'_>, expected: Option<Seq>) -> bool {
        let stats = &mut self.stats;
        stats.segments_received += 1;
        stats.bytes_received += view.payload().len() as u64;
        self.attempts = Attempts::default();
        if expected.is_some() && self.timestamps.as_mut().is_some_and(|timestamps| !timestamps.is_timely(now, view)) {
            stats.duplicates += 1;
            return false;
        }
        if view.flags.contains(Flags::RST) {
            stats.resets += 1;
            return true;
        }
        if let Some(sent) = &mut self.sent
            && view.flags.contains(Flags::ACK)
        {
            sent.note_ack(Seq(view.ack));
        }
        self.fixups.note_window(view, expected.is_none());
        let stats = &mut self.stats;
        let (seq, length) = (Seq(view.seq), view.sequence_length());
        match expected {
            None if view.flags.contains(Flags::SYN) => {
                self.first_expected = Some(seq + 1);
                if let Some(timestamps) = &mut self.timestamps {
                    timestamps.begin(now, view);
                }
            }
            Some(expected) if length > 0 => {
                if !expected.before(seq + length) {
                    stats.duplicates += 1;
                } else if expected.before(seq) {
                    stats.out_of_order += 1;
                }
            }
            _ => {}
        }
        true
    }

    /// Rewrites a counted received segment for smoltcp. `receive`: RCV.NXT and the receive window in bytes.
    /// `is_fin_alone`: this end has closed, and all its data is acknowledged.
    pub fn rewrite(
        &self,
        view: &TcpView<'_>,
        is_timely: bool,
        receive: Option<(Seq, usize)>,
        is_fin_alone: bool,
    ) -> Rewrite {
        let rewrite = match (receive, self.sent) {
            (Some((expected, _)), Some(sent)) if !is_timely => self.fixups.challenged(view, expected, sent.next),
            (_, send) => self.fixups.incoming(view, Awaited { receive, send, is_fin_alone }),
        };
        match &self.timestamps {
            Some(timestamps) => timestamps.echoed(view, rewrite),
            None => rewrite,
        }
    }

    /// Counts a packet from smoltcp and passes the result of the hook to `out`.
    pub fn outgoing(&mut self, now: Instant, packet: &[u8], out: &mut dyn FnMut(&[u8])) {
        let read = TcpView::read(packet);
        let next = self.sent.map(|sent| sent.next);
        let fixed = read.as_ref().ok().and_then(|view| segment_fixups::send_next(view, next));
        let packet = fixed.as_deref().unwrap_or(packet);
        let read = if fixed.is_some() { TcpView::read(packet) } else { read };
        if let Ok(view) = read {
            self.note_sent(now, &view);
        }
        let Some(hook) = &mut self.hook else {
            return out(packet);
        };
        let mut changed = packet.to_vec();
        match hook.segment(now, Direction::Sent, &mut changed) {
            Action::Pass => out(&changed),
            Action::Drop => self.stats.hook_drops += 1,
            Action::Delay(delay) => self.delayed.push(now + delay, Direction::Sent, changed),
            Action::Duplicate(copies) => (0..=copies.min(MAX_COPIES)).for_each(|_| out(&changed)),
        }
    }

    /// Applies the hook to a received packet; returns the packets to process now.
    pub fn incoming(&mut self, now: Instant, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut changed = packet.to_vec();
        let action = match &mut self.hook {
            Some(hook) => hook.segment(now, Direction::Received, &mut changed),
            None => Action::Pass,
        };
        match action {
            Action::Pass => return vec![changed],
            Action::Duplicate(copies) => return vec![changed; copies.min(MAX_COPIES) as usize + 1],
            Action::Drop => self.stats.hook_drops += 1,
            Action::Delay(delay) => self.delayed.push(now + delay, Direction::Received, changed),
        }
        Vec::new()
    }

    fn note_sent(&mut self, now: Instant, view: &TcpView<'_>) {
        self.stats.segments_sent += 1;
        self.stats.bytes_sent += view.payload().len() as u64;
        if view.flags.contains(Flags::RST) {
            return;
        }
        if let Some(timestamps) = &mut self.timestamps {
            timestamps.note_sent(view);
        }
        let (seq, length) = (Seq(view.seq), view.sequence_length());
        if length > 0 {
            self.attempts.note(now);
        }
        match &mut self.sent {
            None => self.sent = Some(SendSequence { unacknowledged: seq, next: seq + length }),
            Some(sent) => self.stats.retransmissions += u64::from(sent.note_sent(seq, seq + length)),
        }
    }
}
