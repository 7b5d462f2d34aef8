//! Methods that report; [`leasing`](super::leasing) has those that lease.

use std::{net::IpAddr, rc::Rc};

use super::{
    attachment::Attachment,
    caller::Caller,
    leasing::{address, port},
    served_lease::ServedLease,
    state::{POLICY, Service},
};
use crate::{
    Error, Result,
    datapath::{
        interface::{Interface, interface, interfaces},
        maps, route,
    },
    layer::Mac,
    policy::{self, Decision, Foreign, Verdict},
    protocol::{
        record::Code,
        wire::{self, *},
    },
};

/// The default and maximum number of entries of a page.
const PAGE: u64 = 1000;

/// `Info`
pub(super) fn info(service: &Service) -> Info {
    Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: ABI,
        pid: std::process::id(),
        user: nix::unistd::Uid::effective().as_raw(),
        policy: match &service.options.policy {
            Some(path) => path.display().to_string(),
            None if std::path::Path::new(POLICY).exists() => POLICY.to_owned(),
            None => "shipped".to_owned(),
        },
        started: service.started.since_1970_us(),
        leases: service.lease_count() as u64,
    }
}

/// `Interfaces`
pub(super) async fn list_interfaces(service: &Service, call: &InterfacesCall) -> Result<Interfaces> {
    let found = match &call.name {
        Some(name) => vec![interface(name).await?],
        None => interfaces().await?,
    };
    Ok(Interfaces { interfaces: found.into_iter().map(|found| describe(service, found)).collect() })
}

fn describe(service: &Service, found: Interface) -> wire::Interface {
    let attachment = service.attached().into_iter().find(|there| there.interface().ifindex == found.ifindex);
    let report = attachment.as_ref().map(|attachment| attachment.report());
    wire::Interface {
        name: found.name,
        index: found.ifindex,
        up: found.up,
        mtu: found.mtu,
        kind: found.kind,
        mac: found.mac.map(|mac| Mac(mac).to_string()),
        addresses: found.addresses.iter().map(ToString::to_string).collect(),
        mode: report.map(|report| report.mode.name().to_owned()),
        classifier: report.map(|report| report.classifier.to_owned()),
        sockets: report.map(|report| report.sockets as u32),
        notes: report.map(|report| report.notes.clone()).unwrap_or_default(),
        leases: attachment.map_or(0, |attachment| attachment.users()),
    }
}

/// `Policy`
pub(super) fn allowance(service: &Service, caller: &Caller) -> Allowance {
    let policy = service.policy();
    let usage = service.users.of(caller.subject.user);
    let usage = usage.borrow();
    Allowance {
        user: caller.subject.user,
        groups: caller.subject.groups.clone(),
        rule: policy.rule_of(&caller.subject).map(rule),
        leases: usage.leases,
        ports: usage.ports,
        flows: usage.flows,
    }
}

fn rule(rule: &policy::Rule) -> Rule {
    let protocols = rule.protocols;
    let named = [(protocols.tcp, "tcp"), (protocols.udp, "udp"), (protocols.icmp, "icmp"), (protocols.any, "any")];
    Rule {
        number: rule.number as u32,
        refuse: rule.refuse,
        protocols: named.iter().filter(|(has, _)| *has).map(|(_, name)| (*name).to_owned()).collect(),
        packets_per_second: rule.rate.map(|rate| rate.packets_per_second),
        burst: rule.rate.map(|rate| rate.burst),
        max_leases: rule.max_leases,
        max_ports: rule.max_ports,
        max_flows: rule.max_flows,
        raw_ethernet: rule.raw_ethernet,
        foreign_sources: !matches!(rule.foreign_sources, Foreign::None),
        observe: rule.observe,
        multicast: rule.multicast,
        broadcast: rule.broadcast,
        text: rule.text.clone(),
    }
}

/// `Reload`
pub(super) fn reload(service: &Service, caller: &Caller) -> Result<Reloaded, Fault> {
    let own = nix::unistd::Uid::effective().as_raw();
    if ![0, own].contains(&caller.subject.user) {
        return Err(Fault::Refused {
            rule: None,
            verdict: Verdict::Refused.name().to_owned(),
            message: "only root and the service's own user may reload the policy".to_owned(),
        });
    }
    let ended = service.reload()?;
    let policy = service.policy();
    let warnings = policy.warnings().iter().map(ToString::to_string).collect();
    Ok(Reloaded { rules: policy.rules().len() as u32, warnings, ended })
}

/// `Route`
pub(super) async fn route(service: &Service, caller: &Caller, call: &RouteCall) -> Result<RouteReply, Fault> {
    known(service, caller)?;
    let destination = address("destination", &call.destination)?;
    let source = call.source.as_deref().map(|text| address("source", text)).transpose()?;
    let found = route::resolve(destination, call.interface.as_deref(), source).await?;
    let mac = |mac: [u8; 6]| Mac(mac).to_string();
    let (link_mac, hop) = match found.link {
        route::LinkLayer::Ethernet { source, destination } => (Some(mac(source)), Some(mac(destination))),
        route::LinkLayer::None => (None, None),
    };
    Ok(RouteReply {
        interface: found.interface,
        index: found.ifindex,
        source: found.source.to_string(),
        mtu: found.mtu,
        gateway: found.gateway.map(|gateway| gateway.to_string()),
        link_mac,
        mac: hop,
    })
}

/// Checks that a rule names the caller.
fn known(service: &Service, caller: &Caller) -> Result<(), Decision> {
    let policy = service.policy();
    match policy.rule_of(&caller.subject) {
        Some(rule) if rule.refuse => Err(Decision { rule: Some(rule.number), verdict: Verdict::Refused }),
        Some(_) => Ok(()),
        None => Err(Decision { rule: None, verdict: Verdict::NoRule }),
    }
}

/// The user whose leases and flows the caller may see; `None`: all users.
pub(super) fn visible(service: &Service, caller: &Caller) -> Option<u32> {
    let may_observe = service.policy().observe(&caller.subject).is_allowed();
    (!may_observe).then_some(caller.subject.user)
}

/// `Release`
pub(super) async fn release(service: &Service, caller: &Caller, call: &ReleaseCall) -> Result<Nothing, Fault> {
    let may = |lease: &Rc<ServedLease>| caller.subject.user == 0 || lease.subject().user == caller.subject.user;
    let Some(lease) = service.lease(call.lease).filter(may) else {
        return Err(Fault::NoSuchLease { lease: call.lease, message: format!("you have no lease {}", call.lease) });
    };
    lease.end(Code::Released, "the lease was released");
    // The ports are free when the caller receives the reply.
    while service.lease(call.lease).is_some() {
        tokio::task::yield_now().await;
    }
    Ok(Nothing {})
}

/// `Account`
pub(super) fn account(service: &Service, caller: &Caller) -> Account {
    let leases = service.leases.borrow();
    leases.values().filter(|lease| Rc::ptr_eq(&lease.terms.total, &caller.total)).for_each(|lease| lease.count_lost());
    drop(leases);
    caller.total.borrow().clone()
}

/// `ListLeases`
pub(super) fn list_leases(service: &Service, caller: &Caller, call: &ListLeasesCall) -> Leases {
    let mine = call.mine.unwrap_or(false).then_some(caller.subject.user);
    let whose = mine.or(visible(service, caller));
    let limit = page(call.limit);
    let mut found = service.leases_after(call.after.unwrap_or(0)).into_iter().filter(|lease| {
        whose.is_none_or(|user| lease.subject().user == user)
            && call.interface.as_ref().is_none_or(|name| *lease.attachment.name() == **name)
    });
    let leases: Vec<Lease> = found.by_ref().take(limit).map(|lease| lease.describe()).collect();
    let next = found.next().and(leases.last().map(|last| last.lease));
    Leases { leases, next }
}

fn page(limit: Option<u64>) -> usize {
    limit.unwrap_or(PAGE).clamp(1, PAGE) as usize
}

/// The attachments to this interface; `None`: all.
fn attached_on(service: &Service, interface: Option<&str>) -> impl Iterator<Item = Rc<Attachment>> {
    service
        .attached()
        .into_iter()
        .filter(move |attachment| interface.is_none_or(|interface| *attachment.name() == *interface))
}

/// `ListFlows`
pub(super) fn list_flows(service: &Service, caller: &Caller, call: &ListFlowsCall) -> Result<Flows> {
    let remote = call.remote.as_deref().map(|text| address("remote", text)).transpose()?;
    let wanted_port = call.port.map(|number| port("port", number, 0..=u16::MAX)).transpose()?;
    let whose = visible(service, caller);
    let mut found: Vec<(String, maps::Flow)> = Vec::new();
    for attachment in attached_on(service, call.interface.as_deref()) {
        let name = attachment.name().to_string();
        let Ok(crafter) = attachment.crafter() else { continue };
        let leases = service.leases_on(&attachment);
        let is_of = |user: u32, flow: &maps::Flow| {
            leases.iter().any(|lease| {
                let ports = &lease.terms.grant.requested().ports;
                lease.subject().user == user
                    && lease.terms.protocol == flow.protocol
                    && ports.contains(&flow.local.port())
                    && lease.terms.address.is_none_or(|address| address == flow.local.ip())
            })
        };
        let flows = crafter.flows().into_iter().filter(|flow| {
            call.protocol.as_ref().is_none_or(|protocol| protocol == flow.protocol)
                && wanted_port.is_none_or(|port| [flow.local.port(), flow.remote.port()].contains(&port))
                && remote.is_none_or(|remote: IpAddr| flow.remote.ip() == remote)
                && whose.is_none_or(|user| is_of(user, flow))
        });
        found.extend(flows.map(|flow| (name.clone(), flow)));
    }
    // Sorted by first packet, so that a page continues after the previous one even if new flows began.
    found.sort_by_key(|(_, flow)| (flow.first_seen_ns, flow.local, flow.remote));
    let after = call.after.unwrap_or(0);
    let mut rest = found.into_iter().filter(|(_, flow)| flow.first_seen_ns > after);
    let mut flows: Vec<Flow> =
        rest.by_ref().take(page(call.limit)).map(|(interface, flow)| Flow::of_map(interface, &flow)).collect();
    let last = flows.last().map(|last| last.first_seen_ns);
    let mut rest = rest.peekable();
    // The next page begins after this time, so all flows of this time belong to this page.
    while let Some((interface, flow)) = rest.next_if(|(_, flow)| Some(flow.first_seen_ns) == last) {
        flows.push(Flow::of_map(interface, &flow));
    }
    let next = rest.next().and(last);
    Ok(Flows { flows, next })
}

/// `Counters`
pub(super) fn counters(service: &Service, caller: &Caller, call: &CountersCall) -> Result<Counters, Fault> {
    known(service, caller)?;
    if let Some(name) = &call.interface
        && attached_on(service, Some(name)).next().is_none()
    {
        return Err(Error::invalid(
            "interface",
            format_args!("the service is not attached to '{name}'; lease on it first"),
        )
        .into());
    }
    let mut interfaces = Vec::new();
    for attachment in attached_on(service, call.interface.as_deref()) {
        let name = attachment.name().to_string();
        let Ok(crafter) = attachment.crafter() else { continue };
        let counted = crafter.counters()?;
        let reasons = crafter_common::reason::Reason::ALL.iter();
        interfaces.push(InterfaceCounters {
            interface: name,
            ingress: counted.ingress(),
            egress: counted.egress(),
            counters: reasons.map(|&reason| (reason.name().to_owned(), counted.get(reason))).collect(),
        });
    }
    Ok(Counters { interfaces })
}
