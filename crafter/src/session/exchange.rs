//! One exchange: prepare, send, collect, match, until all is answered or the time is up.

mod script;

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::time::{ClockId, clock_gettime};

use super::{
    Account, Exchanged, Pair, Reply, SrOptions,
    account::Reading,
    fill::{self, Outline},
    links::Links,
    matcher::{Match, Matcher},
    wall_clock,
};
use crate::{
    capture::Captured,
    datapath::route::{LinkLayer, Route},
    driver::{Outgoing, Received},
    engine::Pacer,
    error::{Error, Result},
    layer::{Arp, Ether, Kind, Mac, Packet},
    packet::{Checksum, Transport},
};
use crafter_common::reason::Reason;

/// Packets prepared and sent at a time.
const BATCH: usize = 64;

/// Packets that answer nothing and are kept.
const UNMATCHED: usize = 65_536;

/// Packets of a tap looked at between two others.
const TAPPED: usize = 256;

/// How long what is on its way between the two halves may take.
const SETTLE: Duration = Duration::from_millis(50);

/// A packet of an exchange, as it is sent, received or suppressed.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// When, since 1970.
    pub time: Duration,
    /// The interface.
    pub interface: &'a str,
    /// What the bytes begin with: an IP header, or an Ethernet header.
    pub first: Kind,
    /// The packet.
    pub bytes: &'a [u8],
    /// What became of it.
    pub what: What,
}

/// What became of a packet. Requests are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Handed to the kernel.
    Sent {
        /// Its number.
        request: usize,
        /// 0, or how often it was sent before.
        attempt: u32,
    },
    /// An answer to a request.
    Matched {
        /// The request's number.
        request: usize,
        /// How it came here.
        reason: Reason,
        /// From sending to receiving.
        rtt: Duration,
    },
    /// A further answer to it.
    Duplicate {
        /// The request's number.
        request: usize,
        /// How it came here.
        reason: Reason,
        /// From sending to receiving.
        rtt: Duration,
    },
    /// It answers nothing that was sent.
    Unmatched {
        /// How it came here.
        reason: Reason,
    },
    /// Its checksum is wrong.
    BadChecksum {
        /// How it came here.
        reason: Reason,
    },
    /// The kernel wanted to send it, from a leased port.
    Suppressed {
        /// Which answer of the kernel it is.
        reason: Reason,
    },
}

impl What {
    /// Whether the packet left this host, or was about to.
    pub fn is_outgoing(self) -> bool {
        matches!(self, Self::Sent { .. } | Self::Suppressed { .. })
    }
}

/// In words, requests numbered from 1.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |request: usize| request + 1;
        match *self {
            Self::Sent { request, attempt: 0 } => write!(f, "sent, request {}", number(request)),
            Self::Sent { request, attempt } => write!(f, "sent again ({attempt}), request {}", number(request)),
            Self::Matched { request, reason, .. } => {
                write!(f, "{}, matched: answers request {}", reason.name(), number(request))
            }
            Self::Duplicate { request, reason, .. } => {
                write!(f, "{}, duplicate: answers request {} again", reason.name(), number(request))
            }
            Self::Unmatched { reason } => write!(f, "{}, unmatched", reason.name()),
            Self::BadChecksum { reason } => write!(f, "{}, wrong checksum", reason.name()),
            Self::Suppressed { reason: Reason::RstSuppressed } => f.write_str("kernel RST suppressed"),
            Self::Suppressed { .. } => f.write_str("kernel ICMP port unreachable suppressed"),
        }
    }
}

/// A packet that is to go out.
struct Outlined {
    packet: Packet,
    outline: Outline,
    /// The way that its destination asks for; `None` where it names no destination.
    route: Option<Result<Arc<Route>>>,
}

/// A packet on its way out.
struct Ready {
    link: usize,
    /// The way of an IP packet; `None` for a frame.
    route: Option<Arc<Route>>,
    first: Kind,
    bytes: Vec<u8>,
    number: usize,
}

/// Where the packets of a request go, kept to send it again.
struct Way {
    link: usize,
    route: Option<Arc<Route>>,
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
    inbox: Vec<Received>,
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
        let unroutable = self.result.account.unroutable as usize;
        !self.options.multi && self.matcher.answered() + unroutable >= self.matcher.len()
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
                ready.push(Ready { link, route, first, bytes: packet.build()?, number });
            }
            self.transmit(&ready, attempt)?;
            self.collect()?;
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the pace allows a packet; how many it does.
    async fn may_send(&mut self) -> Result<usize> {
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
        loop {
            self.collect()?;
            if self.is_done() || Instant::now() >= until {
                return Ok(());
            }
            self.sleep_until(until).await?;
        }
    }

    /// Finds the way of each packet, leases what it takes, fills in what is unset, and builds it. Of packets that no
    /// way leads to, the first one's reason goes to `fault`.
    async fn prepare(&mut self, chunk: Vec<Packet>, fault: &mut Option<Error>) -> Result<Vec<Ready>> {
        let mut outlined = Vec::with_capacity(chunk.len());
        for mut packet in chunk {
            let outline = fill::outline(&mut packet)?;
            outlined.push(Outlined { packet, outline, route: None });
        }
        self.find_routes(&mut outlined).await;
        let mut ready = Vec::with_capacity(outlined.len());
        for Outlined { mut packet, outline, route } in outlined {
            self.result.account.requests += 1;
            let route = match route.transpose() {
                Ok(route) => route,
                Err(error @ (Error::NoRoute { .. } | Error::NoNeighbour { .. })) => {
                    self.result.account.unroutable += 1;
                    fault.get_or_insert(error);
                    self.submit(packet.resolved()?, true);
                    if self.keeping {
                        self.ways.push(None);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (link, leased) = self.fill(&mut packet, &outline, route.as_deref()).await?;
            let bytes = packet.build()?;
            let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
            let route = route.filter(|_| !outline.frame);
            if let Some(route) = &route
                && bytes.len() > route.mtu as usize
            {
                let reason = format_args!(
                    "{} bytes do not fit the MTU towards {}, which is {} bytes on {}: send it in fragments",
                    bytes.len(),
                    outline.destination.unwrap_or(route.source),
                    route.mtu,
                    route.interface
                );
                return Err(Error::invalid("packet", reason));
            }
            let number = self.submit(Packet::parse(first, &bytes), leased);
            if self.keeping {
                self.ways.push(Some(Way { link, route: route.clone() }));
            }
            ready.push(Ready { link, route, first, bytes, number });
        }
        Ok(ready)
    }

    /// Adds a packet to those that may be answered, if it is to be.
    fn submit(&mut self, packet: Packet, leased: bool) -> usize {
        if self.answerable {
            return self.matcher.submit(packet, leased);
        }
        self.unanswerable += 1;
        self.matcher.submit_unanswerable(packet)
    }

    /// Asks for all ways at once: a next hop that does not answer takes seconds.
    async fn find_routes(&self, outlined: &mut [Outlined]) {
        let links = &*self.links;
        let routes = outlined.iter().map(|Outlined { packet, outline, .. }| async move {
            let destination = outline.destination?;
            let is_arp = packet.get::<Arp>().is_some();
            let has_hop = packet.get::<Ether>().is_some_and(|ether| ether.dst.is_some());
            if outline.frame && (is_arp || has_hop) {
                // The next hop is the packet's own business.
                return links.link_towards(destination).await.transpose();
            }
            Some(links.route(destination, outline.source).await)
        });
        let found = join_all(routes).await;
        for (packet, route) in outlined.iter_mut().zip(found) {
            packet.route = route;
        }
    }

    /// Opens the interface, leases the port, and fills in what is unset; the link, and whether answers come over a
    /// lease.
    async fn fill(&mut self, packet: &mut Packet, outline: &Outline, route: Option<&Route>) -> Result<(usize, bool)> {
        let name = match (route, &self.links.options.interface) {
            (_, Some(name)) if outline.frame => name.clone(),
            (Some(route), _) => route.interface.clone(),
            (None, Some(name)) => name.clone(),
            (None, None) => {
                let reason = "nothing in the packet says where it goes: name the interface";
                return Err(Error::invalid("interface", reason));
            }
        };
        let link = self.links.open(&name).await?;
        if let Some(readings) = &mut self.readings
            && !readings.contains_key(&link)
        {
            readings.insert(link, self.links.links[link].read()?);
        }
        let source = outline.source.or(route.map(|route| route.source));
        if let Some(source) = source {
            fill::fill_source(packet, source);
        }
        let mut leased = false;
        if let (Some((transport, port)), Some(source)) = (outline.end, source)
            && (outline.source.is_none() || self.links.is_local(source).await?)
        {
            match self.port(link, transport, source, port).await {
                Ok(port) => {
                    fill::fill_port(packet, port);
                    leased = true;
                }
                // Who only sends may use a port that is somebody else's.
                Err(Error::PortTaken { .. }) if !self.expecting && port.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        if !leased && self.expecting {
            self.links.links[link].tap().await?;
        }
        if outline.frame {
            let mac = self.links.links[link].crafter.interface().mac.unwrap_or_default();
            let hop = match route.map(|route| route.link) {
                Some(LinkLayer::Ethernet { destination, .. }) => destination,
                _ => Mac::BROADCAST.0,
            };
            fill::fill_link(packet, mac, hop);
        }
        Ok((link, leased))
    }

    /// The port of a packet: the one that it names, or the one chosen for this exchange.
    async fn port(&mut self, link: usize, transport: Transport, address: IpAddr, named: Option<u16>) -> Result<u16> {
        let key = (link, transport, address);
        match (named, self.chosen.get(&key)) {
            (None, _) if self.fresh_ports => self.links.lease(link, transport, address, None).await,
            (None, Some(&port)) => Ok(port),
            (None, None) => {
                let port = self.links.lease(link, transport, address, None).await?;
                self.chosen.insert(key, port);
                Ok(port)
            }
            // What only follows, such as a RST, does not keep a port longer than what it follows.
            (Some(port), _) if !self.answerable && self.links.holds(link, transport, address, port) => Ok(port),
            (Some(port), _) => self.links.lease(link, transport, address, Some(port)).await,
        }
    }

    /// Sends what is ready, in order, interface by interface.
    fn transmit(&mut self, mut ready: &[Ready], attempt: u32) -> Result<()> {
        while let Some(first) = ready.first() {
            let count = ready.iter().take_while(|next| next.link == first.link).count();
            let (run, rest) = ready.split_at(count);
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

    /// Takes what has come and finds out what it answers.
    fn collect(&mut self) -> Result<()> {
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
    fn handle_tapped(&mut self, at: usize, captured: Captured) {
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

    /// Closes the account.
    async fn finish(mut self) -> Result<Exchanged> {
        if let Some(readings) = self.readings.take() {
            let until = Instant::now() + SETTLE;
            loop {
                self.collect()?;
                let mut account = Account { kernel: Default::default(), ..self.result.account };
                for (&link, before) in &readings {
                    account.add(before, &self.links.links[link].read()?);
                }
                if account.agrees() || Instant::now() >= until {
                    self.result.account = account;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let account = &mut self.result.account;
        account.answered = self.matcher.answered() as u64;
        if self.expecting {
            account.unanswered = (self.matcher.len() - self.matcher.answered()) as u64 - self.unanswerable;
        }
        if self.expecting && self.keeping {
            self.result.unanswered = self.matcher.into_unanswered().collect();
        }
        Ok(self.result)
    }
}

/// CLOCK_MONOTONIC, by which the kernel half stamps.
fn monotonic() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Into::into)
}
