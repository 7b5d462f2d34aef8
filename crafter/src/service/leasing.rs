//! `Lease` and `Observe`: from a wish to a socket.

use std::{net::IpAddr, ops::RangeInclusive, os::fd::OwnedFd, rc::Rc};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::SndBuf};
use socket2::SockRef;
use tokio::task::spawn_local;

use super::{
    attachment::Attachment,
    hold::{Hold, Tally, Terrain},
    host::audit::{Of, What},
    observe, outgoing,
    state::Service,
    users::Charge,
};
use crate::{
    Error, LeaseRequest, Result,
    capture::Direction,
    datapath::{maps::Terms, reserve::DYNAMIC, route, tap::Tap},
    driver::PortChoice,
    packet::Transport,
    policy::{Decision, Grant, Host, LeaseWish, Policy, Subject, Verdict},
    protocol::wire::{Fault, LeaseCall, Leased, ObserveCall, Observing},
};

/// Bytes of messages that wait in a lease's socket, each way; the kernel counts some overhead with them.
const ROOM: usize = 2 << 20;

/// Random ports tried before those of the policy count as taken.
const PICKS: u32 = 1000;

/// Who calls.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) subject: Subject,
    pub(super) pid: Option<u32>,
    /// What became of the packets of all leases of this connection.
    pub(super) total: Rc<Tally>,
}

/// `Lease`
pub(super) async fn lease(
    service: &Rc<Service>,
    caller: &Caller,
    call: &LeaseCall,
) -> Result<(Leased, OwnedFd), Fault> {
    let wanted = Wanted::read(call)?;
    let mut taken = take(service, caller, &wanted).await;
    // Who closes a lease and takes another may be heard sooner than the end of the former, which has the port still, or
    // is the last that the policy allows.
    if taken.is_err() && outgoing::end_closed(service) {
        taken = take(service, caller, &wanted).await;
    }
    taken.map_err(|refused| {
        let what = || What {
            interface: call.interface.as_deref(),
            protocol: Some(wanted.protocol),
            address: wanted.address,
            ports: if let Ports::These(ports) = &wanted.ports { Some(ports.clone()) } else { None },
            destination: wanted.destination,
            destination_port: None,
        };
        refused.into_fault(|decision| service.record_refused_lease(caller, Of::Lease, what(), decision))
    })
}

/// Why there is no lease.
enum NoLease {
    Refused(Decision),
    Fault(Fault),
}

impl NoLease {
    /// On the wire; `refused` is told what the policy refused.
    fn into_fault(self, refused: impl FnOnce(Decision)) -> Fault {
        match self {
            Self::Refused(decision) => {
                refused(decision);
                decision.into()
            }
            Self::Fault(fault) => fault,
        }
    }
}

impl From<Decision> for NoLease {
    fn from(decision: Decision) -> Self {
        Self::Refused(decision)
    }
}

impl From<Error> for NoLease {
    fn from(error: Error) -> Self {
        Self::Fault(error.into())
    }
}

impl From<Fault> for NoLease {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

async fn take(service: &Rc<Service>, caller: &Caller, wanted: &Wanted) -> Result<(Leased, OwnedFd), NoLease> {
    let policy = service.policy();
    // Whom no rule names learns nothing else of the host, and attaches to nothing.
    let rule = policy.rule_of(&caller.subject).ok_or(Decision { rule: None, verdict: Verdict::NoRule })?;
    let (interface, preferred) = place(wanted).await?;
    let sample = match &wanted.ports {
        Ports::These(ports) => ports.clone(),
        _ => {
            let ranges = wanted.transport.map(|transport| rule.leasable(transport)).unwrap_or_default();
            ranges.first().map_or(0..=0, |range| *range.start()..=*range.start())
        }
    };
    allowed(policy.wish(&caller.subject, &wish_of(wanted, &interface, sample)))?;
    let using = service.using(&interface).await?;
    let attachment = &using.attachment;
    let host = service.host(attachment.interface().mtu)?;
    let address = local_address(&policy, caller, wanted, &interface, &host, preferred)?;
    let usage = service.users.of(caller.subject.user);
    let ports = match &wanted.ports {
        Ports::None | Ports::Free(_) => None,
        Ports::These(ports) => Some(ports.clone()),
    };
    let grant_for = |ports: RangeInclusive<u16>| -> Result<(Grant, Charge), Decision> {
        let count = if wanted.transport.is_some() { ports.len() as u32 } else { 0 };
        let wish = LeaseWish { address, ..wish_of(wanted, &interface, ports) };
        let grant = policy.grant(&caller.subject, &wish, &host, &usage.borrow())?;
        Ok((grant, Charge::new(usage.clone(), count)))
    };
    let terms = Terms { observe: wanted.observe, suppress: wanted.suppress, report: true };
    let crafter = attachment.crafter()?;
    let obtain = async |transport, ports: RangeInclusive<u16>| {
        let port = PortChoice::Range(ports);
        let request = LeaseRequest { transport, address, port, terms, coalesce: false };
        crafter.lease_gathered(request, attachment.arrived.clone()).await.map_err(|error| held_by(attachment, error))
    };
    let (lease, grant, charge) = match (wanted.transport, ports) {
        (None, _) => {
            let (grant, charge) = grant_for(0..=0)?;
            (None, grant, charge)
        }
        (Some(transport), Some(ports)) => {
            let (grant, charge) = grant_for(ports.clone())?;
            (Some(obtain(transport, ports).await?), grant, charge)
        }
        (Some(transport), None) => {
            let allowed = rule.leasable(transport);
            let count = if let Ports::Free(count) = &wanted.ports { *count } else { 1 };
            let mut tries = 0;
            loop {
                let ports =
                    pick(&allowed, count).ok_or(Decision { rule: Some(rule.number), verdict: Verdict::Port })?;
                let (grant, charge) = grant_for(ports.clone())?;
                tries += 1;
                match obtain(transport, ports).await {
                    Ok(lease) => break (Some(lease), grant, charge),
                    Err(Error::PortTaken { .. }) if tries < PICKS => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    };
    let (ours, theirs) = pair()?;
    let ports = lease.as_ref().map(|_| grant.wish().ports.clone());
    let number = service.number();
    let what = Terrain {
        number,
        pid: caller.pid,
        protocol: wanted.protocol,
        grant,
        address,
        terms,
        report: wanted.report,
        coalesce: wanted.coalesce,
        total: caller.total.clone(),
    };
    let listed = lease.as_ref().map(crate::Lease::number);
    let hold = Hold::new(what, using, lease, ours, charge)?;
    let attachment = &hold.attachment;
    if let Some(listed) = listed {
        attachment.list(listed, hold.clone());
    }
    service.begin(hold.clone());
    // Something may have come between the lease and its being listed.
    attachment.arrived.notify_one();
    let report = attachment.report();
    let leased = Leased {
        lease: number,
        socket: 0,
        interface: interface.clone(),
        index: attachment.interface().ifindex,
        address: address.map(|address| address.to_string()),
        first_port: ports.as_ref().map(|ports| *ports.start()),
        last_port: ports.as_ref().map(|ports| *ports.end()),
        mtu: attachment.interface().mtu.min(u16::MAX.into()),
        mode: report.mode.name().to_owned(),
        classifier: report.classifier.to_owned(),
        sockets: report.sockets as u32,
        notes: report.notes.clone(),
    };
    spawn_local(outgoing::run(service.clone(), hold.clone()));
    Ok((leased, theirs))
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
    let mut taken = look_on(service, caller, call).await;
    if taken.is_err() && outgoing::end_closed(service) {
        taken = look_on(service, caller, call).await;
    }
    taken.map_err(|refused| {
        let what = What { interface: Some(&call.interface), ..What::default() };
        refused.into_fault(|decision| service.record_refused_lease(caller, Of::Observe, what, decision))
    })
}

async fn look_on(service: &Rc<Service>, caller: &Caller, call: &ObserveCall) -> Result<(Observing, OwnedFd), NoLease> {
    let direction = match call.direction.as_deref() {
        None => None,
        Some("in") => Some(Direction::In),
        Some("out") => Some(Direction::Out),
        Some(other) => return Err(Error::invalid("direction", format_args!("'{other}': in and out are")).into()),
    };
    let wish = LeaseWish {
        interface: call.interface.clone(),
        transport: None,
        address: None,
        ports: 0..=0,
        raw_ethernet: false,
        observe: true,
    };
    let policy = service.policy();
    allowed(policy.wish(&caller.subject, &wish))?;
    let using = service.using(&call.interface).await?;
    let attachment = &using.attachment;
    let host = service.host(attachment.interface().mtu)?;
    let usage = service.users.of(caller.subject.user);
    let grant = policy.grant(&caller.subject, &wish, &host, &usage.borrow())?;
    let charge = Charge::new(usage, 0);
    let tap = Tap::open(&call.interface, &observe::options(call.filter.clone(), direction)).await?;
    let (ours, theirs) = pair()?;
    let (number, link_type) = (service.number(), tap.link().0);
    let what = Terrain {
        number,
        pid: caller.pid,
        protocol: "observe",
        grant,
        address: None,
        terms: Terms { observe: true, suppress: false, report: false },
        report: false,
        coalesce: false,
        total: caller.total.clone(),
    };
    let index = attachment.interface().ifindex;
    let hold = Hold::new(what, using, None, ours, charge)?;
    service.begin(hold.clone());
    spawn_local(observe::run(service.clone(), hold, tap, direction == Some(Direction::Out)));
    Ok((Observing { lease: number, socket: 0, interface: call.interface.clone(), index, link_type }, theirs))
}

/// A call's parameters, read.
struct Wanted {
    interface: Option<String>,
    destination: Option<IpAddr>,
    protocol: &'static str,
    transport: Option<Transport>,
    address: Option<IpAddr>,
    ports: Ports,
    frames: bool,
    observe: bool,
    suppress: bool,
    report: bool,
    coalesce: bool,
}

enum Ports {
    None,
    /// So many in a row.
    Free(u16),
    These(RangeInclusive<u16>),
}

impl Wanted {
    fn read(call: &LeaseCall) -> Result<Self> {
        let (protocol, transport) = match call.protocol.as_str() {
            "tcp" => ("tcp", Some(Transport::Tcp)),
            "udp" => ("udp", Some(Transport::Udp)),
            "icmp" => ("icmp", Some(Transport::Icmp)),
            "none" => ("none", None),
            other => {
                return Err(Error::invalid("protocol", format_args!("'{other}': tcp, udp, icmp and none are")));
            }
        };
        let ports = match (transport, call.port, call.last_port) {
            (None, None, None) => Ports::None,
            (None, ..) => return Err(Error::invalid("port", "protocol none has no ports")),
            (_, None, None) => Ports::Free(call.count.map_or(Ok(1), |count| port("count", count, 1..=u16::MAX))?),
            _ if call.count.is_some() => return Err(Error::invalid("count", "it is for free ports, without port")),
            (_, None, Some(_)) => return Err(Error::invalid("port", "the first one of the range is missing")),
            (Some(transport), Some(first), last) => {
                let possible = || transport.ports();
                Ports::These(port("port", first, possible())?..=port("last_port", last.unwrap_or(first), possible())?)
            }
        };
        if let Ports::These(range) = &ports
            && range.is_empty()
        {
            return Err(Error::invalid("last_port", "a range goes from a lower to a higher port"));
        }
        let wanted = Self {
            interface: call.interface.clone(),
            destination: call.destination.as_deref().map(|text| address("destination", text)).transpose()?,
            protocol,
            transport,
            address: call.address.as_deref().map(|text| address("address", text)).transpose()?,
            ports,
            frames: call.frames.unwrap_or(false),
            observe: call.observe.unwrap_or(false),
            suppress: call.suppress.unwrap_or(true),
            report: call.report.unwrap_or(false),
            coalesce: call.coalesce.unwrap_or(false),
        };
        if wanted.interface.is_none() && wanted.destination.is_none() {
            return Err(Error::invalid("interface", "this or destination is needed, to know where to receive"));
        }
        Ok(Self { address: wanted.address.filter(|address| !address.is_unspecified()), ..wanted })
    }
}

/// An address.
pub(super) fn address(field: &str, text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| Error::invalid(field, format_args!("'{text}' is no IPv4 or IPv6 address")))
}

/// A port, or an identifier of ICMP queries.
pub(super) fn port(field: &str, number: u64, possible: RangeInclusive<u16>) -> Result<u16> {
    let port = u16::try_from(number).ok().filter(|port| possible.contains(port));
    let reason = || format!("{number}: {} to {} are possible", possible.start(), possible.end());
    port.ok_or_else(|| Error::invalid(field, reason()))
}

fn wish_of(wanted: &Wanted, interface: &str, ports: RangeInclusive<u16>) -> LeaseWish {
    LeaseWish {
        interface: interface.to_owned(),
        transport: wanted.transport,
        address: wanted.address,
        ports,
        raw_ethernet: wanted.frames,
        observe: false,
    }
}

/// The interface to lease on, and the source address that the way to the destination prefers.
async fn place(wanted: &Wanted) -> Result<(String, Option<IpAddr>)> {
    let Some(destination) = wanted.destination else {
        return Ok((wanted.interface.clone().unwrap_or_default(), None));
    };
    let route = route::without_hop(destination, wanted.interface.as_deref(), wanted.address).await?;
    Ok((route.interface, Some(route.source)))
}

/// The address to lease on. Where none is named, all of the host's, if the policy allows them all; otherwise the
/// one that packets to the destination have, or the only one allowed.
fn local_address(
    policy: &Policy,
    caller: &Caller,
    wanted: &Wanted,
    interface: &str,
    host: &Host,
    preferred: Option<IpAddr>,
) -> Result<Option<IpAddr>, Fault> {
    if wanted.address.is_some() {
        return Ok(wanted.address);
    }
    let allows = |address: IpAddr| {
        let wish = LeaseWish { address: Some(address), ..wish_of(wanted, interface, 0..=0) };
        policy.wish(&caller.subject, &LeaseWish { transport: None, ..wish }).is_allowed()
    };
    let mut allowed = host.addresses.iter().copied().filter(|address| allows(*address));
    if host.addresses.iter().all(|address| allows(*address)) {
        return Ok(None);
    }
    if let Some(preferred) = preferred.filter(|address| allows(*address)) {
        return Ok(Some(preferred));
    }
    match (allowed.next(), allowed.next()) {
        (Some(only), None) => Ok(Some(only)),
        (None, _) => Ok(None),
        (Some(one), Some(other)) => {
            let reason = format_args!("the policy allows some of this host's only: name one, such as {one} or {other}");
            Err(Error::invalid("address", reason).into())
        }
    }
}

/// So many ports in a row of those allowed: dynamic ones where the policy has some, at random (RFC 6056 section 3.1).
fn pick(allowed: &[RangeInclusive<u16>], count: u16) -> Option<RangeInclusive<u16>> {
    let within = |bounds: &RangeInclusive<u16>| -> Vec<RangeInclusive<u16>> {
        let cut =
            |range: &RangeInclusive<u16>| (*range.start()).max(*bounds.start())..=(*range.end()).min(*bounds.end());
        // Where the first of them may be.
        let first = |range: RangeInclusive<u16>| Some(*range.start()..=range.end().checked_sub(count - 1)?);
        allowed.iter().map(cut).filter_map(first).filter(|range| !range.is_empty()).collect()
    };
    let mut ranges = within(&DYNAMIC);
    if ranges.is_empty() {
        ranges = within(&(1..=u16::MAX));
    }
    let total: u32 = ranges.iter().map(|range| range.len() as u32).sum();
    let mut place = getrandom::u32().ok()?.checked_rem(total)?;
    for range in ranges {
        match place.checked_sub(range.len() as u32) {
            None => {
                let first = range.start() + place as u16;
                return Some(first..=first + (count - 1));
            }
            Some(rest) => place = rest,
        }
    }
    None
}

/// Names the lease that has a port, where it is one of the service.
fn held_by(attachment: &Attachment, error: Error) -> Error {
    let Error::PortTaken { protocol, address, port, .. } = &error else { return error };
    let owns = |hold: &&Rc<Hold>| {
        let wish = hold.what.grant.wish();
        wish.transport.is_some_and(|transport| transport.name() == *protocol)
            && wish.ports.contains(port)
            && (hold.what.address.is_none_or(|own| own == *address) || address.is_unspecified())
    };
    let Some(holder) = attachment.holds().iter().find(owns).cloned() else { return error };
    let pid = holder.what.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
    let holder = Some(format!("lease {} of user {}{pid}", holder.what.number, holder.subject().user));
    Error::PortTaken { protocol, address: *address, port: *port, holder }
}

/// Both ends of a lease's socket, with room for a burst. The client's end blocks, unless it is told otherwise.
fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let failed = |errno: nix::Error| Error::Io { action: "make the socket of a lease".into(), source: errno.into() };
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(failed)?;
    for end in [&ours, &theirs] {
        // Beyond the limit for everybody, which is some 200 small messages. Less room is no failure.
        if setsockopt(end, nix::sys::socket::sockopt::SndBufForce, &ROOM).is_err() {
            let _ = setsockopt(end, SndBuf, &ROOM);
        }
    }
    SockRef::from(&ours)
        .set_nonblocking(true)
        .map_err(|source| Error::Io { action: "make the socket of a lease".into(), source })?;
    Ok((ours, theirs))
}
