//! Leases: ports that belong to this process, for sending from and for receiving on.

mod lease_acquire;
mod lease_request;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

pub use self::lease_request::{LeaseRequest, PortChoice};
use super::{
    ROOM_RETRY_DELAY,
    entry::{LeaseId, Received},
    sending::Sending,
    shared::Shared,
};
use crate::{
    datapath::{maps::Terms, route::Route},
    error::Result,
    packet::{IpPacket, Transport},
};

/// Ports that belong to this process. No other program is given them; what comes to them comes
/// here. They are given back when the lease and all its streams are dropped.
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
}

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
    pub(super) fn inner(&self) -> &Arc<LeaseInner> {
        &self.inner
    }

    /// Its number within the driver.
    pub(crate) fn id(&self) -> LeaseId {
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
    /// second. A packet without a route is an error before anything is sent.
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
}

impl LeaseInner {
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
