//! Leases: ports of this process to send from and to receive on.

mod lease_acquire;
mod lease_request;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

pub use self::lease_request::{LeaseRequest, PortChoice};
use super::{
    ROOM_RETRY_DELAY,
    entry::{LeaseId, Ports, Received},
    sending::Sending,
    shared::Shared,
};
use crate::{
    datapath::{
        lock,
        maps::Terms,
        peers::{Exchange, Exchanges, PeerMap, monotonic_ns},
        reserve,
        route::Route,
    },
    error::Result,
    packet::{IpPacket, Transport},
};

/// Any address of this host.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Ports that belong to this process. No other program can bind them, and packets for them are delivered to this lease.
/// Dropping the lease and all its streams returns them.
pub struct Lease {
    inner: Arc<LeaseInner>,
}

pub(crate) struct LeaseInner {
    shared: Arc<Shared>,
    id: LeaseId,
    transport: Transport,
    address: Option<IpAddr>,
    terms: Terms,
    ports: Vec<u16>,
    arrived: Arc<Notify>,
    /// Whether the thread that drops it may take as long as it takes to close all ports.
    closes_here: AtomicBool,
    /// What the lease has begun through [`Lease::send`] and streams, if it receives the packets of these peers alone.
    exchanges: Mutex<Exchanges<()>>,
}

/// Exchanges of one lease from which on silent ones are ended before another begins.
const MANY_EXCHANGES: usize = 1024;

/// Ports that are added or removed under one lock of the core.
const PORTS_AT_ONCE: usize = 64;

impl Drop for LeaseInner {
    fn drop(&mut self) {
        // In observe mode the copy may arrive before the kernel has answered the packet. The answer would pass if the
        // port were returned at once.
        if self.terms.observe && self.terms.suppress {
            let delay = self.shared.lock().backend.disown_delay();
            std::thread::sleep(delay);
        }
        // In parts: this may be another thread than that of the tasks that wait for the lock.
        for ports in self.ports.chunks(PORTS_AT_ONCE) {
            self.shared.lock().disown(self.id, &self.part(ports));
        }
        let handles = self.shared.lock().unlist_lease(self.id);
        // The last step, not under the lock: closing sockets takes long.
        let reservations = handles.map_or_else(Vec::new, |handles| handles.reservations);
        if *self.closes_here.get_mut() {
            drop(reservations);
        } else {
            reserve::release(reservations);
        }
    }
}

impl Lease {
    /// Drops the lease; its ports are free afterwards, unless streams or clones of it remain. Takes milliseconds.
    #[cfg(feature = "service")]
    pub(crate) fn close(self) {
        self.inner.closes_here.store(true, Ordering::Relaxed);
    }

    pub(super) fn inner(&self) -> &Arc<LeaseInner> {
        &self.inner
    }

    /// Its number within the driver.
    pub(crate) fn id(&self) -> LeaseId {
        self.inner.id
    }

    /// The peers whose packets alone it receives, for a caller that sends by other means than [`Lease::send`].
    #[cfg(feature = "service")]
    pub(crate) fn peers(&self) -> Option<PeerMap> {
        self.inner.shared.lock().backend.peers(self.inner.id, self.inner.terms.peers)
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

    /// The local end of packets to `destination`: the lease's address, or the source address that the route prefers.
    ///
    /// # Errors
    /// [`Error::NoRoute`](crate::Error::NoRoute), [`Error::NoNeighbour`](crate::Error::NoNeighbour).
    pub async fn local(&self, destination: IpAddr) -> Result<SocketAddr> {
        let route = self.inner.route(destination).await?;
        Ok(SocketAddr::new(self.inner.address.unwrap_or(route.source), self.port()))
    }

    /// Sends one packet, from its IP header on, unchanged.
    ///
    /// # Errors
    /// [`Error::NoRoute`](crate::Error::NoRoute), [`Error::NoNeighbour`](crate::Error::NoNeighbour);
    /// [`Error::Invalid`](crate::Error::Invalid) for a packet that is not IP or longer than the MTU.
    pub async fn send(&self, ip: &[u8]) -> Result<()> {
        self.send_all([ip]).await
    }

    /// Sends several packets in as few system calls as possible. Waits while a queue is full.
    ///
    /// Not cancel-safe: some packets may have been sent.
    ///
    /// # Errors
    /// As [`Lease::send`], after all other packets were sent; [`Error::Io`](crate::Error::Io) for packets that found no
    /// room within a second. If a packet has no route, nothing is sent.
    pub async fn send_all<'p>(&self, packets: impl IntoIterator<Item = &'p [u8]>) -> Result<()> {
        let mut routed = Vec::new();
        for ip in packets {
            routed.push((self.inner.route(IpPacket::parse(ip)?.destination).await?, ip));
        }
        for (_, ip) in &routed {
            Exchange::of_packet(ip).into_iter().try_for_each(|exchange| self.inner.begin(&exchange))?;
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

    /// Receives the next packet for the lease that belongs to no stream. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`](crate::Error::UnknownInterface) after the interface was removed.
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

    /// The next packet, if there is one.
    pub fn try_recv(&self) -> Option<Received> {
        self.inner.shared.lock().receive(Instant::now(), self.inner.id)
    }

    /// Received packets for the lease that were lost because its share of the queues was full. Through the service,
    /// these are counted for all leases together ([`Crafter::stats`](super::Crafter::stats)).
    pub fn lost(&self) -> u64 {
        self.inner.shared.lock().lost(self.inner.id)
    }

    /// The next answer of the kernel that was dropped at egress, if there is one; see [`LeaseRequest::report`].
    pub fn try_suppressed(&self) -> Option<Received> {
        self.inner.shared.lock().table.lease(self.inner.id)?.suppressed.pop_front()
    }

    /// Like [`Lease::recv`], for up to `timeout`; `None` after it.
    ///
    /// # Errors
    /// As [`Lease::recv`].
    pub async fn recv_timeout(&self, timeout: Duration) -> Result<Option<Received>> {
        match self.try_recv() {
            Some(received) => Ok(Some(received)),
            None => tokio::time::timeout(timeout, self.recv()).await.ok().transpose(),
        }
    }
}

impl LeaseInner {
    /// Some of the lease's ports.
    fn part(&self, ports: &[u16]) -> Ports {
        Ports { transport: self.transport, address: self.address.unwrap_or(ANY), ports: ports.to_vec() }
    }

    /// Makes the peer of an exchange one whose packets the lease receives, before the first packet is sent to it.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if the map of peers is full.
    pub(super) fn begin(&self, exchange: &Exchange) -> Result<()> {
        let mut exchanges = lock(&self.exchanges);
        let now = monotonic_ns();
        if exchanges.are_only_counted() || exchanges.note(exchange, now) {
            return Ok(());
        }
        if exchanges.len() >= MANY_EXCHANGES {
            exchanges.expire(now);
        }
        exchanges.begin(exchange, now, ())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) async fn route(&self, destination: IpAddr) -> Result<Arc<Route>> {
        if let Some(route) = self.shared.routes.known(destination, self.address) {
            return Ok(route);
        }
        self.shared.routes.find(Some(&self.shared.name()), destination, self.address).await
    }
}
