//! Who may do what with the service: the rules of `/etc/crafter/crafter.toml`, read and applied.
//!
//! Nothing here opens anything or reads a clock: the caller brings the text, the ids of users ([`Names`]), what it
//! knows of the host ([`Host`]), what each user has ([`Usage`]), and `now`.
//!
//! # The file
//! TOML, of rules. **The first rule that names the user, by name or number, or a group that the user is in, or
//! everybody, decides everything; later ones are not looked at.** Whom no rule names may do nothing.
//!
//! ```toml
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
//!
//! [[rule]]
//! everybody = true
//! refuse = true
//! ```
//!
//! - What restricts (`interfaces`, `addresses`, `ports`, `allow`) does so only where it is there; an empty list leaves
//!   nothing. **A denied destination is denied, whatever `allow` says.**
//! - What is dangerous is refused unless granted: `raw_ethernet`, `observe`, `multicast`, `broadcast` (`true`), and
//!   `foreign_sources` (`true`, or the prefixes that may be pretended).
//! - `protocols` are tcp, udp and icmp unless named. `icmp` are queries with an identifier, as ping sends; other ICMP,
//!   other protocols and source-routed packets need `"any"`. Each address of a source route is compared as a destination
//!   is; a route that cannot be read is refused where there is a `deny` or an `allow`.
//! - Numbers are per user, over all of the user's leases, also where a group is named. Where they are not named they
//!   are those above; without `burst` it is a tenth of a second's packets. `"unlimited"` lifts one.
//! - Destinations with ports are for TCP and UDP. A fragment that does not tell its port, and a protocol that has
//!   none, meets every denied port and no allowed one; ICMP queries meet neither.
//!
//! A text is taken whole or not at all, and everything that is wrong with it is told ([`Rejected`]). What is
//! legal and hardly meant is a [warning](Policy::warnings).
//!
//! # The decisions
//! [`Policy::grant`] turns a wish into a [`Grant`], [`Policy::packet`] compares packets with it, in a fraction of a
//! microsecond however many rules and prefixes there are. When a policy follows another, grants go on under the new
//! one: [`Policy::review`] tells which leases to end, and packets of one that it refuses are refused before that too.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
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
    decide::{Grant, Host, LeaseWish, Subject},
    explain::{Explanation, Question},
    packet_info::PacketInfo,
    policy_verdict::{Decision, Verdict},
    ports::Ports,
    rule::{Account, Foreign, Protocols, Rule, Who},
    targets::{Target, Targets},
    usage::{Rate, Usage},
};
use crate::error::{Error, Result};

/// The text of the policy that is in force where there is no file.
pub const SHIPPED: &str = include_str!("../../data/crafter.toml");

/// Something wrong in a policy's text, or a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Such as `rule 2, ports`; empty outside of rules.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
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

/// All that is wrong in a policy's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy rejected: {}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Rejected {
    /// In the order of the text; at least one.
    pub problems: Vec<Problem>,
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        Self::Policy { problems: rejected.problems.iter().map(ToString::to_string).collect() }
    }
}

/// The numbers of users and groups.
pub trait Names {
    /// The id of a user; `None`: there is no such user.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn user(&self, name: &str) -> Result<Option<u32>>;

    /// The id of a group; `None`: there is no such group.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn group(&self, name: &str) -> Result<Option<u32>>;
}

/// Rules in their order.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Warnings of reading, of names, of the order of rules.
    warnings: [Vec<Problem>; 3],
    /// The index of the first rule of each user and group, and that for everybody.
    users: HashMap<u32, usize>,
    groups: HashMap<u32, usize>,
    everybody: Option<usize>,
    /// Tells this policy from others, for grants.
    stamp: u64,
}

impl Policy {
    /// Reads a text. Names in it mean nobody until they are [resolved](Self::resolve).
    ///
    /// # Errors
    /// [`Rejected`] with all that is wrong.
    pub fn parse(text: &str) -> Result<Self, Rejected> {
        let (rules, mut reader) = read::read(text);
        if !reader.problems.is_empty() {
            return Err(Rejected { problems: reader.problems });
        }
        for rule in &rules {
            lint::destinations(rule, &mut reader.warnings);
        }
        let mut policy = Self {
            rules,
            warnings: [reader.warnings, Vec::new(), Vec::new()],
            users: HashMap::new(),
            groups: HashMap::new(),
            everybody: None,
            stamp: 0,
        };
        policy.index();
        Ok(policy)
    }

    /// Reads a text and resolves its names.
    ///
    /// # Errors
    /// Those of [`parse`](Self::parse) and [`resolve`](Self::resolve).
    pub fn load(text: &str, names: &dyn Names) -> Result<Self> {
        let mut policy = Self::parse(text)?;
        policy.resolve(names)?;
        Ok(policy)
    }

    /// Looks up the names. Whoever does not exist gets a warning, and nothing of the rule.
    ///
    /// # Errors
    /// What `names` says, after which the policy is as before.
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

    /// What is legal and hardly meant, in the order of lines.
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
