//! State for which a smoltcp socket has no accessor.

use smoltcp::socket::tcp::{Socket, State};

use crafter_packet::view::Seq;

/// The send sequence variables of RFC 9293, section 3.3.1, taken from the segments themselves.
///
/// - smoltcp: `local_seq_no` (SND.UNA) and `remote_last_seq` are private, and the latter is not SND.NXT: `dispatch`
///   resets it when it retransmits.
/// - Required: ACKs carry SND.NXT (RFC 9293, section 3.10.7.4); an ICMP error counts only if it quotes a number in
///   flight (RFC 5927, section 4.1).
/// - Otherwise: [`send_next`](super::segment_fixups::send_next) and the fix-ups of repeated ACKs lack these numbers, and a
///   forged ICMP error ends a connection attempt.
/// - Remove when smoltcp has accessors for both, and SND.NXT does not go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SendSequence {
    /// SND.UNA: the oldest number that is not acknowledged.
    pub unacknowledged: Seq,
    /// SND.NXT: the first number that was never sent.
    pub next: Seq,
}

impl SendSequence {
    /// Notes a segment with the sequence numbers `start..end`; `true` if some were sent before.
    pub fn note_sent(&mut self, start: Seq, end: Seq) -> bool {
        let is_repeated = start != end && start.before(self.next);
        if end.after(self.next) {
            self.next = end;
        }
        is_repeated
    }

    /// Notes an acknowledgment; ignores one of unsent data.
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

/// RCV.NXT: the sequence number of the next in-order byte. `first` is the number after the peer's SYN, `consumed` the
/// number of bytes that the reader has consumed.
///
/// - smoltcp: `remote_seq_no` is private; the length of the receive queue is public.
/// - Required: RST and SYN are judged by RCV.NXT (RFC 5961, sections 3.2 and 4.2).
/// - Otherwise: [`is_inexact_reset`](super::segment_fixups::is_inexact_reset) has no number to compare with.
/// - Remove when smoltcp has an accessor.
pub(crate) fn receive_next(first: Seq, consumed: u32, socket: &Socket<'_>) -> Seq {
    let has_fin = matches!(socket.state(), State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
    first + consumed + socket.recv_queue() as u32 + u32::from(has_fin)
}

/// Whether smoltcp must send before it reads another segment, because the handshake has just completed: `before` and
/// `after` are its states around the last segment.
///
/// - smoltcp: `process` computes the right edge of the receive window as `remote_last_win << remote_win_shift`. Until
///   `dispatch` has sent the ACK of the SYN-ACK, `remote_last_win` is the window of its own SYN.
/// - Required: the window in a SYN is not scaled (RFC 7323, section 2.2).
/// - Otherwise: data after the SYN-ACK in the same burst that exceeds the buffer counts as received, is acknowledged
///   later, and lost.
/// - Remove when smoltcp notes its window unscaled, or not shifted for a SYN.
pub(crate) fn owes_handshake_ack(before: State, after: State) -> bool {
    is_connecting(before) && !is_connecting(after) && after != State::Closed
}

/// Whether the handshake is in progress.
pub(crate) fn is_connecting(state: State) -> bool {
    matches!(state, State::SynSent | State::SynReceived)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn send_next_never_decreases() {
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
