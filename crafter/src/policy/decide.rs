//! Decisions on leases, packets and frames.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    time::Instant,
};

use super::{
    Policy,
    packet_info::PacketInfo,
    policy_verdict::{Decision, Verdict},
    rule::{Foreign, Rule},
    targets::FarPort,
    usage::Usage,
};
use crate::packet::{Framed, IpOptions, Route, Transport, framed};

/// The longest Ethernet header: with one 802.1Q tag, in bytes.
const FRAME_HEADER: usize = 18;

/// The broadcast address of 127.0.0.0/8.
const LOOPBACK_BROADCAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

/// A user and the user's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Numeric user id.
    pub user: u32,
    /// Numeric group ids, the primary one included.
    pub groups: Vec<u32>,
}

/// A requested lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedLease {
    /// The interface to send by.
    pub interface: String,
    /// The transport; `None`: a lease without ports, for packets that have none.
    pub transport: Option<Transport>,
    /// The local address; `None`: each of the host's addresses that the policy allows.
    pub address: Option<IpAddr>,
    /// The local ports, or identifiers of ICMP queries, which no rule restricts; ignored without a transport.
    pub ports: RangeInclusive<u16>,
    /// Whether to send whole Ethernet frames.
    pub raw_ethernet: bool,
    /// Whether to capture packets of others.
    pub observe: bool,
}

/// The facts about the host that decisions depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The host's addresses.
    pub addresses: Vec<IpAddr>,
    /// Broadcast addresses of the host's networks, such as 192.0.2.255.
    pub broadcasts: Vec<Ipv4Addr>,
    /// The interface's MTU in bytes, from the IP header on.
    pub mtu: usize,
}

/// A granted lease: the values that its packets are compared with.
///
/// A grant outlives its policy. A later policy decides by its own rule for the same user, and refuses all packets of a
/// lease that it would not grant.
#[derive(Debug, Clone)]
pub struct Grant {
    subject: Subject,
    requested: RequestedLease,
    /// Sorted.
    sources: Vec<IpAddr>,
    broadcasts: Vec<Ipv4Addr>,
    mtu: usize,
    /// The policy that granted the lease, and the index of its rule there.
    policy: u64,
    rule: usize,
}

impl Grant {
    /// The owner of the lease.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The request that was granted.
    pub fn requested(&self) -> &RequestedLease {
        &self.requested
    }

    /// The same grant for packets in Ethernet frames.
    pub(crate) fn for_frames(&self) -> Self {
        Self { requested: RequestedLease { raw_ethernet: true, ..self.requested.clone() }, ..self.clone() }
    }

    /// The host's addresses that the lease may send from, sorted.
    pub fn sources(&self) -> &[IpAddr] {
        &self.sources
    }
}

impl Policy {
    /// Decides whether `subject`, who already has `usage`, may have this lease.
    pub fn lease(&self, subject: &Subject, requested: &RequestedLease, host: &Host, usage: &Usage) -> Decision {
        let ports =
            if requested.transport.is_some() { u32::try_from(requested.ports.len()).unwrap_or(u32::MAX) } else { 0 };
        self.decide(subject, |rule| {
            terms(rule, requested)?;
            own(rule, requested, host)?;
            limit(rule.max_leases, usage.leases, 1, Verdict::Leases)?;
            limit(rule.max_ports, usage.ports, ports, Verdict::Ports)
        })
    }

    /// Decides like [`lease`](Self::lease), without the host and the limits.
    pub(crate) fn requested(&self, subject: &Subject, requested: &RequestedLease) -> Decision {
        self.decide(subject, |rule| terms(rule, requested))
    }

    /// Grants the lease if [`lease`](Self::lease) allows it. The caller counts it in `usage`.
    ///
    /// # Errors
    /// The decision that refuses the lease.
    pub fn grant(
        &self,
        subject: &Subject,
        requested: &RequestedLease,
        host: &Host,
        usage: &Usage,
    ) -> Result<Grant, Decision> {
        let decision = self.lease(subject, requested, host, usage);
        let rule = self.find(subject).filter(|_| decision.is_allowed()).ok_or(decision)?;
        let mut sources: Vec<IpAddr> = match requested.address {
            Some(address) => vec![address.to_canonical()],
            None => host.addresses.iter().map(IpAddr::to_canonical).collect(),
        };
        sources.retain(|&address| self.rules()[rule].allows_address(address));
        sources.sort_unstable();
        Ok(Grant {
            subject: subject.clone(),
            requested: requested.clone(),
            sources,
            broadcasts: host.broadcasts.clone(),
            mtu: host.mtu,
            policy: self.stamp,
            rule,
        })
    }

    /// The same grant with the host's addresses and networks of now.
    pub fn renew(&self, grant: &Grant, host: &Host) -> Grant {
        let rule = self.rule_of(&grant.subject);
        let mut sources: Vec<IpAddr> = host.addresses.iter().map(IpAddr::to_canonical).collect();
        sources.retain(|&own| grant.requested.address.is_none_or(|address| address.to_canonical() == own));
        sources.retain(|&own| rule.is_none_or(|rule| rule.allows_address(own)));
        sources.sort_unstable();
        Grant { sources, broadcasts: host.broadcasts.clone(), ..grant.clone() }
    }

    /// Decides whether this policy would grant a lease that another policy granted, without limits and rates. The
    /// caller ends the leases that a new policy refuses.
    pub fn review(&self, grant: &Grant) -> Decision {
        self.decide(&grant.subject, |rule| {
            terms(rule, &grant.requested)?;
            let is_allowed = |&source: &IpAddr| rule.allows_address(source);
            granted(grant.sources.is_empty() || grant.sources.iter().any(is_allowed), Verdict::Address)
        })
    }

    fn decide(&self, subject: &Subject, check: impl FnOnce(&Rule) -> Checked) -> Decision {
        self.rule_of(subject).map_or(Decision::NO_RULE, |rule| Decision::of(rule, check(rule)))
    }

    /// Decides whether the lease may open another flow.
    pub fn flow(&self, grant: &Grant, usage: &Usage) -> Decision {
        self.decide(&grant.subject, |rule| {
            granted(!rule.refuse, Verdict::Refused)?;
            limit(rule.max_flows, usage.flows, 1, Verdict::Flows)
        })
    }

    /// Decides whether `subject`, with leases on `held` interfaces, may lease on another.
    pub fn interfaces(&self, subject: &Subject, held: u32) -> Decision {
        self.decide(subject, |rule| {
            granted(!rule.refuse, Verdict::Refused)?;
            limit(rule.max_interfaces, held, 1, Verdict::Interfaces)
        })
    }

    /// Decides whether `subject` may have the route to `destination` looked up, from `source` if that is given: whether
    /// some packet to it may be sent. Each request counts towards the rate, refused or not.
    pub fn route(
        &self,
        subject: &Subject,
        destination: IpAddr,
        source: Option<IpAddr>,
        host: &Host,
        usage: &mut Usage,
        now: Instant,
    ) -> Decision {
        self.decide(subject, |rule| {
            granted(!rule.refuse, Verdict::Refused)?;
            rate(rule, usage, now)?;
            if let Some(source) = source.map(|source| source.to_canonical()) {
                let own = host.addresses.iter().any(|own| own.to_canonical() == source);
                granted(!own || rule.allows_address(source), Verdict::Address)?;
                granted(own || rule.foreign_sources.allows(source), Verdict::ForeignSource)?;
            }
            let ports = [FarPort::Hidden { matches: false }, FarPort::Hidden { matches: true }];
            reach_one(rule, ports, destination, &host.broadcasts)
        })
    }

    /// Decides whether `subject` may use the interface of a route.
    pub fn route_interface(&self, subject: &Subject, interface: &str) -> Decision {
        self.decide(subject, |rule| granted(rule.allows_interface(interface), Verdict::Interface))
    }

    /// Decides whether `subject` may see packets and leases of others.
    pub fn observe(&self, subject: &Subject) -> Decision {
        self.decide(subject, |rule| granted(!rule.refuse && rule.observe, Verdict::Observe))
    }

    /// Decides whether a packet may be sent. Each packet counts towards the rate, refused or not; beyond the rate, nothing
    /// else is checked.
    ///
    /// Allocates nothing.
    pub fn packet(&self, grant: &Grant, packet: &PacketInfo, usage: &mut Usage, now: Instant) -> Decision {
        self.checked(grant, usage, now, |rule| check(rule, grant, packet))
    }

    /// Decides whether an Ethernet frame may be sent, like [`packet`](Self::packet). An IP packet in the frame, also
    /// after one or two VLAN tags, is checked as a packet. Of other frames only the destination address and the length
    /// are checked. A frame with more tags, or whose EtherType contradicts the IP version, is unreadable.
    pub fn frame(&self, grant: &Grant, frame: &[u8], usage: &mut Usage, now: Instant) -> Decision {
        self.checked(grant, usage, now, |rule| check_frame(rule, grant, frame))
    }

    /// Counts a packet that is refused for another reason towards the rate. [`Verdict::Rate`] if the rate is exceeded.
    pub fn charge(&self, grant: &Grant, usage: &mut Usage, now: Instant) -> Decision {
        self.checked(grant, usage, now, |_| Ok(()))
    }

    fn checked(
        &self,
        grant: &Grant,
        usage: &mut Usage,
        now: Instant,
        check: impl FnOnce(&Rule) -> Checked,
    ) -> Decision {
        match self.rule_for(grant) {
            Ok(rule) => Decision::of(rule, rate(rule, usage, now).and_then(|()| check(rule))),
            Err(decision) => decision,
        }
    }

    fn rule_for(&self, grant: &Grant) -> Result<&Rule, Decision> {
        if grant.policy == self.stamp
            && let Some(rule) = self.rules().get(grant.rule)
        {
            return Ok(rule);
        }
        let rule = self.rule_of(&grant.subject).ok_or(Decision::NO_RULE)?;
        terms(rule, &grant.requested).map_err(|verdict| Decision::of(rule, Err(verdict)))?;
        Ok(rule)
    }
}

type Checked = Result<(), Verdict>;

fn granted(flag: bool, otherwise: Verdict) -> Checked {
    if flag { Ok(()) } else { Err(otherwise) }
}

fn limit(most: Option<u32>, held: u32, more: u32, otherwise: Verdict) -> Checked {
    granted(most.is_none_or(|most| held.checked_add(more).is_some_and(|all| all <= most)), otherwise)
}

fn rate(rule: &Rule, usage: &mut Usage, now: Instant) -> Checked {
    granted(rule.rate.is_none_or(|rate| usage.take(rate, now)), Verdict::Rate)
}

/// What the rule says about a lease, without the host and the usage.
fn terms(rule: &Rule, requested: &RequestedLease) -> Checked {
    granted(!rule.refuse, Verdict::Refused)?;
    granted(rule.allows_interface(&requested.interface), Verdict::Interface)?;
    granted(requested.transport.is_none_or(|transport| rule.protocols.has(transport)), Verdict::Protocol)?;
    granted(requested.address.is_none_or(|address| rule.allows_address(address)), Verdict::Address)?;
    granted(requested.transport.is_none_or(|transport| rule.allows_ports(transport, &requested.ports)), Verdict::Port)?;
    granted(rule.raw_ethernet || !requested.raw_ethernet, Verdict::RawEthernet)?;
    granted(rule.observe || !requested.observe, Verdict::Observe)
}

/// Whether the address is the host's. Without a requested address: whether the rule allows any of the host's.
fn own(rule: &Rule, requested: &RequestedLease, host: &Host) -> Checked {
    match requested.address {
        Some(address) if host.addresses.iter().any(|own| own.to_canonical() == address.to_canonical()) => Ok(()),
        Some(address) => granted(rule.foreign_sources.allows(address), Verdict::ForeignSource),
        None if host.addresses.is_empty() => Ok(()),
        None => granted(host.addresses.iter().any(|&own| rule.allows_address(own)), Verdict::Address),
    }
}

/// Compares a packet with its lease, and checks its destinations.
fn check(rule: &Rule, grant: &Grant, packet: &PacketInfo) -> Checked {
    granted(packet.length <= grant.mtu, Verdict::TooLong)?;
    form(rule, packet)?;
    let requested = &grant.requested;
    let port = packet.ports.source();
    let source = packet.source.to_canonical();
    let own = grant.sources.binary_search(&source).is_ok();
    // Ports of a foreign source address are not this host's, so they cannot be leased.
    let leased = !own || packet.transport.is_none_or(|transport| Some(transport) == requested.transport);
    granted(leased, Verdict::SourcePort)?;
    granted(!own || port.is_none_or(|port| requested.ports.contains(&port)), Verdict::SourcePort)?;
    granted(own || rule.foreign_sources.allows(source), Verdict::ForeignSource)?;
    granted(!own || rule.allows_address(source), Verdict::Address)?;
    plausible(rule, grant, packet)?;
    reach(rule, packet, &grant.broadcasts)
}

/// Refuses source addresses that are not valid on a network, even if they are addresses of this host, unless
/// `foreign_sources` has them: loopback addresses in packets that leave this host (RFC 1122, section 3.2.1.3; RFC 4291,
/// section 2.5.3), and IPv4-mapped addresses in an IPv6 header, which receivers take for IPv4 addresses (RFC 4942,
/// section 2.2). A home address takes the place of the source.
fn plausible(rule: &Rule, grant: &Grant, packet: &PacketInfo) -> Checked {
    let is_mapped = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    let (source, destination) = (packet.source.to_canonical(), packet.destination.to_canonical());
    let leaves = !destination.is_loopback() && grant.sources.binary_search(&destination).is_err();
    granted(!(source.is_loopback() && leaves) || rule.foreign_sources.allows(source), Verdict::ForeignSource)?;
    let is_disguised =
        is_mapped(packet.source) || is_mapped(packet.destination) || packet.options == IpOptions::HomeAddress;
    granted(!is_disguised || matches!(rule.foreign_sources, Foreign::All), Verdict::ForeignSource)
}

/// Whether an address is link-local: also that of the metadata service of most clouds.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Checks the protocol, source route and options of a packet.
pub(super) fn form(rule: &Rule, packet: &PacketInfo) -> Checked {
    let known = packet.transport.is_some_and(|transport| rule.protocols.has(transport));
    granted(known || rule.protocols.any, Verdict::Protocol)?;
    granted(packet.route == Route::None || rule.protocols.any, Verdict::SourceRoute)?;
    granted(packet.options == IpOptions::Harmless || rule.protocols.any, Verdict::Option)
}

/// Checks the destinations of a packet: that of its header, and the addresses of a source route, the last of which is
/// the final destination. An unreadable route could lead anywhere.
pub(super) fn reach(rule: &Rule, packet: &PacketInfo, broadcasts: &[Ipv4Addr]) -> Checked {
    let ports = [packet.far_port(true), packet.far_port(false)];
    reach_one(rule, ports, packet.destination, broadcasts)?;
    match packet.route {
        Route::None => Ok(()),
        Route::Through(waypoints) => {
            waypoints.addresses().iter().try_for_each(|&address| reach_one(rule, ports, address.into(), broadcasts))
        }
        Route::Unreadable => granted(rule.deny.list().is_empty() && rule.allow.is_none(), Verdict::SourceRoute),
    }
}

/// Checks one destination. The first port is compared with those of `deny`, the second with those of `allow`.
fn reach_one(rule: &Rule, [denied, allowed]: [FarPort; 2], destination: IpAddr, broadcasts: &[Ipv4Addr]) -> Checked {
    let destination = destination.to_canonical();
    granted(rule.multicast || !destination.is_multicast(), Verdict::Multicast)?;
    if let IpAddr::V4(address) = destination {
        // RFC 1122, section 3.3.6: 0.0.0.0 is an obsolete form of the broadcast address.
        // Every host has the network 127.0.0.0/8.
        let broadcast = address.is_broadcast()
            || address.is_unspecified()
            || address == LOOPBACK_BROADCAST
            || broadcasts.contains(&address);
        granted(rule.broadcast || !broadcast, Verdict::Broadcast)?;
    }
    granted(rule.link_local || !is_link_local(destination), Verdict::LinkLocal)?;
    granted(!rule.deny.has(destination, denied), Verdict::Denied)?;
    let allowed = rule.allow.as_ref().is_none_or(|allow| allow.has(destination, allowed));
    granted(allowed, Verdict::NotAllowed)
}

fn check_frame(rule: &Rule, grant: &Grant, frame: &[u8]) -> Checked {
    granted(grant.requested.raw_ethernet && rule.raw_ethernet, Verdict::RawEthernet)?;
    let destination = frame.first_chunk::<6>().ok_or(Verdict::Unreadable)?;
    granted(frame.len() <= grant.mtu.saturating_add(FRAME_HEADER), Verdict::TooLong)?;
    granted(rule.broadcast || *destination != [0xff; 6], Verdict::Broadcast)?;
    let group = destination[0] & 1 == 1 && *destination != [0xff; 6];
    granted(rule.multicast || !group, Verdict::Multicast)?;
    match framed(frame) {
        Framed::Ip(packet) => check(rule, grant, &PacketInfo::read(packet).ok_or(Verdict::Unreadable)?),
        Framed::Other => Ok(()),
        Framed::Unreadable => Err(Verdict::Unreadable),
    }
}
