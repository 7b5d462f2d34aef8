//! State that a socket of smoltcp has no accessor for.

use smoltcp::socket::tcp::{Socket, State};

use crafter_packet::view::Seq;

/// The send sequence variables of RFC 9293, section 3.3.1, taken from the segments themselves.
///
/// - smoltcp: `local_seq_no` (SND.UNA) and `remote_last_seq` are private, and the latter is no SND.NXT: `dispatch`
///   winds it back when it retransmits.
/// - Asked for: ACKs carry SND.NXT (RFC 9293, section 3.10.7.4); an ICMP error counts only if it quotes a number in
///   flight (RFC 5927, section 4.1).
/// - Without it: [`send_next`](super::repair::send_next) and the repairs of repeated ACKs know no numbers, and
///   anybody's ICMP error ends an attempt to connect.
/// - Can go when smoltcp has accessors for both, and SND.NXT does not go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SendSequence {
    /// SND.UNA: the oldest number that is not acknowledged.
    pub unacknowledged: Seq,
    /// SND.NXT: the first number that was never sent.
    pub next: Seq,
}

impl SendSequence {
    /// Notes a segment that takes the numbers from `start` to `end`; true if some were sent before.
    pub fn note_sent(&mut self, start: Seq, end: Seq) -> bool {
        let is_repeated = start != end && start.before(self.next);
        if end.after(self.next) {
            self.next = end;
        }
        is_repeated
    }

    /// Notes an acknowledgment; one of what was never sent is ignored.
    pub fn note_ack(&mut self, ack: Seq) {
        if ack.after(self.unacknowledged) && !ack.after(self.next) {
            self.unacknowledged = ack;
        }
    }

    /// Whether `seq` was sent and is not acknowledged.
    pub fn is_in_flight(&self, seq: Seq) -> bool {
        !seq.before(self.unacknowledged) && seq.before(self.next)
    }
}

/// RCV.NXT: the sequence number of the next byte in order. `first` is the number behind the peer's SYN, `consumed` how
/// many bytes the reader has taken.
///
/// - smoltcp: `remote_seq_no` is private; the length of the receive queue is public.
/// - Asked for: RST and SYN are judged by RCV.NXT (RFC 5961, sections 3.2 and 4.2).
/// - Without it: [`is_inexact_reset`](super::repair::is_inexact_reset) has nothing to compare with.
/// - Can go when smoltcp has an accessor.
pub(crate) fn receive_next(first: Seq, consumed: u32, socket: &Socket<'_>) -> Seq {
    let has_fin = matches!(socket.state(), State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
    first + consumed + socket.recv_queue() as u32 + u32::from(has_fin)
}

/// Whether smoltcp has to send now, before it reads another segment, because the handshake has just ended: `before` and
/// `after` are its states around the last segment.
///
/// - smoltcp: `process` computes the right edge of the receive window as `remote_last_win << remote_win_shift`. Until
///   `dispatch` has sent the ACK of the SYN-ACK, `remote_last_win` is the window of its own SYN.
/// - Asked for: the window in a SYN is not scaled (RFC 7323, section 2.2).
/// - Without it: data in the same burst as the SYN-ACK that lies beyond the buffer is noted as received, acknowledged
///   later, and lost.
/// - Can go when smoltcp notes its window unscaled, or not shifted for a SYN.
pub(crate) fn owes_handshake_ack(before: State, after: State) -> bool {
    is_connecting(before) && !is_connecting(after) && after != State::Closed
}

/// Whether the handshake is under way.
pub(crate) fn is_connecting(state: State) -> bool {
    matches!(state, State::SynSent | State::SynReceived)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_next_number_never_goes_back() {
        let start = Seq(u32::MAX - 5);
        let mut sent = SendSequence { unacknowledged: start, next: start + 10 };
        assert!(sent.note_sent(start, start + 4), "a repeated segment");
        assert_eq!(sent.next, start + 10);
        assert!(!sent.note_sent(start + 10, start + 12) && !sent.note_sent(start, start), "new, and an ACK alone");
        sent.note_ack(start + 13);
        assert_eq!(sent.unacknowledged, start, "13 was never sent");
        sent.note_ack(start + 7);
        sent.note_ack(start + 6);
        assert_eq!(sent, SendSequence { unacknowledged: start + 7, next: start + 12 });
        let in_flight: Vec<_> = (0..14).filter(|offset| sent.is_in_flight(start + *offset)).collect();
        assert_eq!(in_flight, [7, 8, 9, 10, 11]);
    }
}
