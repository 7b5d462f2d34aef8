//! What lies between smoltcp and the caller: counting, the hook, and packets that smoltcp would not read.

use std::time::{Duration, Instant};

use super::config::StreamStats;
use super::delay::DelayQueue;
use super::hook::{Action, Direction, SegmentHook};
use super::smoltcp::repair::{Awaited, Repair, Seen};
use super::smoltcp::timestamps::Stamps;
use crafter_packet::header::{Flags, TcpView, ip};

/// Payload of the pieces of a super-frame, in bytes.
const PIECE: usize = 32 << 10;

/// A hook that asks for more copies gets these.
const MAX_COPIES: u32 = 1000;

/// `a` comes before `b` in sequence space (RFC 9293, 3.4).
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

pub(super) struct Wire {
    hook: Option<Box<dyn SegmentHook>>,
    pub delayed: DelayQueue,
    pub stats: StreamStats,
    /// The peer's sequence number behind its SYN.
    first_expected: Option<u32>,
    /// The oldest sequence number that is not acknowledged, and the first never sent.
    sent: Option<(u32, u32)>,
    repair: Repair,
    /// Where timestamps are offered.
    stamps: Option<Stamps>,
    /// How often, and when last, something was sent that the peer has to acknowledge, since it was heard last.
    asked: (u32, Option<Instant>),
}

impl Wire {
    pub fn new(hook: Option<Box<dyn SegmentHook>>, stamps: Option<Stamps>) -> Self {
        Self {
            hook,
            delayed: DelayQueue::default(),
            stats: StreamStats::default(),
            first_expected: None,
            sent: None,
            repair: Repair::default(),
            stamps,
            asked: (0, None),
        }
    }

    /// Sets the clock of what smoltcp sends next on this thread.
    pub fn set_clock(&self, since_start: Duration) {
        if let Some(stamps) = &self.stamps {
            stamps.set_clock(since_start);
        }
    }

    /// How often, and when last, something was sent that the peer has to acknowledge, since it was heard last.
    pub fn asked(&self) -> (u32, Option<Instant>) {
        self.asked
    }

    pub fn has_hook(&self) -> bool {
        self.hook.is_some()
    }

    pub fn first_expected(&self) -> Option<u32> {
        self.first_expected
    }

    /// Whether `seq` was sent and is not acknowledged.
    pub fn in_flight(&self, seq: u32) -> bool {
        self.sent.is_some_and(|(oldest, next)| !before(seq, oldest) && before(seq, next))
    }

    /// Counts a received segment; `expected` is the sequence number next in order. Whether it is of this time: nothing
    /// that another one says counts.
    pub fn note_received(&mut self, now: Instant, view: &TcpView<'_>, expected: Option<u32>) -> bool {
        let stats = &mut self.stats;
        stats.segments_received += 1;
        stats.bytes_received += view.payload().len() as u64;
        self.asked = (0, None);
        if expected.is_some() && self.stamps.as_mut().is_some_and(|stamps| !stamps.is_timely(now, view)) {
            stats.duplicates += 1;
            return false;
        }
        if view.flags.contains(Flags::RST) {
            stats.resets += 1;
            return true;
        }
        if view.flags.contains(Flags::ACK)
            && let Some((oldest, next)) = &mut self.sent
            && before(*oldest, view.ack)
            && !before(*next, view.ack)
        {
            *oldest = view.ack;
        }
        self.repair.note_window(view, expected.is_none());
        let stats = &mut self.stats;
        let length = view.sequence_length();
        match expected {
            None if view.flags.contains(Flags::SYN) => {
                self.first_expected = Some(view.seq.wrapping_add(1));
                if let Some(stamps) = &mut self.stamps {
                    stamps.begin(now, view);
                }
            }
            Some(expected) if length > 0 => {
                if !before(expected, view.seq.wrapping_add(length)) {
                    stats.duplicates += 1;
                } else if before(expected, view.seq) {
                    stats.out_of_order += 1;
                }
            }
            _ => {}
        }
        true
    }

    /// What smoltcp is to see of a received segment that has been counted; `expected`: the next byte in order, and the
    /// room behind it. `is_drained`: this end has closed, and all its data is acknowledged.
    pub fn seen(&self, view: &TcpView<'_>, is_timely: bool, expected: Option<(u32, usize)>, is_drained: bool) -> Seen {
        let seen = match (expected, self.sent) {
            (Some((expected, _)), Some((_, next))) if !is_timely => self.repair.challenged(view, expected, next),
            _ => self.mended(view, expected, is_drained),
        };
        match &self.stamps {
            Some(stamps) => stamps.echoed(view, seen),
            None => seen,
        }
    }

    fn mended(&self, view: &TcpView<'_>, expected: Option<(u32, usize)>, is_drained: bool) -> Seen {
        let unacknowledged = self.sent.filter(|(oldest, next)| oldest != next);
        let oldest = unacknowledged.map(|(oldest, _)| oldest);
        self.repair
            .incoming(view, Awaited { expected, oldest, is_fin: is_drained, next: self.sent.map(|(_, next)| next) })
    }

    /// Counts a packet of smoltcp's and gives `out` what the hook makes of it.
    pub fn outgoing(&mut self, now: Instant, packet: &[u8], out: &mut dyn FnMut(&[u8])) {
        let read = TcpView::read(packet);
        let next = self.sent.map(|(_, next)| next);
        let mended = read.as_ref().ok().and_then(|view| Repair::outgoing(view, next));
        let packet = mended.as_deref().unwrap_or(packet);
        let read = if mended.is_some() { TcpView::read(packet) } else { read };
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

    /// What the hook makes of a received packet: those to be taken now.
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
        let payload = view.payload().len();
        self.stats.segments_sent += 1;
        self.stats.bytes_sent += payload as u64;
        if view.flags.contains(Flags::RST) {
            return;
        }
        if let Some(stamps) = &mut self.stamps {
            stamps.note_sent(view);
        }
        if view.sequence_length() > 0 && self.asked.1 != Some(now) {
            self.asked = (self.asked.0 + 1, Some(now));
        }
        let end = view.seq.wrapping_add(view.sequence_length());
        match &mut self.sent {
            None => self.sent = Some((view.seq, end)),
            Some((_, next)) => {
                if view.sequence_length() > 0 && before(view.seq, *next) {
                    self.stats.retransmissions += 1;
                }
                if before(*next, end) {
                    *next = end;
                }
            }
        }
    }
}

/// Gives `take` the segment in packets that smoltcp reads: itself, or, without its IPv6 extension headers
/// (smoltcp answers most with a parameter problem) and cut where its length would not fit the IP header,
/// copies in `buffer`. Their checksums are not right: smoltcp is told to ignore them.
pub(super) fn for_each_plain(view: &TcpView<'_>, buffer: &mut Vec<u8>, take: &mut dyn FnMut(&[u8])) {
    let packet = view.ip.bytes();
    let is_ipv4 = view.ip.version() == 4;
    let length_field = if is_ipv4 { &packet[2..4] } else { &packet[4..6] };
    if length_field != [0, 0] && (is_ipv4 || view.ip.payload.start == ip::IPV6_HEADER) {
        return take(packet);
    }
    let tcp = view.ip.payload();
    let payload = view.payload();
    let header = tcp.len() - payload.len();
    let ip_header = if is_ipv4 { ip::IPV4_HEADER } else { ip::IPV6_HEADER };
    let mut at = 0;
    loop {
        let piece = &payload[at..payload.len().min(at + PIECE)];
        buffer.clear();
        buffer.extend_from_slice(&packet[..ip_header]);
        buffer.extend_from_slice(&tcp[..header]);
        buffer.extend_from_slice(piece);
        let length = header + piece.len();
        if is_ipv4 {
            buffer[0] = 0x45;
            buffer[2..4].copy_from_slice(&((ip_header + length) as u16).to_be_bytes());
        } else {
            buffer[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            buffer[6] = ip::TCP;
        }
        let seq = view.seq.wrapping_add(at as u32).to_be_bytes();
        buffer[ip_header + 4..ip_header + 8].copy_from_slice(&seq);
        at += piece.len();
        if at < payload.len() {
            // Only the last byte of the whole may be followed by FIN.
            buffer[ip_header + 13] &= !((Flags::FIN | Flags::PSH).0 as u8);
        }
        take(buffer);
        if at >= payload.len() {
            return;
        }
    }
}
