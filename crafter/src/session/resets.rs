//! Half-open connections are reset before the lease of their port ends.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{sleep_until, timeout};

use super::{Key, Links};
use crate::{
    datapath::route::Route,
    driver::{LeaseId, Outgoing, Received},
    engine::Pacer,
    error::Error,
    layer::Kind,
    packet::{Checksum, Framed, TcpView, Transport, framed},
    protocol::wire::AccountCall,
    session::{Event, Pace, What, half_open::Reset, wall_clock},
};

/// Resets sent at a time.
const BATCH: usize = 64;

/// A pace slower than this is one for requests; resets keep to this many a second.
const SLOWEST: f64 = 1000.0;

/// How long all resets may take.
const LONGEST: Duration = Duration::from_secs(5);

/// How long the service may take for what the resets need to know of it.
const ANSWER: Duration = Duration::from_secs(2);

/// Resets that did not leave.
#[derive(Debug, Default)]
struct Failed {
    count: u64,
    /// Why the first of them.
    reason: Option<String>,
}

impl Failed {
    fn add(&mut self, count: u64, reason: impl FnOnce() -> String) {
        if count > 0 {
            self.count += count;
            self.reason.get_or_insert_with(reason);
        }
    }

    fn tell(self) {
        let Self { count, reason: Some(reason) } = self else { return };
        let connections = if count == 1 { "connection is" } else { "connections are" };
        log::warn!("{count} half-open {connections} not reset: {reason}; the kernel resets them later");
    }
}

/// How many resets leave per second; `None`: as fast as it goes. The user's pace is for requests, whose port is kept
/// until the last reset has left; the service's limit is for all.
fn rate(pace: Pace, allowed: Option<f64>) -> Option<f64> {
    // A hair below: two clocks measure it.
    let allowed = allowed.map(|allowed| allowed * 0.995);
    pace.rate.map(|rate| rate.max(SLOWEST)).into_iter().chain(allowed).reduce(f64::min)
}

/// How the packets of a connection leave.
#[derive(Debug)]
pub(super) struct Path {
    /// The place of the interface.
    link: usize,
    over: Over,
}

#[derive(Debug)]
enum Over {
    Route(Arc<Route>),
    /// In frames with this link-layer header.
    Frame(Box<[u8]>),
}

impl Links {
    /// A packet leaves from a leased port, over `route` or as a frame.
    pub(in crate::session) fn handle_sent(&mut self, link: usize, route: Option<&Arc<Route>>, bytes: &[u8]) {
        let Some(half_open) = &mut self.half_open else { return };
        let begin = match route {
            Some(_) => 0,
            None => match framed(bytes) {
                Framed::Ip(packet) => bytes.len() - packet.len(),
                Framed::Other | Framed::Unreadable => return,
            },
        };
        // A segment in fragments begins no connection that is known here.
        let Ok(segment) = TcpView::read(&bytes[begin..]) else { return };
        let over = || match route {
            Some(route) => Over::Route(route.clone()),
            None => Over::Frame(bytes[..begin].into()),
        };
        self.due.extend(half_open.handle_sent(&segment, || Path { link, over: over() }));
    }

    /// A packet with a right checksum has come to a leased port.
    pub(in crate::session) fn handle_received(&mut self, ip: &[u8]) {
        if let Some(half_open) = &mut self.half_open
            && let Ok(segment) = TcpView::read(ip)
        {
            half_open.handle_received(&segment);
        }
    }

    /// A chosen port is given back with the next [`Links::reset_due`].
    pub(super) fn expire(&mut self, at: usize, key: Key) {
        let (transport, address, port) = key;
        if transport == Transport::Tcp
            && let Some(half_open) = &mut self.half_open
        {
            self.due.extend(half_open.take_port(SocketAddr::new(address, port)));
        }
        self.expired.extend(self.links[at].held.remove(&key));
    }

    /// Resets the connections whose turn it is, and gives back the ports that they kept.
    pub(in crate::session) fn reset_due(&mut self, observer: &mut dyn FnMut(&Event<'_>)) {
        let mut failed = Failed::default();
        while !self.due.is_empty() {
            self.reset_some(BATCH, observer, &mut failed);
        }
        self.expired.clear();
        failed.tell();
    }

    /// Resets all half-open connections, at most as fast as [`rate`] says, until none is left or [`LONGEST`] is over.
    /// Safe to cancel: what is left is reset by [`Links::reset_at_once`].
    pub(in crate::session) async fn reset_half_open(
        &mut self,
        pace: Pace,
        observer: &mut dyn FnMut(&Event<'_>),
    ) -> u64 {
        self.take_half_open();
        if self.due.is_empty() {
            return self.take_reset();
        }
        let (end, mut failed) = (Instant::now() + LONGEST, Failed::default());
        for link in &self.links {
            // Those from before are not the resets'.
            let _ = link.crafter.take_refusals();
        }
        let allowed = timeout(ANSWER, self.rate()).await.ok().and_then(Result::ok).flatten();
        let mut pacer = rate(pace, allowed).and_then(|rate| Pacer::per_second(rate).ok());
        while !self.due.is_empty() {
            let now = Instant::now();
            if now >= end {
                failed.add(self.due.len() as u64, || format!("{LONGEST:?} are over"));
                self.due.clear();
                break;
            }
            match pacer.as_mut().map_or(BATCH, |pacer| pacer.ready(now).min(BATCH)) {
                0 => {
                    let next = pacer.as_mut().map_or(end, |pacer| pacer.next(now));
                    sleep_until(next.min(end).into()).await;
                }
                most => {
                    let sent = self.reset_some(most, observer, &mut failed);
                    if let Some(pacer) = &mut pacer {
                        pacer.take(sent);
                    }
                }
            }
            // Others on this thread get their turn: the driver above all.
            tokio::task::yield_now().await;
            if self.due.is_empty() {
                // SYN-ACKs that came meanwhile.
                self.take_half_open();
            }
        }
        self.take_refusals(&mut failed).await;
        failed.tell();
        self.take_reset()
    }

    /// The same at once, where nothing can be waited for.
    pub(in crate::session) fn reset_at_once(&mut self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.take_half_open();
        self.reset_due(observer);
        self.take_reset()
    }

    /// How many connections were reset since this was asked last.
    pub(in crate::session) fn take_reset(&mut self) -> u64 {
        std::mem::take(&mut self.reset)
    }

    /// All that are half open are due, with those whose SYN-ACK has come since the last exchange.
    fn take_half_open(&mut self) {
        if self.half_open.is_none() {
            return;
        }
        let mut inbox = Vec::new();
        for link in &self.links {
            // An interface that is gone has nothing more to say.
            let _ = link.collect(&mut inbox);
        }
        self.handle_late(inbox);
        self.due.extend(self.half_open.iter_mut().flat_map(|half_open| half_open.take()));
    }

    /// Packets that came when no exchange was there to take them.
    fn handle_late(&mut self, inbox: Vec<(LeaseId, Received)>) {
        for (_, received) in inbox {
            if received.reason.is_ingress() && received.checksum != Checksum::Invalid {
                self.handle_received(&received.ip);
            }
        }
    }

    /// Sends some of the resets that are due, those of one interface; how many it took. Where none of them leaves, the
    /// others of the interface would not either: they are given up.
    fn reset_some(&mut self, most: usize, observer: &mut dyn FnMut(&Event<'_>), failed: &mut Failed) -> usize {
        let Some(first) = self.due.front() else { return 0 };
        let at = first.way.link;
        let count = self.due.iter().take(most).take_while(|reset| reset.way.link == at).count();
        let resets: Vec<(Reset<Path>, Vec<u8>)> = self.due.drain(..count).map(built).collect();
        let link = &self.links[at];
        for (reset, bytes) in &resets {
            let first = if matches!(reset.way.over, Over::Frame(_)) { Kind::Ether } else { Kind::of_ip(bytes) };
            observer(&Event { time: wall_clock(), interface: link.name(), first, bytes, what: What::Reset });
        }
        let sent = link.crafter.transmit(resets.iter().map(|(reset, bytes)| match &reset.way.over {
            Over::Route(route) => Outgoing::Ip(route, bytes),
            Over::Frame(_) => Outgoing::Frame(bytes),
        }));
        self.reset += sent.sent;
        let mut missing = (count as u64).saturating_sub(sent.sent);
        if sent.sent == 0 {
            let before = self.due.len();
            self.due.retain(|reset| reset.way.link != at);
            missing += (before - self.due.len()) as u64;
        }
        if missing > 0 {
            let error = sent.error.or_else(|| self.lost_service(at));
            failed.add(missing, || error.map_or_else(|| "the queue is full".to_owned(), |error| error.to_string()));
        }
        count
    }

    /// Why nothing can leave by a link any more: a packet that the service does not take has no error of its own.
    fn lost_service(&mut self, at: usize) -> Option<Error> {
        let mut inbox = Vec::new();
        let error = self.links[at].collect(&mut inbox).err();
        self.handle_late(inbox);
        error
    }

    /// Counts what the service refused of the resets.
    async fn take_refusals(&mut self, failed: &mut Failed) {
        let Some(control) = &self.options.service else { return };
        let asking = async {
            // What it was given last it has seen by the second time it is asked.
            for _ in 0..2 {
                control.call(&AccountCall {}).await?;
            }
            Ok::<(), Error>(())
        };
        let is_known = match timeout(ANSWER, asking).await {
            Ok(Ok(())) => true,
            // Where it is gone, the resets that it did not take say so.
            Ok(Err(_)) => failed.count > 0,
            Err(_) => false,
        };
        if !is_known {
            log::warn!("the crafter service does not say what became of the last resets; some may not have left");
        }
        let mut inbox = Vec::new();
        for link in &self.links {
            let _ = link.collect(&mut inbox);
            let (refused, error) = link.crafter.take_refusals();
            self.reset = self.reset.saturating_sub(refused);
            if let Some(error) = error {
                failed.add(refused, || error.to_string());
            }
        }
        self.handle_late(inbox);
    }
}

fn built(reset: Reset<Path>) -> (Reset<Path>, Vec<u8>) {
    let packet = reset.packet();
    let bytes = match &reset.way.over {
        Over::Route(_) => packet,
        Over::Frame(header) => [header, &packet[..]].concat(),
    };
    (reset, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_pace_is_one_for_requests() {
        let of = |pace, allowed| rate(Pace { rate: pace }, allowed);
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(1.0 / 30.0), None), Some(1000.0));
        assert_eq!(of(Some(5000.0), None), Some(5000.0));
        // The service's limit is for all.
        assert_eq!(of(Some(1.0), Some(200.0)), Some(199.0));
        assert_eq!(of(None, Some(200.0)), Some(199.0));
        assert_eq!(of(Some(5000.0), Some(20_000.0)), Some(5000.0));
    }

    #[test]
    fn the_first_reason_is_told_with_the_sum() {
        let mut failed = Failed::default();
        failed.add(0, || unreachable!("nothing failed"));
        failed.add(2, || "first".to_owned());
        failed.add(3, || "second".to_owned());
        assert_eq!((failed.count, failed.reason.as_deref()), (5, Some("first")));
    }
}
