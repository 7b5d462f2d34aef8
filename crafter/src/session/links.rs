//! All open interfaces of a session, their routes, and the leases and half-open connections on them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use tokio::sync::Notify;

use super::{Event, Pace, SessionOptions, link::Link, resets::Resets};
use crate::{
    Crafter, Lease, LeaseRequest,
    capture::Captured,
    datapath::{
        address::local_addresses,
        route::{self, Route},
    },
    driver::{
        PortChoice,
        routes::{Resolver, Routes},
    },
    error::Result,
    layer::Mac,
    packet::Transport,
    protocol::wire::RouteCall,
};

/// How long the list of this host's addresses is used before it is read again.
const ADDRESSES_MAX_AGE: Duration = Duration::from_secs(1);

/// The open interfaces of a session.
pub(super) struct Links {
    pub(super) options: SessionOptions,
    routes: Routes,
    pub(super) links: Vec<Link>,
    /// Notified when any lease receives a packet.
    pub(super) arrived: Arc<Notify>,
    local: Option<(Instant, Vec<IpAddr>)>,
    pub(super) resets: Resets,
    /// Leases to end after the RSTs of their ports are sent.
    expired: Vec<Arc<Lease>>,
}

impl Links {
    pub(super) fn new(options: SessionOptions) -> Self {
        let resolver = match (&options.service, options.hop_timeout) {
            (Some(_), _) => Resolver::WithoutHop,
            (None, Some(limit)) => Resolver::KernelWithin(limit),
            (None, None) => Resolver::Kernel,
        };
        Self {
            routes: Routes::new(resolver),
            links: Vec::new(),
            arrived: Arc::new(Notify::new()),
            local: None,
            resets: Resets::new(&options),
            expired: Vec::new(),
            options,
        }
    }

    /// The route to `destination`.
    pub(super) async fn route(&self, destination: IpAddr, source: Option<IpAddr>) -> Result<Arc<Route>> {
        // The session's source address is used for packets of its IP version only.
        let preferred = self.options.source.filter(|own| own.is_ipv4() == destination.is_ipv4());
        self.routes.find(self.options.interface.as_deref(), destination, source.or(preferred)).await
    }

    /// The Ethernet address of the next hop to `destination`, from the service; `None` without a service.
    pub(super) async fn service_hop(
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

    /// The route to `destination` without its next hop; `None` if there is no route but the session's options name an
    /// interface.
    pub(super) async fn route_without_hop(&self, destination: IpAddr) -> Result<Option<Arc<Route>>> {
        let found = route::without_hop(destination, self.options.interface.as_deref(), self.options.source).await;
        match found {
            Err(_) if self.options.interface.is_some() => Ok(None),
            found => found.map(|route| Some(Arc::new(route))),
        }
    }

    /// The index of an interface, which is opened if it is not yet.
    pub(super) async fn open(&mut self, name: &str) -> Result<usize> {
        if let Some(at) = self.links.iter().position(|link| link.name() == name) {
            return Ok(at);
        }
        let crafter = match &self.options.service {
            Some(control) => Crafter::via_service(control.clone(), name).await?,
            None => Crafter::open(name, self.options.open.clone()).await?,
        };
        self.links.push(Link::new(crafter));
        Ok(self.links.len() - 1)
    }

    /// Whether an address is this host's.
    pub(super) async fn is_local(&mut self, address: IpAddr) -> Result<bool> {
        if address.is_loopback() {
            return Ok(true);
        }
        match &self.local {
            Some((read, addresses)) if read.elapsed() < ADDRESSES_MAX_AGE => Ok(addresses.contains(&address)),
            _ => {
                let addresses = local_addresses().await?;
                let is_local = addresses.contains(&address);
                self.local = Some((Instant::now(), addresses));
                Ok(is_local)
            }
        }
    }

    /// Leases `port`, or a free port; returns it. If a free port makes too many, the lease of the least recently used
    /// one ends with the next [`Links::reset_due`].
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
            peers: None,
        };
        let link = &mut self.links[at];
        let (leased, evicted) = link.lease(request.report(true), address, &self.arrived).await?;
        if let Some(key @ (transport, address, port)) = evicted {
            self.expired.extend(link.held.remove(&key));
            if transport == Transport::Tcp {
                self.resets.expire_port(SocketAddr::new(address, port));
            }
        }
        Ok(leased)
    }

    /// The next packet of any tap, and the index of its link; waits forever if no tap is open.
    pub(super) async fn next_tapped(&mut self) -> Result<(usize, Captured)> {
        let taps = self.links.iter_mut().enumerate().filter_map(|(at, link)| Some((at, link.tap.as_mut()?)));
        let next: Vec<_> = taps.map(|(at, tap)| Box::pin(async move { (at, tap.next().await) })).collect();
        if next.is_empty() {
            return std::future::pending().await;
        }
        let ((at, captured), ..) = select_all(next).await;
        Ok((at, captured?))
    }

    /// Sends the RSTs that are due, then ends the leases that wait for them.
    pub(super) fn reset_due(&mut self, observer: &mut dyn FnMut(&Event<'_>)) {
        self.resets.send_due(&self.links, observer);
        self.expired.clear();
    }

    /// Resets all half-open connections; see [`Resets::send_all`].
    pub(super) async fn reset_half_open(&mut self, pace: Pace, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.resets.send_all(&self.links, &self.options, pace, observer).await
    }

    /// Resets all half-open connections without waiting; see [`Resets::send_all_now`].
    pub(super) fn reset_half_open_now(&mut self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        let count = self.resets.send_all_now(&self.links, observer);
        self.expired.clear();
        count
    }

    /// Resets half-open connections, gives all leases back and detaches. Returns how many connections were reset.
    pub(super) async fn close(mut self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        let mut reset = self.reset_half_open(Pace::default(), &mut *observer).await;
        // SYN-ACKs may have arrived since.
        reset += self.reset_half_open_now(observer);
        for link in std::mem::take(&mut self.links) {
            link.close().await;
        }
        reset
    }
}

/// Resets half-open connections of a session that is dropped without [`Links::close`].
impl Drop for Links {
    fn drop(&mut self) {
        self.reset_half_open_now(&mut |_| {});
    }
}
