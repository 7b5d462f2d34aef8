//! Warnings about settings that are valid but probably not intended.

use std::collections::HashMap;

use super::{
    Problem,
    rule::{Account, Rule},
    targets::Targets,
};

/// Warns about destinations without effect.
pub(super) fn destinations(rule: &Rule, warnings: &mut Vec<Problem>) {
    let mut warn = |line: usize, key: &str, message: String| {
        warnings.push(Problem { line, column: 1, key: format!("rule {}, {key}", rule.number), message });
    };
    let mut lists = vec![("deny", &rule.deny)];
    lists.extend(rule.allow.as_ref().map(|allow| ("allow", allow)));
    lists.extend(rule.addresses.as_ref().map(|addresses| ("addresses", addresses)));
    for (key, list) in lists {
        for (line, prefix, again) in repeated(list) {
            let how = if again { "is listed twice" } else { "is inside another prefix of the list" };
            warn(line, key, format!("{prefix} {how}; remove it"));
        }
    }
    for target in rule.allow.iter().flat_map(Targets::list) {
        if rule.deny.encloses(target, false) {
            warn(target.line, "allow", format!("{} is denied; deny takes precedence", target.prefix));
        }
        let network = target.prefix.network();
        // 224.0.0.0/4 and ff00::/8, or a part of them.
        let only_multicast = network.is_multicast() && target.prefix.prefix_len() >= 4;
        if only_multicast && !rule.multicast {
            warn(target.line, "allow", format!("{} is multicast; it also needs multicast = true", target.prefix));
        }
    }
}

/// Prefixes that are listed twice (`true`) or inside another one.
fn repeated(list: &Targets) -> Vec<(usize, String, bool)> {
    let mut seen = HashMap::new();
    let mut found = Vec::new();
    for target in list.list() {
        let twice = seen.insert((target.prefix, target.ports.as_ref().map(ToString::to_string)), ()).is_some();
        if twice || list.encloses(target, true) {
            found.push((target.line, target.prefix.to_string(), twice));
        }
    }
    found
}

/// Warns about rules, users and groups for which an earlier rule decides.
pub(super) fn unreached(rules: &[Rule]) -> Vec<Problem> {
    let mut warnings = Vec::new();
    // The first rule of each user and group, and the rule for everybody.
    let mut first: HashMap<(bool, String), usize> = HashMap::new();
    let mut everybody = None;
    for rule in rules {
        let mut warn = |(line, column), key: String, message: String| {
            warnings.push(Problem { line, column, key: format!("rule {}{key}", rule.number), message });
        };
        if let Some(earlier) = everybody {
            let message = format!("never reached: rule {earlier} decides for everybody");
            warn((rule.line, 1), String::new(), message);
            continue;
        }
        let users = rule.who.users.iter().map(|account| (false, "user", account));
        for (is_group, kind, account) in users.chain(rule.who.groups.iter().map(|account| (true, "group", account))) {
            let earlier = *first.entry((is_group, identity(account))).or_insert(rule.number);
            if earlier != rule.number {
                let message = format!("never reached: rule {earlier} decides for {kind} {account}");
                warn(account.at, format!(", {kind}"), message);
            }
        }
        if rule.who.everybody {
            everybody = Some(rule.number);
        }
    }
    warnings
}

/// One key for a name and its number, if the number is known.
fn identity(account: &Account) -> String {
    match (account.id, &account.name) {
        (Some(id), _) => id.to_string(),
        // No name begins with a colon.
        (None, name) => format!(":{}", name.as_deref().unwrap_or_default()),
    }
}
