//! Reads the text of a policy. Reports all problems, not only the first.

use std::time::Duration;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    reader::Reader,
    rule::{Account, Foreign, Rule, Who},
    targets::Targets,
    usage::Rate,
    value::{self, Value},
};
use crate::layer::nearest;

/// The maximum length of a policy in bytes: 1 MiB.
const MAX_LENGTH: usize = 1 << 20;

/// The largest value of `keep_attached` in seconds: a day.
const MAX_KEEP_ATTACHED: u32 = 86_400;

/// The keys of a rule.
const KEYS: [&str; 23] = [
    "user",
    "group",
    "everybody",
    "refuse",
    "interfaces",
    "addresses",
    "ports",
    "protocols",
    "allow",
    "deny",
    "packets_per_second",
    "burst",
    "max_leases",
    "max_ports",
    "max_flows",
    "max_interfaces",
    "raw_ethernet",
    "foreign_sources",
    "peers",
    "observe",
    "multicast",
    "broadcast",
    "link_local",
];

/// Reads a text: its rules, and how long interfaces stay attached. Both are valid only without problems.
pub(super) fn read(text: &str) -> (Vec<Rule>, Option<Duration>, Reader<'_>) {
    let mut reader = Reader::new(text);
    if text.len() > MAX_LENGTH {
        reader.problem(0, format!("{} bytes are too long for a policy; at most {MAX_LENGTH} are allowed", text.len()));
        return (Vec::new(), None, reader);
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        reader.problem(at, format!("invalid TOML: {message}"));
    }
    // Problems that follow from invalid TOML would hide the cause.
    if !reader.problems.is_empty() {
        return (Vec::new(), None, reader);
    }
    let (rules, keep_attached) = reader.whole(table.get_ref());
    (rules, keep_attached, reader)
}

impl Reader<'_> {
    fn whole(&mut self, table: &DeTable<'_>) -> (Vec<Rule>, Option<Duration>) {
        let (mut rules, mut keep_attached) = (Vec::new(), None);
        for (key, value) in table {
            if key.get_ref() == "keep_attached" {
                key.get_ref().as_ref().clone_into(&mut self.key);
                let seconds = self.number(Value(value), 0..=MAX_KEEP_ATTACHED, false);
                keep_attached = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                self.key.clear();
                continue;
            }
            if key.get_ref() != "rule" {
                let near = nearest(key.get_ref(), ["rule", "keep_attached"].into_iter());
                self.problem(key.span().start, format!("there is no key '{}' here{near}", key.get_ref()));
                continue;
            }
            let Some(list) = value.get_ref().as_array() else {
                self.problem(value.span().start, "rules are written [[rule]], one heading for each");
                continue;
            };
            let starts: Vec<usize> = list.iter().map(|rule| rule.span().start).collect();
            for (at, value) in list.iter().enumerate() {
                self.rule = at + 1;
                let end = starts.get(at + 1).copied().unwrap_or(self.text.len());
                match value.get_ref().as_table() {
                    Some(table) => rules.push(self.rule(table, value, end)),
                    None => self.problem(value.span().start, "rules are written [[rule]], with keys below"),
                }
                self.key.clear();
            }
            self.rule = 0;
        }
        (rules, keep_attached)
    }

    fn rule(&mut self, table: &DeTable<'_>, whole: &Spanned<DeValue<'_>>, end: usize) -> Rule {
        let at = whole.span().start;
        let mut rule = Rule {
            number: self.rule,
            line: self.line_and_column(at).0,
            text: excerpt(self.text, whole.span(), end),
            ..Rule::default()
        };
        let mut burst = None;
        let mut named = false;
        // In the order of the text, for the order of problems.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            key.get_ref().as_ref().clone_into(&mut self.key);
            named |= ["user", "group", "everybody"].contains(&self.key.as_str());
            self.entry(&mut rule, &mut burst, key.span().start, value);
        }
        self.key.clear();
        match (&mut rule.rate, burst) {
            (Some(rate), Some((burst, _))) => rate.burst = burst,
            (None, Some((_, at))) => self.warning(at, "burst has no effect if packets_per_second is unlimited"),
            _ => {}
        }
        if !named {
            self.problem(at, "the rule names nobody; add user = \"NAME\", group = \"NAME\" or everybody = true");
        }
        let Who { users, groups, everybody } = &rule.who;
        if *everybody && !(users.is_empty() && groups.is_empty()) {
            self.warning(at, "everybody includes the rule's users and groups; remove them");
        }
        if rule.refuse
            && table.keys().any(|key| !["user", "group", "everybody", "refuse"].contains(&key.get_ref().as_ref()))
        {
            self.warning(at, "its other keys have no effect with refuse = true; remove them");
        }
        rule
    }

    fn entry(&mut self, rule: &mut Rule, burst: &mut Option<(u32, usize)>, key: usize, value: &Spanned<DeValue<'_>>) {
        let value = Value(value);
        match self.key.as_str() {
            "user" => rule.who.users = self.accounts(value),
            "group" => rule.who.groups = self.accounts(value),
            "everybody" => match self.flag(value) {
                Some(true) | None => rule.who.everybody = true,
                Some(false) => self.problem(value.at(), "true, or user or group instead"),
            },
            "refuse" => rule.refuse = self.flag(value).unwrap_or(true),
            "interfaces" => rule.interfaces = Some(self.each(value, value::interface)),
            "addresses" => rule.addresses = Some(self.prefixes(value)),
            "ports" => rule.ports = self.ports(value),
            "protocols" => rule.protocols = self.protocols(value),
            "allow" => rule.allow = Some(self.targets(value)),
            "deny" => rule.deny = self.targets(value),
            "packets_per_second" => {
                // Without burst: a tenth of a second.
                let rate =
                    |packets_per_second: u32| Rate { packets_per_second, burst: (packets_per_second / 10).max(1) };
                rule.rate = self.number(value, 1..=1_000_000_000, true).map(rate);
            }
            "burst" => {
                *burst = self.number(value, 1..=1_000_000_000, false).map(|burst| (burst, value.at()));
            }
            "max_leases" => rule.max_leases = self.number(value, 0..=u32::MAX, true),
            "max_ports" => rule.max_ports = self.number(value, 0..=u32::MAX, true),
            "max_flows" => rule.max_flows = self.number(value, 0..=u32::MAX, true),
            "max_interfaces" => rule.max_interfaces = self.number(value, 0..=u32::MAX, true),
            "raw_ethernet" => rule.raw_ethernet = self.flag(value).unwrap_or_default(),
            "peers" => rule.peers = self.peers(value),
            "observe" => rule.observe = self.flag(value).unwrap_or_default(),
            "multicast" => rule.multicast = self.flag(value).unwrap_or_default(),
            "broadcast" => rule.broadcast = self.flag(value).unwrap_or_default(),
            "link_local" => rule.link_local = self.flag(value).unwrap_or_default(),
            "foreign_sources" => {
                rule.foreign_sources = match value.0.get_ref() {
                    DeValue::Boolean(true) => Foreign::All,
                    DeValue::Boolean(false) => Foreign::None,
                    DeValue::Array(_) => Foreign::Some(self.prefixes(value)),
                    other => {
                        let message = format!("true, false or a list of prefixes, not {}", value::kind(other));
                        self.problem(value.at(), message);
                        Foreign::None
                    }
                };
            }
            unknown => {
                let near = nearest(unknown, KEYS.into_iter());
                let message = format!("rules have no key '{unknown}'{near}");
                self.problem(key, message);
            }
        }
    }

    /// One name or number, or a list of them.
    fn accounts(&mut self, value: Value<'_, '_>) -> Vec<Account> {
        let values: Vec<Value<'_, '_>> = match value.0.get_ref() {
            DeValue::Array(list) => list.iter().map(Value).collect(),
            _ => vec![value],
        };
        if values.is_empty() {
            self.problem(value.at(), "an empty list names nobody; a name or a number is needed");
        }
        values.into_iter().filter_map(|value| self.account(value)).collect()
    }

    fn account(&mut self, value: Value<'_, '_>) -> Option<Account> {
        let at = self.line_and_column(value.at());
        if let DeValue::Integer(_) = value.0.get_ref() {
            // The kernel reserves the highest number: it is not an id.
            let id = self.number(value, 0..=u32::MAX - 1, false)?;
            return Some(Account { name: None, id: Some(id), at });
        }
        let name = self.text(value)?;
        if name.parse::<u32>().is_ok() {
            self.problem(value.at(), format!("a number is written without quotes: {name}"));
            return None;
        }
        if name.is_empty() || name.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            self.problem(value.at(), format!("{name:?} is not a valid name of a user or group"));
            return None;
        }
        Some(Account { name: Some(name), id: None, at })
    }

    fn prefixes(&mut self, value: Value<'_, '_>) -> Targets {
        let targets = self.targets(value);
        if targets.list().iter().any(|target| target.ports.is_some()) {
            self.problem(value.at(), "only allow and deny have prefixes with ports");
        }
        targets
    }
}

/// The text of a rule: up to the next rule, without the comments before that.
fn excerpt(text: &str, span: std::ops::Range<usize>, end: usize) -> String {
    let own = text.get(span.clone()).unwrap_or_default();
    if !own.starts_with("[[") {
        return own.to_owned();
    }
    let mut lines: Vec<&str> = text.get(span.start..end).unwrap_or(own).lines().collect();
    while lines.pop_if(|line| line.trim().is_empty() || line.trim_start().starts_with('#')).is_some() {}
    lines.join("\n")
}
