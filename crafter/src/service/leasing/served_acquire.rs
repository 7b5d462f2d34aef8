//! Acquires what a plan needs: ports, and the socket pair of the client.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    rc::Rc,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::SndBuf};
use socket2::SockRef;
use tokio::task::yield_now;

use super::{
    super::{
        attachment::{Attachment, AttachmentGuard},
        caller::Caller,
        served_lease::ServedLease,
        shares::Charge,
        state::Service,
    },
    lease_error::LeaseError,
    plan::{Candidates, Plan},
    served_request::ServedRequest,
};
use crate::{
    Error, Lease, LeaseRequest, Result,
    datapath::{maps::Terms, reserve::Acquisition},
    driver::PortChoice,
    policy::{Decision, Grant, Host, Policy, RequestedLease, Verdict},
};

/// Descriptors of a lease besides those of its ports: its socket, and the client's end until it is sent.
const LEASE: u32 = 2;

/// Any address of this host.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// An acquired lease; dropping it returns everything.
pub(super) struct AcquiredLease {
    pub(super) guard: AttachmentGuard,
    /// The driver's lease; `None` without ports.
    pub(super) lease: Option<Lease>,
    pub(super) grant: Grant,
    pub(super) charge: Charge,
    pub(super) ours: OwnedFd,
    pub(super) theirs: OwnedFd,
}

/// Acquires what is planned.
///
/// # Errors
/// A refusal of the policy, now that ports and usage are known; [`Error::PortTaken`]; [`Error::NoFreePorts`]; errors of
/// the driver; no descriptors left in the user's share.
pub(super) async fn acquire(
    service: &Service,
    policy: &Policy,
    caller: &Caller,
    request: &ServedRequest,
    plan: &Plan,
    host: &Host,
    guard: AttachmentGuard,
) -> Result<AcquiredLease, LeaseError> {
    let attachment = guard.attachment.clone();
    let usage = service.users.of(caller.subject.user);
    let granted = |ports: RangeInclusive<u16>| -> Result<(Grant, Charge), Decision> {
        let count = if request.transport.is_some() { ports.len() as u32 } else { 0 };
        let requested = RequestedLease { address: plan.address, ..request.requested(&plan.interface, ports) };
        let grant = policy.grant(&caller.subject, &requested, host, &usage.borrow())?;
        Ok((grant, Charge::new(&service.users, caller.subject.user, count)))
    };
    let account = service.users.account(caller.subject.user);
    let Some(transport) = request.transport else {
        let descriptors = service.descriptors.charge(account, LEASE)?;
        let (grant, charge) = granted(0..=0)?;
        let (ours, theirs) = pair(charge.socket_bytes())?;
        return Ok(AcquiredLease { guard, lease: None, grant, charge: charge.with(descriptors), ours, theirs });
    };
    let (address, ifindex) = (plan.address.unwrap_or(ANY), attachment.interface().ifindex);
    let (sample, count) = match &plan.ports {
        Candidates::These(ports) => (ports.clone(), ports.len() as u32),
        Candidates::Free { rule, allowed, count } => {
            let refused = Decision { rule: Some(*rule), verdict: Verdict::Port };
            let room = allowed.iter().find(|range| range.len() >= usize::from(*count)).ok_or(refused)?;
            (*room.start()..=room.start() + (count - 1), u32::from(*count))
        }
        Candidates::None => return Err(Error::invalid("port", "a lease without a protocol has no ports").into()),
    };
    let work = async {
        // Before any port is tried: the policy's limits, and the user's share of descriptors.
        drop(granted(sample)?);
        let descriptors = service.descriptors.charge(account, LEASE + count)?;
        let acquisition = match &plan.ports {
            Candidates::Free { allowed, count, .. } => Acquisition::free(transport, address, allowed, *count, ifindex),
            Candidates::These(ports) => Acquisition::exact(transport, address, ports.clone(), ifindex),
            Candidates::None => return Err(LeaseError::from(Error::invalid("port", "there is none"))),
        };
        let crafter = attachment.crafter()?;
        let is_leased = |port| crafter.is_leased(transport, address, port);
        let mut acquisition = acquisition?;
        let reserved = loop {
            let _turn = service.searches.one().await;
            if let Some(reserved) = acquisition.turn(is_leased)? {
                break reserved;
            }
            // Other tasks run before the next turn, which may be another call's.
            yield_now().await;
        };
        let (Some(first), Some(last)) = (reserved.first(), reserved.last()) else {
            return Err(Error::invalid("port", "no port was requested").into());
        };
        let ports = first.port()..=last.port();
        let (grant, charge) = granted(ports.clone())?;
        let request = LeaseRequest {
            transport,
            address: plan.address,
            port: PortChoice::Range(ports),
            terms: Terms { user: account, peers: grant.peers(), ..kernel_terms(request) },
            coalesce: false,
            peers: None,
        };
        let lease = crafter.lease_reserved(request, reserved, attachment.arrived.clone()).await?;
        Ok((lease, grant, charge.with(descriptors)))
    };
    let acquired = service.searches.alone(account, work).await;
    let (lease, grant, charge) = acquired.map_err(|error| own_holder(service, caller, &attachment, error))?;
    let (ours, theirs) = pair(charge.socket_bytes())?;
    Ok(AcquiredLease { guard, lease: Some(lease), grant, charge, ours, theirs })
}

/// How the kernel half treats packets for the lease.
pub(super) fn kernel_terms(request: &ServedRequest) -> Terms {
    Terms { observe: request.observe, suppress: request.suppress, report: true, ..Terms::default() }
}

/// Replaces the holder of a taken port: only a lease of the caller is named. A client must not learn about other users'
/// leases and processes.
fn own_holder(service: &Service, caller: &Caller, interface: &Rc<Attachment>, error: LeaseError) -> LeaseError {
    let LeaseError::Failed(Error::PortTaken { protocol, address, port, .. }) = error else { return error };
    let owns = |lease: &&Rc<ServedLease>| {
        let requested = lease.terms.grant.requested();
        lease.subject().user == caller.subject.user
            && requested.transport.is_some_and(|transport| transport.name() == protocol)
            && requested.ports.contains(&port)
            && (lease.terms.address.is_none_or(|own| own == address) || address.is_unspecified())
    };
    let holder = service.leases_on(interface).iter().find(owns).map(|own| format!("your lease {}", own.terms.number));
    LeaseError::Failed(Error::PortTaken { protocol, address, port, holder })
}

/// Makes both ends of a lease's socket, each with a send buffer of `bytes` as the kernel counts them. The client's end
/// is in blocking mode.
pub(super) fn pair(bytes: usize) -> Result<(OwnedFd, OwnedFd)> {
    let failed = |errno: nix::Error| Error::Io { action: "make the socket of a lease".into(), source: errno.into() };
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(failed)?;
    // sock_setsockopt() doubles the value.
    let bytes = bytes / 2;
    for end in [&ours, &theirs] {
        // Above `net.core.wmem_max`, which allows some 200 small messages. The lease works with a smaller buffer.
        if setsockopt(end, nix::sys::socket::sockopt::SndBufForce, &bytes).is_err() {
            let _ = setsockopt(end, SndBuf, &bytes);
        }
    }
    SockRef::from(&ours)
        .set_nonblocking(true)
        .map_err(|source| Error::Io { action: "make the socket of a lease".into(), source })?;
    Ok((ours, theirs))
}
