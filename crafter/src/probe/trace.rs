//! Which routers a path leads by.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{Answer, Fault, Method, Said, reset};
use crate::{
    error::{Error, Result},
    layer::{MplsLabel, Packet},
    session::{self, Event, Script, Step},
};

/// Bytes that probes carry, as those of `traceroute` do; TCP SYNs carry none.
const PAYLOAD: usize = 32;

/// Linux sends a peer one ICMP error a second, beyond 6 at once (net.ipv4.icmp_ratelimit, inet_peer_xrlim_allow()): who
/// is known to answer is asked again no sooner.
const RATE_LIMIT: Duration = Duration::from_millis(1050);

/// Which path to trace, and how.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Where to.
    pub destination: IpAddr,
    /// With what.
    pub method: Method,
    /// The TTL, or hop limit, to begin with.
    pub first: u8,
    /// The largest.
    pub max: u8,
    /// Probes of each TTL that are to be answered.
    pub probes: u8,
    /// How long a probe is waited for before another one is sent in its place, twice as long before the second one,
    /// and so on. Its answer counts also later.
    pub timeout: Duration,
    /// How often another one is sent.
    pub retries: u8,
    /// How many hops are probed at once.
    pub parallel: u8,
    /// From the probes of one hop to those of the next: with answers that are faster, the destination gets no more
    /// probes than it must.
    pub interval: Duration,
}

impl TraceOptions {
    /// UDP from port 33434 on, 3 probes for each of up to 30 hops, all at once, and up to two more for each that is
    /// not answered within a second.
    pub fn new(destination: IpAddr) -> Self {
        Self {
            destination,
            method: Method::UdpFrom(33_434),
            first: 1,
            max: 30,
            probes: 3,
            timeout: Duration::from_secs(1),
            retries: 2,
            parallel: 30,
            interval: Duration::from_millis(10),
        }
    }

    fn check(&self) -> Result<()> {
        if self.first == 0 || self.first > self.max {
            let reason = format_args!("hops from {} to {}: they are counted from 1", self.first, self.max);
            return Err(Error::invalid("hops", reason));
        }
        if self.probes == 0 || self.parallel == 0 {
            return Err(Error::invalid("probes", "at least one for a hop, and one hop at a time, are needed"));
        }
        Ok(())
    }
}

/// An answer of a hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopAnswer {
    /// Who answered, and what.
    pub answer: Answer,
    /// From sending to receiving.
    pub rtt: Duration,
    /// It came from the destination.
    pub reached: bool,
}

impl HopAnswer {
    /// What `traceroute` writes behind the time.
    pub fn annotation(&self) -> String {
        self.answer.fault().map(Fault::annotation).unwrap_or_default()
    }

    /// The labels with which the probe came to the router.
    pub fn labels(&self) -> &[MplsLabel] {
        &self.answer.labels
    }

    fn is_unreachable(&self) -> bool {
        !self.reached && self.answer.fault().is_some_and(Fault::is_unreachable)
    }
}

/// A hop of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The TTL, or hop limit, of its probes.
    pub ttl: u8,
    /// The answers, in the order of the probes; `None`: none came.
    pub answers: Vec<Option<HopAnswer>>,
}

/// How a trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At the destination.
    Reached,
    /// Where somebody said that it cannot be had.
    Unreachable(Fault),
    /// Nowhere.
    NotReached,
}

/// What is asked of a hop; several probes may be sent for it.
#[derive(Clone, Debug, Default)]
struct Question {
    answer: Option<HopAnswer>,
    /// Probes sent for it.
    attempts: u8,
    /// When the latest was sent.
    sent: Option<Instant>,
}

struct Asked {
    ttl: u8,
    questions: Vec<Question>,
    /// When a probe was sent last.
    sent: Option<Instant>,
}

impl Asked {
    fn answers(&self) -> impl Iterator<Item = &HopAnswer> {
        self.questions.iter().filter_map(|question| question.answer.as_ref())
    }

    /// Whether the path ends here: at the destination, or where all who answer say that there is no way.
    fn ending(&self) -> Option<Ending> {
        if self.answers().any(|answer| answer.reached) {
            return Some(Ending::Reached);
        }
        let fault = self.answers().next()?.answer.fault()?;
        self.answers().all(HopAnswer::is_unreachable).then_some(Ending::Unreachable(fault))
    }

    fn is_settled(&self, now: Instant, options: &TraceOptions) -> bool {
        self.questions.iter().all(|question| {
            let given_up = matches!(self.next(question, options), Some(When::GiveUp(until)) if until <= now);
            question.answer.is_some() || given_up
        })
    }

    /// When this question may be asked next, or is given up; `None`: it is answered.
    fn next(&self, question: &Question, options: &TraceOptions) -> Option<When> {
        let TraceOptions { timeout, retries, .. } = *options;
        let Some(sent) = question.sent else { return question.answer.is_none().then_some(When::Now) };
        if question.answer.is_some() {
            return None;
        }
        if question.attempts > retries {
            return Some(When::GiveUp(sent + timeout));
        }
        // Who answers nothing gets more and more time: for want of a route, Linux answers only when two errors are
        // due (ip_error() counts them before icmp_send() does).
        let patience = timeout * question.attempts.into() * 21 / 20;
        let Some(rested) = self.sent else { return Some(When::At(sent + patience)) };
        Some(When::At(match self.answers().next() {
            Some(answer) if answer.is_unreachable() => (sent + timeout).max(rested + 2 * RATE_LIMIT),
            Some(_) => (sent + timeout).max(rested + RATE_LIMIT),
            None => sent + patience,
        }))
    }
}

enum When {
    Now,
    At(Instant),
    GiveUp(Instant),
}

/// A trace: a script whose hops are taken as they are complete.
pub struct Trace {
    options: TraceOptions,
    hops: Vec<Asked>,
    /// What each step asked: places of hop and question.
    steps: Vec<Option<(usize, usize)>>,
    probes: u64,
    resets: VecDeque<Packet>,
    /// When the next hop's turn is.
    turn: Option<Instant>,
    /// Hops taken.
    taken: usize,
    /// The time of the last call.
    now: Option<Instant>,
}

impl Trace {
    /// A trace; its clock starts with the first probe.
    ///
    /// # Errors
    /// [`Error::Invalid`] for numbers that do not go together.
    pub fn new(options: TraceOptions) -> Result<Self> {
        options.check()?;
        let hop = |ttl| Asked { ttl, questions: vec![Question::default(); options.probes.into()], sent: None };
        let hops = (options.first..=options.max).map(hop).collect();
        Ok(Self {
            options,
            hops,
            steps: Vec::new(),
            probes: 0,
            resets: VecDeque::new(),
            turn: None,
            taken: 0,
            now: None,
        })
    }

    /// The next hop all of whose probes are answered or given up. There is none behind the last.
    pub fn poll_hop(&mut self) -> Option<Hop> {
        let hop = self.hops.get(self.taken).filter(|_| self.taken <= self.last())?;
        hop.is_settled(self.now?, &self.options).then_some(())?;
        self.taken += 1;
        Some(Hop { ttl: hop.ttl, answers: hop.questions.iter().map(|question| question.answer.clone()).collect() })
    }

    /// How it has ended.
    pub fn ending(&self) -> Ending {
        self.hops.iter().find_map(Asked::ending).unwrap_or(Ending::NotReached)
    }

    /// The place of the hop that the path ends with, as far as is known.
    fn last(&self) -> usize {
        self.hops.iter().position(|hop| hop.ending().is_some()).unwrap_or(self.hops.len() - 1)
    }

    /// What to ask next, or when there will be something; `Err(None)`: never.
    fn choose(&self, now: Instant) -> Result<(usize, usize), Option<Instant>> {
        let last = self.last();
        let first = self.hops.iter().position(|hop| !hop.is_settled(now, &self.options)).ok_or(None)?;
        let mut wake = None::<Instant>;
        let mut wait = |until: Instant| wake = Some(wake.map_or(until, |wake| wake.min(until)));
        // A hop before the one where the destination was first heard may be the destination too, and its answers may be
        // limited in rate: probes behind it would take them all.
        let is_open = |hop: &Asked| hop.answers().next().is_none() && !hop.is_settled(now, &self.options);
        let mut is_waited_for = false;
        for at in (first..=last).take(self.options.parallel.into()) {
            let hop = &self.hops[at];
            if is_waited_for && hop.answers().any(|answer| answer.reached) {
                break;
            }
            is_waited_for |= is_open(hop);
            if hop.sent.is_none()
                && let Some(turn) = self.turn.filter(|turn| *turn > now)
            {
                wait(turn);
                break;
            }
            for (index, question) in hop.questions.iter().enumerate() {
                match hop.next(question, &self.options) {
                    Some(When::Now) => return Ok((at, index)),
                    Some(When::At(until)) if until <= now => return Ok((at, index)),
                    Some(When::At(until)) => wait(until),
                    Some(When::GiveUp(until)) if until > now => wait(until),
                    Some(When::GiveUp(_)) | None => {}
                }
            }
        }
        if first > last { Err(None) } else { Err(wake) }
    }

    fn answered(&mut self, step: usize, event: &Event<'_>, rtt: Duration) {
        let Some(&Some((hop, question))) = self.steps.get(step) else { return };
        let packet = Packet::parse(event.first, event.bytes);
        let Some(answer) = Answer::read(&packet) else { return };
        if answer.said == Said::SynAck {
            self.resets.extend(reset(&packet));
        }
        // The place may have been answered by an earlier probe; what has been taken stays as it is.
        let asked = &mut self.hops[hop].questions[question];
        if asked.answer.is_none() && hop >= self.taken {
            let reached = answer.is_from(self.options.destination);
            asked.answer = Some(HopAnswer { answer, rtt, reached });
        }
    }
}

impl Script for Trace {
    fn next(&mut self, now: Instant) -> Step {
        self.now = Some(now);
        if let Some(reset) = self.resets.pop_front() {
            self.steps.push(None);
            return Step::Tell(reset);
        }
        let (at, index) = match self.choose(now) {
            Ok(place) => place,
            Err(Some(wake)) => return Step::Wait(wake),
            Err(None) => return Step::Done,
        };
        let TraceOptions { destination, method, interval, .. } = self.options;
        let hop = &mut self.hops[at];
        if hop.sent.is_none() {
            self.turn = Some(now + interval);
        }
        let question = &mut hop.questions[index];
        question.attempts += 1;
        // Counted from when it leaves, if it does.
        question.sent = Some(now);
        hop.sent = Some(now);
        let ttl = hop.ttl;
        self.steps.push(Some((at, index)));
        self.probes += 1;
        let load = (0..PAYLOAD as u8).map(|byte| b'@' + byte).collect();
        Step::Send(method.probe(destination, Some(ttl), self.probes - 1, load))
    }

    fn handle(&mut self, event: &Event<'_>, now: Instant) {
        self.now = Some(now);
        match event.what {
            session::What::Sent { request, .. } => {
                if let Some(&Some((hop, question))) = self.steps.get(request) {
                    let hop = &mut self.hops[hop];
                    hop.sent = Some(now);
                    if hop.questions[question].attempts == 1 {
                        self.turn = Some(now + self.options.interval);
                    }
                    hop.questions[question].sent = Some(now);
                }
            }
            session::What::Matched { request, rtt, .. } => self.answered(request, event, rtt),
            // A SYN-ACK that is sent again: the RST was lost.
            session::What::Duplicate { request, rtt, .. } => self.answered(request, event, rtt),
            session::What::Unmatched { .. }
            | session::What::BadChecksum { .. }
            | session::What::Reset
            | session::What::Suppressed { .. } => {}
        }
    }

    fn fresh_ports(&self) -> bool {
        self.options.method.takes_ports()
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
