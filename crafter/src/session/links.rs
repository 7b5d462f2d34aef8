//! The interfaces that a session has opened, and what it has leased there.

#[path = "resets.rs"]
mod reset;

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crafter_common::reason::Reason;
use futures_util::future::select_all;
use tokio::sync::Notify;

use self::reset::Path;
use super::{
    Event, Pace, SessionOptions,
    account::Reading,
    half_open::{HalfOpen, Reset},
    sniffer::Watch,
};
use crate::{
    Crafter, Lease, LeaseRequest,
    capture::{Captured, Direction},
    datapath::{
        address::local_addresses,
        frames::PATIENCE,
        maps::Counters,
        program::Report,
        route::{self, Route},
        tap::TapOptions,
    },
    driver::{
        LeaseId, PortChoice, Received,
        routes::{Resolver, Routes},
    },
    error::{Error, Result},
    layer::Mac,
    packet::Transport,
    protocol::wire::{Account, AccountCall, PolicyCall, RouteCall},
};

/// Ports chosen by the session that it keeps, for answers that come late.
const CHOSEN: usize = 256;

/// How long the list of this host's addresses is good.
const AGE: Duration = Duration::from_secs(1);

/// How long leases that are no longer wanted may take to go.
const CLOSING: Duration = Duration::from_secs(2);

/// What is leased: a port of a transport on an address.
type Key = (Transport, IpAddr, u16);

/// What a session has open.
pub(super) struct Links {
    pub(super) options: SessionOptions,
    pub(super) routes: Routes,
    pub(super) links: Vec<Link>,
    /// Notified of whatever comes to any lease.
    pub(super) arrived: Arc<Notify>,
    local: Option<(Instant, Vec<IpAddr>)>,
    /// `None` where half-open connections are left open.
    half_open: Option<HalfOpen<Path>>,
    /// Resets to send.
    due: VecDeque<Reset<Path>>,
    /// Ports to give back once they are sent.
    expired: Vec<Held>,
    /// How many connections were reset since this was asked last.
    reset: u64,
}

/// An interface that is open.
pub(super) struct Link {
    pub(super) crafter: Crafter,
    held: HashMap<Key, Held>,
    /// Those that were chosen here, the latest used last.
    chosen: VecDeque<Key>,
    /// Through the service: ports that were leased together, to be chosen next.
    spare: HashMap<(Transport, IpAddr), Spare>,
    /// Where the answers to requests that nothing is leased for are seen.
    tap: Option<Watch>,
}

/// Ports of one lease that are not used yet.
struct Spare {
    lease: Arc<Lease>,
    ports: Vec<u16>,
    /// How many to lease next time.
    next: u16,
}

/// Ports leased together at most: one call to the service takes as long as an answer.
const TOGETHER: u16 = 64;

struct Held {
    _lease: Arc<Lease>,
    /// It was chosen here: no packet asked for it.
    chosen: bool,
}

impl Links {
    pub(super) fn new(options: SessionOptions) -> Self {
        let resolver = if options.service.is_some() { Resolver::WithoutHop } else { Resolver::Kernel };
        let routes = Routes::new(resolver);
        // Where the kernel sees the SYN-ACKs and its RSTs leave, it resets them itself, and at once.
        let is_kernels = options.terms.observe && !options.terms.suppress;
        let half_open = (!options.leave_open && !is_kernels).then(HalfOpen::default);
        Self {
            options,
            routes,
            links: Vec::new(),
            arrived: Arc::new(Notify::new()),
            local: None,
            half_open,
            due: VecDeque::new(),
            expired: Vec::new(),
            reset: 0,
        }
    }

    /// The way to `destination`.
    pub(super) async fn route(&self, destination: IpAddr, source: Option<IpAddr>) -> Result<Arc<Route>> {
        // An address of the other IP version is no source for this packet.
        let preferred = self.options.source.filter(|own| own.is_ipv4() == destination.is_ipv4());
        self.routes.find(self.options.interface.as_deref(), destination, source.or(preferred)).await
    }

    /// The next hop's Ethernet address on the way to `destination`, where the service has to find it.
    pub(super) async fn hop(
        &self,
        destination: IpAddr,
        source: Option<IpAddr>,
        interface: &str,
    ) -> Result<Option<Mac>> {
        let Some(control) = &self.options.service else { return Ok(None) };
        let call = RouteCall {
            destination: destination.to_string(),
            interface: Some(interface.to_owned()),
            source: source.map(|source| source.to_string()),
        };
        Ok(control.call(&call).await?.mac.and_then(|mac| mac.parse().ok()))
    }

    /// How fast the service lets this user send, in packets a second.
    pub(super) async fn rate(&self) -> Result<Option<f64>> {
        let Some(control) = &self.options.service else { return Ok(None) };
        let rule = control.call(&PolicyCall {}).await?.rule;
        Ok(rule.and_then(|rule| rule.packets_per_second).map(f64::from))
    }

    /// The link that leads to `destination`; `None` where nothing but its own words says so, and an interface is named.
    pub(super) async fn link_towards(&self, destination: IpAddr) -> Result<Option<Arc<Route>>> {
        let found = route::without_hop(destination, self.options.interface.as_deref(), self.options.source).await;
        match found {
            Err(_) if self.options.interface.is_some() => Ok(None),
            found => found.map(|route| Some(Arc::new(route))),
        }
    }

    /// The place of an interface in the list, opened if it is not yet.
    pub(super) async fn open(&mut self, name: &str) -> Result<usize> {
        if let Some(at) = self.links.iter().position(|link| link.crafter.interface().name == name) {
            return Ok(at);
        }
        let crafter = match &self.options.service {
            Some(control) => Crafter::via_service(control.clone(), name).await?,
            None => Crafter::open(name, self.options.open.clone()).await?,
        };
        // Nobody else sends by it: better late than not at all.
        crafter.set_patience(PATIENCE);
        self.links.push(Link {
            crafter,
            held: HashMap::new(),
            chosen: VecDeque::new(),
            spare: HashMap::new(),
            tap: None,
        });
        Ok(self.links.len() - 1)
    }

    /// Whether an address is this host's.
    pub(super) async fn is_local(&mut self, address: IpAddr) -> Result<bool> {
        if address.is_loopback() {
            return Ok(true);
        }
        match &self.local {
            Some((read, addresses)) if read.elapsed() < AGE => Ok(addresses.contains(&address)),
            _ => {
                let addresses = local_addresses().await?;
                let is_local = addresses.contains(&address);
                self.local = Some((Instant::now(), addresses));
                Ok(is_local)
            }
        }
    }

    /// Leases a port that a packet names, or chooses one; the port. Of those chosen, the one not used for longest is
    /// given back with the next [`Links::reset_due`].
    pub(super) async fn lease(
        &mut self,
        at: usize,
        transport: Transport,
        address: IpAddr,
        port: Option<u16>,
    ) -> Result<u16> {
        let request = LeaseRequest {
            transport,
            address: Some(address),
            port: port.map_or(PortChoice::Free, PortChoice::Exact),
            terms: self.options.terms,
            coalesce: false,
        };
        let link = &mut self.links[at];
        if let Some(port) = port
            && let Some(held) = link.held.get(&(transport, address, port))
        {
            if held.chosen {
                // Used again: the latest once more.
                let place = link.chosen.iter().position(|chosen| *chosen == (transport, address, port));
                let used = place.and_then(|place| link.chosen.remove(place));
                link.chosen.extend(used);
            }
            return Ok(port);
        }
        let (lease, chosen) = if port.is_none() && self.options.service.is_some() {
            link.spare(request.report(true), address, &self.arrived).await?
        } else {
            let lease = link.crafter.lease_gathered(request.report(true), self.arrived.clone()).await?;
            let chosen = lease.port();
            (Arc::new(lease), chosen)
        };
        let key = (transport, address, chosen);
        link.held.insert(key, Held { _lease: lease, chosen: port.is_none() });
        if port.is_none() {
            link.chosen.push_back(key);
            if link.chosen.len() > CHOSEN
                && let Some(oldest) = link.chosen.pop_front()
            {
                self.expire(at, oldest);
            }
        }
        Ok(chosen)
    }

    /// The next packet that a tap sees, and its link's place; never, where there is no tap.
    pub(super) async fn tapped(&mut self) -> Result<(usize, Captured)> {
        let taps = self.links.iter_mut().enumerate().filter_map(|(at, link)| Some((at, link.tap.as_mut()?)));
        let next: Vec<_> = taps.map(|(at, tap)| Box::pin(async move { (at, tap.next().await) })).collect();
        if next.is_empty() {
            return std::future::pending().await;
        }
        let ((at, captured), ..) = select_all(next).await;
        Ok((at, captured?))
    }

    /// Whether a port is leased here.
    pub(super) fn holds(&self, at: usize, transport: Transport, address: IpAddr, port: u16) -> bool {
        self.links[at].held.contains_key(&(transport, address, port))
    }

    pub(super) fn reports(&self) -> Vec<Report> {
        self.links.iter().map(|link| link.crafter.report().clone()).collect()
    }

    /// Resets what is half open, gives all leases back and detaches; how many connections were reset.
    pub(super) async fn close(mut self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        let mut reset = self.reset_half_open(Pace::default(), &mut *observer).await;
        // What has come since.
        reset += self.reset_at_once(observer);
        for Link { crafter, held, spare, .. } in std::mem::take(&mut self.links) {
            drop((held, spare));
            if !crafter.close(CLOSING).await {
                log::warn!("an interface is still in use after {CLOSING:?}: its hooks go with this process");
            }
        }
        reset
    }
}

/// A session that is dropped unclosed, by a signal or an error, resets what is half open all the same.
impl Drop for Links {
    fn drop(&mut self) {
        self.reset_at_once(&mut |_| {});
    }
}

impl Link {
    /// A port of those that were leased together; if there is none any more, more of them are.
    async fn spare(
        &mut self,
        request: LeaseRequest,
        address: IpAddr,
        arrived: &Arc<Notify>,
    ) -> Result<(Arc<Lease>, u16)> {
        let key = (request.transport, address);
        let next = self.spare.get(&key).map_or(1, |spare| spare.next);
        if let Some(spare) = self.spare.get_mut(&key)
            && let Some(port) = spare.ports.pop()
        {
            return Ok((spare.lease.clone(), port));
        }
        let row = LeaseRequest { port: PortChoice::FreeRange(next), ..request.clone() };
        let lease = match self.crafter.lease_gathered(row, arrived.clone()).await {
            // So many are too many for the policy, or nowhere free.
            Err(Error::Forbidden { .. } | Error::PortTaken { .. }) if next > 1 => {
                self.crafter.lease_gathered(request, arrived.clone()).await?
            }
            lease => lease?,
        };
        let lease = Arc::new(lease);
        let mut ports = lease.ports().to_vec();
        let port = ports.pop().unwrap_or_else(|| lease.port());
        self.spare.insert(key, Spare { lease: lease.clone(), ports, next: (next * 4).min(TOGETHER) });
        Ok((lease, port))
    }

    /// Sees from now on what comes in besides TCP and UDP.
    pub(super) async fn tap(&mut self) -> Result<()> {
        if self.tap.is_none() {
            let filter = Some("not tcp and not udp".to_owned());
            let options = TapOptions { filter, direction: Some(Direction::In), ..TapOptions::default() };
            self.tap = Some(Watch::open(self.crafter.control().as_deref(), self.name(), &options).await?);
        }
        Ok(())
    }

    /// A packet that the tap has seen, if one waits.
    pub(super) fn try_tapped(&mut self) -> Result<Option<Captured>> {
        self.tap.as_mut().map_or(Ok(None), Watch::try_next)
    }

    /// The interface's name.
    pub(super) fn name(&self) -> &str {
        &self.crafter.interface().name
    }

    /// Moves all that has come to `sink`.
    pub(super) fn collect(&self, sink: &mut Vec<(LeaseId, Received)>) -> Result<()> {
        self.crafter.gather(sink)
    }

    /// What was counted so far: by the kernel half, or by the service for this session, which counts for all its
    /// interfaces together and so for the `first` alone.
    pub(super) async fn read(&self, first: bool) -> Result<Reading> {
        let Some(control) = self.crafter.control() else {
            return Ok(Reading { counters: self.crafter.counters()?, stats: self.crafter.stats() });
        };
        let account = if first { control.call(&AccountCall {}).await? } else { Account::default() };
        let mut counted = vec![0; Reason::ALL.len()];
        counted[Reason::Redirected as usize] = account.delivered;
        counted[Reason::Crafted as usize] = account.sent;
        counted[Reason::RstSuppressed as usize] = account.suppressed;
        Ok(Reading { counters: Counters(counted), stats: self.crafter.stats() })
    }
}
