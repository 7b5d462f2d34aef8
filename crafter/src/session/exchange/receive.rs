//! Receives packets and matches them to requests.

use std::time::{Duration, Instant};

use crafter_common::reason::Reason;

use super::state::Exchange;
use crate::{
    capture::Captured,
    driver::Received,
    error::Result,
    layer::{Kind, Packet},
    packet::Checksum,
    session::{
        Event, Match, Outcome, Pair, Reply, Sniffer,
        clock::{monotonic, wall_clock},
    },
};

/// Unmatched packets kept for the result.
const MAX_UNMATCHED: usize = 65_536;

/// Packets of a tap read by one call: on a busy network, it never runs empty.
const MAX_TAPPED: usize = 256;

impl Exchange<'_> {
    /// Matches all packets received so far.
    pub(super) fn collect(&mut self) -> Result<()> {
        for at in 0..self.links.links.len() {
            let mut inbox = std::mem::take(&mut self.inbox);
            self.links.links[at].crafter.gather(&mut inbox)?;
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
            for _ in 0..MAX_TAPPED {
                let next = self.links.links[at].tap.as_mut().map_or(Ok(None), Sniffer::try_next)?;
                let Some(captured) = next else { break };
                self.handle_tapped(at, captured);
            }
        }
        Ok(())
    }

    /// A packet of a tap, which the kernel received too. It is ignored if it is not a reply.
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
            // The timestamp is wall-clock time. If the clock was set meanwhile, the reply may seem older than its
            // request.
            since.checked_sub(age).unwrap_or(since)
        });
        let arrival = Arrival { at, first, packet, bytes, time, reason: Reason::OtherProtocol };
        self.handle_matched(arrival, matched, rtt);
    }

    /// A packet received by a lease, `age` ago.
    fn handle(&mut self, at: usize, received: Received, now: Instant, time: Duration, age: Duration) {
        let Received { ip: bytes, checksum, reason, .. } = received;
        let first = Kind::of_ip(&bytes);
        if !reason.is_ingress() {
            self.observe(at, time, first, &bytes, Outcome::Suppressed { reason });
            return;
        }
        self.result.account.received += 1;
        if checksum == Checksum::Invalid {
            self.result.account.bad_checksum += 1;
            self.observe(at, time, first, &bytes, Outcome::BadChecksum { reason });
            return;
        }
        self.links.resets.handle_received(&bytes);
        let packet = Packet::from_ip(&bytes);
        let matched = self.matcher.handle_reply(&packet, true);
        let rtt = match matched {
            Match::First(request) | Match::Further(request) => self.matcher.sent(request),
            Match::None => None,
        };
        let rtt = rtt.map_or(Duration::ZERO, |(sent, _)| now.saturating_duration_since(sent).saturating_sub(age));
        self.handle_matched(Arrival { at, first, packet, bytes, time, reason }, matched, rtt);
    }

    /// Counts a matched or unmatched packet, reports it to the observer and keeps it for the result.
    fn handle_matched(&mut self, arrival: Arrival, matched: Match, rtt: Duration) {
        let Arrival { at, first, packet, bytes, time, reason } = arrival;
        let account = &mut self.result.account;
        let (outcome, answered) = match matched {
            Match::Further(request) if !self.options.multi => {
                account.duplicate += 1;
                (Outcome::Duplicate { request, reason, rtt }, None)
            }
            Match::First(request) | Match::Further(request) => {
                account.matched += 1;
                (Outcome::Matched { request, reason, rtt }, Some(request))
            }
            Match::None => {
                account.unmatched += 1;
                (Outcome::Unmatched { reason }, None)
            }
        };
        let request = match outcome {
            Outcome::Matched { request, .. } | Outcome::Duplicate { request, .. } => self.matcher.request(request),
            _ => None,
        };
        let reply = answered.map(|_| &packet);
        let interface = self.links.links[at].name();
        (self.observer)(&Event { time, interface, first, bytes: &bytes, request, reply, outcome });
        let is_kept = match matched {
            Match::None => self.result.unmatched.len() < MAX_UNMATCHED,
            _ => answered.is_some(),
        };
        if !self.keeps_packets || !is_kept || self.options.discard_replies {
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

    fn observe(&mut self, at: usize, time: Duration, first: Kind, bytes: &[u8], outcome: Outcome) {
        let interface = self.links.links[at].name();
        (self.observer)(&Event { time, interface, first, bytes, request: None, reply: None, outcome });
    }
}

/// A received packet.
struct Arrival {
    /// Index of its link.
    at: usize,
    first: Kind,
    packet: Packet,
    bytes: Vec<u8>,
    /// Wall-clock time since 1970.
    time: Duration,
    reason: Reason,
}
