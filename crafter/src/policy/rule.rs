//! One rule: whom it names, and what it grants.

use std::{fmt, net::IpAddr, ops::RangeInclusive};

use super::{ports::Ports, targets::Targets, usage::Rate};
use crate::packet::Transport;

/// Whom a rule names.
#[derive(Debug, Clone, Default)]
pub struct Who {
    /// Users.
    pub users: Vec<Account>,
    /// Groups.
    pub groups: Vec<Account>,
    /// Everybody.
    pub everybody: bool,
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name, unless the text has a number.
    pub name: Option<String>,
    /// The number; `None` until the name is [resolved](super::Policy::resolve), and if nobody has it.
    pub id: Option<u32>,
    /// Where the text names it: line and column from 1.
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

/// Protocols of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protocols {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
    /// Queries with an identifier of the lease, of the ICMP of either IP version.
    pub icmp: bool,
    /// All other protocols too, all other messages of ICMP, and packets that choose their own way (source routes).
    pub any: bool,
}

impl Protocols {
    /// Whether packets of `transport` are among them.
    pub fn has(self, transport: Transport) -> bool {
        self.any
            || match transport {
                Transport::Tcp => self.tcp,
                Transport::Udp => self.udp,
                Transport::Icmp => self.icmp,
            }
    }
}

/// Source addresses that are not the host's.
#[derive(Debug, Clone, Default)]
pub enum Foreign {
    /// None.
    #[default]
    None,
    /// Any.
    All,
    /// Those of these prefixes.
    Some(Targets),
}

impl Foreign {
    /// Whether `address` may be a source.
    pub fn allows(&self, address: IpAddr) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(prefixes) => prefixes.covers(address),
        }
    }
}

/// A rule. See the [module](super) for what the values mean.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its place in the file, from 1.
    pub number: usize,
    /// The line that it begins in, from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
    /// Whom it names.
    pub who: Who,
    /// Whether it refuses everything.
    pub refuse: bool,
    /// Patterns of interface names; `None`: all.
    pub interfaces: Option<Vec<String>>,
    /// Local addresses; `None`: all.
    pub addresses: Option<Targets>,
    /// Local ports of TCP and UDP. Identifiers of ICMP queries are nobody's to keep apart from others: all may be
    /// leased.
    pub ports: Ports,
    /// Protocols.
    pub protocols: Protocols,
    /// Destinations allowed; `None`: all.
    pub allow: Option<Targets>,
    /// Destinations denied, whatever `allow` says.
    pub deny: Targets,
    /// The rate; `None`: unlimited.
    pub rate: Option<Rate>,
    /// Leases at most; `None`: unlimited.
    pub max_leases: Option<u32>,
    /// Ports at most; `None`: unlimited.
    pub max_ports: Option<u32>,
    /// Flows at most; `None`: unlimited.
    pub max_flows: Option<u32>,
    /// Whether whole Ethernet frames may be sent and received.
    pub raw_ethernet: bool,
    /// Source addresses that are not the host's.
    pub foreign_sources: Foreign,
    /// Whether packets may be watched that are not the lease's.
    pub observe: bool,
    /// Whether packets may go to multicast addresses.
    pub multicast: bool,
    /// Whether packets may go to broadcast addresses.
    pub broadcast: bool,
}

/// The rate of a rule that names none.
pub(super) const RATE: Rate = Rate { packets_per_second: 1000, burst: 100 };
/// Leases of a rule that names no number.
pub(super) const LEASES: u32 = 16;
/// Ports of a rule that names no number.
pub(super) const PORTS: u32 = 64;
/// Flows of a rule that names no number.
pub(super) const FLOWS: u32 = 1024;

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
            raw_ethernet: false,
            foreign_sources: Foreign::None,
            observe: false,
            multicast: false,
            broadcast: false,
        }
    }
}

impl Rule {
    /// Whether a pattern of the rule fits an interface's name.
    pub fn allows_interface(&self, name: &str) -> bool {
        self.interfaces.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| fits(pattern, name)))
    }

    /// Whether `address` may be a local address.
    pub fn allows_address(&self, address: IpAddr) -> bool {
        self.addresses.as_ref().is_none_or(|prefixes| prefixes.covers(address))
    }

    /// The ports, or identifiers of ICMP queries, that may be leased, in order.
    pub(crate) fn leasable(&self, transport: Transport) -> Vec<RangeInclusive<u16>> {
        match transport {
            Transport::Tcp | Transport::Udp => self.ports.ranges().collect(),
            Transport::Icmp => vec![transport.ports()],
        }
    }

    /// Whether all of them may be leased.
    pub(crate) fn allows_ports(&self, transport: Transport, ports: &RangeInclusive<u16>) -> bool {
        transport == Transport::Icmp || self.ports.contains_all(ports)
    }

    /// As the rule itself says it: `rule 2 (line 25, group crafter)`.
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

/// `*` at the end of a pattern stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => pattern == name,
    }
}
