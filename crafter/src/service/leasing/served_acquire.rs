//! Acquires what a plan needs: ports, and the socket pair of the client.

use std::{ops::RangeInclusive, os::fd::OwnedFd, rc::Rc};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::SndBuf};
use socket2::SockRef;

use super::{
    super::{
        attachment::{Attachment, AttachmentGuard},
        caller::Caller,
        quota::Charge,
        served_lease::ServedLease,
        state::Service,
    },
    lease_error::LeaseError,
    plan::{Candidates, Plan, pick},
    served_request::ServedRequest,
};
use crate::{
    Error, Lease, LeaseRequest, Result,
    datapath::maps::Terms,
    driver::PortChoice,
    packet::Transport,
    policy::{Decision, Grant, Host, Policy, RequestedLease, Verdict},
};

/// The send buffer of each end of a lease's socket, in bytes; the kernel adds some overhead.
const SOCKET_BYTES: usize = 2 << 20;

/// Random ports to try before those of the policy count as taken.
const PICKS: u32 = 1000;

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
/// A refusal of the policy, now that ports and usage are known; [`Error::PortTaken`]; errors of the driver.
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
        Ok((grant, Charge::new(usage.clone(), count)))
    };
    let terms = Terms { user: caller.subject.user, ..kernel_terms(request) };
    let crafter = attachment.crafter()?;
    let obtain = async |transport: Transport, ports: RangeInclusive<u16>| {
        let port = PortChoice::Range(ports);
        let request = LeaseRequest { transport, address: plan.address, port, terms, coalesce: false };
        let lease = crafter.lease_gathered(request, attachment.arrived.clone()).await;
        lease.map_err(|error| own_holder(service, caller, &attachment, error))
    };
    let (lease, grant, charge) = match (request.transport, &plan.ports) {
        (Some(transport), Candidates::These(ports)) => {
            let (grant, charge) = granted(ports.clone())?;
            (Some(obtain(transport, ports.clone()).await?), grant, charge)
        }
        (Some(transport), Candidates::Free { rule, allowed, count }) => {
            let mut tries = 0;
            loop {
                let refused = Decision { rule: Some(*rule), verdict: Verdict::Port };
                let ports = pick(allowed, *count, random()?).ok_or(refused)?;
                let (grant, charge) = granted(ports.clone())?;
                tries += 1;
                match obtain(transport, ports).await {
                    Ok(lease) => break (Some(lease), grant, charge),
                    Err(Error::PortTaken { .. }) if tries < PICKS => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        _ => {
            let (grant, charge) = granted(0..=0)?;
            (None, grant, charge)
        }
    };
    let (ours, theirs) = pair()?;
    Ok(AcquiredLease { guard, lease, grant, charge, ours, theirs })
}

/// How the kernel half treats packets for the lease.
pub(super) fn kernel_terms(request: &ServedRequest) -> Terms {
    Terms { observe: request.observe, suppress: request.suppress, report: true, ..Terms::default() }
}

fn random() -> Result<u32> {
    let failed = |error: getrandom::Error| Error::Io { action: "read random bytes".into(), source: error.into() };
    getrandom::u32().map_err(failed)
}

/// Replaces the holder of a taken port: only a lease of the caller is named. A client must not learn about other users'
/// leases and processes.
fn own_holder(service: &Service, caller: &Caller, interface: &Rc<Attachment>, error: Error) -> Error {
    let Error::PortTaken { protocol, address, port, .. } = error else { return error };
    let owns = |lease: &&Rc<ServedLease>| {
        let requested = lease.terms.grant.requested();
        lease.subject().user == caller.subject.user
            && requested.transport.is_some_and(|transport| transport.name() == protocol)
            && requested.ports.contains(&port)
            && (lease.terms.address.is_none_or(|own| own == address) || address.is_unspecified())
    };
    let holder = service.leases_on(interface).iter().find(owns).map(|own| format!("your lease {}", own.terms.number));
    Error::PortTaken { protocol, address, port, holder }
}

/// Makes both ends of a lease's socket, with room for a burst. The client's end is in blocking mode.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let failed = |errno: nix::Error| Error::Io { action: "make the socket of a lease".into(), source: errno.into() };
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(failed)?;
    for end in [&ours, &theirs] {
        // Above `net.core.wmem_max`, which allows some 200 small messages. A smaller buffer is no error.
        if setsockopt(end, nix::sys::socket::sockopt::SndBufForce, &SOCKET_BYTES).is_err() {
            let _ = setsockopt(end, SndBuf, &SOCKET_BYTES);
        }
    }
    SockRef::from(&ours)
        .set_nonblocking(true)
        .map_err(|source| Error::Io { action: "make the socket of a lease".into(), source })?;
    Ok((ours, theirs))
}
