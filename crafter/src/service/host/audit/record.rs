//! Records, and their fields in the journal.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use crate::policy::Decision;

/// The user, process and lease of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// Numeric user id.
    pub user: u32,
    /// Process id, if it is known.
    pub pid: Option<i32>,
    /// The lease; `None` if there is none yet.
    pub lease: Option<u64>,
}

/// The leased or requested resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// The interface.
    pub interface: Option<&'a str>,
    /// `tcp`, `udp`, `icmp`, `none` or `observe`.
    pub protocol: Option<&'a str>,
    /// The local address.
    pub address: Option<IpAddr>,
    /// The local ports.
    pub ports: Option<RangeInclusive<u16>>,
    /// The destination of a packet.
    pub destination: Option<IpAddr>,
    /// The destination port.
    pub destination_port: Option<u16>,
}

/// The counters of a lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets sent.
    pub sent: u64,
    /// Packets that the policy refused.
    pub refused: u64,
    /// Packets and messages for the client.
    pub delivered: u64,
    /// Packets and messages that the client did not read in time.
    pub lost: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.lost += other.lost;
    }
}

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// A lease of ports.
    Lease,
    /// A capture of packets of others.
    Observe,
    /// A packet or frame.
    Packet,
    /// The lookup of a route.
    Route,
}

/// An event to record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record<'a> {
    /// The service is ready.
    Start {
        /// Version of crafter.
        version: &'a str,
        /// Number of rules.
        rules: usize,
    },
    /// The service ends.
    Stop {
        /// The reason, such as `SIGTERM` or `idle`.
        reason: &'a str,
    },
    /// The policy was reloaded.
    Reload {
        /// Number of rules.
        rules: usize,
        /// Number of warnings.
        warnings: usize,
        /// Number of leases that it ended.
        ended: usize,
    },
    /// The policy was not reloaded; the previous one remains in force.
    ReloadFailed {
        /// What is wrong with the new policy.
        reason: &'a str,
    },
    /// A lease began.
    Lease {
        /// The owner.
        who: Who,
        /// The leased resource.
        resource: Resource<'a>,
        /// The number of the rule that allows it, from 1.
        rule: Option<usize>,
    },
    /// A lease ended.
    End {
        /// The owner.
        who: Who,
        /// The leased resource.
        resource: Resource<'a>,
        /// The reason, such as `closed`, `released`, `policy` or `interface removed`.
        reason: &'a str,
        /// The lease's counters.
        counts: Counts,
    },
    /// The policy refused something, or the host or the service has not enough of it.
    Refusal {
        /// The user.
        who: Who,
        /// The kind of request.
        kind: RequestKind,
        /// The requested resource.
        resource: Resource<'a>,
        /// Why.
        cause: Cause<'a>,
    },
}

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause<'a> {
    /// The policy: the rule and the verdict.
    Policy(Decision),
    /// The requested number of consecutive ports is not free: the error's text.
    Ports(&'a str),
    /// The user's share of descriptors is used up: the error's text.
    Descriptors(&'a str),
}

impl Cause<'_> {
    fn verdict(&self) -> &'static str {
        match self {
            Self::Policy(decision) => decision.verdict.name(),
            Self::Ports(_) => "no-free-ports",
            Self::Descriptors(_) => "no-descriptors",
        }
    }
}

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(decision) => write!(f, "{decision}"),
            Self::Ports(sentence) | Self::Descriptors(sentence) => f.write_str(sentence),
        }
    }
}

/// Counted events without records of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) leases: u64,
    pub(super) ends: u64,
    pub(super) refusals: u64,
    /// The sums of the counters of the leases that ended.
    pub(super) counts: Counts,
    /// When the first of them was counted.
    pub(super) since: Option<Instant>,
}

impl Summary {
    /// Counts an event.
    pub(super) fn add(&mut self, record: &Record<'_>, now: Instant) {
        match record {
            Record::Lease { .. } => self.leases += 1,
            Record::End { counts, .. } => {
                self.ends += 1;
                self.counts.add(*counts);
            }
            Record::Refusal { .. } => self.refusals += 1,
            _ => return,
        }
        self.since.get_or_insert(now);
    }

    /// Takes the refusals, for a record that contains their number.
    pub(super) fn take_refusals(&mut self) -> u64 {
        let refusals = std::mem::take(&mut self.refusals);
        if self.is_empty() {
            self.since = None;
        }
        refusals
    }

    /// Adds the events of `other`.
    pub(super) fn merge(&mut self, other: Self) {
        self.leases += other.leases;
        self.ends += other.ends;
        self.refusals += other.refusals;
        self.counts.add(other.counts);
        self.since = [self.since, other.since].into_iter().flatten().min();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leases + self.ends + self.refusals == 0
    }

    /// Seconds since the first event, rounded up.
    pub(super) fn seconds(&self, now: Instant) -> u64 {
        let elapsed = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        elapsed.as_millis().div_ceil(1000).max(1) as u64
    }

    /// The fields of a record of the leases and their ends.
    pub(super) fn fields(&self, user: Option<u32>, seconds: u64) -> Fields {
        let Self { leases, ends, counts, .. } = self;
        let Counts { sent, refused, delivered, lost } = counts;
        let message = format!(
            "{}: {leases} further leases, {ends} ends in the last {seconds} s; sent {sent}, refused {refused}, \
             delivered {delivered}, lost {lost}",
            whom(user),
        );
        let mut fields = Fields::new("summary", INFO, message);
        fields.add_some("USER", user);
        fields.add("LEASES", leases);
        fields.add("ENDS", ends);
        fields.add("SECONDS", seconds);
        fields.counts(counts);
        fields
    }
}

/// The fields of a record of refusals that were only counted.
pub(super) fn more_refusals(user: Option<u32>, count: u64, seconds: u64) -> Fields {
    let message = format!("{}: {count} further refusals in the last {seconds} s", whom(user));
    let mut fields = Fields::new("refusal", NOTICE, message);
    fields.add_some("USER", user);
    fields.add("COUNT", count);
    fields.add("SECONDS", seconds);
    fields
}

fn whom(user: Option<u32>) -> String {
    user.map_or_else(|| "further users".to_owned(), |user| format!("user {user}"))
}

/// Priorities of syslog(3).
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFO: u8 = 6;

/// The longest value in bytes: paths, rules and errors are free text.
const LONGEST: usize = 1024;

/// Names and values of a record; the names lack the prefix `CRAFTER_`.
#[derive(Debug)]
pub struct Fields {
    pub message: String,
    pub priority: u8,
    pub own: Vec<(&'static str, String)>,
}

impl Fields {
    fn new(event: &str, priority: u8, mut message: String) -> Self {
        cut(&mut message);
        Self { message, priority, own: vec![("EVENT", event.to_owned())] }
    }

    fn add(&mut self, name: &'static str, value: impl ToString) {
        let mut value = value.to_string();
        cut(&mut value);
        self.own.push((name, value));
    }

    fn add_some(&mut self, name: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    fn who(&mut self, who: &Who) {
        self.add("USER", who.user);
        self.add_some("PID", who.pid);
        self.add_some("LEASE", who.lease);
    }

    fn counts(&mut self, counts: &Counts) {
        self.add("SENT", counts.sent);
        self.add("REFUSED", counts.refused);
        self.add("DELIVERED", counts.delivered);
        self.add("LOST", counts.lost);
    }

    fn resource(&mut self, resource: &Resource<'_>) {
        self.add_some("INTERFACE", resource.interface);
        self.add_some("PROTOCOL", resource.protocol);
        self.add_some("ADDRESS", resource.address);
        self.add_some("PORTS", resource.ports.as_ref().map(range));
        self.add_some("DESTINATION", resource.destination);
        self.add_some("DESTINATION_PORT", resource.destination_port);
    }
}

fn cut(value: &mut String) {
    if value.len() > LONGEST {
        value.truncate(value.floor_char_boundary(LONGEST));
    }
}

impl Record<'_> {
    /// The fields of a record that covers `count` events.
    pub(super) fn fields(&self, count: u64) -> Fields {
        match self {
            Self::Start { version, rules } => {
                let mut fields =
                    Fields::new("start", INFO, format!("crafter {version} serves, with {}", many(*rules, "rule")));
                fields.add("VERSION", version);
                fields.add("RULES", rules);
                fields
            }
            Self::Stop { reason } => {
                let mut fields = Fields::new("stop", INFO, format!("crafter stops: {reason}"));
                fields.add("REASON", reason);
                fields
            }
            Self::Reload { rules, warnings, ended } => {
                let [rules_read, warned, leases] =
                    [(*rules, "rule"), (*warnings, "warning"), (*ended, "lease")].map(|(count, of)| many(count, of));
                let message = format!("reloaded the policy: {rules_read}, {warned}, {leases} ended");
                let mut fields = Fields::new("reload", INFO, message);
                fields.add("RULES", rules);
                fields.add("WARNINGS", warnings);
                fields.add("ENDED", ended);
                fields
            }
            Self::ReloadFailed { reason } => {
                let message = format!("cannot reload the policy, the previous one remains in force: {reason}");
                let mut fields = Fields::new("reload", WARNING, message);
                fields.add("REASON", reason);
                fields
            }
            Self::Lease { who, resource, rule } => {
                let by = rule.map(|rule| format!(", by rule {rule}")).unwrap_or_default();
                let message = format!("{} has {}{by}", subject(who), object(resource, RequestKind::Lease));
                let mut fields = Fields::new("lease", INFO, message);
                fields.who(who);
                fields.resource(resource);
                fields.add_some("RULE", *rule);
                fields
            }
            Self::End { who, resource, reason, counts } => {
                let Counts { sent, refused, delivered, lost } = counts;
                let message = format!(
                    "lease ended: {} {}: {reason}; sent {sent}, refused {refused}, delivered {delivered}, lost {lost}",
                    subject(who),
                    object(resource, RequestKind::Lease),
                );
                let mut fields = Fields::new("end", INFO, message);
                fields.who(who);
                fields.resource(resource);
                fields.add("REASON", reason);
                fields.counts(counts);
                fields
            }
            Self::Refusal { who, kind, resource, cause } => {
                let more = match count - 1 {
                    0 => String::new(),
                    more => format!(" (and {more} more before it)"),
                };
                let message = format!("{} is refused {}: {cause}{more}", subject(who), object(resource, *kind));
                let mut fields = Fields::new("refusal", NOTICE, message);
                fields.who(who);
                fields.resource(resource);
                fields.add("OF", kind.name());
                if let Cause::Policy(decision) = cause {
                    fields.add_some("RULE", decision.rule);
                }
                fields.add("VERDICT", cause.verdict());
                fields.add("COUNT", count);
                fields
            }
        }
    }
}

impl RequestKind {
    fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Observe => "observe",
            Self::Packet => "packet",
            Self::Route => "route",
        }
    }
}

fn subject(who: &Who) -> String {
    let mut text = format!("user {}", who.user);
    if let Some(pid) = who.pid {
        let _ = write!(text, " (pid {pid})");
    }
    if let Some(lease) = who.lease {
        let _ = write!(text, ", lease {lease},");
    }
    text
}

fn object(resource: &Resource<'_>, kind: RequestKind) -> String {
    let mut text = match (kind, resource.protocol) {
        (RequestKind::Packet, Some(protocol)) => format!("a packet of {protocol}"),
        (RequestKind::Packet, None) => "a packet".to_owned(),
        (RequestKind::Route, _) => "a route".to_owned(),
        (RequestKind::Observe, _) | (RequestKind::Lease, Some("observe")) => "all packets".to_owned(),
        (RequestKind::Lease, None | Some("none")) => "a lease without ports".to_owned(),
        (RequestKind::Lease, Some(protocol)) => match &resource.ports {
            Some(ports) if ports.start() == ports.end() => format!("{protocol} port {}", ports.start()),
            Some(ports) => format!("{protocol} ports {}", range(ports)),
            None => format!("a {protocol} port"),
        },
    };
    if let Some(destination) = resource.destination {
        let _ = match resource.destination_port {
            Some(port) => write!(text, " to {destination} port {port}"),
            None => write!(text, " to {destination}"),
        };
    }
    if let Some(address) = resource.address {
        let _ = write!(
            text,
            " {} {address}",
            if matches!(kind, RequestKind::Packet | RequestKind::Route) { "from" } else { "of" }
        );
    }
    if let Some(interface) = resource.interface {
        let _ = write!(text, " on {interface}");
    }
    text
}

fn range(ports: &RangeInclusive<u16>) -> String {
    if ports.start() == ports.end() { ports.start().to_string() } else { format!("{}-{}", ports.start(), ports.end()) }
}

fn many(count: usize, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}
