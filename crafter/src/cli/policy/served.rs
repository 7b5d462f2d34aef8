//! `crafter policy show` and `crafter policy reload`: the policy of the running service.

use crate::cli::exit;
use crafter::protocol::wire::{Allowance, PolicyCall, ReloadCall, Reloaded, Rule};
use nix::unistd::{Gid, Group};

use super::{
    super::{
        Globals, print,
        service::Socket,
        who::{Users, printable},
    },
    say,
};

/// `crafter policy show`
#[derive(Debug, clap::Args)]
#[command(after_help = SHOW_HELP)]
pub struct ShowArgs {
    #[command(flatten)]
    service: Socket,
}

const SHOW_HELP: &str = "\
Who this user is to the service, which rule of its policy decides, what that rule gives, and
what of it is in use.
--json: an object with what method Policy of org.crafter.v1 tells: user, groups, rule (null where
no rule names this user, else number, refuse, protocols, packets_per_second, burst, max_leases,
max_ports, max_flows, raw_ethernet, foreign_sources, observe, multicast, broadcast, text; a limit
that is null is none), leases, ports, flows.
Exit code 0: something is allowed; 4: nothing is; 1: the service does not answer.

Examples:
  crafter policy show
  crafter policy show --json";

/// `crafter policy reload`
#[derive(Debug, clap::Args)]
#[command(after_help = RELOAD_HELP)]
pub struct ReloadArgs {
    #[command(flatten)]
    service: Socket,
}

const RELOAD_HELP: &str = "\
Root and the user that the service runs as may do this; SIGHUP to the service does the same.
Either all of the new policy is in force afterwards, or the former one still is. Leases that
the new one refuses end. Warnings go to stderr.
--json: an object with what method Reload of org.crafter.v1 tells: rules (how many), warnings,
ended (numbers of leases).
Exit code 0: the new policy is in force; 2: its text is none, and why; 4: not for this user;
1: the service does not answer.

Examples:
  crafter policy reload
  crafter policy check && crafter policy reload --json";

/// Prints what the service allows.
///
/// # Errors
/// Those of the service.
pub async fn show(args: ShowArgs, globals: &Globals) -> anyhow::Result<u8> {
    let allowance = args.service.open().await?.call(&PolicyCall {}).await?;
    if globals.json {
        print::json(&allowance)?;
    } else {
        print::out(in_words(&allowance))?;
    }
    Ok(match &allowance.rule {
        Some(rule) if !rule.refuse => exit::SUCCESS,
        _ => exit::REFUSED,
    })
}

/// Has the policy read again.
///
/// # Errors
/// Those of the service, and of the policy.
pub async fn reload(args: ReloadArgs, globals: &Globals) -> anyhow::Result<u8> {
    let Reloaded { rules, warnings, ended } = &args.service.open().await?.call(&ReloadCall {}).await?;
    for warning in warnings {
        say(&format!("warning: {}", printable(warning)));
    }
    if globals.json {
        print::json(&Reloaded { rules: *rules, warnings: warnings.clone(), ended: ended.clone() })?;
        return Ok(exit::SUCCESS);
    }
    let mut text = format!("the new policy is in force, {}", counted(*rules, "rule"));
    if !ended.is_empty() {
        let numbers: Vec<String> = ended.iter().map(u64::to_string).collect();
        text += &format!("; {} ended: {}", counted(ended.len() as u32, "lease"), numbers.join(", "));
    }
    print::out(text + "\n")?;
    Ok(exit::SUCCESS)
}

/// `1 rule`, `2 rules`
fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn in_words(allowance: &Allowance) -> String {
    let Allowance { user, groups, rule, leases, ports, flows } = allowance;
    let groups: Vec<String> = groups.iter().map(|&group| group_label(group)).collect();
    let mut text = format!("user {}", Users::default().label(*user));
    if !groups.is_empty() {
        text += &format!(", groups {}", groups.join(", "));
    }
    text.push('\n');
    let Some(rule) = rule else {
        return text + "no rule of the policy names this user: nothing is allowed\n";
    };
    if rule.refuse {
        text += &format!("rule {} refuses everything:\n", rule.number);
    } else {
        text += &format!("allowed by rule {}: {}\n", rule.number, grants(rule));
        text += &format!(
            "rate: {} packets/s, {} at once\nin use: leases {leases} of {}, ports {ports} of {}, flows {flows} of {}\n",
            limit(rule.packets_per_second),
            limit(rule.burst),
            limit(rule.max_leases),
            limit(rule.max_ports),
            limit(rule.max_flows),
        );
        text += "its text:\n";
    }
    for line in rule.text.lines() {
        text += format!("  {}", printable(&line.replace('\t', "    "))).trim_end();
        text.push('\n');
    }
    text
}

fn grants(rule: &Rule) -> String {
    let mut grants = vec![match rule.protocols.is_empty() {
        true => "no protocol".to_owned(),
        false => rule.protocols.join(", "),
    }];
    let more = [
        (rule.raw_ethernet, "Ethernet frames"),
        (rule.foreign_sources, "foreign source addresses"),
        (rule.observe, "observing"),
        (rule.multicast, "multicast"),
        (rule.broadcast, "broadcast"),
    ];
    grants.extend(more.into_iter().filter(|(is_granted, _)| *is_granted).map(|(_, what)| what.to_owned()));
    grants.join(", ")
}

fn limit(limit: Option<u32>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

/// The group's name, or the number of one without.
fn group_label(group: u32) -> String {
    let found = Group::from_gid(Gid::from_raw(group)).ok().flatten();
    found.map_or_else(|| group.to_string(), |group| printable(&group.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_in_words() {
        let rule = Rule {
            number: 2,
            protocols: vec!["tcp".into(), "udp".into()],
            packets_per_second: Some(1000),
            max_ports: Some(256),
            observe: true,
            text: "[[rule]]\nuser = 0\n".into(),
            ..Rule::default()
        };
        let allowance =
            Allowance { groups: vec![0], rule: Some(rule.clone()), leases: 1, ports: 60, ..Allowance::default() };
        let text = "user root, groups root\nallowed by rule 2: tcp, udp, observing\nrate: 1000 packets/s, unlimited at once\n\
                    in use: leases 1 of unlimited, ports 60 of 256, flows 0 of unlimited\nits text:\n  [[rule]]\n  user = 0\n";
        assert_eq!(in_words(&allowance), text);
        let refused = Allowance { rule: Some(Rule { refuse: true, ..rule }), ..allowance.clone() };
        let text = "user root, groups root\nrule 2 refuses everything:\n  [[rule]]\n  user = 0\n";
        assert_eq!(in_words(&refused), text);
        let nobodys = Allowance { user: 4_000_000_000, groups: vec![], rule: None, ..allowance };
        let text = "user 4000000000\nno rule of the policy names this user: nothing is allowed\n";
        assert_eq!(in_words(&nobodys), text);
    }
}
