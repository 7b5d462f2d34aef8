//! Where smoltcp strays from RFC 9293: in what it sends, and in what it makes of what comes.
//!
//! Each of these ends in a connection that stands still, though both ends are there and the network is only bad. Pairs
//! of engines on a faulty wire have shown them.

use crate::filter::before;
use crafter_packet::header::{Flags, TcpOption, TcpView, checksum, ip};

/// What a peer takes that has not said (RFC 9293, 3.7.1).
const DEFAULT_MSS: u32 = 536;
/// The greatest shift of a window (RFC 7323, 2.3).
const MAX_SCALE: u8 = 14;

/// What has to be known of a connection for it.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    /// By how many bits the peer's windows are to be shifted.
    scale: u8,
    /// The right edge of the largest window that the peer has offered.
    edge: Option<u32>,
    /// Whether the segment that was noted last has offered it.
    is_news: bool,
    /// The longest segment that the peer takes.
    mss: u32,
}

/// What this end waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Awaited {
    /// The next byte in order, and how much room there is behind it.
    pub expected: Option<(u32, usize)>,
    /// The oldest sequence number that is not acknowledged.
    pub oldest: Option<u32>,
    /// Whether that is the FIN's.
    pub is_fin: bool,
    /// The first sequence number that was never sent.
    pub next: Option<u32>,
}

/// What smoltcp is to see of a received segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The segment.
    Whole,
    /// This instead. Its checksum is not right: smoltcp is told to ignore it.
    Changed(Vec<u8>),
    /// Nothing.
    Nothing,
}

/// Neither data nor anything else that takes sequence space, nor a RST.
fn is_pure_ack(view: &TcpView<'_>) -> bool {
    view.flags.contains(Flags::ACK) && !view.flags.contains(Flags::RST) && view.sequence_length() == 0
}

impl Repair {
    /// Learns what the peer has room for. A SYN says so only while this end is `connecting`: later ones are old, or
    /// somebody's guess.
    pub fn note_window(&mut self, view: &TcpView<'_>, connecting: bool) {
        let is_syn = view.flags.contains(Flags::SYN);
        self.is_news = false;
        if is_syn && !connecting {
            return;
        }
        if is_syn {
            (self.scale, self.mss) = (0, DEFAULT_MSS);
            for option in TcpOption::parse_all(view.options()) {
                match option {
                    TcpOption::WindowScale(shift) => self.scale = shift.min(MAX_SCALE),
                    TcpOption::Mss(mss) => self.mss = u32::from(mss).max(DEFAULT_MSS),
                    _ => {}
                }
            }
        }
        if view.flags.contains(Flags::ACK) {
            let shift = if is_syn { 0 } else { self.scale };
            let edge = view.ack.wrapping_add(u32::from(view.window) << shift);
            if self.edge.is_none_or(|known| before(known, edge)) {
                self.edge = Some(edge);
                self.is_news = true;
            }
        }
    }

    /// `view`, which smoltcp would send, as it has to be sent, if that is different. `next`: the first sequence number
    /// that was never sent.
    pub fn outgoing(view: &TcpView<'_>, next: Option<u32>) -> Option<Vec<u8>> {
        if view.sequence_length() > 0 {
            return None;
        }
        // Segments without data carry SND.NXT (RFC 9293, 3.10.7.4). smoltcp winds it back when it begins to send
        // again, and the peer does not take the ACK in a segment that lies before its window: if both ends have begun
        // again, neither takes the other's, for ever. A RST so would not be taken either.
        let next = next.filter(|next| view.flags.contains(Flags::ACK) && *next != view.seq)?;
        let mut packet = view.ip.bytes().to_vec();
        let tcp = view.ip.payload.start;
        packet[tcp + 4..tcp + 8].copy_from_slice(&next.to_be_bytes());
        checksum::fix(&mut packet);
        Some(packet)
    }

    /// What smoltcp is to see of a received segment, which has been noted.
    pub fn incoming(&self, view: &TcpView<'_>, awaited: Awaited) -> Seen {
        if let Some(((expected, room), next)) = awaited.expected.zip(awaited.next) {
            let ahead = view.seq.wrapping_sub(expected) as usize;
            let is_challenged = match view.flags.contains(Flags::RST) {
                // smoltcp takes any within the window. Outside of it they are nothing, and it says so.
                true => ahead > 0 && ahead < room,
                false => view.flags.contains(Flags::SYN) && !view.flags.contains(Flags::ACK),
            };
            if is_challenged {
                return self.challenged(view, expected, next);
            }
        }
        if !view.flags.contains(Flags::ACK) || view.flags.intersects(Flags::SYN | Flags::RST) {
            return Seen::Whole;
        }
        let pure = is_pure_ack(view);
        if pure && !self.is_news && awaited.oldest == Some(view.ack) {
            // The third of these has smoltcp send the oldest segment again. Of a FIN alone it sends nothing then, and
            // has stopped its timer; and into a window smaller than a segment it sends a whole one, of which it takes
            // what was not let in for sent.
            let room = self.edge.unwrap_or(view.ack).wrapping_sub(view.ack);
            if awaited.is_fin || room < self.mss {
                return Seen::Nothing;
            }
        }
        let seq = awaited.expected.filter(|(next, room)| {
            // RFC 9293, 3.10.7.4, wants SEG.SEQ < RCV.NXT + RCV.WND; Linux takes what is at the edge too, and sends it
            // when it has filled the window and part of that is lost.
            let ahead = view.seq.wrapping_sub(*next) as usize;
            pure && ahead > 0 && ahead <= *room
        });
        let window = self.window(view, awaited.next);
        if seq.is_none() && window.is_none() {
            return Seen::Whole;
        }
        let mut packet = view.ip.bytes().to_vec();
        let tcp = view.ip.payload.start;
        if let Some((next, _)) = seq {
            packet[tcp + 4..tcp + 8].copy_from_slice(&next.to_be_bytes());
        }
        if let Some(window) = window {
            packet[tcp + 14..tcp + 16].copy_from_slice(&window.to_be_bytes());
        }
        Seen::Changed(packet)
    }

    /// A SYN on a connection that there is already, a RST that is not exactly next, or what its timestamp shows to be of
    /// another time: the peer's former or next life, or somebody's guess. It is answered by an ACK (RFC 5961, sections 3 and 4), and a peer that knows of no connection
    /// resets that exactly. smoltcp answers so, at a limited rate, a segment before its window, such as a keep-alive.
    pub fn challenged(&self, view: &TcpView<'_>, expected: u32, next: u32) -> Seen {
        // Without its data, of which some might lie in the window.
        let whole = view.ip.bytes();
        let mut packet = whole[..whole.len() - view.payload().len()].to_vec();
        let length = packet.len();
        let (field, length) = if view.ip.version() == 4 { (2, length) } else { (4, length - ip::IPV6_HEADER) };
        // Headers alone always fit.
        packet[field..field + 2].copy_from_slice(&(length as u16).to_be_bytes());
        let tcp = view.ip.payload.start;
        packet[tcp + 4..tcp + 8].copy_from_slice(&expected.wrapping_sub(1).to_be_bytes());
        packet[tcp + 8..tcp + 12].copy_from_slice(&next.to_be_bytes());
        packet[tcp + 13] = Flags::ACK.0 as u8;
        // What it says of its window, and of more, is of another connection.
        let window = self.edge.map_or(0, |edge| edge.wrapping_sub(next) >> self.scale);
        packet[tcp + 14..tcp + 16].copy_from_slice(&u16::try_from(window).unwrap_or(0).to_be_bytes());
        Seen::Changed(packet)
    }

    /// The window that goes with the ACK of a segment, where its own is an old one: ACKs that were overtaken, which
    /// smoltcp would take for news. If it says zero, and what was sent into the newer window is lost, smoltcp would
    /// neither send it again nor probe.
    fn window(&self, view: &TcpView<'_>, next: Option<u32>) -> Option<u16> {
        let offered = self.edge?.wrapping_sub(view.ack);
        // An ACK of what was acknowledged long ago; smoltcp ignores it.
        if offered > 1 << 30 {
            return None;
        }
        let window = match offered >> self.scale {
            // Room that the shift is too coarse to tell, and something is sent into it (RFC 7323, 2.4).
            0 if offered > 0 && next.is_some_and(|next| before(view.ack, next)) => 1,
            window => u16::try_from(window).unwrap_or(u16::MAX),
        };
        (window > view.window).then_some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crafter_packet::header::{Checksum, Segment};

    fn segment(flags: Flags, seq: u32, ack: u32, window: u16, payload: &[u8]) -> Vec<u8> {
        let ends = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:49152".parse().unwrap());
        Segment { flags, seq, ack, window, payload: payload.to_vec(), ..Segment::new(ends.0, ends.1) }.build()
    }

    fn repair(scale: u8, ack: u32, window: u16) -> Repair {
        let mut repair = Repair { scale, mss: 1000, ..Repair::default() };
        repair.note_window(&TcpView::parse(&segment(Flags::ACK, 1, ack, window, b"")).unwrap(), false);
        repair
    }

    fn awaited(next: u32, room: usize) -> Awaited {
        Awaited { expected: Some((next, room)), ..Awaited::default() }
    }

    #[test]
    fn acks_and_resets_carry_what_is_next() {
        for flags in [Flags::ACK, Flags::ACK | Flags::RST] {
            let packet = segment(flags, 100, 7, 100, b"");
            let mended = Repair::outgoing(&TcpView::parse(&packet).unwrap(), Some(600)).expect("an old number");
            assert_eq!(checksum::verify(&mended, false), Checksum::Valid);
            assert_eq!(Segment::parse(&mended).unwrap(), Segment { seq: 600, ..Segment::parse(&packet).unwrap() });
            assert_eq!(Repair::outgoing(&TcpView::parse(&packet).unwrap(), Some(100)), None);
        }
        let reset = segment(Flags::RST, 100, 0, 0, b"");
        assert_eq!(Repair::outgoing(&TcpView::parse(&reset).unwrap(), Some(600)), None);
    }

    #[test]
    fn an_overtaken_window_is_none() {
        // 100 + (50 << 3) = 500.
        let repair = repair(3, 100, 50);
        let seen = |ack, window| {
            let packet = segment(Flags::ACK | Flags::PSH, 1, ack, window, b"data");
            match repair.incoming(&TcpView::parse(&packet).unwrap(), Awaited { next: Some(498), ..awaited(1, 1000) }) {
                Seen::Changed(packet) => Some(Segment::parse(&packet).unwrap().window),
                seen => {
                    assert_eq!(seen, Seen::Whole);
                    None
                }
            }
        };
        assert_eq!(seen(100, 0), Some(50));
        assert_eq!(seen(100, 50), None);
        assert_eq!(seen(180, 39), Some(40));
        assert_eq!(seen(180, 40), None);
        // Less than the shift can say is still not nothing.
        assert_eq!(seen(495, 0), Some(1));
        assert_eq!(seen(498, 0), None);
        assert_eq!(seen(500, 0), None);
        assert_eq!(seen(600, 0), None);
    }

    #[test]
    fn acks_at_the_right_edge_are_taken() {
        let repair = repair(0, 100, 50);
        let seen = |seq, payload: &[u8]| {
            let packet = segment(Flags::ACK, seq, 100, 50, payload);
            match repair.incoming(&TcpView::parse(&packet).unwrap(), awaited(1000, 200)) {
                Seen::Changed(packet) => Segment::parse(&packet).unwrap().seq,
                _ => seq,
            }
        };
        assert_eq!([seen(1000, b""), seen(1001, b""), seen(1200, b"")], [1000; 3]);
        assert_eq!([seen(999, b""), seen(1201, b"")], [999, 1201]);
        assert_eq!(seen(1200, b"x"), 1200);
    }

    #[test]
    fn a_syn_says_how_to_read_windows_only_at_the_start() {
        let ends = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:49152".parse().unwrap());
        let options = vec![TcpOption::Mss(1000), TcpOption::WindowScale(7)];
        let syn = Segment { flags: Flags::SYN, options, window: 1, ..Segment::new(ends.0, ends.1) }.build();
        let syn = TcpView::parse(&syn).unwrap();
        let mut repair = Repair::default();
        repair.note_window(&syn, true);
        assert_eq!((repair.scale, repair.mss), (7, 1000));
        let other = segment(Flags::SYN | Flags::ACK, 5, 100, 64_000, b"");
        repair.note_window(&TcpView::parse(&other).unwrap(), false);
        assert_eq!((repair.scale, repair.mss, repair.edge), (7, 1000, None));
    }

    #[test]
    fn a_guess_is_a_segment_before_the_window() {
        let repair = repair(3, 100, 50);
        let awaited = Awaited { next: Some(140), ..awaited(1000, 200) };
        let seen_of = |flags, seq, payload: &[u8], awaited| {
            let packet = segment(flags, seq, 0, 64_000, payload);
            repair.incoming(&TcpView::parse(&packet).unwrap(), awaited)
        };
        let seen = |payload: &[u8], awaited| seen_of(Flags::SYN, 1100, payload, awaited);
        let Seen::Changed(packet) = seen(b"", awaited) else { panic!("unchanged") };
        for flags in [Flags::RST, Flags::RST | Flags::ACK] {
            assert!(matches!(seen_of(flags, 1199, b"", awaited), Seen::Changed(_)));
            for seq in [999, 1000, 1200] {
                assert_eq!(seen_of(flags, seq, b"", awaited), Seen::Whole, "the exact one, and those outside");
            }
        }
        let mended = Segment::parse(&packet).unwrap();
        // (100 + (50 << 3) - 140) >> 3.
        assert_eq!((mended.flags, mended.seq, mended.ack, mended.window), (Flags::ACK, 999, 140, 45));
        let Seen::Changed(other) = seen(b"data", awaited) else { panic!("unchanged") };
        let other = Segment { checksum: mended.checksum, ..Segment::parse(&other).unwrap() };
        assert_eq!(other, mended, "its data is nothing to anybody");
        assert_eq!(seen(b"", Awaited::default()), Seen::Whole, "it connects");
    }

    #[test]
    fn nothing_is_seen_of_repeated_acks_that_lead_astray() {
        for (window, is_fin, seen) in
            [(2000, false, Seen::Whole), (2000, true, Seen::Nothing), (999, false, Seen::Nothing)]
        {
            let mut repair = repair(0, 100, window);
            let awaited = Awaited { oldest: Some(100), is_fin, ..awaited(1000, 200) };
            let mut saw = |ack, window, payload: &[u8]| {
                let packet = segment(Flags::ACK, 1000, ack, window, payload);
                let view = TcpView::parse(&packet).unwrap();
                repair.note_window(&view, false);
                repair.incoming(&view, awaited)
            };
            assert_eq!(saw(100, window, b""), seen);
            assert_eq!(saw(100, window, b"x"), Seen::Whole);
            assert_eq!(saw(100, window + 1, b""), Seen::Whole, "more room is news");
            assert_eq!(saw(101, window, b""), Seen::Whole);
        }
    }
}
