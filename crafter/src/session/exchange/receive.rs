//! What came back, and what it answers.

use std::time::{Duration, Instant};

use crafter_common::reason::Reason;
use nix::time::{ClockId, clock_gettime};

use super::Exchange;
use crate::{
    capture::Captured,
    driver::Received,
    error::Result,
    layer::{Kind, Packet},
    packet::Checksum,
    session::{Event, Match, Pair, Reply, What, wall_clock},
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
                for received in inbox.drain(..) {
                    let age = match (received.timestamp_ns, monotonic) {
                        (Some(seen), Some(now)) => now.saturating_sub(Duration::from_nanos(seen)),
                        _ => Duration::ZERO,
                    };
                    self.handle(at, received, now, wall.saturating_sub(age), age);
                }
            }
            self.inbox = inbox;
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
        let time = captured.time.unwrap_or_else(wall_clock);
        let sent = self.matcher.sent(request).map_or(time, |(_, sent)| sent);
        let rtt = time.saturating_sub(sent);
        let reason = Reason::OtherProtocol;
        let account = &mut self.result.account;
        account.received += 1;
        let is_duplicate = matches!(matched, Match::Further(_)) && !self.options.multi;
        let what = if is_duplicate {
            account.duplicate += 1;
            What::Duplicate { request, reason, rtt }
        } else {
            account.matched += 1;
            What::Matched { request, reason, rtt }
        };
        let interface = self.links.links[at].name();
        (self.observer)(&Event { time, interface, first: captured.first, bytes: &captured.bytes, what });
        if self.keeping
            && !is_duplicate
            && let Some(asked) = self.matcher.request(request)
        {
            let reply = Reply { packet, bytes: captured.bytes, time, reason, interface: interface.to_owned() };
            self.result.answered.push(Pair { request: asked.clone(), number: request, sent, reply, rtt });
        }
    }

    /// One packet that came to a lease, `age` ago.
    fn handle(&mut self, at: usize, received: Received, now: Instant, time: Duration, age: Duration) {
        let Received { ip: bytes, checksum, reason, .. } = received;
        let interface = self.links.links[at].name();
        let packet = Packet::from_ip(&bytes);
        let first = Kind::of_ip(&bytes);
        let mut tell = |what| (self.observer)(&Event { time, interface, first, bytes: &bytes, what });
        if !reason.is_ingress() {
            tell(What::Suppressed { reason });
            return;
        }
        let account = &mut self.result.account;
        account.received += 1;
        if checksum == Checksum::Invalid {
            account.bad_checksum += 1;
            tell(What::BadChecksum { reason });
            return;
        }
        let reply = |packet, bytes| Reply { packet, bytes, time, reason, interface: interface.to_owned() };
        let answer = self.matcher.handle_reply(&packet, true);
        let (sent, rtt) = match answer {
            Match::First(request) | Match::Further(request) => match self.matcher.sent(request) {
                Some((instant, sent)) => (sent, now.saturating_duration_since(instant).saturating_sub(age)),
                None => Default::default(),
            },
            Match::Nobody => Default::default(),
        };
        match answer {
            Match::Further(request) if !self.options.multi => {
                account.duplicate += 1;
                tell(What::Duplicate { request, reason, rtt });
            }
            Match::First(request) | Match::Further(request) => {
                account.matched += 1;
                tell(What::Matched { request, reason, rtt });
                if self.keeping
                    && let Some(packet_sent) = self.matcher.request(request)
                {
                    let request_packet = packet_sent.clone();
                    let reply = reply(packet, bytes);
                    self.result.answered.push(Pair { request: request_packet, number: request, sent, reply, rtt });
                }
            }
            Match::Nobody => {
                account.unmatched += 1;
                tell(What::Unmatched { reason });
                if self.keeping && self.result.unmatched.len() < UNMATCHED {
                    self.result.unmatched.push(reply(packet, bytes));
                }
            }
        }
    }
}

/// CLOCK_MONOTONIC, by which the kernel half stamps.
fn monotonic() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Into::into)
}
