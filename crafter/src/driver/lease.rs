//! Leases: ports that belong to this process, for sending from and for receiving on.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    ROOM_RETRY_DELAY,
    backend::Ports,
    core::LeaseHandles,
    entry::Received,
    sending::Sending,
    service,
    shared::Shared,
    stream::{Stream, StreamOptions},
};
use crate::{
    datapath::{
        address::local_addresses,
        maps::Terms,
        reserve::{self, Reservation},
        route::Route,
    },
    error::{Error, Result},
    packet::{IpPacket, Transport},
    protocol::Control,
};

/// Ports that nobody registers (RFC 6335 section 6): where a free one is looked for.
const DYNAMIC: RangeInclusive<u16> = 49152..=65535;

/// Random identifiers of ICMP queries tried before one is given up for taken.
const PICKS: u32 = 1000;

/// Which ports to lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// A free one from 49152 to 65535.
    Free,
    /// So many free ones in a row, from the same range.
    FreeRange(u16),
    /// This one.
    Exact(u16),
    /// All of these.
    Range(RangeInclusive<u16>),
}

/// What to lease.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// TCP, UDP or ICMP.
    pub transport: Transport,
    /// The local address; `None`: any address of this host.
    pub address: Option<IpAddr>,
    /// The local port, or the identifier of ICMP queries.
    pub port: PortChoice,
    /// What happens to replies and to the kernel's own answers.
    pub terms: Terms,
    /// Through the service: consecutive segments of a TCP flow may come as one of up to 64 KiB, as behind the kernel's
    /// GRO. For streams, which care for the bytes alone.
    pub coalesce: bool,
}

impl LeaseRequest {
    /// A free port on any address, with the default terms.
    pub fn new(transport: Transport) -> Self {
        Self { transport, address: None, port: PortChoice::Free, terms: Terms::default(), coalesce: false }
    }

    /// A free TCP port.
    pub fn tcp() -> Self {
        Self::new(Transport::Tcp)
    }

    /// A free UDP port.
    pub fn udp() -> Self {
        Self::new(Transport::Udp)
    }

    /// A free identifier of ICMP queries, from the same range as a free port.
    pub fn icmp() -> Self {
        Self::new(Transport::Icmp)
    }

    /// On this local address only.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        Self { address: (!address.is_unspecified()).then_some(address), ..self }
    }

    /// This port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port: PortChoice::Exact(port), ..self }
    }

    /// All of these ports.
    #[must_use]
    pub fn ports(self, ports: RangeInclusive<u16>) -> Self {
        Self { port: PortChoice::Range(ports), ..self }
    }

    /// Consecutive segments may come as one; see [`LeaseRequest::coalesce`](field@LeaseRequest::coalesce).
    #[must_use]
    pub fn coalesce(self, coalesce: bool) -> Self {
        Self { coalesce, ..self }
    }

    /// The kernel sees the replies too.
    #[must_use]
    pub fn observe(mut self, observe: bool) -> Self {
        self.terms.observe = observe;
        self
    }

    /// Whether the kernel's RSTs and port-unreachables are dropped.
    #[must_use]
    pub fn suppress(mut self, suppress: bool) -> Self {
        self.terms.suppress = suppress;
        self
    }

    /// Whether those that are dropped come to [`Lease::try_suppressed`].
    #[must_use]
    pub fn report(mut self, report: bool) -> Self {
        self.terms.report = report;
        self
    }
}

/// Ports that belong to this process. No other program is given them; what comes to them comes
/// here. They are given back when the lease and all its streams are dropped.
pub struct Lease {
    inner: Arc<LeaseInner>,
}

pub(crate) struct LeaseInner {
    shared: Arc<Shared>,
    id: u32,
    transport: Transport,
    address: Option<IpAddr>,
    terms: Terms,
    ports: Vec<u16>,
    arrived: Arc<Notify>,
}

/// Retry delay for a port that the service is about to have back.
const RELEASED_PORT_RETRY_DELAY: Duration = Duration::from_millis(1);

impl Drop for LeaseInner {
    fn drop(&mut self) {
        // In observe mode the copy is here before the kernel has answered the packet itself: a port
        // given back at once would let that answer out.
        if self.terms.observe && self.terms.suppress {
            let delay = self.shared.lock().disown_delay();
            std::thread::sleep(delay);
        }
        self.shared.lock().remove_lease(self.id);
    }
}

impl Lease {
    /// Takes a lease; with `gathering`, which is then notified, what comes to it is gathered with that of others.
    pub(super) async fn take(
        shared: &Arc<Shared>,
        request: LeaseRequest,
        gathering: Option<Arc<Notify>>,
    ) -> Result<Self> {
        let gathered = gathering.is_some();
        let arrived = gathering.unwrap_or_default();
        // The driver keeps the list; only of an address that is not in it the kernel is asked.
        let known = |address| shared.lock().is_local(address);
        if let Some(address) = request.address.filter(|address| !known(*address)) {
            let addresses = local_addresses().await?;
            if !addresses.contains(&address) && !address.is_loopback() {
                return Err(Error::invalid("address", format_args!("{address} is not an address of this host")));
            }
            shared.lock().set_local(&addresses)?;
        }
        if let Some(control) = shared.control() {
            return Self::take_from(&control, shared, request, arrived, gathered).await;
        }
        let unspecified = IpAddr::from([0, 0, 0, 0]);
        let address = request.address.unwrap_or(unspecified);
        let ifindex = shared.interface.ifindex;
        // Where the kernel holds no identifiers of ICMP queries, it is the table that knows of them.
        let is_leased = |port| shared.lock().table.is_leased(request.transport, address, port);
        // First the kernel's word that the port is free, then the kernel half.
        let reservations = match &request.port {
            PortChoice::Free if request.transport == Transport::Icmp => {
                let pick = || reserve::reserve_free(request.transport, address, DYNAMIC, ifindex);
                let mut reservation = pick()?;
                for _ in 0..PICKS {
                    if !is_leased(reservation.port()) {
                        break;
                    }
                    reservation = pick()?;
                }
                vec![reservation]
            }
            PortChoice::Free => vec![reserve::reserve_free(request.transport, address, DYNAMIC, ifindex)?],
            PortChoice::FreeRange(count) => Self::reserve_row(request.transport, address, *count, ifindex)?,
            PortChoice::Exact(port) if !reserve::possible(request.transport).contains(port) => {
                return Err(Error::invalid("port", "0 cannot be leased; 1 to 65535 can"));
            }
            PortChoice::Exact(port) => vec![reserve::reserve(request.transport, address, *port, ifindex)?],
            PortChoice::Range(range)
                if range.is_empty() || !reserve::possible(request.transport).contains(range.start()) =>
            {
                return Err(Error::invalid("ports", "a range goes from a lower to a higher port, 1 to 65535"));
            }
            PortChoice::Range(range) => reserve::reserve_range(request.transport, address, range.clone(), ifindex)?,
        };
        let ports: Vec<u16> = reservations.iter().map(Reservation::port).collect();
        if let Some(&port) = ports.iter().find(|&&port| is_leased(port)) {
            let holder = Some("another lease of this process".to_owned());
            return Err(Error::PortTaken { protocol: request.transport.name(), address, port, holder });
        }
        let id = {
            let mut core = shared.lock();
            let id = core.table.number();
            let owned = Ports { transport: request.transport, address, ports: ports.clone() };
            let handles = LeaseHandles { arrived: arrived.clone(), gathered, reservations };
            core.add_lease(id, owned, request.terms, handles)?;
            id
        };
        let inner = LeaseInner {
            shared: shared.clone(),
            id,
            transport: request.transport,
            address: request.address,
            terms: request.terms,
            ports,
            arrived,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reserves so many free ports in a row.
    fn reserve_row(transport: Transport, address: IpAddr, count: u16, ifindex: u32) -> Result<Vec<Reservation>> {
        let Some(last) = DYNAMIC.end().checked_sub(count.max(1) - 1).filter(|last| last >= DYNAMIC.start()) else {
            return Err(Error::invalid("ports", format_args!("there are no {count} ports from 49152 on")));
        };
        let places = u32::from(last - DYNAMIC.start()) + 1;
        let mut result = Err(Error::invalid("ports", "no random numbers are had"));
        for _ in 0..PICKS {
            let Ok(random) = getrandom::u32() else { break };
            let first = DYNAMIC.start() + (random % places) as u16;
            result = reserve::reserve_range(transport, address, first..=first + (count.max(1) - 1), ifindex);
            if !matches!(result, Err(Error::PortTaken { .. })) {
                break;
            }
        }
        result
    }

    /// Has the service give the ports.
    async fn take_from(
        control: &Control,
        shared: &Arc<Shared>,
        request: LeaseRequest,
        arrived: Arc<Notify>,
        gathered: bool,
    ) -> Result<Self> {
        let call = service::call(&shared.name(), &request);
        let (leased, socket) = loop {
            match service::lease(control, &call).await {
                // What was closed here a moment ago the service may not know yet.
                Err(Error::PortTaken { .. }) if shared.is_closing() => {
                    tokio::time::sleep(RELEASED_PORT_RETRY_DELAY).await
                }
                leased => break leased?,
            }
        };
        let (Some(first), Some(last)) = (leased.first_port, leased.last_port) else {
            let reason = "a lease without the ports that were asked for".to_owned();
            return Err(Error::Service { path: control.path().display().to_string(), reason });
        };
        // Where the policy allows only some addresses, the service has chosen.
        let address = request.address.or_else(|| leased.address?.parse().ok());
        let ports: Vec<u16> = (first..=last).collect();
        let mut core = shared.lock();
        let id = core.table.number();
        let bound = address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        if let Some(service) = core.service() {
            service.add_socket(id, socket)?;
        }
        let owned = Ports { transport: request.transport, address: bound, ports: ports.clone() };
        let handles = LeaseHandles { arrived: arrived.clone(), gathered, reservations: Vec::new() };
        core.add_lease(id, owned, request.terms, handles)?;
        drop(core);
        let (transport, terms) = (request.transport, request.terms);
        let inner = LeaseInner { shared: shared.clone(), id, transport, address, terms, ports, arrived };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The driver's number for it.
    pub(crate) fn number(&self) -> u32 {
        self.inner.id
    }

    /// The first, or only, port.
    pub fn port(&self) -> u16 {
        self.inner.ports[0]
    }

    /// All ports.
    pub fn ports(&self) -> &[u16] {
        &self.inner.ports
    }

    /// The local address, if the lease is bound to one.
    pub fn address(&self) -> Option<IpAddr> {
        self.inner.address
    }

    /// TCP, UDP or ICMP.
    pub fn transport(&self) -> Transport {
        self.inner.transport
    }

    /// The local end towards `destination`: the lease's address, or the one that the route prefers.
    ///
    /// # Errors
    /// [`Error::NoRoute`], [`Error::NoNeighbour`].
    pub async fn local(&self, destination: IpAddr) -> Result<SocketAddr> {
        let route = self.inner.route(destination).await?;
        Ok(SocketAddr::new(self.inner.address.unwrap_or(route.source), self.port()))
    }

    /// Sends one packet, from its IP header on, as it is.
    ///
    /// # Errors
    /// [`Error::NoRoute`], [`Error::NoNeighbour`]; [`Error::Invalid`] for a packet that is not IP or
    /// longer than the MTU.
    pub async fn send(&self, ip: &[u8]) -> Result<()> {
        self.send_all([ip]).await
    }

    /// Sends several packets in as few system calls as it takes. Where a queue is full, waits until it has room.
    ///
    /// Not safe to cancel: some packets may have gone, others not.
    ///
    /// # Errors
    /// As [`Lease::send`], all other packets have gone; [`Error::Io`] for packets that there was no room for within a
    /// second. Packets without a route are told before anything is sent.
    pub async fn send_all<'p>(&self, packets: impl IntoIterator<Item = &'p [u8]>) -> Result<()> {
        let mut routed = Vec::new();
        for ip in packets {
            routed.push((self.inner.route(IpPacket::parse(ip)?.destination).await?, ip));
        }
        let shared = &self.inner.shared;
        let mut sending = Sending::new(Instant::now(), &routed);
        loop {
            let interface = shared.name();
            let sent = sending.send(Instant::now(), &mut shared.lock(), &interface);
            match sent {
                Some(result) => return result,
                None => tokio::time::sleep(ROOM_RETRY_DELAY).await,
            }
        }
    }

    /// The next packet that comes to the lease and belongs to no stream. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`] once the interface is gone.
    pub async fn recv(&self) -> Result<Received> {
        loop {
            let arrived = self.inner.arrived.notified();
            if let Some(received) = self.try_recv() {
                return Ok(received);
            }
            self.inner.shared.lock().table.check_alive(&self.inner.shared.name())?;
            arrived.await;
        }
    }

    /// The next packet, if one is there.
    pub fn try_recv(&self) -> Option<Received> {
        self.inner.shared.lock().receive(Instant::now(), self.inner.id)
    }

    /// The next answer of the kernel that was dropped at egress, if one is there; see [`LeaseRequest::report`].
    pub fn try_suppressed(&self) -> Option<Received> {
        self.inner.shared.lock().table.lease(self.inner.id)?.suppressed.pop_front()
    }

    /// [`Lease::recv`], for at most `timeout`; `None` when that passed.
    ///
    /// # Errors
    /// As [`Lease::recv`].
    pub async fn recv_timeout(&self, timeout: Duration) -> Result<Option<Received>> {
        match self.try_recv() {
            Some(received) => Ok(Some(received)),
            None => tokio::time::timeout(timeout, self.recv()).await.ok().transpose(),
        }
    }

    /// Opens a TCP connection from the leased port, and waits until it is established.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::TimedOut`], [`Error::Unreachable`], [`Error::NoRoute`],
    /// [`Error::NoNeighbour`]; [`Error::Invalid`] for a UDP lease, or where the lease has a stream to
    /// `remote` already.
    pub async fn connect(&self, remote: SocketAddr, options: StreamOptions) -> Result<Stream> {
        if self.inner.transport != Transport::Tcp {
            let reason = format_args!("a stream takes a TCP port, this one is {}", self.inner.transport);
            return Err(Error::invalid("lease", reason));
        }
        let route = self.inner.route(remote.ip()).await?;
        let local = SocketAddr::new(self.inner.address.unwrap_or(route.source), self.port());
        Stream::connect(self.inner.clone(), route, local, remote, options).await
    }
}

impl LeaseInner {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    async fn route(&self, destination: IpAddr) -> Result<Arc<Route>> {
        if let Some(route) = self.shared.routes.known(destination, self.address) {
            return Ok(route);
        }
        self.shared.routes.find(Some(&self.shared.name()), destination, self.address).await
    }
}
