//! Drives smoltcp, and derives the state of the stream from that of smoltcp.

use smoltcp::time::Instant as SmolInstant;

use super::*;

impl StreamEngine {
    /// Processes a packet that a hook may have changed.
    pub(super) fn process_hooked(&mut self, now: Instant, packet: &[u8]) {
        if checksum::verify(packet, true) == Checksum::Invalid {
            self.filter.stats.bad_checksums += 1;
        } else if let Some(view) = self.read(packet) {
            self.process(now, &view);
        }
    }

    pub(super) fn process(&mut self, now: Instant, view: &TcpView<'_>) {
        // A closed smoltcp socket answers late segments with a RST.
        if self.finished {
            return;
        }
        let before = self.socket().state();
        let expected = self.next_expected();
        let is_timely = self.filter.note_received(now, view, expected);
        self.last_heard = now;
        let socket = self.socket();
        let room = socket.recv_capacity() - socket.recv_queue();
        let is_closing = matches!(before, State::FinWait1 | State::Closing | State::LastAck);
        let is_fin_alone = is_closing && socket.send_queue() == 0;
        let (changed, reread);
        let view = match self.filter.rewrite(view, is_timely, expected.map(|expected| (expected, room)), is_fin_alone) {
            Rewrite::Keep => view,
            Rewrite::Drop => return,
            Rewrite::Replace(packet) => {
                changed = packet;
                let Ok(view) = TcpView::read(&changed) else { return };
                reread = view;
                &reread
            }
        };
        let time = self.time(now);
        let Self { interface, sockets, scratch, plain, outbox, filter, mtu, .. } = self;
        for_each_plain(view, plain, &mut |packet| {
            let out = &mut |reply: &[u8]| filter.outgoing(now, reply, &mut |packet| outbox.push(packet));
            interface.poll_ingress_single(
                time,
                &mut OneShot { mtu: *mtu, incoming: Some(packet), scratch, out },
                sockets,
            );
        });
        self.after_segment(now, before, view.flags);
    }

    /// Updates the stream after a change of smoltcp's state.
    fn after_segment(&mut self, now: Instant, before: State, flags: Flags) {
        let state = self.socket().state();
        if owes_handshake_ack(before, state) {
            self.filter.stats.handshake = Some(now.saturating_duration_since(self.started));
            self.filter.stats.timestamps = self.socket().timestamp_enabled();
            self.egress_to_outbox(now);
        }
        if state == State::TimeWait {
            // RFC 9293, section 3.10.7.4: a repeated FIN restarts TIME-WAIT.
            if before != State::TimeWait || flags.contains(Flags::FIN) {
                self.time_wait_until = Some(time_wait_end(now, &self.config));
            }
        } else if state == State::Closed && before != State::Closed {
            self.finished = true;
            if flags.contains(Flags::RST) {
                let done = before == State::TimeWait || before == State::LastAck && self.socket().send_queue() == 0;
                self.failure = match before {
                    before if is_connecting(before) => Some(Failure::Refused),
                    _ if done => None,
                    _ => Some(Failure::Reset),
                };
            }
        }
        self.note_waiting(now);
    }

    /// Converts `now` to smoltcp's clock, and sets the clock of timestamps.
    fn time(&self, now: Instant) -> SmolInstant {
        self.filter.set_clock(now.saturating_duration_since(self.started));
        self.clock.to_smoltcp(now)
    }

    /// RCV.NXT; `None` before the peer's SYN was received.
    fn next_expected(&self) -> Option<Seq> {
        Some(receive_next(self.filter.first_expected()?, self.consumed, self.socket()))
    }

    /// Moves due segments to the outbox, to be sent with the next burst.
    pub(super) fn egress_to_outbox(&mut self, now: Instant) {
        let mut outbox = std::mem::take(&mut self.outbox);
        self.egress(now, &mut |packet| outbox.push(packet));
        self.outbox = outbox;
    }

    pub(super) fn egress(&mut self, now: Instant, out: &mut dyn FnMut(&[u8])) -> usize {
        if self.finished {
            return 0;
        }
        let time = self.time(now);
        let Self { interface, sockets, scratch, filter, mtu, .. } = self;
        let mut count = 0;
        let counted = &mut |packet: &[u8]| {
            count += 1;
            out(packet);
        };
        let emit = &mut |packet: &[u8]| filter.outgoing(now, packet, counted);
        let mut device = OneShot { mtu: *mtu, incoming: None, scratch, out: emit };
        for _ in 0..MAX_BURST {
            if interface.poll_egress(time, &mut device, sockets) == PollResult::None {
                break;
            }
        }
        // No segment follows a RST.
        self.finished |= self.socket().state() == State::Closed;
        self.note_waiting(now);
        count
    }

    /// Ends the connection with a RST to the peer, sent with the next burst.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure = Some(failure);
        self.socket_mut().abort();
    }

    /// Ends the connection without sending: the peer has no known connection, or is unreachable.
    ///
    /// - smoltcp: after `abort`, `dispatch` sends a RST in every state.
    /// - Required: an ABORT in SYN-SENT sends none (RFC 9293, section 3.10.5).
    /// - Otherwise: a RST is sent to a host that has not answered, against a policy, or to a removed interface.
    /// - Can be replaced by `fail` when smoltcp sends a RST only in the states of RFC 9293 and can close silently.
    pub(super) fn fail_silently(&mut self, failure: Failure) {
        self.fail(failure);
        // smoltcp is not polled for segments any more.
        self.finished = true;
    }

    fn note_waiting(&mut self, now: Instant) {
        let socket = self.socket();
        let waiting = match socket.state() {
            State::Established | State::CloseWait => socket.send_queue() > 0,
            State::FinWait1 | State::Closing | State::LastAck => true,
            _ => false,
        };
        self.waiting_since = if waiting { self.waiting_since.or(Some(now)) } else { None };
    }

    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        let silent_since = self.waiting_since?.max(self.last_heard);
        Some(self.filter.attempts().give_up_at(silent_since, self.config.retransmission_timeout))
    }

    pub(super) fn idle_until(&self) -> Option<Instant> {
        let listening =
            matches!(self.state(), StreamState::Established | StreamState::PeerClosed | StreamState::Closing);
        self.config.idle_timeout.filter(|_| listening).map(|timeout| self.last_heard + timeout)
    }
}
