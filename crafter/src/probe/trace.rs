//! Traceroute: finds the routers of a path.

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
    error::{Error, Result},
    layer::{MplsLabel, Packet},
    session::{Event, Outcome, Script, Step},
};

/// Payload of probes in bytes, as in traceroute(8); TCP SYNs have none.
const PAYLOAD_LENGTH: usize = 32;

/// Minimum time between probes of a hop that has answered: Linux sends a peer one ICMP error per second after a burst
/// of 6 (`net.ipv4.icmp_ratelimit`, `inet_peer_xrlim_allow()`).
const ICMP_ERROR_INTERVAL: Duration = Duration::from_millis(1050);

/// Options of a trace.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Address to trace the path to.
    pub destination: IpAddr,
    /// Kind of probes.
    pub method: Method,
    /// First TTL, or hop limit.
    pub first: u8,
    /// Largest TTL, or hop limit.
    pub max: u8,
    /// Replies to collect for each TTL.
    pub probes: u8,
    /// How long to wait for a reply before another probe is sent instead; twice as long before the second one, and so
    /// on. Later replies count too.
    pub timeout: Duration,
    /// Further probes per reply at most.
    pub retries: u8,
    /// Number of hops probed at the same time.
    pub parallel: u8,
    /// Time from the first probe of one hop to that of the next: replies that arrive within it spare the destination
    /// further probes.
    pub interval: Duration,
}

impl TraceOptions {
    /// UDP from port 33434 on, 3 probes for each of up to 30 hops, all at the same time, and up to two more for each
    /// that is not answered within a second.
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
            let reason = format_args!(
                "hops from {} to {}: the first must be at least 1 and at most the last",
                self.first, self.max
            );
            return Err(Error::invalid("hops", reason));
        }
        if self.probes == 0 || self.parallel == 0 {
            return Err(Error::invalid("probes", "at least one probe for each hop, and one hop at a time, are needed"));
        }
        Ok(())
    }
}

/// A reply of a hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopAnswer {
    /// The reply.
    pub answer: ProbeReply,
    /// Round-trip time.
    pub rtt: Duration,
    /// Whether it is from the destination.
    pub reached: bool,
}

impl HopAnswer {
    /// The annotation of `traceroute`, such as `!H`; may be empty.
    pub fn annotation(&self) -> String {
        self.answer.icmp_error().map(IcmpError::annotation).unwrap_or_default()
    }

    /// MPLS labels of the probe when the router received it.
    pub fn labels(&self) -> &[MplsLabel] {
        &self.answer.labels
    }

    fn is_unreachable(&self) -> bool {
        !self.reached && self.answer.icmp_error().is_some_and(IcmpError::is_unreachable)
    }
}

/// A hop of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The TTL, or hop limit, of its probes.
    pub ttl: u8,
    /// The replies, in the order of the probes; `None`: no reply.
    pub answers: Vec<Option<HopAnswer>>,
}

/// How a trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The destination answered.
    Reached,
    /// A router said that the destination is unreachable.
    Unreachable(IcmpError),
    /// Neither within the largest TTL.
    NotReached,
}

/// One reply to collect from a hop; several probes may be sent for it.
#[derive(Clone, Debug, Default)]
struct Slot {
    answer: Option<HopAnswer>,
    /// Probes sent for it.
    attempts: u8,
    /// When the last of them was sent.
    sent: Option<Instant>,
}

/// A hop whose replies are being collected.
struct HopState {
    ttl: u8,
    slots: Vec<Slot>,
    /// When its last probe was sent.
    sent: Option<Instant>,
}

impl HopState {
    fn answers(&self) -> impl Iterator<Item = &HopAnswer> {
        self.slots.iter().filter_map(|slot| slot.answer.as_ref())
    }

    /// How the path ends at this hop, if it does: at the destination, or if all replies say that it is unreachable.
    fn ending(&self) -> Option<Ending> {
        if self.answers().any(|answer| answer.reached) {
            return Some(Ending::Reached);
        }
        let error = self.answers().next()?.answer.icmp_error()?;
        self.answers().all(HopAnswer::is_unreachable).then_some(Ending::Unreachable(error))
    }

    fn is_settled(&self, now: Instant, options: &TraceOptions) -> bool {
        self.slots.iter().all(|slot| {
            let given_up = matches!(self.next(slot, options), Some(NextProbe::GiveUp(until)) if until <= now);
            slot.answer.is_some() || given_up
        })
    }

    /// When to send the next probe for this slot, or to give it up; `None` if it is answered.
    fn next(&self, slot: &Slot, options: &TraceOptions) -> Option<NextProbe> {
        let TraceOptions { timeout, retries, .. } = *options;
        let Some(sent) = slot.sent else { return slot.answer.is_none().then_some(NextProbe::Now) };
        if slot.answer.is_some() {
            return None;
        }
        if slot.attempts > retries {
            return Some(NextProbe::GiveUp(sent + timeout));
        }
        // A hop without any reply gets more time with each attempt: without a route, Linux answers only when two errors
        // are due (`ip_error()` counts them before `icmp_send()` does).
        let backoff = timeout * slot.attempts.into() * 21 / 20;
        let Some(last_probe) = self.sent else { return Some(NextProbe::At(sent + backoff)) };
        Some(NextProbe::At(match self.answers().next() {
            Some(answer) if answer.is_unreachable() => (sent + timeout).max(last_probe + 2 * ICMP_ERROR_INTERVAL),
            Some(_) => (sent + timeout).max(last_probe + ICMP_ERROR_INTERVAL),
            None => sent + backoff,
        }))
    }
}

/// When to send the next probe.
enum NextProbe {
    Now,
    At(Instant),
    GiveUp(Instant),
}

/// A trace: a script; [`Trace::poll_hop`] returns its hops as they are complete.
pub struct Trace {
    options: TraceOptions,
    hops: Vec<HopState>,
    /// Indices of hop and slot that each step probed.
    steps: Vec<Option<(usize, usize)>>,
    probes: u64,
    resets: VecDeque<Packet>,
    /// When the next hop may be probed first.
    next_hop_at: Option<Instant>,
    /// Hops returned by [`Trace::poll_hop`].
    taken: usize,
    /// The time of the last call.
    now: Option<Instant>,
}

impl Trace {
    /// A trace; its interval starts with the first probe.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that contradict each other.
    pub fn new(options: TraceOptions) -> Result<Self> {
        options.check()?;
        let hop = |ttl| HopState { ttl, slots: vec![Slot::default(); options.probes.into()], sent: None };
        let hops = (options.first..=options.max).map(hop).collect();
        Ok(Self {
            options,
            hops,
            steps: Vec::new(),
            probes: 0,
            resets: VecDeque::new(),
            next_hop_at: None,
            taken: 0,
            now: None,
        })
    }

    /// The next hop, once all its probes are answered or given up; `None` also after the last hop.
    pub fn poll_hop(&mut self) -> Option<Hop> {
        let hop = self.hops.get(self.taken).filter(|_| self.taken <= self.last())?;
        hop.is_settled(self.now?, &self.options).then_some(())?;
        self.taken += 1;
        Some(Hop { ttl: hop.ttl, answers: hop.slots.iter().map(|slot| slot.answer.clone()).collect() })
    }

    /// After an interruption: the next hop, with the replies so far, if it or a later one has any.
    pub fn poll_unfinished(&mut self) -> Option<Hop> {
        let has_answer = |hop: &HopState| hop.answers().next().is_some();
        let hop = self.hops.get(self.taken).filter(|_| self.taken <= self.last())?;
        self.hops[self.taken..].iter().any(has_answer).then_some(())?;
        self.taken += 1;
        Some(Hop { ttl: hop.ttl, answers: hop.slots.iter().map(|slot| slot.answer.clone()).collect() })
    }

    /// Probes sent, and how many of the replies to collect have arrived.
    pub fn counts(&self) -> (u64, u64) {
        (self.probes, self.hops.iter().map(|hop| hop.answers().count() as u64).sum())
    }

    /// How the trace ended, as far as is known.
    pub fn ending(&self) -> Ending {
        self.hops.iter().find_map(HopState::ending).unwrap_or(Ending::NotReached)
    }

    /// Index of the last hop of the path, as far as is known.
    fn last(&self) -> usize {
        self.hops.iter().position(|hop| hop.ending().is_some()).unwrap_or(self.hops.len() - 1)
    }

    /// Indices of the hop and slot to probe now, or the time of the next probe; `Err(None)`: there is none.
    fn choose(&self, now: Instant) -> Result<(usize, usize), Option<Instant>> {
        let last = self.last();
        let first = self.hops.iter().position(|hop| !hop.is_settled(now, &self.options)).ok_or(None)?;
        let mut wake = None::<Instant>;
        let mut wait = |until: Instant| wake = Some(wake.map_or(until, |wake| wake.min(until)));
        // A hop before the first one that reached the destination may be the destination too, with rate-limited
        // replies: probes of later hops would use up all of them.
        let is_open = |hop: &HopState| hop.answers().next().is_none() && !hop.is_settled(now, &self.options);
        let mut is_any_open = false;
        for at in (first..=last).take(self.options.parallel.into()) {
            let hop = &self.hops[at];
            if is_any_open && hop.answers().any(|answer| answer.reached) {
                break;
            }
            is_any_open |= is_open(hop);
            if hop.sent.is_none()
                && let Some(at) = self.next_hop_at.filter(|at| *at > now)
            {
                wait(at);
                break;
            }
            for (index, slot) in hop.slots.iter().enumerate() {
                match hop.next(slot, &self.options) {
                    Some(NextProbe::Now) => return Ok((at, index)),
                    Some(NextProbe::At(until)) if until <= now => return Ok((at, index)),
                    Some(NextProbe::At(until)) => wait(until),
                    Some(NextProbe::GiveUp(until)) if until > now => wait(until),
                    Some(NextProbe::GiveUp(_)) | None => {}
                }
            }
        }
        if first > last { Err(None) } else { Err(wake) }
    }

    fn answered(&mut self, step: usize, event: &Event<'_>, rtt: Duration) {
        let Some(&Some((hop, slot))) = self.steps.get(step) else { return };
        let packet = Packet::parse(event.first, event.bytes);
        let Some(answer) = ProbeReply::read(&packet) else { return };
        if answer.kind == ReplyKind::SynAck {
            self.resets.extend(rst_for(&packet));
        }
        // An earlier probe may have been answered; hops that were returned do not change.
        let slot = &mut self.hops[hop].slots[slot];
        if slot.answer.is_none() && hop >= self.taken {
            let reached = answer.is_from(self.options.destination);
            slot.answer = Some(HopAnswer { answer, rtt, reached });
        }
    }
}

impl Script for Trace {
    fn next(&mut self, now: Instant) -> Step {
        self.now = Some(now);
        if let Some(reset) = self.resets.pop_front() {
            self.steps.push(None);
            return Step::SendUnanswered(reset);
        }
        let (at, index) = match self.choose(now) {
            Ok(place) => place,
            Err(Some(wake)) => return Step::Wait(wake),
            Err(None) => return Step::Done,
        };
        let TraceOptions { destination, method, interval, .. } = self.options;
        let hop = &mut self.hops[at];
        if hop.sent.is_none() {
            self.next_hop_at = Some(now + interval);
        }
        let slot = &mut hop.slots[index];
        slot.attempts += 1;
        // Set again when it is sent.
        slot.sent = Some(now);
        hop.sent = Some(now);
        let ttl = hop.ttl;
        self.steps.push(Some((at, index)));
        self.probes += 1;
        let load = (0..PAYLOAD_LENGTH as u8).map(|byte| b'@' + byte).collect();
        Step::Send(method.probe(destination, Some(ttl), self.probes - 1, load))
    }

    fn handle(&mut self, event: &Event<'_>, now: Instant) {
        self.now = Some(now);
        match event.outcome {
            Outcome::Sent { request, .. } => {
                if let Some(&Some((hop, slot))) = self.steps.get(request) {
                    let hop = &mut self.hops[hop];
                    hop.sent = Some(now);
                    if hop.slots[slot].attempts == 1 {
                        self.next_hop_at = Some(now + self.options.interval);
                    }
                    hop.slots[slot].sent = Some(now);
                }
            }
            Outcome::Matched { request, rtt, .. } => self.answered(request, event, rtt),
            // A retransmitted SYN-ACK: the RST was lost.
            Outcome::Duplicate { request, rtt, .. } => self.answered(request, event, rtt),
            Outcome::SentFragment { .. }
            | Outcome::Unmatched { .. }
            | Outcome::BadChecksum { .. }
            | Outcome::Reset
            | Outcome::Suppressed { .. } => {}
        }
    }

    fn fresh_ports(&self) -> bool {
        self.options.method.takes_ports()
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
