//! Methods that report; [`leasing`](super::leasing) has those that lease.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use crafter_common::reason::Reason;

use super::{
    caller::Caller,
    host::audit::{Cause, RequestKind, Resource},
    leasing::{address, port},
    records,
    served_lease::ServedLease,
    snapshots::{Selection, Snapshots},
    state::Service,
};
use crate::{
    Error, Result,
    datapath::{
        interface::{Interface, interface, interfaces},
        route,
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

/// How often to look whether another thread has closed the ports of a released lease.
const CLOSING_POLL: Duration = Duration::from_millis(1);

/// The leases to compare before other tasks run.
const LEASES_PER_TURN: usize = 1000;

/// `Info`
pub(super) fn info(service: &Service) -> Info {
    Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: ABI,
        pid: std::process::id(),
        user: nix::unistd::Uid::effective().as_raw(),
        policy: service.policy_source(),
        started: service.started.since_1970_us(),
        leases: service.lease_count() as u64,
    }
}

/// `Interfaces`
pub(super) async fn list_interfaces(
    service: &Service,
    caller: &Caller,
    call: &InterfacesCall,
) -> Result<Interfaces, Fault> {
    known(service, caller)?;
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
        interfaces: service.interfaces_of(service.users.account(caller.subject.user)),
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
        max_interfaces: rule.max_interfaces,
        raw_ethernet: rule.raw_ethernet,
        foreign_sources: !matches!(rule.foreign_sources, Foreign::None),
        peers: rule.peers.name().to_owned(),
        observe: rule.observe,
        multicast: rule.multicast,
        broadcast: rule.broadcast,
        text: rule.text.clone(),
    }
}

/// `Reload`
pub(super) async fn reload(service: &Service, caller: &Caller) -> Result<Reloaded, Fault> {
    if !caller.is_trusted() {
        return Err(Fault::Refused {
            rule: None,
            verdict: Verdict::Refused.name().to_owned(),
            message: "only root and the service's own user may reload the policy".to_owned(),
        });
    }
    let ended = service.reload().await?;
    let policy = service.policy();
    let warnings = policy.warnings().iter().map(ToString::to_string).collect();
    Ok(Reloaded { rules: policy.rules().len() as u32, warnings, ended })
}

/// `Route`. Looks up only what the policy allows: a lookup may send requests to the network.
pub(super) async fn route(service: &Service, caller: &Caller, call: &RouteCall) -> Result<RouteReply, Fault> {
    let destination = address("destination", &call.destination)?;
    let source = call.source.as_deref().map(|text| address("source", text)).transpose()?;
    let Caller { subject, .. } = caller;
    let refuse = |decision: Decision, interface: Option<&str>| {
        let resource = Resource { interface, address: source, destination: Some(destination), ..Resource::default() };
        records::refused_lease(&service.audit, caller, RequestKind::Route, resource, Cause::Policy(decision));
        Fault::from(decision)
    };
    let policy = service.policy();
    let host = service.host(0)?;
    let usage = service.users.of(subject.user);
    let account = service.users.account(subject.user);
    let decision = policy.route(subject, destination, source, &host, &mut usage.borrow_mut(), Instant::now());
    if !decision.is_allowed() {
        return Err(refuse(decision, call.interface.as_deref()));
    }
    let check = |found: &route::Route| -> Result<(), Fault> {
        let decision = policy.route_interface(subject, &found.interface);
        if decision.is_allowed() { Ok(()) } else { Err(refuse(decision, Some(&found.interface))) }
    };
    let found = service.next_hops.find(account, call.interface.as_deref(), destination, source, check).await?;
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
pub(super) fn known(service: &Service, caller: &Caller) -> Result<(), Decision> {
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
    // Its task would do the same in its next turn. The ports are free when the caller receives the reply.
    service.forget(&lease);
    while service.closing.has(call.lease) {
        tokio::time::sleep(CLOSING_POLL).await;
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
pub(super) async fn list_leases(service: &Service, caller: &Caller, call: &ListLeasesCall) -> Result<Leases, Fault> {
    known(service, caller)?;
    let mine = call.mine.unwrap_or(false).then_some(caller.subject.user);
    let whose = mine.or(visible(service, caller));
    let limit = page(call.limit);
    let is_selected = |lease: &Rc<ServedLease>| {
        whose.is_none_or(|user| lease.subject().user == user)
            && call.interface.as_ref().is_none_or(|name| *lease.attachment.name() == **name)
    };
    let (mut leases, mut after) = (Vec::new(), call.after.unwrap_or(0));
    loop {
        // A part of the leases at a time: there may be many of others.
        let part = service.leases_after(after, LEASES_PER_TURN);
        let Some(last) = part.last() else { return Ok(Leases { leases, next: None }) };
        after = last.terms.number;
        for lease in part.iter().filter(|lease| is_selected(lease)) {
            if leases.len() == limit {
                let next = leases.last().map(|last: &Lease| last.lease);
                return Ok(Leases { leases, next });
            }
            leases.push(lease.describe());
        }
        tokio::task::yield_now().await;
    }
}

fn page(limit: Option<u64>) -> usize {
    limit.unwrap_or(PAGE).clamp(1, PAGE) as usize
}

/// `ListFlows`
pub(super) async fn list_flows(service: &Rc<Service>, caller: &Caller, call: &ListFlowsCall) -> Result<Flows, Fault> {
    known(service, caller)?;
    let selection = Selection {
        whose: visible(service, caller),
        interface: call.interface.clone(),
        protocol: call.protocol.clone(),
        port: call.port.map(|number| port("port", number, 0..=u16::MAX)).transpose()?,
        remote: call.remote.as_deref().map(|text| address("remote", text)).transpose()?,
    };
    let account = service.users.account(caller.subject.user);
    Ok(Snapshots::page(service, account, &selection, call.after, page(call.limit)).await?)
}

/// `Counters`
pub(super) async fn counters(service: &Service, caller: &Caller, call: &CountersCall) -> Result<Counters, Fault> {
    known(service, caller)?;
    let sources = service.map_sources(call.interface.as_deref());
    if let Some(name) = &call.interface
        && sources.is_empty()
    {
        return Err(Error::invalid(
            "interface",
            format_args!("the service is not attached to '{name}'; lease on it first"),
        )
        .into());
    }
    let account = service.users.account(caller.subject.user);
    let counted = service.snapshots.counters(account, sources).await?;
    let interfaces = counted.into_iter().map(|(interface, counted)| InterfaceCounters {
        interface,
        ingress: counted.ingress(),
        egress: counted.egress(),
        counters: Reason::ALL.iter().map(|&reason| (reason.name().to_owned(), counted.get(reason))).collect(),
    });
    Ok(Counters { interfaces: interfaces.collect() })
}
