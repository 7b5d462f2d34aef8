//! Explains which rule decides, and why.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::{
    Policy,
    decide::{Subject, form, reach},
    packet_info::PacketInfo,
    policy_verdict::Verdict,
    rule::Rule,
    targets::Target,
};
use crate::packet::{IpOptions, PacketPorts, Route, Transport};

/// A packet to be checked. Values that are `None` count as allowed, and are listed as assumptions.
#[derive(Debug, Clone)]
pub struct Question {
    /// The interface.
    pub interface: Option<String>,
    /// The source address.
    pub source: Option<IpAddr>,
    /// The source port, or the identifier of an ICMP query.
    pub source_port: Option<u16>,
    /// The destination address.
    pub destination: IpAddr,
    /// The destination port. `None`: any; it matches every denied port and no allowed one.
    pub port: Option<u16>,
    /// The transport.
    pub transport: Transport,
    /// The host's addresses.
    pub addresses: Vec<IpAddr>,
    /// The broadcast addresses of the host's networks.
    pub broadcasts: Vec<Ipv4Addr>,
}

/// The explanation of a decision.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Whether the packet may be sent.
    pub allowed: bool,
    /// The decision.
    pub verdict: Verdict,
    /// The number of the deciding rule, from 1.
    pub rule: Option<usize>,
    /// The line where the rule begins, from 1.
    pub line: Option<usize>,
    /// The line that lists the destination, from 1.
    pub destination_line: Option<usize>,
    /// The explanation as a sentence.
    pub sentence: String,
    /// The rule's text.
    pub text: Option<String>,
    /// Properties that the question leaves open, and that count as allowed.
    pub assumed: Vec<&'static str>,
}

impl Policy {
    /// Explains which rule decides on a packet, and why.
    pub fn explain(&self, subject: &Subject, question: &Question) -> Explanation {
        let what = describe(question);
        let (rule, packet) = (self.rule_of(subject), question.packet());
        let check = |rule| question.check(rule, &packet).err().unwrap_or(Verdict::Allowed);
        let verdict = rule.map_or(Verdict::NoRule, check);
        let target = rule.and_then(|rule| target(rule, &packet, verdict));
        let place = target.map(|target| format!(" ({} in line {})", written(target), target.line)).unwrap_or_default();
        let sentence = match (rule.map(Rule::title), verdict) {
            (None, _) => format!("refused: {what}: {verdict}"),
            (Some(title), Verdict::Allowed) => format!("allowed: {what}: {title} allows it{place}"),
            (Some(title), _) => format!("refused: {what}: {title}: {verdict}{place}"),
        };
        Explanation {
            allowed: verdict == Verdict::Allowed,
            verdict,
            rule: rule.map(|rule| rule.number),
            line: rule.map(|rule| rule.line),
            destination_line: target.map(|target| target.line),
            sentence,
            text: rule.map(|rule| rule.text.clone()),
            assumed: rule.map(|rule| question.assumed(rule)).unwrap_or_default(),
        }
    }
}

impl Question {
    fn packet(&self) -> PacketInfo {
        let ports = match (self.transport, self.port) {
            (Transport::Icmp, _) => PacketPorts::Query { identifier: self.source_port.unwrap_or_default() },
            (_, Some(destination)) => PacketPorts::Both { source: self.source_port.unwrap_or_default(), destination },
            (_, None) => PacketPorts::Fragment,
        };
        PacketInfo {
            source: self.source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            destination: self.destination,
            transport: Some(self.transport),
            ports,
            route: Route::None,
            options: IpOptions::Harmless,
            length: 0,
        }
    }

    /// Judges the question like a lease and one of its packets.
    fn check(&self, rule: &Rule, packet: &PacketInfo) -> Result<(), Verdict> {
        let check = |is: bool, otherwise| if is { Ok(()) } else { Err(otherwise) };
        check(!rule.refuse, Verdict::Refused)?;
        let interface = self.interface.as_ref();
        check(interface.is_none_or(|name| rule.allows_interface(name)), Verdict::Interface)?;
        form(rule, packet)?;
        if let Some(source) = self.source.map(|source| source.to_canonical()) {
            let own = self.addresses.iter().any(|own| own.to_canonical() == source);
            check(!own || rule.allows_address(source), Verdict::Address)?;
            check(own || rule.foreign_sources.allows(source), Verdict::ForeignSource)?;
        }
        let may_lease = |port| rule.allows_ports(self.transport, &(port..=port));
        check(self.source_port.is_none_or(may_lease), Verdict::Port)?;
        reach(rule, packet, &self.broadcasts)
    }

    fn assumed(&self, rule: &Rule) -> Vec<&'static str> {
        if rule.refuse {
            return Vec::new();
        }
        let some = |missing: bool, what| missing.then_some(what);
        [
            some(self.interface.is_none() && rule.interfaces.is_some(), "an interface of the rule"),
            some(self.source.is_none(), "a source address of the host that the rule allows"),
            some(self.source_port.is_none() && self.transport != Transport::Icmp, "a local port of the rule"),
            some(self.port.is_none() && self.transport != Transport::Icmp, "any destination port"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The prefix that decides.
fn target<'r>(rule: &'r Rule, packet: &PacketInfo, verdict: Verdict) -> Option<&'r Target> {
    match verdict {
        Verdict::Denied => rule.deny.first(packet.destination, packet.far_port(true)),
        Verdict::Allowed => rule.allow.as_ref()?.first(packet.destination, packet.far_port(false)),
        _ => None,
    }
}

fn written(target: &Target) -> String {
    match &target.ports {
        None => target.prefix.to_string(),
        Some(ports) => format!("{} ports {ports}", target.prefix),
    }
}

fn describe(question: &Question) -> String {
    let transport = question.transport.name();
    let mut text = format!("{transport} to {}", question.destination);
    if let (Some(port), true) = (question.port, question.transport != Transport::Icmp) {
        text += &format!(" port {port}");
    }
    if let Some(source) = question.source {
        text += &format!(" from {source}");
    }
    if let Some(port) = question.source_port {
        let what = if question.transport == Transport::Icmp { "identifier" } else { "local port" };
        text += &format!(", {what} {port}");
    }
    if let Some(interface) = &question.interface {
        text += &format!(", over {interface}");
    }
    text
}
