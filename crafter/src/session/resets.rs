//! Resets half-open connections before the lease of their port ends, in batches and at a limited rate.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{sleep_until, timeout};

use super::{
    Event, Outcome, Pace, SessionOptions,
    clock::wall_clock,
    half_open::{HalfOpen, Reset},
    link::Link,
};
use crate::{
    datapath::route::Route,
    driver::{LeaseId, Received, TxPacket},
    engine::Pacer,
    error::{Error, Result},
    layer::Kind,
    packet::{Checksum, Framed, TcpView, framed},
    protocol::{Control, wire::AccountCall},
};

/// RSTs sent by one call.
const BATCH: usize = 64;

/// Lowest rate of RSTs that a user's pace leads to, in packets per second.
const MIN_RATE: f64 = 1000.0;

/// How long sending all RSTs may take.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the service may take to answer a call about the RSTs.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// RSTs that were not sent.
#[derive(Debug, Default)]
struct Failed {
    count: u64,
    /// Why the first of them was not.
    reason: Option<String>,
}

impl Failed {
    fn add(&mut self, count: u64, reason: impl FnOnce() -> String) {
        if count > 0 {
            self.count += count;
            self.reason.get_or_insert_with(reason);
        }
    }

    fn log(self) {
        let Self { count, reason: Some(reason) } = self else { return };
        let connections = if count == 1 { "connection is" } else { "connections are" };
        log::warn!("{count} half-open {connections} not reset: {reason}; the kernel resets them later");
    }
}

/// Rate of RSTs in packets per second; `None`: unlimited. The user's pace is meant for requests, the service's limit
/// for all packets.
fn rate(pace: Pace, limit: Option<f64>) -> Option<f64> {
    pace.rate.map(|rate| rate.max(MIN_RATE)).into_iter().chain(limit).reduce(f64::min)
}

/// How packets of a connection are sent.
#[derive(Debug)]
struct Path {
    /// Index of the interface.
    link: usize,
    /// `None` for frames.
    route: Option<Arc<Route>>,
    /// Link-layer header of frames.
    header: Box<[u8]>,
}

/// The half-open connections of a session and their RSTs.
pub(super) struct Resets {
    /// `None` if half-open connections are left to the kernel.
    half_open: Option<HalfOpen<Path>>,
    /// RSTs to send.
    due: VecDeque<Reset<Path>>,
    /// Connections reset since the last [`Resets::take_count`].
    count: u64,
}

impl Resets {
    pub(super) fn new(options: &SessionOptions) -> Self {
        // If the kernel receives the SYN-ACKs and its RSTs pass, it resets the connections itself, at once.
        let is_kernels = options.terms.observe && !options.terms.suppress;
        let half_open = (!options.leave_open && !is_kernels).then(HalfOpen::default);
        Self { half_open, due: VecDeque::new(), count: 0 }
    }

    /// A packet is sent from a leased port, over `route` or as a frame.
    pub(super) fn handle_sent(&mut self, link: usize, route: Option<&Arc<Route>>, bytes: &[u8]) {
        let Some(half_open) = &mut self.half_open else { return };
        let begin = match route {
            Some(_) => 0,
            None => match framed(bytes) {
                Framed::Ip(packet) => bytes.len() - packet.len(),
                Framed::Other | Framed::Unreadable => return,
            },
        };
        // Fragments are not tracked.
        let Ok(segment) = TcpView::read(&bytes[begin..]) else { return };
        let path = || Path { link, route: route.cloned(), header: bytes[..begin].into() };
        self.due.extend(half_open.handle_sent(&segment, path));
    }

    /// A packet with a correct checksum was received on a leased port.
    pub(super) fn handle_received(&mut self, ip: &[u8]) {
        if let Some(half_open) = &mut self.half_open
            && let Ok(segment) = TcpView::read(ip)
        {
            half_open.handle_received(&segment);
        }
    }

    /// The lease of a port ends after the next [`Resets::send_due`], which resets its connections.
    pub(super) fn expire_port(&mut self, local: SocketAddr) {
        if let Some(half_open) = &mut self.half_open {
            self.due.extend(half_open.take_port(local));
        }
    }

    /// Connections reset since the last call.
    pub(super) fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.count)
    }

    /// Sends the RSTs that are due.
    pub(super) fn send_due(&mut self, links: &[Link], observer: &mut dyn FnMut(&Event<'_>)) {
        let mut failed = Failed::default();
        while !self.due.is_empty() {
            self.send_batch(links, BATCH, observer, &mut failed);
        }
        failed.log();
    }

    /// Resets all half-open connections without waiting. Returns [`Resets::take_count`].
    pub(super) fn send_all_now(&mut self, links: &[Link], observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.take_half_open(links);
        self.send_due(links, observer);
        self.take_count()
    }

    /// Resets all half-open connections at the rate that [`rate`] says, within [`TOTAL_TIMEOUT`]. Returns
    /// [`Resets::take_count`]. Safe to cancel: [`Resets::send_all_now`] resets the rest.
    pub(super) async fn send_all(
        &mut self,
        links: &[Link],
        options: &SessionOptions,
        pace: Pace,
        observer: &mut dyn FnMut(&Event<'_>),
    ) -> u64 {
        self.take_half_open(links);
        if self.due.is_empty() {
            return self.take_count();
        }
        let (end, mut failed) = (Instant::now() + TOTAL_TIMEOUT, Failed::default());
        for link in links {
            // Refusals of earlier packets.
            let _ = link.crafter.take_refusals();
        }
        let limit = timeout(CALL_TIMEOUT, options.rate_limit()).await.ok().and_then(Result::ok).flatten();
        let mut pacer = rate(pace, limit).and_then(|rate| Pacer::per_second(rate).ok());
        while !self.due.is_empty() {
            let now = Instant::now();
            if now >= end {
                failed.add(self.due.len() as u64, || format!("not sent within {TOTAL_TIMEOUT:?}"));
                self.due.clear();
                break;
            }
            match pacer.as_mut().map_or(BATCH, |pacer| pacer.ready(now).min(BATCH)) {
                0 => {
                    let next = pacer.as_mut().map_or(end, |pacer| pacer.next(now));
                    sleep_until(next.min(end).into()).await;
                }
                most => {
                    let sent = self.send_batch(links, most, observer, &mut failed);
                    if let Some(pacer) = &mut pacer {
                        pacer.take(sent);
                    }
                }
            }
            // Let other tasks of this thread run, above all the driver's.
            tokio::task::yield_now().await;
            if self.due.is_empty() {
                // SYN-ACKs received meanwhile.
                self.take_half_open(links);
            }
        }
        if let Some(control) = &options.service {
            self.take_refusals(links, control, &mut failed).await;
        }
        failed.log();
        self.take_count()
    }

    /// Makes the RSTs of all half-open connections due, including those whose SYN-ACK arrived after the last exchange.
    fn take_half_open(&mut self, links: &[Link]) {
        if self.half_open.is_none() {
            return;
        }
        let mut inbox = Vec::new();
        for link in links {
            // A removed interface has received nothing.
            let _ = link.crafter.gather(&mut inbox);
        }
        self.handle_late(inbox);
        self.due.extend(self.half_open.iter_mut().flat_map(|half_open| half_open.take()));
    }

    /// Handles packets received outside of an exchange.
    fn handle_late(&mut self, inbox: Vec<(LeaseId, Received)>) {
        for (_, received) in inbox {
            if received.reason.is_ingress() && received.checksum != Checksum::Invalid {
                self.handle_received(&received.ip);
            }
        }
    }

    /// Sends due RSTs of one interface, at most `most`; returns how many it took off the queue. If none of them could
    /// be sent, all others of the interface are dropped too.
    fn send_batch(
        &mut self,
        links: &[Link],
        most: usize,
        observer: &mut dyn FnMut(&Event<'_>),
        failed: &mut Failed,
    ) -> usize {
        let Some(first) = self.due.front() else { return 0 };
        let at = first.path.link;
        let count = self.due.iter().take(most).take_while(|reset| reset.path.link == at).count();
        let built = |reset: Reset<Path>| {
            let bytes = [&reset.path.header, &reset.packet()[..]].concat();
            (reset.path.route, bytes)
        };
        let resets: Vec<(Option<Arc<Route>>, Vec<u8>)> = self.due.drain(..count).map(built).collect();
        let link = &links[at];
        for (route, bytes) in &resets {
            let first = if route.is_some() { Kind::of_ip(bytes) } else { Kind::Ether };
            observer(&Event {
                time: wall_clock(),
                interface: link.name(),
                first,
                bytes,
                request: None,
                reply: None,
                outcome: Outcome::Reset,
            });
        }
        let sent = link.crafter.transmit(resets.iter().map(|(route, bytes)| match route {
            Some(route) => TxPacket::Ip(route, bytes),
            None => TxPacket::Frame(bytes),
        }));
        self.count += sent.sent;
        let mut missing = (count as u64).saturating_sub(sent.sent);
        if sent.sent == 0 {
            let before = self.due.len();
            self.due.retain(|reset| reset.path.link != at);
            missing += (before - self.due.len()) as u64;
        }
        if missing > 0 {
            let error = sent.error.or_else(|| self.link_error(link));
            failed.add(missing, || error.map_or_else(|| "the queue is full".to_owned(), |error| error.to_string()));
        }
        count
    }

    /// The error of a link that has lost the service: a packet that the service does not read has no error of its own.
    fn link_error(&mut self, link: &Link) -> Option<Error> {
        let mut inbox = Vec::new();
        let error = link.crafter.gather(&mut inbox).err();
        self.handle_late(inbox);
        error
    }

    /// Subtracts the RSTs that the service refused.
    async fn take_refusals(&mut self, links: &[Link], control: &Control, failed: &mut Failed) {
        let calls = async {
            // By the reply to the second call, the service has read everything sent before the first.
            for _ in 0..2 {
                control.call(&AccountCall {}).await?;
            }
            Ok::<(), Error>(())
        };
        let is_known = match timeout(CALL_TIMEOUT, calls).await {
            Ok(Ok(())) => true,
            // If the service has ended, sending has failed too.
            Ok(Err(_)) => failed.count > 0,
            Err(_) => false,
        };
        if !is_known {
            log::warn!(
                "no reply from the crafter service within {CALL_TIMEOUT:?}: the last resets may not have been sent"
            );
        }
        let mut inbox = Vec::new();
        for link in links {
            let _ = link.crafter.gather(&mut inbox);
            let (refused, error) = link.crafter.take_refusals();
            self.count = self.count.saturating_sub(refused);
            if let Some(error) = error {
                failed.add(refused, || error.to_string());
            }
        }
        self.handle_late(inbox);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_the_service_limit_or_the_pace_raised_to_the_minimum() {
        let of = |pace, limit| rate(Pace { rate: pace }, limit);
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(1.0 / 30.0), None), Some(1000.0));
        assert_eq!(of(Some(5000.0), None), Some(5000.0));
        assert_eq!(of(Some(1.0), Some(200.0)), Some(200.0));
        assert_eq!(of(None, Some(200.0)), Some(200.0));
        assert_eq!(of(Some(5000.0), Some(20_000.0)), Some(5000.0));
    }

    #[test]
    fn failures_add_up_under_the_first_reason() {
        let mut failed = Failed::default();
        failed.add(0, || unreachable!("nothing failed"));
        failed.add(2, || "first".to_owned());
        failed.add(3, || "second".to_owned());
        assert_eq!((failed.count, failed.reason.as_deref()), (5, Some("first")));
    }
}
