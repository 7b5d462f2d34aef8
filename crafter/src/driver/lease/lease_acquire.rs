//! Makes leases: acquires ports from the kernel or the service, and publishes them in the core.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use tokio::{sync::Notify, task::yield_now};

use super::{ANY, Lease, LeaseInner, LeaseRequest, PORTS_AT_ONCE, PortChoice};
use crate::{
    datapath::{
        address::local_addresses,
        maps::Terms,
        peers::Exchanges,
        reserve::{self, Acquisition, DYNAMIC, Reservation},
    },
    driver::{core::LeaseHandles, entry::Ports, service, shared::Shared},
    error::{Error, Result},
    protocol::{Control, wire::LeaseCall},
};

/// Retry delay for a port that was just closed and that the service is about to release.
const RELEASED_PORT_RETRY_DELAY: Duration = Duration::from_millis(1);

/// Ports that no other program can bind.
struct AcquiredPorts {
    /// The address that they are bound to; `None`: any.
    address: Option<IpAddr>,
    ports: Vec<u16>,
    claim: PortClaim,
}

/// What reserves the ports.
enum PortClaim {
    /// Sockets of this process.
    Reservations(Vec<Reservation>),
    /// The service, while this socket is open.
    Service(OwnedFd),
}

impl Lease {
    /// Takes a lease. With `gathering`, its packets are gathered with those of other leases, and `gathering` is
    /// notified.
    pub(in crate::driver) async fn take(
        shared: &Arc<Shared>,
        request: LeaseRequest,
        gathering: Option<Arc<Notify>>,
    ) -> Result<Self> {
        let request = canonical(request);
        check_address(shared, request.address).await?;
        let acquired = match shared.control() {
            Some(control) => from_service(&control, shared, &request).await?,
            None => from_kernel(shared, &request).await?,
        };
        publish(shared, &request, acquired, gathering).await
    }

    /// Takes a lease of ports that are reserved already.
    pub(in crate::driver) async fn take_reserved(
        shared: &Arc<Shared>,
        request: LeaseRequest,
        reservations: Vec<Reservation>,
        gathering: Arc<Notify>,
    ) -> Result<Self> {
        let request = canonical(request);
        check_address(shared, request.address).await?;
        publish(shared, &request, AcquiredPorts::reserved(&request, reservations), Some(gathering)).await
    }
}

impl AcquiredPorts {
    fn reserved(request: &LeaseRequest, reservations: Vec<Reservation>) -> Self {
        let ports = reservations.iter().map(Reservation::port).collect();
        Self { address: request.address, ports, claim: PortClaim::Reservations(reservations) }
    }
}

/// The same request with one form for each address: an IPv4-mapped address is an IPv4 address.
fn canonical(request: LeaseRequest) -> LeaseRequest {
    let address = request.address.map(|address| address.to_canonical());
    LeaseRequest { address: address.filter(|address| !address.is_unspecified()), ..request }
}

/// Checks that the address is this host's.
async fn check_address(shared: &Shared, address: Option<IpAddr>) -> Result<()> {
    // The driver caches the list; the kernel is asked only about an address that is not in it.
    let known = |address| shared.lock().backend.is_local(address);
    if let Some(address) = address.filter(|address| !known(*address)) {
        let addresses = local_addresses().await?;
        if !addresses.contains(&address) && !address.is_loopback() {
            return Err(Error::invalid("address", format_args!("{address} is not an address of this host")));
        }
        shared.lock().backend.set_local(&addresses)?;
    }
    Ok(())
}

/// Reserves the ports with sockets.
async fn from_kernel(shared: &Shared, request: &LeaseRequest) -> Result<AcquiredPorts> {
    let (transport, address, ifindex) = (request.transport, request.address.unwrap_or(ANY), shared.interface.ifindex);
    let free = |count| Acquisition::free(transport, address, &[DYNAMIC], count, ifindex);
    let mut acquisition = match &request.port {
        PortChoice::Free => free(1)?,
        PortChoice::FreeRange(count) => free((*count).max(1))?,
        PortChoice::Exact(port) if !transport.ports().contains(port) => {
            return Err(Error::invalid("port", "port 0 cannot be leased; choose one from 1 to 65535"));
        }
        PortChoice::Exact(port) => Acquisition::exact(transport, address, *port..=*port, ifindex)?,
        PortChoice::Range(range) if range.is_empty() || !transport.ports().contains(range.start()) => {
            let reason =
                format_args!("{range:?} is not a valid port range; write the lower port first, from 1 to 65535");
            return Err(Error::invalid("ports", reason));
        }
        PortChoice::Range(range) => Acquisition::exact(transport, address, range.clone(), ifindex)?,
    };
    let reservations = loop {
        let turn = acquisition.turn(|port| shared.is_leased(transport, address, port));
        match turn.map_err(|error| named(shared, error))? {
            Some(reservations) => break reservations,
            // Other tasks of this thread run.
            None => yield_now().await,
        }
    };
    Ok(AcquiredPorts::reserved(request, reservations))
}

/// Names the holder of a taken port: a lease of this process, or another process.
fn named(shared: &Shared, error: Error) -> Error {
    match error {
        Error::PortTaken { protocol: protocol @ "ICMP", address, port, .. }
            if shared.is_leased(crate::packet::Transport::Icmp, address, port) =>
        {
            let holder = Some("another lease of this process".to_owned());
            Error::PortTaken { protocol, address, port, holder }
        }
        error => reserve::name_holder(error),
    }
}

/// Leases the ports from the service.
async fn from_service(control: &Control, shared: &Shared, request: &LeaseRequest) -> Result<AcquiredPorts> {
    let call = call_for(&shared.name(), request);
    let (leased, socket) = loop {
        match service::lease(control, &call).await {
            // The service may not have noticed yet that this process closed the port.
            Err(Error::PortTaken { .. }) if shared.is_closing() => {
                tokio::time::sleep(RELEASED_PORT_RETRY_DELAY).await;
            }
            leased => break leased?,
        }
    };
    let (Some(first), Some(last)) = (leased.first_port, leased.last_port) else {
        let reason = "it granted a lease without the requested ports".to_owned();
        return Err(Error::Service { path: control.path().display().to_string(), reason });
    };
    // If the policy allows only some addresses, the service chose one.
    let address = request.address.or_else(|| leased.address?.parse().ok());
    Ok(AcquiredPorts { address, ports: (first..=last).collect(), claim: PortClaim::Service(socket) })
}

/// Adds the lease to the core: packets for its ports are queued from now on. Many ports are added in parts; other tasks
/// of this thread run in between.
async fn publish(
    shared: &Arc<Shared>,
    request: &LeaseRequest,
    acquired: AcquiredPorts,
    gathering: Option<Arc<Notify>>,
) -> Result<Lease> {
    let peers = request.peers.unwrap_or(request.terms.peers);
    let (transport, terms) = (request.transport, Terms { peers, ..request.terms });
    let AcquiredPorts { address, ports, claim } = acquired;
    let gathered = gathering.is_some();
    let arrived = gathering.unwrap_or_default();
    let any = address.unwrap_or(ANY);
    let id = {
        let mut core = shared.lock();
        if let Some(&port) = ports.iter().find(|&&port| core.table.is_leased(transport, any, port)) {
            let holder = Some("another lease of this process".to_owned());
            return Err(Error::PortTaken { protocol: transport.name(), address: any, port, holder });
        }
        let id = core.table.next_lease();
        let reservations = match (claim, core.service()) {
            (PortClaim::Reservations(reservations), _) => reservations,
            (PortClaim::Service(socket), service) => {
                service.map_or(Ok(()), |service| service.add_socket(id, socket))?;
                Vec::new()
            }
        };
        let owned = Ports { transport, address: any, ports: ports.clone() };
        core.list_lease(id, owned, LeaseHandles { arrived: arrived.clone(), gathered, reservations });
        id
    };
    // Dropping it returns the ports, also after an error.
    let closes_here = AtomicBool::new(false);
    let exchanges = Mutex::new(Exchanges::new(shared.lock().backend.peers(id, terms.peers)));
    let inner =
        LeaseInner { shared: shared.clone(), id, transport, address, terms, ports, arrived, closes_here, exchanges };
    let mut parts = inner.ports.chunks(PORTS_AT_ONCE).peekable();
    while let Some(ports) = parts.next() {
        shared.lock().own(id, &inner.part(ports), terms)?;
        if parts.peek().is_some() {
            yield_now().await;
        }
    }
    Ok(Lease { inner: Arc::new(inner) })
}

/// The call that leases the ports from the service.
fn call_for(interface: &str, request: &LeaseRequest) -> LeaseCall {
    let LeaseRequest { transport, address, port, terms, coalesce, peers } = request;
    let (first, last) = match port {
        PortChoice::Free | PortChoice::FreeRange(_) => (None, None),
        PortChoice::Exact(port) => (Some(*port), None),
        PortChoice::Range(range) => (Some(*range.start()), Some(*range.end())),
    };
    LeaseCall {
        interface: Some(interface.to_owned()),
        protocol: transport.name().to_ascii_lowercase(),
        address: address.map(|address| address.to_string()),
        port: first.map(u64::from),
        last_port: last.map(u64::from),
        count: if let PortChoice::FreeRange(count) = port { Some(u64::from(*count)) } else { None },
        observe: Some(terms.observe),
        suppress: Some(terms.suppress),
        report: Some(terms.report),
        coalesce: coalesce.then_some(true),
        peers: peers.map(|peers| peers.name().to_owned()),
        ..LeaseCall::default()
    }
}
