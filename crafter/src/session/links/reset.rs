//! Half-open connections are reset before the lease of their port ends.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use super::{Key, Links};
use crate::{
    datapath::route::Route,
    driver::Outgoing,
    engine::Pacer,
    layer::Kind,
    packet::{Checksum, TcpView, Transport},
    service::wire::AccountCall,
    session::{Event, Pace, What, half_open::Reset, wall_clock},
};

/// Resets sent at a time.
const BATCH: usize = 64;

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
            None => crafter_common::parse::link(bytes, 14).map_or(bytes.len(), |(begin, _)| begin),
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
        while !self.due.is_empty() {
            self.reset_some(BATCH, observer);
        }
        self.expired.clear();
    }

    /// Resets all half-open connections, at most as fast as `pace` and the service say. Safe to cancel: what is left
    /// is reset when this is dropped.
    pub(in crate::session) async fn reset_half_open(
        &mut self,
        pace: Pace,
        observer: &mut dyn FnMut(&Event<'_>),
    ) -> u64 {
        self.take_half_open();
        if !self.due.is_empty() {
            for link in &self.links {
                // Those from before are not the resets'.
                let _ = link.crafter.take_refusals();
            }
            let allowed = self.rate().await.ok().flatten().map(|rate| rate * 0.995);
            let rate = pace.rate.into_iter().chain(allowed).reduce(f64::min);
            let mut pacer = rate.and_then(|rate| Pacer::per_second(rate).ok());
            while !self.due.is_empty() {
                let now = Instant::now();
                let count = pacer.as_mut().map_or(BATCH, |pacer| pacer.ready(now).min(BATCH)).min(self.due.len());
                match &mut pacer {
                    Some(pacer) if count == 0 => tokio::time::sleep_until(pacer.next(now).into()).await,
                    Some(pacer) => pacer.take(count),
                    None => {}
                }
                self.reset_some(count, observer);
                // Others on this thread get their turn: the driver above all.
                tokio::task::yield_now().await;
            }
            self.take_refusals().await;
        }
        std::mem::take(&mut self.reset)
    }

    /// The same at once, where nothing can be waited for.
    pub(super) fn reset_at_once(&mut self) {
        self.take_half_open();
        self.reset_due(&mut |_| {});
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
        for (_, received) in inbox {
            if received.reason.is_ingress() && received.checksum != Checksum::Invalid {
                self.handle_received(&received.ip);
            }
        }
        self.due.extend(self.half_open.iter_mut().flat_map(|half_open| half_open.take()));
    }

    /// Sends some of the resets that are due, those of one interface.
    fn reset_some(&mut self, most: usize, observer: &mut dyn FnMut(&Event<'_>)) {
        let Some(first) = self.due.front() else { return };
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
        if sent.sent < count as u64 {
            let reason = sent.error.map_or_else(|| "the queue is full".to_owned(), |error| error.to_string());
            let missing = count as u64 - sent.sent;
            log::warn!("{missing} half-open connections are not reset: {reason}; the kernel resets them later");
        }
    }

    /// Counts what the service refused of the resets.
    async fn take_refusals(&mut self) {
        let Some(control) = &self.options.service else { return };
        // What it was given last it has seen by the second time it is asked.
        for _ in 0..2 {
            let _ = control.call(&AccountCall {}).await;
        }
        let mut inbox = Vec::new();
        for link in &self.links {
            let _ = link.collect(&mut inbox);
            let (refused, error) = link.crafter.take_refusals();
            self.reset = self.reset.saturating_sub(refused);
            if let Some(error) = error {
                log::warn!("{refused} half-open connections are not reset: {error}; the kernel resets them later");
            }
        }
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
