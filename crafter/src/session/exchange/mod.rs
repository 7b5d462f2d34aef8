//! One exchange: prepare, send, collect, match, until all is answered or the time is up.

mod prepare;
mod receive;
mod scripted;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Account, Event, Exchanged, SrOptions, What, account::Reading, links::Links, reply_matcher::Matcher, wall_clock,
};
use crate::{
    datapath::route::Route,
    driver::{LeaseId, Outgoing, Received},
    engine::Pacer,
    error::{Error, Result},
    layer::{Kind, Packet},
    packet::Transport,
};

/// Packets prepared and sent at a time.
const BATCH: usize = 64;

/// How long an answer through the service takes where the peer is near.
const NEAR: Duration = Duration::from_micros(150);

/// How long what is on its way between the two halves may take.
const SETTLE: Duration = Duration::from_millis(50);

/// A packet on its way out.
struct Ready {
    link: usize,
    /// The way of an IP packet; `None` for a frame.
    route: Option<Arc<Route>>,
    first: Kind,
    bytes: Vec<u8>,
    number: usize,
    /// Whether its port is leased.
    leased: bool,
}

/// Where the packets of a request go, kept to send it again.
struct Way {
    link: usize,
    route: Option<Arc<Route>>,
    leased: bool,
}

/// An exchange under way.
pub(super) struct Exchange<'a> {
    links: &'a mut Links,
    options: &'a SrOptions,
    observer: &'a mut dyn FnMut(&Event<'_>),
    pacer: Option<Pacer>,
    matcher: Matcher,
    /// By request; `None` where no way leads.
    ways: Vec<Option<Way>>,
    /// What the counters were when a link was first used, if an account is kept.
    readings: Option<HashMap<usize, Reading>>,
    /// Ports chosen for packets of this exchange that name none.
    chosen: HashMap<(usize, Transport, IpAddr), u16>,
    /// Whether answers are waited for.
    expecting: bool,
    /// Whether what is sent next can be answered.
    answerable: bool,
    /// How many packets could not.
    unanswerable: u64,
    /// Whether packets and answers are kept for the result.
    keeping: bool,
    /// Whether each packet that names no port gets one of its own.
    fresh_ports: bool,
    inbox: Vec<(LeaseId, Received)>,
    /// Packets that the service refused, and why the first of them.
    refused: u64,
    refusal: Option<Error>,
    /// The service's limit of the rate was asked for.
    is_paced: bool,
    result: Exchanged,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        links: &'a mut Links,
        options: &'a SrOptions,
        observer: &'a mut dyn FnMut(&Event<'_>),
    ) -> Result<Self> {
        let pacer = options.pace.rate.map(Pacer::per_second).transpose()?;
        Ok(Self {
            links,
            options,
            observer,
            pacer,
            matcher: Matcher::default(),
            ways: Vec::new(),
            readings: Some(HashMap::new()),
            chosen: HashMap::new(),
            expecting: false,
            answerable: true,
            unanswerable: 0,
            keeping: true,
            fresh_ports: false,
            inbox: Vec::new(),
            refused: 0,
            refusal: None,
            is_paced: false,
            result: Exchanged::default(),
        })
    }

    /// Spares the reading of counters, which takes longer than one answer.
    pub(super) fn without_account(mut self) -> Self {
        self.readings = None;
        self
    }

    /// Sends all and is done.
    pub(super) async fn send(mut self, packets: impl IntoIterator<Item = Packet>) -> Result<Exchanged> {
        self.round(packets.into_iter()).await?;
        self.finish().await
    }

    /// Sends all and waits for answers.
    pub(super) async fn sr(mut self, packets: impl IntoIterator<Item = Packet>) -> Result<Exchanged> {
        self.expecting = true;
        self.round(packets.into_iter()).await?;
        self.wait().await?;
        for attempt in 1..=self.options.retry {
            if self.is_done() {
                break;
            }
            self.again(attempt).await?;
            self.wait().await?;
        }
        self.finish().await
    }

    fn is_done(&self) -> bool {
        // What no way leads to is not waited for.
        let hopeless = (self.result.account.unroutable + self.refused) as usize;
        !self.options.multi && self.matcher.answered() + hopeless >= self.matcher.len()
    }

    /// Sends each packet once, taking answers meanwhile.
    async fn round(&mut self, mut packets: impl Iterator<Item = Packet>) -> Result<()> {
        let mut fault = None;
        loop {
            let count = self.may_send().await?;
            let chunk: Vec<Packet> = packets.by_ref().take(count).collect();
            if chunk.is_empty() {
                break;
            }
            if let Some(pacer) = &mut self.pacer {
                pacer.take(chunk.len());
            }
            let ready = self.prepare(chunk, &mut fault).await?;
            self.transmit(&ready, 0)?;
            self.collect()?;
            // Others on this thread get their turn: the driver above all.
            if !ready.is_empty() && packets.size_hint().1 != Some(0) {
                tokio::task::yield_now().await;
            }
        }
        match fault {
            Some(fault) if self.result.account.unroutable as usize == self.matcher.len() => Err(fault),
            _ => Ok(()),
        }
    }

    /// Sends again what has no answer.
    async fn again(&mut self, attempt: u32) -> Result<()> {
        let numbers: Vec<usize> = self.matcher.unanswered().collect();
        let mut numbers = numbers.into_iter();
        loop {
            let count = self.may_send().await?;
            let chunk: Vec<usize> = numbers.by_ref().take(count).collect();
            if chunk.is_empty() {
                return Ok(());
            }
            if let Some(pacer) = &mut self.pacer {
                pacer.take(chunk.len());
            }
            let mut ready = Vec::with_capacity(chunk.len());
            for number in chunk {
                let (Some(Some(way)), Some(packet)) = (self.ways.get(number), self.matcher.request(number)) else {
                    continue;
                };
                let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
                let (link, route) = (way.link, way.route.clone());
                ready.push(Ready { link, route, first, bytes: packet.build()?, number, leased: way.leased });
            }
            self.transmit(&ready, attempt)?;
            self.collect()?;
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the pace allows a packet; how many it does.
    async fn may_send(&mut self) -> Result<usize> {
        if !std::mem::replace(&mut self.is_paced, true)
            && self.readings.is_some()
            && let Some(allowed) = self.links.rate().await?
            && self.options.pace.rate.is_none_or(|rate| rate > allowed)
        {
            // A hair below: two clocks measure it.
            self.pacer = Some(Pacer::per_second(allowed * 0.995)?);
        }
        loop {
            let now = Instant::now();
            let until = match &mut self.pacer {
                None => return Ok(BATCH),
                Some(pacer) => match pacer.ready(now) {
                    0 => pacer.next(now),
                    ready => return Ok(ready.min(BATCH)),
                },
            };
            self.sleep_until(until).await?;
            self.collect()?;
        }
    }

    /// Until something comes, or that time.
    async fn sleep_until(&mut self, until: Instant) -> Result<()> {
        let arrived = self.links.arrived.clone();
        let tapped = tokio::select! {
            () = arrived.notified() => None,
            () = tokio::time::sleep_until(until.into()) => None,
            tapped = self.links.tapped() => Some(tapped?),
        };
        if let Some((at, captured)) = tapped {
            self.handle_tapped(at, captured);
        }
        Ok(())
    }

    /// Waits for answers, from now on for as long as the options say.
    async fn wait(&mut self) -> Result<()> {
        let until = Instant::now() + self.options.timeout;
        // What is near has answered by then.
        for link in &self.links.links {
            link.crafter.busy_poll(NEAR);
        }
        loop {
            self.collect()?;
            if self.is_done() || Instant::now() >= until {
                return Ok(());
            }
            self.sleep_until(until).await?;
        }
    }

    /// Sends what is ready, in order, interface by interface.
    fn transmit(&mut self, mut ready: &[Ready], attempt: u32) -> Result<()> {
        while let Some(first) = ready.first() {
            let count = ready.iter().take_while(|next| next.link == first.link).count();
            let (run, rest) = ready.split_at(count);
            for Ready { link, route, bytes, .. } in run.iter().filter(|packet| packet.leased) {
                self.links.handle_sent(*link, route.as_ref(), bytes);
            }
            self.links.reset_due(self.observer);
            let link = &self.links.links[first.link];
            let (now, wall) = (Instant::now(), wall_clock());
            for packet in run {
                self.matcher.handle_sent(packet.number, now, wall);
                let what = What::Sent { request: packet.number, attempt };
                let Ready { first, bytes, .. } = packet;
                (self.observer)(&Event { time: wall, interface: link.name(), first: *first, bytes, what });
            }
            let sent = link.crafter.transmit(run.iter().map(|packet| match &packet.route {
                Some(route) => Outgoing::Ip(route, &packet.bytes),
                None => Outgoing::Frame(&packet.bytes),
            }));
            if self.readings.is_none() {
                self.result.account.sent += sent.sent;
            }
            match sent.error {
                // Of many packets, one that was refused is counted, and the others go on.
                Some(error) if sent.sent == 0 || matches!(error, Error::UnknownInterface { .. }) => return Err(error),
                Some(error) => log::warn!("{} of {count} packets not sent: {error}", sent.refused),
                None => {}
            }
            ready = rest;
        }
        Ok(())
    }

    /// Closes the account.
    async fn finish(mut self) -> Result<Exchanged> {
        self.collect()?;
        let keeps_account = self.readings.is_some();
        if let Some(readings) = self.readings.take() {
            let until = Instant::now() + SETTLE;
            let mut is_asked = false;
            loop {
                self.collect()?;
                let mut account = Account { kernel: Default::default(), ..self.result.account };
                for (&link, before) in &readings {
                    account.add(before, &self.links.links[link].read(link == 0).await?);
                }
                if account.agrees() || Instant::now() >= until {
                    self.result.account = account;
                    break;
                }
                // What the service was given last it has seen by the second time it is asked.
                if std::mem::replace(&mut is_asked, true) || self.links.options.service.is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        match self.refusal.take() {
            Some(refusal) if self.refused >= self.result.account.requests => return Err(refusal),
            Some(refusal) => log::warn!("{} packets were refused: {refusal}", self.refused),
            None => {}
        }
        let account = &mut self.result.account;
        account.answered = self.matcher.answered() as u64;
        if keeps_account {
            account.half_open_reset = self.links.take_reset();
        }
        if self.expecting {
            account.unanswered = (self.matcher.len() - self.matcher.answered()) as u64 - self.unanswerable;
        }
        if self.expecting && self.keeping {
            self.result.unanswered = self.matcher.into_unanswered().collect();
        }
        Ok(self.result)
    }
}
