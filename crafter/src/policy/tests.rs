//! Rules, each with a refused and an allowed case; the shipped policy.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    layer::{Tcp, Udp},
    packet::{PacketPorts, Route, Transport},
};

mod any;
mod explained;
mod packets;
mod texts;

const ALICE: u32 = 1000;
const MALLORY: u32 = 1001;
const CRAFTER: u32 = 200;

/// The users alice, mallory and root; the groups crafter and root.
struct Host4;

impl Names for Host4 {
    fn user(&self, name: &str) -> Result<Option<u32>> {
        Ok([("root", 0), ("alice", ALICE), ("mallory", MALLORY)].into_iter().find(|known| known.0 == name).map(|u| u.1))
    }

    fn group(&self, name: &str) -> Result<Option<u32>> {
        Ok([("root", 0), ("crafter", CRAFTER)].into_iter().find(|known| known.0 == name).map(|group| group.1))
    }
}

fn load(text: &str) -> Policy {
    Policy::load(text, &Host4).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A policy with one rule, for alice.
fn rule(keys: &str) -> Policy {
    load(&format!("[[rule]]\nuser = \"alice\"\n{keys}\n"))
}

fn alice() -> Subject {
    Subject { user: ALICE, groups: vec![ALICE] }
}

fn host() -> Host {
    Host {
        addresses: ["192.0.2.1", "198.51.100.1", "2001:db8::1"].map(|address| address.parse().unwrap()).to_vec(),
        broadcasts: vec!["192.0.2.255".parse().unwrap()],
        mtu: 1500,
    }
}

fn requested() -> RequestedLease {
    RequestedLease {
        interface: "eth0".to_owned(),
        transport: Some(Transport::Tcp),
        address: None,
        ports: 50_000..=50_009,
        raw_ethernet: false,
        peers: None,
        observe: false,
    }
}

fn lease(policy: &Policy, change: impl FnOnce(&mut RequestedLease)) -> Verdict {
    let mut requested = requested();
    change(&mut requested);
    policy.lease(&alice(), &requested, &host(), &Usage::default()).verdict
}

/// A TCP packet of alice's lease, as the policy sees it.
fn tcp(source: &str, destination: &str) -> PacketInfo {
    let packet = Tcp::new().between(source.parse().unwrap(), destination.parse().unwrap());
    PacketInfo::read(&packet.build().unwrap()).unwrap()
}

/// The verdict on one packet of a new lease of alice.
fn sent(policy: &Policy, change: impl FnOnce(&mut RequestedLease), packet: &PacketInfo) -> Verdict {
    let mut requested = requested();
    change(&mut requested);
    let mut usage = Usage::default();
    let grant = policy.grant(&alice(), &requested, &host(), &usage).expect("a lease");
    policy.packet(&grant, packet, &mut usage, Instant::now()).verdict
}

/// Checks that a packet to one destination is refused with `verdict`, and one to another is allowed.
#[track_caller]
fn twins(policy: &Policy, refused: &str, verdict: Verdict, allowed: &str) {
    let to = |destination: &str| {
        let source = if destination.starts_with('[') { "[2001:db8::1]:50000" } else { "192.0.2.1:50000" };
        sent(policy, |_| {}, &tcp(source, destination))
    };
    assert_eq!(to(refused), verdict, "{refused}");
    assert_eq!(to(allowed), Verdict::Allowed, "{allowed}");
}

#[test]
fn first_rule_that_names_the_subject_decides() {
    let policy = load(
        "[[rule]]\nuser = 'mallory'\nrefuse = true\n[[rule]]\nuser = 'alice'\nports = [80]\n[[rule]]\ngroup = 'crafter'\n\
         [[rule]]\nuser = ['mallory', 5, 6]\ngroup = 7\n",
    );
    let number =
        |user, groups: &[u32]| policy.rule_of(&Subject { user, groups: groups.to_vec() }).map(|rule| rule.number);
    assert_eq!(number(MALLORY, &[CRAFTER]), Some(1));
    assert_eq!(number(ALICE, &[CRAFTER, 7]), Some(2));
    assert_eq!(number(1234, &[7, CRAFTER]), Some(3), "the order of rules decides, not that of groups");
    assert_eq!((number(6, &[]), number(1234, &[7])), (Some(4), Some(4)));
    assert_eq!(number(1234, &[]), None);
    // A user id is not a group id.
    assert_eq!(number(CRAFTER, &[5]), None);
    let requested = requested();
    let ask = |user| policy.lease(&Subject { user, groups: vec![] }, &requested, &host(), &Usage::default());
    assert_eq!(ask(MALLORY), Decision { rule: Some(1), verdict: Verdict::Refused });
    assert_eq!(ask(1234), Decision { rule: None, verdict: Verdict::NoRule });
    assert_eq!(ask(5), Decision { rule: Some(4), verdict: Verdict::Allowed });
    let all = load("[[rule]]\nuser = 'mallory'\nrefuse = true\n[[rule]]\neverybody = true");
    assert_eq!(all.rule_of(&Subject { user: 1234, groups: vec![] }).map(|rule| rule.number), Some(2));
    assert_eq!(all.rule_of(&Subject { user: MALLORY, groups: vec![] }).map(|rule| rule.number), Some(1));
}

#[test]
fn restrictions_refuse_one_lease_and_allow_another() {
    let policy = rule("interfaces = ['lo', 'eth*']");
    assert_eq!(lease(&policy, |requested| requested.interface = "wlan0".to_owned()), Verdict::Interface);
    assert_eq!(lease(&policy, |requested| requested.interface = "lo0".to_owned()), Verdict::Interface);
    assert_eq!(lease(&policy, |requested| requested.interface = "eth7".to_owned()), Verdict::Allowed);
    let policy = rule("addresses = ['192.0.2.0/24']");
    let address = |address: &'static str| {
        move |requested: &mut RequestedLease| requested.address = Some(address.parse().unwrap())
    };
    assert_eq!(lease(&policy, address("198.51.100.1")), Verdict::Address);
    assert_eq!(lease(&policy, address("192.0.2.1")), Verdict::Allowed);
    assert_eq!(lease(&policy, address("192.0.2.2")), Verdict::ForeignSource, "not the host's");
    assert_eq!(lease(&rule("addresses = ['203.0.113.0/24']"), |_| {}), Verdict::Address, "none of the host's");
    let policy = rule("ports = [80, '50000-50009']");
    assert_eq!(lease(&policy, |requested| requested.ports = 50_005..=50_010), Verdict::Port);
    assert_eq!(
        lease(&policy, |requested| requested.ports = RangeInclusive::new(81, 80)),
        Verdict::Port,
        "an empty range"
    );
    assert_eq!(lease(&policy, |requested| requested.ports = 80..=80), Verdict::Allowed);
    // Identifiers of ICMP queries are not ports.
    let query =
        |requested: &mut RequestedLease| (requested.transport, requested.ports) = (Some(Transport::Icmp), 0..=0);
    assert_eq!(lease(&policy, query), Verdict::Allowed);
    let policy = rule("protocols = ['udp', 'icmp']");
    assert_eq!(lease(&policy, |_| {}), Verdict::Protocol);
    assert_eq!(lease(&policy, |requested| requested.transport = Some(Transport::Udp)), Verdict::Allowed);
    assert_eq!(lease(&policy, |requested| requested.transport = Some(Transport::Icmp)), Verdict::Allowed);
    for (key, change, verdict) in [
        ("raw_ethernet", (|requested| requested.raw_ethernet = true) as fn(&mut RequestedLease), Verdict::RawEthernet),
        ("observe", |requested| requested.observe = true, Verdict::Observe),
    ] {
        assert_eq!(lease(&rule(""), change), verdict, "{key} by default");
        assert_eq!(lease(&rule(&format!("{key} = false")), change), verdict);
        assert_eq!(lease(&rule(&format!("{key} = true")), change), Verdict::Allowed);
    }
    assert_eq!(rule("").observe(&alice()).verdict, Verdict::Observe);
    assert_eq!(rule("observe = true").observe(&alice()).verdict, Verdict::Allowed);
}

#[test]
fn limits_refuse_only_what_exceeds_them() {
    let policy = rule("max_leases = 2\nmax_ports = 25\nmax_flows = 3");
    let ask = |leases, ports, flows| {
        let mut usage = Usage::default();
        (usage.leases, usage.ports, usage.flows) = (leases, ports, flows);
        let grant = policy.grant(&alice(), &requested(), &host(), &Usage::default()).unwrap();
        let lease = policy.lease(&alice(), &requested(), &host(), &usage).verdict;
        (lease, policy.flow(&grant, &usage).verdict)
    };
    assert_eq!(ask(1, 15, 2), (Verdict::Allowed, Verdict::Allowed));
    assert_eq!(ask(2, 15, 3), (Verdict::Leases, Verdict::Flows));
    assert_eq!(ask(1, 16, 2), (Verdict::Ports, Verdict::Allowed));
    assert_eq!(ask(0, u32::MAX, u32::MAX), (Verdict::Ports, Verdict::Flows));
    let held = |held| rule("max_interfaces = 2").interfaces(&alice(), held).verdict;
    assert_eq!([held(1), held(2)], [Verdict::Allowed, Verdict::Interfaces]);
    assert_eq!(rule("").interfaces(&alice(), 4).verdict, Verdict::Interfaces, "by default");
    assert!(rule("max_interfaces = 'unlimited'").interfaces(&alice(), u32::MAX).is_allowed());
    let free = rule("max_leases = 'unlimited'\nmax_ports = 'unlimited'\nmax_flows = 'unlimited'");
    let mut usage = Usage::default();
    (usage.leases, usage.ports, usage.flows) = (u32::MAX, u32::MAX, u32::MAX);
    let grant = free.grant(&alice(), &requested(), &host(), &usage).unwrap();
    assert!(free.flow(&grant, &usage).is_allowed());
}

#[test]
fn the_shipped_policy() {
    let policy = load(SHIPPED);
    assert_eq!(policy.warnings(), [], "no warnings");
    let member = Subject { user: 4321, groups: vec![4321, CRAFTER] };
    let host = host();
    let mut usage = Usage::default();
    let ask = |subject: &Subject, requested: &RequestedLease| {
        policy.lease(subject, requested, &host, &Usage::default()).verdict
    };
    for transport in [Transport::Tcp, Transport::Udp, Transport::Icmp] {
        assert_eq!(ask(&member, &RequestedLease { transport: Some(transport), ..requested() }), Verdict::Allowed);
    }
    assert_eq!(ask(&member, &RequestedLease { raw_ethernet: true, ..requested() }), Verdict::RawEthernet);
    assert_eq!(ask(&member, &RequestedLease { observe: true, ..requested() }), Verdict::Observe);
    assert_eq!(ask(&member, &RequestedLease { ports: 80..=80, ..requested() }), Verdict::Port);
    assert_eq!(ask(&Subject { user: 4321, groups: vec![4321] }, &requested()), Verdict::NoRule);
    let grant = policy.grant(&member, &requested(), &host, &usage).unwrap();
    let now = Instant::now();
    let mut send =
        |source: &str, destination: &str| policy.packet(&grant, &tcp(source, destination), &mut usage, now).verdict;
    for destination in ["10.0.0.1:1", "127.0.0.1:1", "8.8.8.8:53"] {
        assert_eq!(send("192.0.2.1:50000", destination), Verdict::Allowed, "{destination}");
    }
    assert_eq!(send("[2001:db8::1]:50000", "[2001:db8:1::1]:80"), Verdict::Allowed);
    assert_eq!(send("192.0.2.7:50000", "8.8.8.8:53"), Verdict::ForeignSource);
    assert_eq!(send("192.0.2.1:50000", "224.0.0.1:53"), Verdict::Multicast);
    assert_eq!(send("[2001:db8::1]:50000", "[ff02::1]:53"), Verdict::Multicast);
    assert_eq!(send("192.0.2.1:50000", "192.0.2.255:53"), Verdict::Broadcast);
    let taken = (0..20_000).take_while(|_| send("192.0.2.1:50000", "8.8.8.8:53") == Verdict::Allowed).count();
    assert_eq!(taken, 1000 - 4 - 4, "the rest of the burst, towards which refused packets count");
    let later = policy.packet(&grant, &tcp("192.0.2.1:50000", "8.8.8.8:53"), &mut usage, now + Duration::from_secs(1));
    assert!(later.is_allowed());

    let root = Subject { user: 0, groups: vec![0] };
    let all = RequestedLease { raw_ethernet: true, observe: true, ports: 0..=65535, ..requested() };
    let mut usage = Usage::default();
    (usage.leases, usage.ports, usage.flows) = (1 << 20, 1 << 30, 1 << 20);
    let grant = policy.grant(&root, &all, &host, &usage).unwrap();
    for (source, destination) in [("203.0.113.1:1", "224.0.0.1:1"), ("203.0.113.1:1", "255.255.255.255:1")] {
        for _ in 0..2000 {
            assert!(policy.packet(&grant, &tcp(source, destination), &mut usage, now).is_allowed());
        }
    }
}
