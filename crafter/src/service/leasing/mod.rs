//! The calls `Lease` and `Observe`. `Lease` takes three steps: the policy decides what to lease (the plan); the
//! service acquires ports and a socket, and releases them after an error; the lease is published.

mod lease_error;
mod plan;
mod search_turns;
mod served_acquire;
mod served_request;

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::net::if_::{if_indextoname, if_nametoindex};
use tokio::{task::spawn_local, time::sleep};

use self::{
    lease_error::LeaseError,
    plan::Plan,
    served_acquire::{AcquiredLease, acquire, kernel_terms, pair},
    served_request::{Ports, ServedRequest},
};
pub(super) use self::{
    search_turns::SearchTurns,
    served_request::{address, port},
};
use super::{
    caller::Caller,
    host::audit::{RequestKind, Resource},
    observe,
    outgoing::{self, Closed},
    records,
    served_lease::{LeaseTerms, ServedLease},
    shares::Charge,
    state::Service,
};
use crate::{
    Error, Lease, Result,
    capture::Direction,
    datapath::{maps::Terms, route, tap::Tap},
    policy::{Decision, RequestedLease},
    protocol::wire::{Fault, LeaseCall, Leased, ObserveCall, Observing},
};

/// How long a refused request waits until the last packets of a closed lease of the same user are sent: a little
/// longer than packets may wait for a full queue.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(1500);

/// How often such a request is tried again.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Descriptors of a capture: its socket, the client's end until it is sent, and the tap.
const CAPTURE: u32 = 3;

/// `Lease`
pub(super) async fn lease(
    service: &Rc<Service>,
    caller: &Caller,
    call: &LeaseCall,
) -> Result<(Leased, OwnedFd), Fault> {
    let request = ServedRequest::read(call)?;
    let taken = after_closed_leases(service, caller, async || try_lease(service, caller, &request).await).await;
    taken.map_err(|refused| {
        let resource = || Resource {
            interface: call.interface.as_deref(),
            protocol: Some(request.protocol),
            address: request.address,
            ports: if let Ports::These(ports) = &request.ports { Some(ports.clone()) } else { None },
            destination: request.destination,
            destination_port: None,
        };
        refused
            .into_fault(|cause| records::refused_lease(&service.audit, caller, RequestKind::Lease, resource(), cause))
    })
}

/// Makes an attempt, and tries again after a failure if the same user has just closed another lease: that lease may
/// still have the port, or count against a limit of the policy. The service may not have noticed the close yet, or the
/// last packets of that lease may still wait for a full queue.
async fn after_closed_leases<T>(
    service: &Rc<Service>,
    caller: &Caller,
    attempt: impl AsyncFn() -> Result<T, LeaseError>,
) -> Result<T, LeaseError> {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    loop {
        let taken = attempt().await;
        if taken.is_ok() {
            return taken;
        }
        match outgoing::end_closed(service, service.users.account(caller.subject.user)) {
            Closed::Ended => {}
            Closed::Draining if Instant::now() < deadline => sleep(DRAIN_POLL).await,
            Closed::Draining | Closed::None => return taken,
        }
    }
}

async fn try_lease(
    service: &Rc<Service>,
    caller: &Caller,
    request: &ServedRequest,
) -> Result<(Leased, OwnedFd), LeaseError> {
    let (policy, subject) = (service.policy(), &caller.subject);
    // Checked before the route lookup: a user without a rule must not learn the host's routes.
    plan::rule_of(&policy, subject)?;
    let (interface, preferred) = place(request).await?;
    let rule = plan::admit(&policy, subject, request, &interface)?;
    let guard = service.guard::<LeaseError>(subject, &interface).await?;
    let host = service.host(guard.attachment.interface().mtu)?;
    let plan = plan::plan(&policy, rule, subject, request, &interface, &host, preferred)?;
    let acquired = acquire(service, &policy, caller, request, &plan, &host, guard).await?;
    publish(service, caller, request, plan, acquired)
}

/// Publishes an acquired lease: packets reach it, and its client can send.
fn publish(
    service: &Rc<Service>,
    caller: &Caller,
    request: &ServedRequest,
    plan: Plan,
    acquired: AcquiredLease,
) -> Result<(Leased, OwnedFd), LeaseError> {
    let AcquiredLease { guard, lease, grant, charge, ours, theirs } = acquired;
    let ports = lease.as_ref().map(|_| grant.requested().ports.clone());
    let number = service.number();
    let terms = LeaseTerms {
        number,
        pid: caller.pid,
        protocol: request.protocol,
        grant,
        address: plan.address,
        kernel_terms: kernel_terms(request),
        report: request.report,
        coalesce: request.coalesce,
        total: caller.total.clone(),
    };
    let listed = lease.as_ref().map(Lease::id);
    let served = ServedLease::new(terms, guard, lease, service.peer_socket(ours, caller), charge)?;
    let attachment = &served.attachment;
    if let Some(listed) = listed {
        let lease = served.clone();
        attachment.add_receiver(listed, move |packets| lease.deliver(packets));
    }
    service.begin(served.clone());
    // Packets may have arrived before the receiver was added.
    attachment.arrived.notify_one();
    let report = attachment.report();
    let leased = Leased {
        lease: number,
        socket: 0,
        interface: plan.interface,
        index: attachment.interface().ifindex,
        address: plan.address.map(|address| address.to_string()),
        first_port: ports.as_ref().map(|ports| *ports.start()),
        last_port: ports.as_ref().map(|ports| *ports.end()),
        mtu: attachment.interface().mtu.min(u16::MAX.into()),
        mode: report.mode.name().to_owned(),
        classifier: report.classifier.to_owned(),
        sockets: report.sockets as u32,
        notes: report.notes.clone(),
    };
    spawn_local(outgoing::run(service.clone(), served));
    Ok((leased, theirs))
}

/// The interface to lease on, and the source address of the route to the destination.
async fn place(request: &ServedRequest) -> Result<(String, Option<IpAddr>)> {
    let Some(destination) = request.destination else {
        return Ok((canonical(request.interface.as_deref().unwrap_or_default()), None));
    };
    let route = route::without_hop(destination, request.interface.as_deref(), request.address).await?;
    Ok((route.interface, Some(route.source)))
}

/// The kernel's name of an interface that the client calls `name`, which may be an alternative name: the policy judges
/// interfaces, not their names. Unchanged if there is none.
fn canonical(name: &str) -> String {
    let known = if_nametoindex(name).and_then(if_indextoname);
    known.map_or_else(|_| name.to_owned(), |known| known.to_string_lossy().into_owned())
}

fn allowed(decision: Decision) -> Result<(), Decision> {
    if decision.is_allowed() { Ok(()) } else { Err(decision) }
}

/// `Observe`
pub(super) async fn observe(
    service: &Rc<Service>,
    caller: &Caller,
    call: &ObserveCall,
) -> Result<(Observing, OwnedFd), Fault> {
    let taken = after_closed_leases(service, caller, async || try_observe(service, caller, call).await).await;
    taken.map_err(|refused| {
        let resource = Resource { interface: Some(&call.interface), ..Resource::default() };
        refused
            .into_fault(|cause| records::refused_lease(&service.audit, caller, RequestKind::Observe, resource, cause))
    })
}

async fn try_observe(
    service: &Rc<Service>,
    caller: &Caller,
    call: &ObserveCall,
) -> Result<(Observing, OwnedFd), LeaseError> {
    let direction = match call.direction.as_deref() {
        None => None,
        Some("in") => Some(Direction::In),
        Some("out") => Some(Direction::Out),
        Some(other) => {
            return Err(Error::invalid("direction", format_args!("'{other}' is not a direction; use in or out")).into());
        }
    };
    let requested = RequestedLease {
        interface: call.interface.clone(),
        transport: None,
        address: None,
        ports: 0..=0,
        raw_ethernet: false,
        observe: true,
    };
    let policy = service.policy();
    // Checked before the name is looked up, so that a user without a rule learns nothing about the host.
    plan::rule_of(&policy, &caller.subject)?;
    let requested = RequestedLease { interface: canonical(&call.interface), ..requested };
    allowed(policy.requested(&caller.subject, &requested))?;
    let guard = service.guard::<LeaseError>(&caller.subject, &requested.interface).await?;
    let attachment = &guard.attachment;
    let host = service.host(attachment.interface().mtu)?;
    let usage = service.users.of(caller.subject.user);
    let descriptors = service.descriptors.charge(service.users.account(caller.subject.user), CAPTURE)?;
    let grant = policy.grant(&caller.subject, &requested, &host, &usage.borrow())?;
    let mut charge = Charge::new(&service.users, caller.subject.user, 0).with(descriptors);
    let buffer = charge.take_capture(&service.users);
    let tap = Tap::open(&requested.interface, &observe::options(call.filter.clone(), direction, buffer)).await?;
    let (ours, theirs) = pair(charge.socket_bytes())?;
    let (number, link_type) = (service.number(), tap.link().0);
    let terms = LeaseTerms {
        number,
        pid: caller.pid,
        protocol: "observe",
        grant,
        address: None,
        kernel_terms: Terms { observe: true, suppress: false, ..Terms::default() },
        report: false,
        coalesce: false,
        total: caller.total.clone(),
    };
    let index = attachment.interface().ifindex;
    let lease = ServedLease::new(terms, guard, None, service.peer_socket(ours, caller), charge)?;
    service.begin(lease.clone());
    spawn_local(observe::run(service.clone(), lease, tap, direction == Some(Direction::Out)));
    Ok((Observing { lease: number, socket: 0, interface: requested.interface, index, link_type }, theirs))
}
