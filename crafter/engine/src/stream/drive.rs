//! How a stream drives smoltcp, and what it concludes from smoltcp's state.

use super::*;

/// Something is sent so many times before the peer is given up.
const TRIES: u32 = 5;
/// In this time smoltcp sends something so many times, if nothing was lost before: after 1, 2, 4 and 8 s again.
const ALL_TRIES: Duration = Duration::from_secs(15);
/// Two tries lie no further apart (smoltcp's `RTTE_MAX_RTO`).
const SLOWEST_TRY: Duration = Duration::from_secs(60);
/// How long the answer to the last try may take.
const ANSWER: Duration = Duration::from_secs(2);

impl StreamEngine {
    /// Takes a packet that a hook may have changed.
    pub(super) fn process_hooked(&mut self, now: Instant, packet: &[u8]) {
        if checksum::verify(packet, true) == Checksum::Invalid {
            self.wire.stats.bad_checksums += 1;
        } else if let Some(view) = self.read(packet) {
            self.process(now, &view);
        }
    }

    pub(super) fn process(&mut self, now: Instant, view: &TcpView<'_>) {
        // A closed socket would answer what comes late with a RST.
        if self.finished {
            return;
        }
        let before = self.socket().state();
        let expected = self.next_expected();
        let is_timely = self.wire.note_received(now, view, expected);
        self.last_heard = now;
        let socket = self.socket();
        let room = socket.recv_capacity() - socket.recv_queue();
        let is_closing = matches!(before, State::FinWait1 | State::Closing | State::LastAck);
        let is_drained = is_closing && socket.send_queue() == 0;
        let (changed, reread);
        let view = match self.wire.seen(view, is_timely, expected.map(|expected| (expected, room)), is_drained) {
            Seen::Whole => view,
            Seen::Nothing => return,
            Seen::Changed(packet) => {
                changed = packet;
                let Ok(view) = TcpView::read(&changed) else { return };
                reread = view;
                &reread
            }
        };
        let time = self.time(now);
        let Self { interface, sockets, scratch, plain, outbox, wire, mtu, .. } = self;
        for_each_plain(view, plain, &mut |packet| {
            let out = &mut |reply: &[u8]| wire.outgoing(now, reply, &mut |packet| outbox.push(packet));
            interface.poll_ingress_single(
                time,
                &mut OneShot { mtu: *mtu, incoming: Some(packet), scratch, out },
                sockets,
            );
        });
        self.after_segment(now, before, view.flags);
    }

    /// Draws the conclusions from how smoltcp's state changed.
    fn after_segment(&mut self, now: Instant, before: State, flags: Flags) {
        let state = self.socket().state();
        let connecting = |state| matches!(state, State::SynSent | State::SynReceived);
        if connecting(before) && !connecting(state) && state != State::Closed {
            self.wire.stats.handshake = Some(now.saturating_duration_since(self.started));
            self.wire.stats.timestamps = self.socket().timestamp_enabled();
            // At once, not with the next burst: until this ACK is out, smoltcp takes the unscaled window of its SYN
            // for a scaled one, and would note data beyond its buffer as received.
            self.egress_to_outbox(now);
        }
        if state == State::TimeWait {
            // RFC 9293, 3.10.7.4: a repeated FIN starts it again.
            if before != State::TimeWait || flags.contains(Flags::FIN) {
                // The ACK of the FIN may be a delayed one.
                let delay = match self.config.acks {
                    AckPolicy::PerBurst => Duration::ZERO,
                    AckPolicy::Delayed(delay) => delay,
                };
                let time_wait = self.config.time_wait.max(delay);
                self.time_wait_until = Some(now + time_wait.min(StreamConfig::MAX_TIME_WAIT));
            }
        } else if state == State::Closed && before != State::Closed {
            self.finished = true;
            if flags.contains(Flags::RST) {
                let done = before == State::TimeWait || before == State::LastAck && self.socket().send_queue() == 0;
                self.failure = match before {
                    before if connecting(before) => Some(Failure::Refused),
                    _ if done => None,
                    _ => Some(Failure::Reset),
                };
            }
        }
        self.note_waiting(now);
    }

    /// `now` on smoltcp's clock, and on the one of its timestamps.
    fn time(&self, now: Instant) -> SmolInstant {
        self.wire.set_clock(now.saturating_duration_since(self.started));
        smol(self.epoch, now)
    }

    /// The sequence number that the next byte in order has.
    fn next_expected(&self) -> Option<u32> {
        let first = self.wire.first_expected()?;
        let received = self.consumed.wrapping_add(self.socket().recv_queue() as u32);
        let fin = matches!(self.socket().state(), State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
        Some(first.wrapping_add(received).wrapping_add(u32::from(fin)))
    }

    /// Makes what is due now, to be sent with the next burst.
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
        let Self { interface, sockets, scratch, wire, mtu, .. } = self;
        let mut count = 0;
        let counted = &mut |packet: &[u8]| {
            count += 1;
            out(packet);
        };
        let emit = &mut |packet: &[u8]| wire.outgoing(now, packet, counted);
        let mut device = OneShot { mtu: *mtu, incoming: None, scratch, out: emit };
        for _ in 0..MAX_BURST {
            if interface.poll_egress(time, &mut device, sockets) == PollResult::None {
                break;
            }
        }
        // A RST is the last segment there is.
        self.finished |= self.socket().state() == State::Closed;
        self.note_waiting(now);
        count
    }

    /// Ends with a RST to the peer.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure = Some(failure);
        self.socket_mut().abort();
    }

    /// Ends without a word: nobody there is known to have a connection.
    pub(super) fn fail_silently(&mut self, now: Instant, failure: Failure) {
        self.fail(failure);
        let time = smol(self.epoch, now);
        let Self { interface, sockets, scratch, mtu, .. } = self;
        // smoltcp forgets the peer when it has sent its RST, so it gets to send it to nobody.
        interface.poll_egress(time, &mut OneShot { mtu: *mtu, incoming: None, scratch, out: &mut |_| {} }, sockets);
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
        let patience = self.config.retransmission_timeout;
        Some(match self.wire.asked() {
            _ if patience < ALL_TRIES => silent_since + patience,
            // On a bad network smoltcp's tries come to lie a minute apart: the one that is lost must not be the last.
            (0..TRIES, _) => silent_since + patience.max((TRIES + 1) * SLOWEST_TRY),
            (_, last) => (silent_since + patience).max(last.unwrap_or(silent_since) + ANSWER),
        })
    }

    pub(super) fn idle_until(&self) -> Option<Instant> {
        let listening =
            matches!(self.state(), StreamState::Established | StreamState::PeerClosed | StreamState::Closing);
        self.config.idle_timeout.filter(|_| listening).map(|timeout| self.last_heard + timeout)
    }
}
