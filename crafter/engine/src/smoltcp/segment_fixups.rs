//! Rewrites received segments for smoltcp, and sent segments for the peer.

use super::Rewrite;
use super::socket::SendSequence;
use crafter_packet::view::field::{ipv4, ipv6, tcp};
use crafter_packet::view::{Flags, Seq, TcpView, checksum, ip};

/// The MSS of a peer whose SYN has no such option (RFC 9293, section 3.7.1), in bytes.
const DEFAULT_MSS: u32 = 536;
/// The largest window scale (RFC 7323, section 2.3).
const MAX_SCALE: u8 = 14;
/// Upper limit of a window (RFC 7323, section 2.3), in bytes.
const MAX_WINDOW: u32 = 1 << 30;

/// The peer's window.
#[derive(Debug, Default)]
pub(crate) struct SegmentFixups {
    /// The peer's window scale.
    scale: u8,
    /// The right edge of the largest window that the peer has offered.
    edge: Option<Seq>,
    /// Whether the last noted segment has advanced the edge.
    window_advanced: bool,
    /// The peer's MSS, in bytes.
    mss: u32,
}

/// The state of the receive and send sequence space.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Awaited {
    /// RCV.NXT and the receive window in bytes; `None` before the peer's SYN.
    pub receive: Option<(Seq, usize)>,
    /// SND.UNA and SND.NXT; `None` before the first segment.
    pub send: Option<SendSequence>,
    /// Whether only a FIN is not acknowledged.
    pub is_fin_alone: bool,
}

/// Whether a RST is in the window, but not at RCV.NXT. It is [answered](SegmentFixups::challenged).
///
/// - smoltcp: `process` closes the socket on a RST anywhere in the window. It drops one outside, as it should.
/// - Required: only the exact RCV.NXT resets; any other number in the window is answered by a challenge ACK (RFC 5961,
///   section 3.2).
/// - Otherwise: an off-path attacker can reset the connection with one RST per window, about 1000 for 4 MiB.
/// - Remove when smoltcp answers such a RST with a challenge ACK.
pub(crate) fn is_inexact_reset(view: &TcpView<'_>, receive_next: Seq, room: usize) -> bool {
    let ahead = ahead_of(receive_next, view);
    view.flags.contains(Flags::RST) && ahead > 0 && ahead < room
}

/// Whether a SYN without ACK is received on an open connection. It is [answered](SegmentFixups::challenged).
///
/// - smoltcp: `process` drops segments without ACK silently.
/// - Required: a challenge ACK, regardless of the sequence number (RFC 5961, section 4.2).
/// - Otherwise: a restarted peer that connects from the same port times out: only its RST in response to the challenge
///   would end the old connection.
/// - Remove when smoltcp answers a SYN on an open connection with a challenge ACK.
pub(crate) fn is_late_syn(view: &TcpView<'_>) -> bool {
    view.flags.contains(Flags::SYN) && !view.flags.intersects(Flags::ACK | Flags::RST)
}

/// Whether a duplicate ACK is received while only the FIN is unacknowledged. smoltcp must not count it.
///
/// - smoltcp: the third one sets `Timer::FastRetransmit`. `dispatch` then stops the retransmit timer but sends nothing,
///   because the transmit buffer is empty.
/// - Required: unacknowledged data is retransmitted when the timer expires (RFC 6298, section 5.4).
/// - Otherwise: a lost FIN is never retransmitted; the connection stays in FIN-WAIT-1 or LAST-ACK until it times out.
/// - Remove when smoltcp retransmits the FIN, or keeps the timer if it has no data.
pub(crate) fn is_repeated_ack_of_fin(awaited: &Awaited) -> bool {
    awaited.is_fin_alone
}

/// The sequence number for smoltcp on a pure ACK that is ahead of RCV.NXT, up to the right edge of the window.
///
/// - smoltcp: `process` takes a segment without data if RCV.NXT =< SEG.SEQ < RCV.NXT+RCV.WND, by the window in its last
///   ACK. It answers a segment at the edge but ignores its acknowledgment.
/// - Required: that test (RFC 9293, section 3.10.7.4), with "special allowance" for ACKs only if the window is 0. Linux
///   accepts an ACK at the edge (`tcp_sequence`), and sends one when it has filled the window.
/// - Otherwise: if data at the beginning of a full window is lost, this end ignores acknowledgments until the data is
///   retransmitted; if both ends are in that state, neither retransmits in time.
/// - Remove when smoltcp accepts the acknowledgment in a segment without data at the right edge.
pub(crate) fn ack_at_right_edge(view: &TcpView<'_>, receive: Option<(Seq, usize)>) -> Option<Seq> {
    let (next, room) = receive?;
    let ahead = ahead_of(next, view);
    (is_pure_ack(view) && ahead > 0 && ahead <= room).then_some(next)
}

/// Sets the sequence number of `view`, which smoltcp sends, to `next`, SND.NXT; `None` if it is right.
///
/// - smoltcp: an ACK or RST without data carries `remote_last_seq`, which `dispatch` winds back to SND.UNA when the
///   retransmit timer expires.
/// - Required: `<SEQ=SND.NXT>` (RFC 9293, sections 3.10.7.4 and 3.10.5).
/// - Otherwise: the peer drops the ACK, because its sequence number is before the window. If both ends retransmit,
///   neither ever accepts the other's acknowledgment. A RST is not accepted either (RFC 5961, section 3.2).
/// - Remove when smoltcp keeps SND.NXT separate from the retransmission position.
pub(crate) fn send_next(view: &TcpView<'_>, next: Option<Seq>) -> Option<Vec<u8>> {
    let next = next.filter(|next| *next != Seq(view.seq))?;
    if view.sequence_length() > 0 || !view.flags.contains(Flags::ACK) {
        return None;
    }
    let mut packet = view.ip.bytes().to_vec();
    packet[view.ip.payload.start..][tcp::SEQ].copy_from_slice(&next.to_be_bytes());
    checksum::fix(&mut packet);
    Some(packet)
}

impl SegmentFixups {
    /// Notes the peer's window. A SYN counts only while this end is `connecting`: a later one is old or forged.
    pub fn note_window(&mut self, view: &TcpView<'_>, connecting: bool) {
        let is_syn = view.flags.contains(Flags::SYN);
        self.window_advanced = false;
        if is_syn && !connecting {
            return;
        }
        if is_syn {
            self.scale = view.window_scale().unwrap_or(0).min(MAX_SCALE);
            self.mss = view.mss().map_or(DEFAULT_MSS, |mss| u32::from(mss).max(DEFAULT_MSS));
        }
        if view.flags.contains(Flags::ACK) {
            let shift = if is_syn { 0 } else { self.scale };
            let edge = Seq(view.ack) + (u32::from(view.window) << shift);
            if self.edge.is_none_or(|known| edge.after(known)) {
                self.edge = Some(edge);
                self.window_advanced = true;
            }
        }
    }

    /// Rewrites a received segment for smoltcp, after [`note_window`](Self::note_window).
    pub fn incoming(&self, view: &TcpView<'_>, awaited: Awaited) -> Rewrite {
        if let Some(((receive_next, room), send)) = awaited.receive.zip(awaited.send)
            && (is_inexact_reset(view, receive_next, room) || is_late_syn(view))
        {
            return self.challenged(view, receive_next, send.next);
        }
        if !view.flags.contains(Flags::ACK) || view.flags.intersects(Flags::SYN | Flags::RST) {
            return Rewrite::Keep;
        }
        if self.is_repeated_ack(view, awaited.send)
            && (is_repeated_ack_of_fin(&awaited) || self.is_repeated_ack_without_room(view))
        {
            return Rewrite::Drop;
        }
        let seq = ack_at_right_edge(view, awaited.receive);
        let window = self.newest_window(view).or_else(|| self.window_in_flight(view, awaited.send));
        if seq.is_none() && window.is_none() {
            return Rewrite::Keep;
        }
        let mut packet = view.ip.bytes().to_vec();
        let header = &mut packet[view.ip.payload.start..];
        if let Some(seq) = seq {
            header[tcp::SEQ].copy_from_slice(&seq.to_be_bytes());
        }
        if let Some(window) = window {
            header[tcp::WINDOW].copy_from_slice(&window.to_be_bytes());
        }
        Rewrite::Replace(packet)
    }

    /// Rewrites a segment that requires a challenge ACK to a keep-alive, which smoltcp answers with one.
    ///
    /// - smoltcp: only segments outside the window and ACKs of unsent data reach `challenge_ack_reply`, which is
    ///   limited to one per second.
    /// - Required: challenge ACKs for inexact RSTs, late SYNs and old timestamps (RFC 5961, sections 3.2 and 4.2; RFC
    ///   7323, section 5.3 R1), throttled (RFC 5961, section 7).
    /// - Otherwise: none of the three is answered.
    /// - Remove with the functions that detect the three.
    pub fn challenged(&self, view: &TcpView<'_>, receive_next: Seq, send_next: Seq) -> Rewrite {
        // Without its data, part of which may be in the window.
        let whole = view.ip.bytes();
        let mut packet = whole[..whole.len() - view.payload().len()].to_vec();
        let (field, length) = match view.ip.version() {
            4 => (ipv4::LENGTH, packet.len()),
            _ => (ipv6::LENGTH, packet.len() - ip::IPV6_HEADER),
        };
        // Headers always fit.
        packet[field].copy_from_slice(&(length as u16).to_be_bytes());
        let window = self.edge.map_or(0, |edge| edge.distance_from(send_next) >> self.scale);
        let header = &mut packet[view.ip.payload.start..];
        header[tcp::SEQ].copy_from_slice(&(receive_next - 1).to_be_bytes());
        header[tcp::ACK].copy_from_slice(&send_next.to_be_bytes());
        header[tcp::FLAGS] = Flags::ACK.0 as u8;
        header[tcp::WINDOW].copy_from_slice(&u16::try_from(window).unwrap_or(0).to_be_bytes());
        Rewrite::Replace(packet)
    }

    /// Whether the segment is a duplicate ACK: a pure ACK of the oldest number in flight without a window update.
    fn is_repeated_ack(&self, view: &TcpView<'_>, send: Option<SendSequence>) -> bool {
        let oldest = send.filter(|send| send.unacknowledged != send.next).map(|send| send.unacknowledged);
        is_pure_ack(view) && !self.window_advanced && oldest == Some(Seq(view.ack))
    }

    /// Whether a [duplicate ACK](Self::is_repeated_ack) is received while the window has no room for a segment. smoltcp
    /// must not count it.
    ///
    /// - smoltcp: after the third one `dispatch` retransmits up to a full segment regardless of the window
    ///   (`pending_fast_retransmit`), and advances `remote_last_seq` to its end.
    /// - Required: nothing is sent beyond the window (RFC 9293, section 3.8.6).
    /// - Otherwise: data outside the window counts as sent and waits for a timeout; with a window of 0, no timer runs.
    /// - Remove when smoltcp limits the fast retransmit to the window.
    fn is_repeated_ack_without_room(&self, view: &TcpView<'_>) -> bool {
        let acknowledged = Seq(view.ack);
        self.edge.unwrap_or(acknowledged).distance_from(acknowledged) < self.mss
    }

    /// The window to use with the segment's acknowledgment, if a later segment has offered more.
    ///
    /// - smoltcp: `process` uses the window of every segment in order of arrival.
    /// - Required: only if the segment is not older than the last window update, by SND.WL1 and SND.WL2 (RFC 9293,
    ///   section 3.10.7.4, fifth).
    /// - Otherwise: a reordered ACK shrinks the window again. If data in the newer window is lost, smoltcp neither
    ///   retransmits it nor probes.
    /// - Remove when smoltcp has SND.WL1 and SND.WL2.
    fn newest_window(&self, view: &TcpView<'_>) -> Option<u16> {
        let window = u16::try_from(self.offered(view)? >> self.scale).unwrap_or(u16::MAX);
        (window > view.window).then_some(window)
    }

    /// Window 1 in place of 0, for a segment whose window rounds to 0 while data in it is in flight.
    ///
    /// - smoltcp: `process` starts the zero-window probe timer only if no other timer runs. When the retransmit timer
    ///   expires later, `dispatch` stops it, finds no room, and sends nothing.
    /// - Required: data that was in the window when it was sent is retransmitted, even if the window has rounded to 0
    ///   since (RFC 7323, section 2.4).
    /// - Otherwise: if that data is lost, it is never retransmitted.
    /// - Remove when smoltcp retransmits up to the offered edge, or switches to probing.
    fn window_in_flight(&self, view: &TcpView<'_>, send: Option<SendSequence>) -> Option<u16> {
        let offered = self.offered(view)?;
        let is_in_flight = send.is_some_and(|send| send.next.after(Seq(view.ack)));
        (view.window == 0 && offered > 0 && offered >> self.scale == 0 && is_in_flight).then_some(1)
    }

    /// Offered window from the segment's acknowledgment on, in bytes; `None` for an old segment, which smoltcp ignores.
    fn offered(&self, view: &TcpView<'_>) -> Option<u32> {
        Some(self.edge?.distance_from(Seq(view.ack))).filter(|offered| *offered <= MAX_WINDOW)
    }
}

/// Whether a segment only acknowledges: no data, SYN, FIN or RST.
fn is_pure_ack(view: &TcpView<'_>) -> bool {
    view.flags.contains(Flags::ACK) && !view.flags.contains(Flags::RST) && view.sequence_length() == 0
}

/// Distance of the segment's number from `next`, modulo 2^32.
fn ahead_of(next: Seq, view: &TcpView<'_>) -> usize {
    Seq(view.seq).distance_from(next) as usize
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use crafter_packet::view::Checksum;
    use crafter_packet::{layer::TcpOption, testing::Segment};

    fn segment(flags: Flags, seq: u32, ack: u32, window: u16, payload: &[u8]) -> Vec<u8> {
        let ends = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:49152".parse().unwrap());
        Segment { flags, seq, ack, window, payload: payload.to_vec(), ..Segment::new(ends.0, ends.1) }.build()
    }

    fn fixups(scale: u8, ack: u32, window: u16) -> SegmentFixups {
        let mut fixups = SegmentFixups { scale, mss: 1000, ..SegmentFixups::default() };
        fixups.note_window(&TcpView::parse(&segment(Flags::ACK, 1, ack, window, b"")).unwrap(), false);
        fixups
    }

    fn awaited(next: u32, room: usize) -> Awaited {
        Awaited { receive: Some((Seq(next), room)), ..Awaited::default() }
    }

    fn in_flight(unacknowledged: u32, next: u32) -> Option<SendSequence> {
        Some(SendSequence { unacknowledged: Seq(unacknowledged), next: Seq(next) })
    }

    #[test]
    fn ack_and_rst_carry_send_next() {
        for flags in [Flags::ACK, Flags::ACK | Flags::RST] {
            let packet = segment(flags, 100, 7, 100, b"");
            let changed = send_next(&TcpView::parse(&packet).unwrap(), Some(Seq(600))).expect("an old number");
            assert_eq!(checksum::verify(&changed, false), Checksum::Valid);
            assert_eq!(Segment::parse(&changed).unwrap(), Segment { seq: 600, ..Segment::parse(&packet).unwrap() });
            assert_eq!(send_next(&TcpView::parse(&packet).unwrap(), Some(Seq(100))), None);
        }
        let reset = segment(Flags::RST, 100, 0, 0, b"");
        assert_eq!(send_next(&TcpView::parse(&reset).unwrap(), Some(Seq(600))), None);
    }

    #[test]
    fn newest_window_is_kept() {
        // 100 + (50 << 3) = 500.
        let fixups = fixups(3, 100, 50);
        let seen = |ack, window| {
            let packet = segment(Flags::ACK | Flags::PSH, 1, ack, window, b"data");
            match fixups
                .incoming(&TcpView::parse(&packet).unwrap(), Awaited { send: in_flight(100, 498), ..awaited(1, 1000) })
            {
                Rewrite::Replace(packet) => Some(Segment::parse(&packet).unwrap().window),
                seen => {
                    assert_eq!(seen, Rewrite::Keep);
                    None
                }
            }
        };
        assert_eq!(seen(100, 0), Some(50));
        assert_eq!(seen(100, 50), None);
        assert_eq!(seen(180, 39), Some(40));
        assert_eq!(seen(180, 40), None);
        // A window that rounds to 0 is still not 0.
        assert_eq!(seen(495, 0), Some(1));
        assert_eq!(seen(498, 0), None);
        assert_eq!(seen(500, 0), None);
        assert_eq!(seen(600, 0), None);
    }

    #[test]
    fn ack_at_right_edge_is_moved_into_window() {
        let fixups = fixups(0, 100, 50);
        let seen = |seq, payload: &[u8]| {
            let packet = segment(Flags::ACK, seq, 100, 50, payload);
            match fixups.incoming(&TcpView::parse(&packet).unwrap(), awaited(1000, 200)) {
                Rewrite::Replace(packet) => Segment::parse(&packet).unwrap().seq,
                _ => seq,
            }
        };
        assert_eq!([seen(1000, b""), seen(1001, b""), seen(1200, b"")], [1000; 3]);
        assert_eq!([seen(999, b""), seen(1201, b"")], [999, 1201]);
        assert_eq!(seen(1200, b"x"), 1200);
    }

    #[test]
    fn window_scale_is_read_only_while_connecting() {
        let ends = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:49152".parse().unwrap());
        let options = vec![TcpOption::Mss(1000), TcpOption::WScale(7)];
        let syn = Segment { flags: Flags::SYN, options, window: 1, ..Segment::new(ends.0, ends.1) }.build();
        let syn = TcpView::parse(&syn).unwrap();
        let mut fixups = SegmentFixups::default();
        fixups.note_window(&syn, true);
        assert_eq!((fixups.scale, fixups.mss), (7, 1000));
        let other = segment(Flags::SYN | Flags::ACK, 5, 100, 64_000, b"");
        fixups.note_window(&TcpView::parse(&other).unwrap(), false);
        assert_eq!((fixups.scale, fixups.mss, fixups.edge), (7, 1000, None));
    }

    #[test]
    fn inexact_rst_and_syn_become_keep_alive() {
        let fixups = fixups(3, 100, 50);
        let awaited = Awaited { send: in_flight(140, 140), ..awaited(1000, 200) };
        let seen_of = |flags, seq, payload: &[u8], awaited| {
            let packet = segment(flags, seq, 0, 64_000, payload);
            fixups.incoming(&TcpView::parse(&packet).unwrap(), awaited)
        };
        let seen = |payload: &[u8], awaited| seen_of(Flags::SYN, 1100, payload, awaited);
        let Rewrite::Replace(packet) = seen(b"", awaited) else { panic!("unchanged") };
        for flags in [Flags::RST, Flags::RST | Flags::ACK] {
            assert!(matches!(seen_of(flags, 1199, b"", awaited), Rewrite::Replace(_)));
            for seq in [999, 1000, 1200] {
                assert_eq!(seen_of(flags, seq, b"", awaited), Rewrite::Keep, "the exact one, and those outside");
            }
        }
        let changed = Segment::parse(&packet).unwrap();
        // (100 + (50 << 3) - 140) >> 3.
        assert_eq!((changed.flags, changed.seq, changed.ack, changed.window), (Flags::ACK, 999, 140, 45));
        let Rewrite::Replace(other) = seen(b"data", awaited) else { panic!("unchanged") };
        let other = Segment { checksum: changed.checksum, ..Segment::parse(&other).unwrap() };
        assert_eq!(other, changed, "the data does not matter");
        assert_eq!(seen(b"", Awaited::default()), Rewrite::Keep, "it connects");
    }

    #[test]
    fn harmful_duplicate_acks_are_dropped() {
        for (window, is_fin, seen) in
            [(2000, false, Rewrite::Keep), (2000, true, Rewrite::Drop), (999, false, Rewrite::Drop)]
        {
            let mut fixups = fixups(0, 100, window);
            let awaited = Awaited { send: in_flight(100, 101), is_fin_alone: is_fin, ..awaited(1000, 200) };
            let mut saw = |ack, window, payload: &[u8]| {
                let packet = segment(Flags::ACK, 1000, ack, window, payload);
                let view = TcpView::parse(&packet).unwrap();
                fixups.note_window(&view, false);
                fixups.incoming(&view, awaited)
            };
            assert_eq!(saw(100, window, b""), seen);
            assert_eq!(saw(100, window, b"x"), Rewrite::Keep);
            assert_eq!(saw(100, window + 1, b""), Rewrite::Keep, "a larger window is an update");
            assert_eq!(saw(101, window, b""), Rewrite::Keep);
        }
    }
}
