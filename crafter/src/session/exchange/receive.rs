//! What came back, and what it answers.

use std::time::{Duration, Instant};

use crafter_common::reason::Reason;

use super::Exchange;
use crate::{
    capture::Captured,
    driver::Received,
    error::Result,
    layer::{Kind, Packet},
    packet::Checksum,
    session::{Event, Match, Pair, Reply, What, monotonic, wall_clock},
};

/// Packets that answer nothing and are kept.
const UNMATCHED: usize = 65_536;

/// Packets of a tap looked at between two others.
const TAPPED: usize = 256;

impl Exchange<'_> {
    /// Takes what has come and finds out what it answers.
    pub(super) fn collect(&mut self) -> Result<()> {
        for at in 0..self.links.links.len() {
            let mut inbox = std::mem::take(&mut self.inbox);
            self.links.links[at].collect(&mut inbox)?;
            if !inbox.is_empty() {
                let (now, wall, monotonic) = (Instant::now(), wall_clock(), monotonic());
                for (_, received) in inbox.drain(..) {
                    let age = match (received.timestamp_ns, monotonic) {
                        (Some(seen), Some(now)) => now.saturating_sub(Duration::from_nanos(seen)),
                        _ => Duration::ZERO,
                    };
                    self.handle(at, received, now, wall.saturating_sub(age), age);
                }
            }
            self.inbox = inbox;
            let (refused, error) = self.links.links[at].crafter.take_refusals();
            self.refused += refused;
            self.refusal = self.refusal.take().or(error);
            // Bounded: on a busy network there is always one more.
            for _ in 0..TAPPED {
                let Some(captured) = self.links.links[at].try_tapped()? else { break };
                self.handle_tapped(at, captured);
            }
        }
        Ok(())
    }

    /// A packet that the kernel has too. It counts only if it is an answer: nobody asked for the others.
    pub(super) fn handle_tapped(&mut self, at: usize, captured: Captured) {
        let packet = captured.packet();
        let matched = self.matcher.handle_reply(&packet, false);
        let (Match::First(request) | Match::Further(request)) = matched else { return };
        self.result.account.received += 1;
        let Captured { time, first, bytes, .. } = captured;
        let wall = wall_clock();
        let time = time.unwrap_or(wall);
        let rtt = self.matcher.sent(request).map_or(Duration::ZERO, |(sent, _)| {
            let (since, age) = (sent.elapsed(), wall.saturating_sub(time));
            // The kernel stamps by a clock that may be set: an answer older than its request says that it was.
            since.checked_sub(age).unwrap_or(since)
        });
        let arrival = Arrival { at, first, packet, bytes, time, reason: Reason::OtherProtocol };
        self.handle_matched(arrival, matched, rtt);
    }

    /// One packet that came to a lease, `age` ago.
    fn handle(&mut self, at: usize, received: Received, now: Instant, time: Duration, age: Duration) {
        let Received { ip: bytes, checksum, reason, .. } = received;
        let first = Kind::of_ip(&bytes);
        if !reason.is_ingress() {
            self.tell(at, time, first, &bytes, What::Suppressed { reason });
            return;
        }
        self.result.account.received += 1;
        if checksum == Checksum::Invalid {
            self.result.account.bad_checksum += 1;
            self.tell(at, time, first, &bytes, What::BadChecksum { reason });
            return;
        }
        self.links.handle_received(&bytes);
        let packet = Packet::from_ip(&bytes);
        let matched = self.matcher.handle_reply(&packet, true);
        let rtt = match matched {
            Match::First(request) | Match::Further(request) => self.matcher.sent(request),
            Match::Nobody => None,
        };
        let rtt = rtt.map_or(Duration::ZERO, |(sent, _)| now.saturating_duration_since(sent).saturating_sub(age));
        self.handle_matched(Arrival { at, first, packet, bytes, time, reason }, matched, rtt);
    }

    /// A packet of which it is known whose answer it is: counted, told and kept.
    fn handle_matched(&mut self, arrival: Arrival, matched: Match, rtt: Duration) {
        let Arrival { at, first, packet, bytes, time, reason } = arrival;
        let account = &mut self.result.account;
        let (what, answered) = match matched {
            Match::Further(request) if !self.options.multi => {
                account.duplicate += 1;
                (What::Duplicate { request, reason, rtt }, None)
            }
            Match::First(request) | Match::Further(request) => {
                account.matched += 1;
                (What::Matched { request, reason, rtt }, Some(request))
            }
            Match::Nobody => {
                account.unmatched += 1;
                (What::Unmatched { reason }, None)
            }
        };
        self.tell(at, time, first, &bytes, what);
        let is_kept = match matched {
            Match::Nobody => self.result.unmatched.len() < UNMATCHED,
            _ => answered.is_some(),
        };
        if !self.keeping || !is_kept {
            return;
        }
        let interface = self.links.links[at].name().to_owned();
        let reply = Reply { packet, bytes, time, reason, interface };
        let Some(number) = answered else {
            self.result.unmatched.push(reply);
            return;
        };
        if let (Some(request), Some((_, sent))) = (self.matcher.request(number), self.matcher.sent(number)) {
            self.result.answered.push(Pair { request: request.clone(), number, sent, reply, rtt });
        }
    }

    fn tell(&mut self, at: usize, time: Duration, first: Kind, bytes: &[u8], what: What) {
        let interface = self.links.links[at].name();
        (self.observer)(&Event { time, interface, first, bytes, what });
    }
}

/// A packet that came in.
struct Arrival {
    /// The place of its interface.
    at: usize,
    first: Kind,
    packet: Packet,
    bytes: Vec<u8>,
    /// Since 1970.
    time: Duration,
    reason: Reason,
}
