//! A rule: the users that it names, and its permissions.

use std::{fmt, net::IpAddr, ops::RangeInclusive};

use super::{ports::Ports, targets::Targets, usage::Rate};
use crate::{datapath::peers::Peers, packet::Transport};

/// The users that a rule names.
#[derive(Debug, Clone, Default)]
pub struct Who {
    /// Named users.
    pub users: Vec<Account>,
    /// Named groups.
    pub groups: Vec<Account>,
    /// All users.
    pub everybody: bool,
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name; `None` if the text has a number.
    pub name: Option<String>,
    /// The number; `None` before the name is [resolved](super::Policy::resolve), and if it does not exist.
    pub id: Option<u32>,
    /// Line and column in the text, from 1.
    pub at: (usize, usize),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.id) {
            (Some(name), _) => f.write_str(name),
            (None, Some(id)) => write!(f, "{id}"),
            (None, None) => f.write_str("?"),
        }
    }
}

/// Allowed protocols.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protocols {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
    /// ICMP and ICMPv6 queries whose identifier the lease owns.
    pub icmp: bool,
    /// All other protocols and ICMP messages, source-routed packets, and special IP options.
    pub any: bool,
}

impl Protocols {
    /// Whether packets of `transport` are allowed.
    pub fn has(self, transport: Transport) -> bool {
        self.any
            || match transport {
                Transport::Tcp => self.tcp,
                Transport::Udp => self.udp,
                Transport::Icmp => self.icmp,
            }
    }
}

/// Source addresses that are not the host's, which a lease may send from.
#[derive(Debug, Clone, Default)]
pub enum Foreign {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// The addresses of these prefixes.
    Some(Targets),
}

impl Foreign {
    /// Whether a lease may send from `address`.
    pub fn allows(&self, address: IpAddr) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(prefixes) => prefixes.covers(address),
        }
    }
}

/// A rule. See the [module](super) for the meaning of the values.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its number in the file, from 1.
    pub number: usize,
    /// The line where it begins, from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
    /// The users that it names.
    pub who: Who,
    /// Whether it refuses everything.
    pub refuse: bool,
    /// Patterns of interface names; `None`: all.
    pub interfaces: Option<Vec<String>>,
    /// Local addresses; `None`: all.
    pub addresses: Option<Targets>,
    /// Local ports of TCP and UDP. All identifiers of ICMP queries may be leased.
    pub ports: Ports,
    /// Protocols.
    pub protocols: Protocols,
    /// Destinations allowed; `None`: all.
    pub allow: Option<Targets>,
    /// Destinations denied, whatever `allow` says.
    pub deny: Targets,
    /// The rate; `None`: unlimited.
    pub rate: Option<Rate>,
    /// The maximum number of leases; `None`: unlimited.
    pub max_leases: Option<u32>,
    /// The maximum number of ports; `None`: unlimited.
    pub max_ports: Option<u32>,
    /// The maximum number of flows; `None`: unlimited.
    pub max_flows: Option<u32>,
    /// The maximum number of interfaces with leases; `None`: unlimited.
    pub max_interfaces: Option<u32>,
    /// Whether whole Ethernet frames may be sent and received.
    pub raw_ethernet: bool,
    /// Source addresses that are not the host's, which leases may send from.
    pub foreign_sources: Foreign,
    /// Whose packets a lease may receive at most, and does if it does not ask for fewer.
    pub peers: Peers,
    /// Whether packets of others may be captured.
    pub observe: bool,
    /// Whether packets may go to multicast addresses.
    pub multicast: bool,
    /// Whether packets may go to broadcast addresses.
    pub broadcast: bool,
    /// Whether packets may go to link-local addresses, such as the host's metadata service in a cloud.
    pub link_local: bool,
}

/// The default rate.
pub(super) const RATE: Rate = Rate { packets_per_second: 1000, burst: 100 };
/// The default of `max_leases`.
pub(super) const LEASES: u32 = 16;
/// The default of `max_ports`.
pub(super) const PORTS: u32 = 64;
/// The default of `max_flows`.
pub(super) const FLOWS: u32 = 1024;
/// The default of `max_interfaces`. Each interface costs the service some megabytes.
pub(super) const INTERFACES: u32 = 4;

impl Default for Rule {
    fn default() -> Self {
        Self {
            number: 0,
            line: 0,
            text: String::new(),
            who: Who::default(),
            refuse: false,
            interfaces: None,
            addresses: None,
            ports: Ports::all(),
            protocols: Protocols { tcp: true, udp: true, icmp: true, any: false },
            allow: None,
            deny: Targets::default(),
            rate: Some(RATE),
            max_leases: Some(LEASES),
            max_ports: Some(PORTS),
            max_flows: Some(FLOWS),
            max_interfaces: Some(INTERFACES),
            raw_ethernet: false,
            foreign_sources: Foreign::None,
            peers: Peers::Flow,
            observe: false,
            multicast: false,
            broadcast: false,
            link_local: false,
        }
    }
}

impl Rule {
    /// Whether a pattern of the rule matches an interface's name.
    pub fn allows_interface(&self, name: &str) -> bool {
        self.interfaces.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| fits(pattern, name)))
    }

    /// Whether `address` may be a local address.
    pub fn allows_address(&self, address: IpAddr) -> bool {
        self.addresses.as_ref().is_none_or(|prefixes| prefixes.covers(address))
    }

    /// The ports, or identifiers of ICMP queries, that may be leased, sorted.
    pub(crate) fn leasable(&self, transport: Transport) -> Vec<RangeInclusive<u16>> {
        match transport {
            Transport::Tcp | Transport::Udp => self.ports.ranges().collect(),
            Transport::Icmp => vec![transport.ports()],
        }
    }

    /// Whether all of `ports` may be leased.
    pub(crate) fn allows_ports(&self, transport: Transport, ports: &RangeInclusive<u16>) -> bool {
        transport == Transport::Icmp || self.ports.contains_all(ports)
    }

    /// The rule's title in messages: `rule 2 (line 25, group crafter)`.
    pub fn title(&self) -> String {
        let list = |kind: &str, accounts: &[Account]| {
            let names: Vec<String> = accounts.iter().map(Account::to_string).collect();
            (!names.is_empty()).then(|| format!("{kind} {}", names.join(", ")))
        };
        let everybody = self.who.everybody.then(|| "everybody".to_owned());
        let who = [list("user", &self.who.users), list("group", &self.who.groups), everybody];
        let who: Vec<String> = who.into_iter().flatten().collect();
        format!("rule {} (line {}, {})", self.number, self.line, who.join(", "))
    }
}

/// A `*` at the end of a pattern matches any characters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => pattern == name,
    }
}
