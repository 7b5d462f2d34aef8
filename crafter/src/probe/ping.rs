//! Ping: probes a host at a fixed interval and measures round-trip times and loss.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    method::{Method, rst_for},
    probe_reply::{IcmpError, ProbeReply, ReplyKind},
};
use crate::{
    engine::Pacer,
    error::{Error, Result},
    layer::{Icmp, Icmpv6EchoReply, Packet, Raw},
    session::{Event, Outcome, Script, Step},
};

/// Echo requests in flight at most: their sequence number has 16 bits.
const MAX_ECHOES_IN_FLIGHT: f64 = 60_000.0;

/// Probes in flight at most if each has a source port of its own: a session keeps 256.
const MAX_PORTS_IN_FLIGHT: f64 = 200.0;

/// Length in bytes of the probe number at the beginning of a payload.
const NUMBER_LENGTH: usize = 8;

/// Options of a ping.
#[derive(Clone, Debug)]
pub struct PingOptions {
    /// Address to probe.
    pub destination: IpAddr,
    /// Kind of probes.
    pub method: Method,
    /// Number of probes; `None`: unlimited.
    pub count: Option<u64>,
    /// Time from one probe to the next; replies do not change it.
    pub interval: Duration,
    /// Payload in bytes; TCP SYNs have none.
    pub size: usize,
    /// TTL or hop limit; `None`: the default.
    pub ttl: Option<u8>,
    /// How long to wait for the reply to each probe.
    pub timeout: Duration,
}

impl PingOptions {
    /// ICMP echo requests with 56 bytes of payload, one per second, with a timeout of 2 s.
    pub fn new(destination: IpAddr) -> Self {
        let second = Duration::from_secs(1);
        Self {
            destination,
            method: Method::Icmp,
            count: None,
            interval: second,
            size: 56,
            ttl: None,
            timeout: 2 * second,
        }
    }
}

/// The outcome of a probe, or of a further reply to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingOutcome {
    /// The probe's number, from 1.
    pub number: u64,
    /// The outcome.
    pub outcome: ProbeOutcome,
}

/// The outcome of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// A reply.
    Reply {
        /// The reply.
        reply: ProbeReply,
        /// Bytes of the reply after its IP header.
        bytes: usize,
        /// Round-trip time.
        rtt: Duration,
        /// Whether an earlier reply answered the probe.
        duplicate: bool,
        /// Offset of the first byte of the payload that differs from the probe's, or the shorter length.
        corrupt: Option<usize>,
    },
    /// No reply within the timeout.
    Lost,
    /// An echo reply after the timeout.
    Late,
}

/// Sums over all probes. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PingSummary {
    /// Probes sent.
    pub sent: u64,
    /// Probes that the destination answered.
    pub received: u64,
    /// Further replies.
    pub duplicates: u64,
    /// Replies with another payload than the probe's.
    pub corrupt: u64,
    /// Probes answered by an ICMP error of another host.
    pub errors: u64,
    /// ICMP errors that say that the destination is unreachable.
    pub unreachable: u64,
    /// Replies after the timeout, which do not count as received.
    pub late: u64,
    min: f64,
    max: f64,
    sum: f64,
    squares: f64,
}

impl PingSummary {
    /// Share of the probes that the destination did not answer, 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { 1.0 - self.received as f64 / self.sent as f64 }
    }

    /// Minimum, mean, maximum and standard deviation of the round-trip time in seconds; `None` without a reply.
    pub fn times(&self) -> Option<[f64; 4]> {
        let count = self.received as f64;
        let mean = self.sum / count;
        let deviation = (self.squares / count - mean * mean).max(0.0).sqrt();
        (self.received > 0).then_some([self.min, mean, self.max, deviation])
    }

    fn add(&mut self, rtt: f64) {
        (self.min, self.max) = if self.received == 0 { (rtt, rtt) } else { (self.min.min(rtt), self.max.max(rtt)) };
        self.received += 1;
        self.sum += rtt;
        self.squares += rtt * rtt;
    }
}

/// A probe in flight.
struct Pending {
    /// Index of its step.
    step: usize,
    number: u64,
    until: Instant,
    /// The destination has answered.
    answered: bool,
    /// Another host has answered with an ICMP error.
    failed: bool,
}

/// A ping: a script; [`Ping::poll_outcome`] returns its results as they arrive.
pub struct Ping {
    options: PingOptions,
    /// Starts when the first probe is sent: opening the interface takes time.
    pacer: Option<Pacer>,
    /// Steps that sent a packet.
    steps: usize,
    /// Probes made.
    made: u64,
    /// In the order of sending.
    pending: VecDeque<Pending>,
    resets: VecDeque<Packet>,
    outcomes: VecDeque<PingOutcome>,
    summary: PingSummary,
    lost: u64,
}

impl Ping {
    /// A ping; its interval starts with the first probe.
    ///
    /// # Errors
    /// [`Error::Invalid`] if more probes would be in flight than replies can be matched to.
    pub fn new(options: PingOptions) -> Result<Self> {
        let rate = options.interval.as_secs_f64().recip();
        Pacer::per_second(rate)?;
        let most = if options.method.takes_ports() { MAX_PORTS_IN_FLIGHT } else { MAX_ECHOES_IN_FLIGHT };
        let in_flight = options.timeout.as_secs_f64() * rate;
        if in_flight > most && options.count.is_none_or(|count| count as f64 > most) {
            let reason = format_args!(
                "{in_flight:.0} probes would be in flight within the timeout, at most {most} can be matched: raise the \
                 interval or lower the timeout"
            );
            return Err(Error::invalid("interval", reason));
        }
        Ok(Self {
            options,
            pacer: None,
            steps: 0,
            made: 0,
            pending: VecDeque::new(),
            resets: VecDeque::new(),
            outcomes: VecDeque::new(),
            summary: PingSummary::default(),
            lost: 0,
        })
    }

    /// The next outcome, if there is one.
    pub fn poll_outcome(&mut self) -> Option<PingOutcome> {
        self.outcomes.pop_front()
    }

    /// Probes that were not answered within the timeout.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Sums over all probes so far.
    pub fn summary(&self) -> PingSummary {
        self.summary
    }

    fn report(&mut self, number: u64, outcome: ProbeOutcome) {
        self.outcomes.push_back(PingOutcome { number: number + 1, outcome });
    }

    /// Times out probes.
    fn expire(&mut self, now: Instant) {
        while let Some(first) = self.pending.front().filter(|first| first.until <= now) {
            if !first.answered && !first.failed {
                let number = first.number;
                self.lost += 1;
                self.report(number, ProbeOutcome::Lost);
            }
            self.pending.pop_front();
        }
    }

    /// When the next probe is due; `None` if there is none, or the first one is not sent yet.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        if self.options.count.is_some_and(|count| self.made >= count) {
            return None;
        }
        match &mut self.pacer {
            Some(pacer) => Some(pacer.next(now)),
            None => (self.made == 0).then_some(now),
        }
    }

    fn sent(&mut self, step: usize, now: Instant) {
        let Ok(at) = self.pending.binary_search_by_key(&step, |pending| pending.step) else { return };
        self.pending[at].until = now + self.options.timeout;
        self.summary.sent += 1;
        if self.pacer.is_none()
            // Ping::new() has checked the rate.
            && let Ok(mut pacer) = Pacer::per_second(self.options.interval.as_secs_f64().recip())
        {
            pacer.ready(now);
            pacer.take(1);
            self.pacer = Some(pacer);
        }
    }

    /// Handles a reply to the probe of `step`.
    fn answered(&mut self, step: usize, event: &Event<'_>, rtt: Duration) {
        let packet = Packet::parse(event.first, event.bytes);
        let Ok(at) = self.pending.binary_search_by_key(&step, |pending| pending.step) else { return };
        let Some(reply) = ProbeReply::read(&packet) else { return };
        let number = self.pending[at].number;
        let mut duplicate = false;
        let mut corrupt = None;
        if reply.is_from(self.options.destination) {
            duplicate = std::mem::replace(&mut self.pending[at].answered, true);
            if duplicate {
                self.summary.duplicates += 1;
            } else {
                self.summary.add(rtt.as_secs_f64());
            }
            if reply.kind == ReplyKind::Echo {
                let load = packet.get::<Raw>().and_then(|raw| raw.load.as_deref()).unwrap_or_default();
                corrupt = difference(load, &payload(number, self.options.size));
                self.summary.corrupt += u64::from(corrupt.is_some());
            }
        } else if !self.pending[at].answered {
            duplicate = std::mem::replace(&mut self.pending[at].failed, true);
            self.summary.errors += u64::from(!duplicate);
            self.summary.unreachable +=
                u64::from(!duplicate && reply.icmp_error().is_some_and(IcmpError::is_unreachable));
        }
        if reply.kind == ReplyKind::SynAck {
            self.resets.extend(rst_for(&packet));
        }
        let bytes = event.bytes.len() - header(event.bytes).min(event.bytes.len());
        self.report(number, ProbeOutcome::Reply { reply, bytes, rtt, duplicate, corrupt });
    }

    /// Handles an unmatched packet: an echo reply may be late.
    fn unmatched(&mut self, event: &Event<'_>) {
        let packet = Packet::parse(event.first, event.bytes);
        let v4 = packet.get::<Icmp>().filter(|icmp| icmp.r#type == Some(0)).and_then(|icmp| icmp.seq);
        let Some(seq) = v4.or_else(|| packet.get::<Icmpv6EchoReply>().and_then(|echo| echo.seq)) else { return };
        // The latest probe that had this sequence number.
        let Some(latest) = self.made.checked_sub(1) else { return };
        let behind = u64::from((self.made as u16).wrapping_sub(seq));
        if let Some(number) = latest.checked_sub(behind) {
            self.summary.late += 1;
            self.report(number, ProbeOutcome::Late);
        }
    }
}

impl Script for Ping {
    fn next(&mut self, now: Instant) -> Step {
        if let Some(reset) = self.resets.pop_front() {
            self.steps += 1;
            return Step::SendUnanswered(reset);
        }
        self.expire(now);
        let due = self.due(now);
        if due.is_some_and(|due| due <= now) {
            let PingOptions { destination, method, ttl, size, timeout, .. } = self.options;
            if let Some(pacer) = &mut self.pacer {
                // Skips probes that are overdue by more than the pacer catches up with.
                pacer.ready(now);
                pacer.take(1);
            }
            let number = self.made;
            self.made += 1;
            // Set again when it is sent.
            let until = now + timeout;
            self.pending.push_back(Pending { step: self.steps, number, until, answered: false, failed: false });
            self.steps += 1;
            // Sequence numbers begin with 1, as those of ping(8).
            return Step::Send(method.probe(destination, ttl, number + 1, payload(number, size)));
        }
        let is_over = self.options.count.is_some_and(|count| self.made >= count)
            && self.pending.iter().all(|pending| pending.answered || pending.failed);
        if is_over {
            return Step::Done;
        }
        let waiting = self.pending.front().map(|first| first.until);
        let until = due.into_iter().chain(waiting).min();
        Step::Wait(until.unwrap_or(now + self.options.timeout))
    }

    fn handle(&mut self, event: &Event<'_>, now: Instant) {
        match event.outcome {
            Outcome::Sent { request, .. } => self.sent(request, now),
            Outcome::Matched { request, rtt, .. } | Outcome::Duplicate { request, rtt, .. } => {
                self.answered(request, event, rtt);
            }
            Outcome::Unmatched { .. } => self.unmatched(event),
            Outcome::SentFragment { .. }
            | Outcome::BadChecksum { .. }
            | Outcome::Reset
            | Outcome::Suppressed { .. } => {}
        }
    }

    fn oldest(&self) -> usize {
        self.pending.front().map_or(self.steps, |first| first.step)
    }

    fn fresh_ports(&self) -> bool {
        self.options.method.takes_ports()
    }
}

/// Payload of a probe: its number in network byte order, if it fits, then bytes that count their offset.
fn payload(number: u64, size: usize) -> Vec<u8> {
    let number = number.to_be_bytes();
    (0..size).map(|at| if size >= NUMBER_LENGTH && at < NUMBER_LENGTH { number[at] } else { at as u8 }).collect()
}

/// Offset of the first difference of two payloads.
fn difference(got: &[u8], sent: &[u8]) -> Option<usize> {
    let place = got.iter().zip(sent).position(|(a, b)| a != b);
    place.or((got.len() != sent.len()).then_some(got.len().min(sent.len())))
}

/// Length in bytes of an IPv4 header with options, or of the fixed IPv6 header.
fn header(ip: &[u8]) -> usize {
    match ip.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 15) * 4,
        _ => 40,
    }
}

#[cfg(test)]
#[path = "ping_tests.rs"]
mod tests;
