//! Decides which user may do what through the service, by the rules of `/etc/crafter/crafter.toml`.
//!
//! The module is pure: the caller passes the text, the ids of users and groups ([`Names`]), the facts about the host
//! ([`Host`]), the user's resources ([`Usage`]), and `now`.
//!
//! # The file
//! A TOML file of rules. **The first rule that names the user (by name or number), a group of the user, or everybody
//! decides alone; later rules are ignored.** A user that no rule names may do nothing.
//!
//! ```toml
//! keep_attached = 30                  # seconds, before the rules
//!
//! [[rule]]
//! group = "crafter"                   # or user = ..., or both; names, numbers, or lists of them
//! interfaces = ["eth*"]               # names; * at the end for any characters
//! addresses = ["192.0.2.0/24"]        # local addresses
//! ports = ["1024-65535", 80]          # local ports of TCP and UDP
//! protocols = ["tcp", "udp", "icmp"]
//! allow = ["any"]                     # destinations: prefixes, addresses, "any" ...
//! deny = ["10.0.0.0/8", { prefix = "any", ports = [25] }]    # ... some with ports
//! packets_per_second = 1000
//! burst = 100
//! max_leases = 16
//! max_ports = 64
//! max_flows = 1024
//! max_interfaces = 4
//!
//! [[rule]]
//! everybody = true
//! refuse = true
//! ```
//!
//! - A restriction (`interfaces`, `addresses`, `ports`, `allow`) applies only if its key is present; an empty list
//!   allows nothing. **A denied destination is denied, whatever `allow` says.**
//! - Dangerous permissions must be granted: `raw_ethernet`, `observe`, `multicast`, `broadcast`, `link_local` (`true`),
//!   and `foreign_sources` (`true`, or the prefixes that leases may send from).
//! - `protocols` are tcp, udp and icmp by default. `icmp` means queries with an identifier, as ping sends them; other
//!   ICMP messages, other protocols, source-routed packets and special IP options need `"any"`. Each address of a
//!   source route is checked like a destination; an unreadable route is refused if the rule has `deny` or `allow`.
//! - Limits apply per user, over all leases of the user, even if the rule names a group. Their defaults are the values
//!   above; the default `burst` is a tenth of a second. `"unlimited"` lifts a limit.
//! - Ports of destinations apply to TCP and UDP. A later fragment, which contains no ports, and a protocol without
//!   ports match every denied port and no allowed one; ICMP queries match neither.
//!
//! `keep_attached` is how long an interface stays attached after the last lease on it ends, so that the next lease does
//! not wait for the kernel: 0 to detach at once. Without it, `crafter serve --keep-attached` sets the time: 30 by
//! default.
//!
//! A text is accepted or rejected as a whole, with all problems ([`Rejected`]). Settings that are valid but probably
//! not intended are [warnings](Policy::warnings).
//!
//! # The decisions
//! [`Policy::grant`] turns a requested lease into a [`Grant`]; [`Policy::packet`] compares a packet with it in a
//! fraction of a microsecond, independent of the number of rules and prefixes. Grants stay valid under a new policy:
//! [`Policy::review`] says which leases to end, and [`Policy::packet`] refuses all their packets even before.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

mod decide;
mod explain;
mod lint;
mod packet_info;
mod policy_verdict;
mod ports;
mod read;
mod reader;
mod rule;
mod targets;
mod usage;
mod value;

#[cfg(test)]
mod tests;

pub(crate) use self::usage::Bucket;
pub use self::{
    decide::{Grant, Host, RequestedLease, Subject},
    explain::{Explanation, Question},
    packet_info::PacketInfo,
    policy_verdict::{Decision, Verdict},
    ports::Ports,
    rule::{Account, Foreign, Protocols, Rule, Who},
    targets::{Target, Targets},
    usage::{Rate, Usage},
};
use crate::{
    error::{Error, Result},
    packet::Excerpt,
};

/// The text of the policy in force if there is no file.
pub const SHIPPED: &str = include_str!("../../data/crafter.toml");

/// A problem or a warning in a policy's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key, such as `rule 2, ports`; empty outside of rules.
    pub key: String,
    /// What is wrong, and a correct value.
    pub message: String,
}

impl Problem {
    /// The line of `text`, from which the problem was read.
    pub fn excerpt(&self, text: &str) -> Excerpt {
        Excerpt::at_column(text, self.line, self.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        match self.key.as_str() {
            "" => f.write_str(&self.message),
            key => write!(f, "{key}: {}", self.message),
        }
    }
}

/// All problems of a policy's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy rejected: {}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Rejected {
    /// The problems in the order of the text; at least one.
    pub problems: Vec<Problem>,
    /// The line of each.
    pub excerpts: Vec<Excerpt>,
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        Self::Policy {
            problems: rejected.problems.iter().map(ToString::to_string).collect(),
            excerpts: rejected.excerpts,
        }
    }
}

/// Looks up the ids of users and groups.
pub trait Names {
    /// The id of a user; `None` if there is no such user.
    ///
    /// # Errors
    /// If the lookup fails.
    fn user(&self, name: &str) -> Result<Option<u32>>;

    /// The id of a group; `None` if there is no such group.
    ///
    /// # Errors
    /// If the lookup fails.
    fn group(&self, name: &str) -> Result<Option<u32>>;
}

/// A policy: its rules in their order.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    keep_attached: Option<Duration>,
    /// Warnings about the text, about names, and about the order of rules.
    warnings: [Vec<Problem>; 3],
    /// The indices of the first rule of each user and group, and of the rule for everybody.
    users: HashMap<u32, usize>,
    groups: HashMap<u32, usize>,
    everybody: Option<usize>,
    /// Distinguishes this policy from others, for grants.
    stamp: u64,
}

impl Policy {
    /// Parses a text. Its names match nobody until they are [resolved](Self::resolve).
    ///
    /// # Errors
    /// [`Rejected`] with all problems.
    pub fn parse(text: &str) -> Result<Self, Rejected> {
        let (rules, keep_attached, mut reader) = read::read(text);
        if !reader.problems.is_empty() {
            let excerpts = reader.problems.iter().map(|problem| problem.excerpt(text)).collect();
            return Err(Rejected { problems: reader.problems, excerpts });
        }
        for rule in &rules {
            lint::destinations(rule, &mut reader.warnings);
        }
        let mut policy = Self {
            rules,
            keep_attached,
            warnings: [reader.warnings, Vec::new(), Vec::new()],
            users: HashMap::new(),
            groups: HashMap::new(),
            everybody: None,
            stamp: 0,
        };
        policy.index();
        Ok(policy)
    }

    /// Parses a text and resolves its names.
    ///
    /// # Errors
    /// Those of [`parse`](Self::parse) and [`resolve`](Self::resolve).
    pub fn load(text: &str, names: &dyn Names) -> Result<Self> {
        let mut policy = Self::parse(text)?;
        policy.resolve(names)?;
        Ok(policy)
    }

    /// Looks up the names. A name that does not exist gets a warning and matches nobody.
    ///
    /// # Errors
    /// Those of `names`; the policy is unchanged then.
    pub fn resolve(&mut self, names: &dyn Names) -> Result<()> {
        let mut rules = self.rules.clone();
        let mut warnings = Vec::new();
        for rule in &mut rules {
            let Who { users, groups, .. } = &mut rule.who;
            for (kind, account) in
                users.iter_mut().map(|user| ("user", user)).chain(groups.iter_mut().map(|group| ("group", group)))
            {
                let Some(name) = &account.name else { continue };
                account.id = if kind == "user" { names.user(name)? } else { names.group(name)? };
                if account.id.is_none() {
                    let (line, column) = account.at;
                    let message = format!("there is no {kind} '{name}' on this host");
                    let key = format!("rule {}, {kind}", rule.number);
                    warnings.push(Problem { line, column, key, message });
                }
            }
        }
        self.rules = rules;
        self.warnings[1] = warnings;
        self.index();
        Ok(())
    }

    fn index(&mut self) {
        static STAMP: AtomicU64 = AtomicU64::new(1);
        self.stamp = STAMP.fetch_add(1, Ordering::Relaxed);
        self.warnings[2] = lint::unreached(&self.rules);
        self.users.clear();
        self.groups.clear();
        self.everybody = self.rules.iter().position(|rule| rule.who.everybody);
        for (at, rule) in self.rules.iter().enumerate() {
            for id in rule.who.users.iter().filter_map(|user| user.id) {
                self.users.entry(id).or_insert(at);
            }
            for id in rule.who.groups.iter().filter_map(|group| group.id) {
                self.groups.entry(id).or_insert(at);
            }
        }
    }

    /// The rules in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How long an interface stays attached after the last lease on it ends, if the text says so.
    pub fn keep_attached(&self) -> Option<Duration> {
        self.keep_attached
    }

    /// Settings that are valid but probably not intended, in the order of the text.
    pub fn warnings(&self) -> Vec<Problem> {
        let mut warnings = self.warnings.concat();
        warnings.sort_by_key(|warning| (warning.line, warning.column));
        warnings
    }

    /// The rule that decides for `subject`.
    pub fn rule_of(&self, subject: &Subject) -> Option<&Rule> {
        self.rules.get(self.find(subject)?)
    }

    fn find(&self, subject: &Subject) -> Option<usize> {
        let user = self.users.get(&subject.user).copied();
        let group = subject.groups.iter().filter_map(|group| self.groups.get(group)).min().copied();
        [user, group, self.everybody].into_iter().flatten().min()
    }
}
