//! A TCP connection segment by segment: tracks sequence and acknowledgment numbers.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;

use crafter_packet::layer::{AnyLayer, IpFlags, Packet, Tcp, TcpOption};
use crafter_packet::view::{Flags, Seq, TcpView};

/// Maximum number of out-of-order segments that are buffered; the peer retransmits the others.
const MAX_OUT_OF_ORDER: usize = 256;
/// The MSS of a peer whose SYN has no such option (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// The offered window scale.
const WINDOW_SCALE: u8 = 7;

/// Classification of a received packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Not a TCP segment from the peer to this end.
    Foreign,
    /// The peer's SYN, with or without an acknowledgment of this end's SYN.
    Syn,
    /// An acknowledgment without data.
    Ack,
    /// Number of bytes that are now in order, including earlier out-of-order ones. The segment may have FIN.
    Data(usize),
    /// Data or FIN after a gap; it is buffered.
    OutOfOrder,
    /// No new data, or a SYN on a synchronized connection.
    Duplicate,
    /// The peer's FIN, in order, without new data.
    Fin,
    /// The peer reset the connection.
    Reset,
    /// Outside the window or wrong in this state. The segment has no effect.
    Unacceptable,
}

/// One end of a TCP connection whose segments the caller sends one by one.
///
/// It never sends or retransmits by itself: [`syn`](Self::syn), [`ack`](Self::ack), [`data`](Self::data),
/// [`fin`](Self::fin) and [`rst`](Self::rst) return packets of layers, an IP header and [`Tcp`], whose checksums and
/// lengths are unset and so computed when they are built; [`handle`](Self::handle) takes received packets. To send
/// something wrong, change the packet before you build it; to retransmit, keep it.
#[derive(Debug, Clone)]
pub struct Cursor {
    /// This end.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// The MSS that the SYN offers, in bytes.
    pub mss: u16,
    /// Size of the receive buffer in bytes; the free part is the window.
    pub receive_window: u32,
    /// Time to live or hop limit of every segment.
    pub ttl: u8,
    isn: Seq,
    send_unacknowledged: Seq,
    send_next: Seq,
    fin_sent: Option<Seq>,
    receive_next: Option<Seq>,
    peer_fin: Option<Seq>,
    peer_closed: bool,
    reset: bool,
    needs_ack: bool,
    peer_mss: u16,
    peer_window: u32,
    peer_scale: Option<u8>,
    data: Vec<u8>,
    early: Vec<(Seq, Vec<u8>)>,
}

impl Cursor {
    /// A connection in CLOSED, whose initial sequence number is 32 random bits, for the reason in
    /// [`StreamConfig::seed`](crate::StreamConfig::seed).
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        // The standard library's hasher is SipHash with a random key, which differs for each instance.
        Self::with_isn(local, remote, RandomState::new().build_hasher().finish() as u32)
    }

    /// A connection in CLOSED with a given initial sequence number.
    pub fn with_isn(local: SocketAddr, remote: SocketAddr, isn: u32) -> Self {
        let isn = Seq(isn);
        Self {
            local,
            remote,
            mss: if local.is_ipv4() { 1460 } else { 1440 },
            receive_window: 1 << 20,
            ttl: 64,
            isn,
            send_unacknowledged: isn,
            send_next: isn,
            fin_sent: None,
            receive_next: None,
            peer_fin: None,
            peer_closed: false,
            reset: false,
            needs_ack: false,
            peer_mss: DEFAULT_MSS,
            peer_window: 0,
            peer_scale: None,
            data: Vec::new(),
            early: Vec::new(),
        }
    }

    /// SYN, or SYN-ACK once the peer's SYN was received. A second call returns the same segment.
    pub fn syn(&mut self) -> Packet {
        let segment = self.segment(Flags::SYN, self.isn).window(u16::try_from(self.window()).unwrap_or(u16::MAX));
        if self.send_next == self.isn {
            self.send_next = self.isn + 1;
        }
        self.packet(segment.options([TcpOption::Mss(self.mss), TcpOption::Nop, TcpOption::WScale(WINDOW_SCALE)]))
    }

    /// Acknowledges everything received in order.
    pub fn ack(&mut self) -> Packet {
        let segment = self.segment(Flags::NONE, self.send_next);
        self.packet(segment)
    }

    /// Splits `bytes` into segments of at most the peer's MSS, the last with PSH. The caller keeps to the peer's
    /// window: see [`peer_window`](Self::peer_window).
    pub fn data(&mut self, bytes: &[u8]) -> Vec<Packet> {
        let size = usize::from(self.peer_mss.min(self.mss).max(1));
        let count = bytes.len().div_ceil(size);
        let mut segments = Vec::with_capacity(count);
        for piece in bytes.chunks(size) {
            let flags = if segments.len() + 1 == count { Flags::PSH } else { Flags::NONE };
            let segment = self.segment(flags, self.send_next);
            self.send_next += piece.len() as u32;
            segments.push(self.packet(segment) / piece);
        }
        segments
    }

    /// FIN after all data so far. A second call returns the same segment.
    pub fn fin(&mut self) -> Packet {
        let seq = *self.fin_sent.get_or_insert(self.send_next);
        self.send_next = seq + 1;
        let segment = self.segment(Flags::FIN, seq);
        self.packet(segment)
    }

    /// A RST with the next sequence number, which the peer accepts (RFC 5961, section 3.2). The connection is closed.
    pub fn rst(&mut self) -> Packet {
        self.reset = true;
        let segment = self.segment(Flags::RST, self.send_next).window(0);
        self.packet(segment)
    }

    fn segment(&mut self, flags: Flags, seq: Seq) -> Tcp {
        let shift = if self.peer_scale.is_some() { WINDOW_SCALE } else { 0 };
        let window = u16::try_from(self.window() >> shift).unwrap_or(u16::MAX);
        let segment = Tcp::new().seq(seq.0).window(window);
        match self.receive_next {
            Some(next) => {
                self.needs_ack = false;
                segment.flags(flags | Flags::ACK).ack(next.0)
            }
            None => segment.flags(flags),
        }
    }

    /// The segment in an IP packet that must not be fragmented, with identification 0 (RFC 6864, section 4.1).
    fn packet(&self, segment: Tcp) -> Packet {
        let mut packet = segment.between(self.local, self.remote);
        match packet.layers_mut().first_mut() {
            Some(AnyLayer::Ip(ip)) => (ip.ttl, ip.flags, ip.id) = (Some(self.ttl), Some(IpFlags::DF), Some(0)),
            Some(AnyLayer::Ipv6(ip)) => ip.hlim = Some(self.ttl),
            _ => {}
        }
        packet
    }

    /// Processes a received packet, from its IP header on, whose checksum the caller has verified, and classifies it.
    /// Bytes that are not a TCP segment are [`Received::Foreign`].
    pub fn handle(&mut self, packet: &[u8]) -> Received {
        let segment = match TcpView::read(packet) {
            Ok(segment) if segment.source() == self.remote && segment.destination() == self.local => segment,
            _ => return Received::Foreign,
        };
        let Some(expected) = self.receive_next else {
            return self.handle_unsynchronized(&segment);
        };
        let seq = Seq(segment.seq);
        if segment.flags.contains(Flags::RST) {
            // RFC 5961, section 3.2: any number other than RCV.NXT may be forged.
            self.reset |= seq == expected;
            return if seq == expected { Received::Reset } else { Received::Unacceptable };
        }
        if segment.flags.contains(Flags::SYN) {
            // The peer has not received the ACK. RFC 9293, section 3.10.7.4: acknowledge again.
            self.needs_ack = true;
            self.note_ack(&segment);
            return Received::Duplicate;
        }
        let end = seq + segment.sequence_length();
        let beyond = expected + self.window().max(1);
        if segment.sequence_length() > 0 && !seq.before(beyond) {
            self.needs_ack = true;
            return Received::Unacceptable;
        }
        if segment.flags.contains(Flags::ACK) && !self.note_ack(&segment) {
            return Received::Unacceptable;
        }
        if segment.sequence_length() == 0 {
            // Keep-alives and window probes have an old number and must be answered.
            self.needs_ack |= seq.before(expected);
            return Received::Ack;
        }
        self.needs_ack = true;
        if !end.after(expected) {
            return Received::Duplicate;
        }
        if segment.flags.contains(Flags::FIN) {
            self.peer_fin.get_or_insert(end - 1);
        }
        if seq.after(expected) {
            if !segment.payload().is_empty() && self.early.len() < MAX_OUT_OF_ORDER {
                self.early.push((seq, segment.payload().to_vec()));
            }
            return Received::OutOfOrder;
        }
        let had = self.data.len();
        self.take_in(seq, segment.payload());
        self.take_in_early();
        if self.peer_fin.is_some() && self.peer_fin == self.receive_next {
            self.peer_closed = true;
            self.receive_next = self.receive_next.map(|next| next + 1);
        }
        match self.data.len() - had {
            0 => Received::Fin,
            length => Received::Data(length),
        }
    }

    fn handle_unsynchronized(&mut self, segment: &TcpView<'_>) -> Received {
        let acknowledges = segment.flags.contains(Flags::ACK);
        let ours = acknowledges && self.send_next != self.isn && Seq(segment.ack) == self.isn + 1;
        if segment.flags.contains(Flags::RST) {
            self.reset |= ours;
            return if ours { Received::Reset } else { Received::Unacceptable };
        }
        if !segment.flags.contains(Flags::SYN) || (acknowledges && !ours) {
            return Received::Unacceptable;
        }
        self.receive_next = Some(Seq(segment.seq) + 1);
        self.needs_ack = true;
        self.peer_mss = segment.mss().filter(|mss| *mss > 0).unwrap_or(DEFAULT_MSS);
        // RFC 7323, section 2.3: a shift above 14 counts as 14.
        self.peer_scale = segment.window_scale().map(|shift| shift.min(14));
        self.peer_window = segment.window.into();
        if ours {
            self.send_unacknowledged = Seq(segment.ack);
        }
        Received::Syn
    }

    /// Updates SND.UNA and the peer's window; `false` if the segment acknowledges data that was never sent.
    fn note_ack(&mut self, segment: &TcpView<'_>) -> bool {
        let ack = Seq(segment.ack);
        if ack.after(self.send_next) {
            self.needs_ack = true;
            return false;
        }
        if !ack.before(self.send_unacknowledged) {
            self.send_unacknowledged = ack;
            let shift = if segment.flags.contains(Flags::SYN) { 0 } else { self.peer_scale.unwrap_or(0) };
            self.peer_window = u32::from(segment.window) << shift;
        }
        true
    }

    /// Appends the in-order part of `payload`; `seq` is at most RCV.NXT.
    fn take_in(&mut self, seq: Seq, payload: &[u8]) {
        let Some(expected) = self.receive_next else {
            return;
        };
        let known = expected.distance_from(seq) as usize;
        let room = self.window() as usize;
        let fresh = payload.get(known..).unwrap_or_default();
        let fresh = &fresh[..fresh.len().min(room)];
        self.data.extend_from_slice(fresh);
        self.receive_next = Some(expected + fresh.len() as u32);
    }

    fn take_in_early(&mut self) {
        let mut early = std::mem::take(&mut self.early);
        // Sorted by distance, so that one pass suffices.
        let expected = self.receive_next.unwrap_or_default();
        early.sort_by_key(|(seq, _)| seq.distance_from(expected) as i32);
        for (seq, payload) in early {
            let expected = self.receive_next.unwrap_or_default();
            if seq.after(expected) {
                self.early.push((seq, payload));
            } else {
                self.take_in(seq, &payload);
            }
        }
    }

    /// Returns the bytes received in order since the last call.
    pub fn take_data(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }

    /// Whether a received segment has to be acknowledged.
    pub fn needs_ack(&self) -> bool {
        self.needs_ack
    }

    /// Whether the handshake is complete.
    pub fn is_established(&self) -> bool {
        self.receive_next.is_some() && self.send_unacknowledged != self.isn && !self.reset
    }

    /// Whether the peer's FIN and all data before it were received.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether the connection is closed: both FINs acknowledged, or a RST sent or received.
    pub fn is_closed(&self) -> bool {
        let fin_acknowledged = self.fin_sent.is_some_and(|fin| self.send_unacknowledged.after(fin));
        self.reset || (self.peer_closed && fin_acknowledged)
    }

    /// Whether a RST was sent or received.
    pub fn is_reset(&self) -> bool {
        self.reset
    }

    /// Number of bytes in flight; SYN and FIN count as one each.
    pub fn unacknowledged(&self) -> u32 {
        self.send_next.distance_from(self.send_unacknowledged)
    }

    /// Usable part of the peer's window, in bytes.
    pub fn peer_window(&self) -> u32 {
        self.peer_window.saturating_sub(self.unacknowledged())
    }

    /// The peer's MSS in bytes; 536 if its SYN has no such option.
    pub fn peer_mss(&self) -> u16 {
        self.peer_mss
    }

    /// The window of the next segment in bytes, before scaling.
    fn window(&self) -> u32 {
        self.receive_window.saturating_sub(self.data.len() as u32)
    }
}

#[cfg(test)]
pub(crate) mod tests;
