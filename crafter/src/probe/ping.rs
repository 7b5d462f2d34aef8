//! Whether a host answers, how fast, and how reliably.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{Answer, Fault, Method, Said, reset};
use crate::{
    engine::Pacer,
    error::{Error, Result},
    layer::{Icmp, Icmpv6EchoReply, Packet, Raw},
    session::{self, Event, Script, Step},
};

/// Echo requests in flight that their sequence number of 16 bits tells apart, with some to spare.
const IN_FLIGHT: f64 = 60_000.0;

/// Probes in flight that have a source port each; a session keeps somewhat more.
const PORTS: f64 = 200.0;

/// Bytes of the number that a payload begins with.
const NUMBER: usize = 8;

/// Whom to ping, and how.
#[derive(Clone, Debug)]
pub struct PingOptions {
    /// Where to.
    pub destination: IpAddr,
    /// With what; [`Method::UdpFrom`] counts its ports on.
    pub method: Method,
    /// How many probes; `None`: until the script is dropped.
    pub count: Option<u64>,
    /// From one probe to the next, by the clock, whether answers have come or not.
    pub interval: Duration,
    /// Bytes of payload; TCP SYNs have none.
    pub size: usize,
    /// TTL or hop limit, if not the usual.
    pub ttl: Option<u8>,
    /// How long each probe may be answered.
    pub timeout: Duration,
}

impl PingOptions {
    /// ICMP echo requests of 56 bytes, one a second, each answered within 2 s.
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

/// What became of a probe, or of an answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingOutcome {
    /// The probe's number, from 1.
    pub number: u64,
    /// What it is.
    pub pong: Pong,
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pong {
    /// It was answered.
    Answer {
        /// By whom, and how.
        answer: Answer,
        /// Bytes of the answer behind its IP header.
        bytes: usize,
        /// From sending to receiving.
        rtt: Duration,
        /// It was answered before.
        duplicate: bool,
        /// The first byte of the payload that is not as it was sent; its length, where that differs.
        corrupt: Option<usize>,
    },
    /// It was not answered in time.
    Lost,
    /// An echo reply that came too late.
    Late,
}

/// What came of all probes. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PingSummary {
    /// Probes sent.
    pub sent: u64,
    /// Probes that the destination answered.
    pub received: u64,
    /// Further answers.
    pub duplicates: u64,
    /// Answers that do not have the payload that was sent.
    pub corrupt: u64,
    /// Probes that an ICMP error answered instead.
    pub errors: u64,
    /// Errors that say that the destination cannot be had.
    pub unreachable: u64,
    /// Answers that came too late to be counted as received.
    pub late: u64,
    min: f64,
    max: f64,
    sum: f64,
    squares: f64,
}

impl PingSummary {
    /// Share of the probes without an answer of the destination, 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { 1.0 - self.received as f64 / self.sent as f64 }
    }

    /// Smallest, mean and largest round-trip time, and its standard deviation; `None` without an answer.
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

/// A probe on its way.
struct Pending {
    /// Its place among the steps.
    step: usize,
    number: u64,
    until: Instant,
    /// The destination has answered, or somebody else.
    answered: bool,
    failed: bool,
}

/// A ping: a script whose outcomes are taken as they come.
pub struct Ping {
    options: PingOptions,
    /// Starts when the first probe has left: opening the interface takes its time.
    pacer: Option<Pacer>,
    /// Steps that sent something.
    steps: usize,
    /// Probes made.
    made: u64,
    /// In the order of sending.
    pending: VecDeque<Pending>,
    resets: VecDeque<Packet>,
    outcomes: VecDeque<PingOutcome>,
    summary: PingSummary,
}

impl Ping {
    /// A ping; its clock starts with the first probe.
    ///
    /// # Errors
    /// [`Error::Invalid`] where so many would be in flight that answers could belong to several.
    pub fn new(options: PingOptions) -> Result<Self> {
        let rate = options.interval.as_secs_f64().recip();
        Pacer::per_second(rate)?;
        let most = if options.method.takes_ports() { PORTS } else { IN_FLIGHT };
        let flying = options.timeout.as_secs_f64() * rate;
        if flying > most && options.count.is_none_or(|count| count as f64 > most) {
            let reason = format_args!(
                "{flying:.0} probes would be in flight within the timeout, {most} can be told apart: send slower, or wait less"
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
        })
    }

    /// The next outcome that has not been taken yet.
    pub fn poll_outcome(&mut self) -> Option<PingOutcome> {
        self.outcomes.pop_front()
    }

    /// What came of all probes so far.
    pub fn summary(&self) -> PingSummary {
        self.summary
    }

    fn tell(&mut self, number: u64, pong: Pong) {
        self.outcomes.push_back(PingOutcome { number: number + 1, pong });
    }

    /// Gives up those that have waited long enough.
    fn expire(&mut self, now: Instant) {
        while let Some(first) = self.pending.front().filter(|first| first.until <= now) {
            if !first.answered && !first.failed {
                let number = first.number;
                self.tell(number, Pong::Lost);
            }
            self.pending.pop_front();
        }
    }

    /// When the next probe is due; `None`: there is none, or the first one is still on its way out.
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
            // It was possible when the script was made.
            && let Ok(mut pacer) = Pacer::per_second(self.options.interval.as_secs_f64().recip())
        {
            pacer.ready(now);
            pacer.take(1);
            self.pacer = Some(pacer);
        }
    }

    /// An answer to the probe of `step`.
    fn answered(&mut self, step: usize, event: &Event<'_>, rtt: Duration) {
        let packet = Packet::parse(event.first, event.bytes);
        let Ok(at) = self.pending.binary_search_by_key(&step, |pending| pending.step) else { return };
        let Some(answer) = Answer::read(&packet) else { return };
        let number = self.pending[at].number;
        let mut duplicate = false;
        let mut corrupt = None;
        if answer.is_from(self.options.destination) {
            duplicate = std::mem::replace(&mut self.pending[at].answered, true);
            if duplicate {
                self.summary.duplicates += 1;
            } else {
                self.summary.add(rtt.as_secs_f64());
            }
            if answer.said == Said::Echo {
                let load = packet.get::<Raw>().and_then(|raw| raw.load.as_deref()).unwrap_or_default();
                corrupt = difference(load, &payload(number, self.options.size));
                self.summary.corrupt += u64::from(corrupt.is_some());
            }
        } else if !self.pending[at].answered {
            duplicate = std::mem::replace(&mut self.pending[at].failed, true);
            self.summary.errors += u64::from(!duplicate);
            self.summary.unreachable += u64::from(!duplicate && answer.fault().is_some_and(Fault::is_unreachable));
        }
        if answer.said == Said::SynAck {
            self.resets.extend(reset(&packet));
        }
        let bytes = event.bytes.len() - header(event.bytes).min(event.bytes.len());
        self.tell(number, Pong::Answer { answer, bytes, rtt, duplicate, corrupt });
    }

    /// What answers nothing that is still waited for: an echo reply may be late.
    fn stray(&mut self, event: &Event<'_>) {
        let packet = Packet::parse(event.first, event.bytes);
        let v4 = packet.get::<Icmp>().filter(|icmp| icmp.r#type == Some(0)).and_then(|icmp| icmp.seq);
        let Some(seq) = v4.or_else(|| packet.get::<Icmpv6EchoReply>().and_then(|echo| echo.seq)) else { return };
        // The latest probe that had this sequence number.
        let Some(latest) = self.made.checked_sub(1) else { return };
        let behind = u64::from((self.made as u16).wrapping_sub(seq));
        if let Some(number) = latest.checked_sub(behind) {
            self.summary.late += 1;
            self.tell(number, Pong::Late);
        }
    }
}

impl Script for Ping {
    fn next(&mut self, now: Instant) -> Step {
        if let Some(reset) = self.resets.pop_front() {
            self.steps += 1;
            return Step::Tell(reset);
        }
        self.expire(now);
        let due = self.due(now);
        if due.is_some_and(|due| due <= now) {
            let PingOptions { destination, method, ttl, size, timeout, .. } = self.options;
            if let Some(pacer) = &mut self.pacer {
                // Those that were slept through are forgiven beyond what it makes up for.
                pacer.ready(now);
                pacer.take(1);
            }
            let number = self.made;
            self.made += 1;
            // Counted from when it leaves, if it does.
            let until = now + timeout;
            self.pending.push_back(Pending { step: self.steps, number, until, answered: false, failed: false });
            self.steps += 1;
            // Sequence numbers begin with 1, as those of ping do.
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
        match event.what {
            session::What::Sent { request, .. } => self.sent(request, now),
            session::What::Matched { request, rtt, .. } | session::What::Duplicate { request, rtt, .. } => {
                self.answered(request, event, rtt);
            }
            session::What::Unmatched { .. } => self.stray(event),
            session::What::BadChecksum { .. } | session::What::Reset | session::What::Suppressed { .. } => {}
        }
    }

    fn oldest(&self) -> usize {
        self.pending.front().map_or(self.steps, |first| first.step)
    }

    fn fresh_ports(&self) -> bool {
        self.options.method.takes_ports()
    }
}

/// What a probe carries: its number, as far as it fits, then bytes that tell their place.
fn payload(number: u64, size: usize) -> Vec<u8> {
    let number = number.to_be_bytes();
    (0..size).map(|at| if size >= NUMBER && at < NUMBER { number[at] } else { at as u8 }).collect()
}

/// The first place where two payloads differ.
fn difference(got: &[u8], sent: &[u8]) -> Option<usize> {
    let place = got.iter().zip(sent).position(|(a, b)| a != b);
    place.or((got.len() != sent.len()).then_some(got.len().min(sent.len())))
}

/// Bytes of an IP header without what extends it.
fn header(ip: &[u8]) -> usize {
    match ip.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 15) * 4,
        _ => 40,
    }
}

#[cfg(test)]
#[path = "ping_tests.rs"]
mod tests;
