//! Makes leases: acquires ports from the kernel or the service, and publishes them in the core.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use tokio::sync::Notify;

use super::{Lease, LeaseInner, LeaseRequest, PortChoice};
use crate::{
    datapath::{
        address::local_addresses,
        reserve::{self, Reservation},
    },
    driver::{core::LeaseHandles, entry::Ports, service, shared::Shared},
    error::{Error, Result},
    packet::Transport,
    protocol::{Control, wire::LeaseCall},
};

/// The dynamic ports (RFC 6335, section 6), from which free ports are taken.
const DYNAMIC: RangeInclusive<u16> = 49152..=65535;

/// Random places to try before all ports or identifiers count as taken.
const PICKS: u32 = 1000;

/// Retry delay for a port that was just closed and that the service is about to release.
const RELEASED_PORT_RETRY_DELAY: Duration = Duration::from_millis(1);

/// Any address of this host.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

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
        check_address(shared, &request).await?;
        let acquired = match shared.control() {
            Some(control) => from_service(&control, shared, &request).await?,
            None => from_kernel(shared, &request)?,
        };
        publish(shared, &request, acquired, gathering)
    }
}

/// Checks that the address is this host's.
async fn check_address(shared: &Shared, request: &LeaseRequest) -> Result<()> {
    // The driver caches the list; the kernel is asked only about an address that is not in it.
    let known = |address| shared.lock().backend.is_local(address);
    if let Some(address) = request.address.filter(|address| !known(*address)) {
        let addresses = local_addresses().await?;
        if !addresses.contains(&address) && !address.is_loopback() {
            return Err(Error::invalid("address", format_args!("{address} is not an address of this host")));
        }
        shared.lock().backend.set_local(&addresses)?;
    }
    Ok(())
}

/// Reserves the ports with sockets.
fn from_kernel(shared: &Shared, request: &LeaseRequest) -> Result<AcquiredPorts> {
    let address = request.address.unwrap_or(ANY);
    let ifindex = shared.interface.ifindex;
    // The kernel does not reserve ICMP identifiers for every user; the table knows those of this process.
    let is_leased = |port| shared.lock().table.is_leased(request.transport, address, port);
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
        PortChoice::FreeRange(count) => reserve_row(request.transport, address, *count, ifindex)?,
        PortChoice::Exact(port) if !request.transport.ports().contains(port) => {
            return Err(Error::invalid("port", "port 0 cannot be leased; choose one from 1 to 65535"));
        }
        PortChoice::Exact(port) => vec![reserve::reserve(request.transport, address, *port, ifindex)?],
        PortChoice::Range(range) if range.is_empty() || !request.transport.ports().contains(range.start()) => {
            let reason =
                format_args!("{range:?} is not a valid port range; write the lower port first, from 1 to 65535");
            return Err(Error::invalid("ports", reason));
        }
        PortChoice::Range(range) => reserve::reserve_range(request.transport, address, range.clone(), ifindex)?,
    };
    let ports: Vec<u16> = reservations.iter().map(Reservation::port).collect();
    if let Some(&port) = ports.iter().find(|&&port| is_leased(port)) {
        let holder = Some("another lease of this process".to_owned());
        return Err(Error::PortTaken { protocol: request.transport.name(), address, port, holder });
    }
    Ok(AcquiredPorts { address: request.address, ports, claim: PortClaim::Reservations(reservations) })
}

/// Reserves `count` consecutive free ports.
fn reserve_row(transport: Transport, address: IpAddr, count: u16, ifindex: u32) -> Result<Vec<Reservation>> {
    let Some(last) = DYNAMIC.end().checked_sub(count.max(1) - 1).filter(|last| last >= DYNAMIC.start()) else {
        return Err(Error::invalid(
            "ports",
            format_args!("{count} consecutive ports do not fit between 49152 and 65535; ask for fewer"),
        ));
    };
    let places = u32::from(last - DYNAMIC.start()) + 1;
    let mut result = Err(Error::invalid("ports", "the kernel returned no random numbers"));
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

/// Adds the lease to the core: packets for its ports are queued from now on.
fn publish(
    shared: &Arc<Shared>,
    request: &LeaseRequest,
    acquired: AcquiredPorts,
    gathering: Option<Arc<Notify>>,
) -> Result<Lease> {
    let (transport, terms) = (request.transport, request.terms);
    let AcquiredPorts { address, ports, claim } = acquired;
    let gathered = gathering.is_some();
    let arrived = gathering.unwrap_or_default();
    let mut core = shared.lock();
    let id = core.table.next_lease();
    let reservations = match (claim, core.service()) {
        (PortClaim::Reservations(reservations), _) => reservations,
        (PortClaim::Service(socket), service) => {
            service.map_or(Ok(()), |service| service.add_socket(id, socket))?;
            Vec::new()
        }
    };
    let owned = Ports { transport, address: address.unwrap_or(ANY), ports: ports.clone() };
    core.add_lease(id, owned, terms, LeaseHandles { arrived: arrived.clone(), gathered, reservations })?;
    drop(core);
    let inner = LeaseInner { shared: shared.clone(), id, transport, address, terms, ports, arrived };
    Ok(Lease { inner: Arc::new(inner) })
}

/// The call that leases the ports from the service.
fn call_for(interface: &str, request: &LeaseRequest) -> LeaseCall {
    let LeaseRequest { transport, address, port, terms, coalesce } = request;
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
        ..LeaseCall::default()
    }
}
