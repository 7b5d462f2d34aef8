//! `crafter policy show` and `crafter policy reload`: the policy of the running service.

use crate::cli::exit;
use crafter::protocol::wire::{Allowance, PolicyCall, ReloadCall, Reloaded, Rule};
use nix::unistd::{Gid, Group};

use super::super::{
    Globals, print,
    service::Socket,
    who::{Users, printable},
};

/// `crafter policy show`
#[derive(Debug, clap::Args)]
#[command(after_help = SHOW_HELP)]
pub struct ShowArgs {
    #[command(flatten)]
    service: Socket,
}

const SHOW_HELP: &str = "\
Shows the user and groups by which the service knows this process, the rule of its policy that
applies, and how much of the rule's limits is in use.
--json: the reply of method Policy of org.crafter.v1: user, groups, rule (null if no rule names
this user, else number, refuse, protocols, packets_per_second, burst, max_leases, max_ports,
max_flows, max_interfaces, raw_ethernet, foreign_sources, peers, observe, multicast, broadcast, text; a
limit of null means unlimited), leases, ports, flows, interfaces.
Exit code 0: the rule allows something; 4: nothing is allowed; 1: the service does not answer.

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
Allowed for root and for the user that the service runs as. SIGHUP to the service does the same.
If the new policy has an error, the current one stays in force. Leases that the new policy does
not allow end. Warnings are printed on stderr.
--json: the reply of method Reload of org.crafter.v1: rules (how many), warnings, ended (numbers
of leases).
Exit code 0: the new policy is in force; 2: it has errors, which are printed; 4: not allowed for
this user; 1: the service does not answer.

Examples:
  crafter policy reload
  crafter policy check && crafter policy reload --json";

/// Prints what the policy of the service allows this user.
///
/// # Errors
/// Those of the service.
pub async fn show(args: ShowArgs, globals: &Globals) -> anyhow::Result<u8> {
    let allowance = args.service.open().await?.call(&PolicyCall {}).await?;
    print::result(globals, &allowance, in_words)?;
    Ok(match &allowance.rule {
        Some(rule) if !rule.refuse => exit::SUCCESS,
        _ => exit::REFUSED,
    })
}

/// Lets the service reload its policy.
///
/// # Errors
/// Those of the service, and of the policy.
pub async fn reload(args: ReloadArgs, globals: &Globals) -> anyhow::Result<u8> {
    let reloaded = args.service.open().await?.call(&ReloadCall {}).await?;
    for warning in &reloaded.warnings {
        print::warning(None, printable(warning), &[]);
    }
    print::result(globals, &reloaded, |Reloaded { rules, ended, .. }| {
        let mut text = format!("the new policy is in force, {}", print::counted((*rules).into(), "rule"));
        if !ended.is_empty() {
            let numbers: Vec<String> = ended.iter().map(u64::to_string).collect();
            text += &format!("; {} ended: {}", print::counted(ended.len() as u64, "lease"), numbers.join(", "));
        }
        text + "\n"
    })?;
    Ok(exit::SUCCESS)
}

fn in_words(allowance: &Allowance) -> String {
    let Allowance { user, groups, rule, leases, ports, flows, interfaces } = allowance;
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
            "rate: {} packets/s, burst {}\nin use: leases {leases} of {}, ports {ports} of {}, flows {flows} of {}, \
             interfaces {interfaces} of {}\n",
            limit(rule.packets_per_second),
            limit(rule.burst),
            limit(rule.max_leases),
            limit(rule.max_ports),
            limit(rule.max_flows),
            limit(rule.max_interfaces),
        );
        text += "rule text:\n";
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
        (rule.peers == "address", "packets of known addresses"),
        (rule.peers == "any", "packets of all peers"),
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

/// The group's name, or the number if it has none.
fn group_label(group: u32) -> String {
    let found = Group::from_gid(Gid::from_raw(group)).ok().flatten();
    found.map_or_else(|| group.to_string(), |group| printable(&group.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowance_as_text() {
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
        let text = "user root, groups root\nallowed by rule 2: tcp, udp, observing\nrate: 1000 packets/s, burst unlimited\n\
                    in use: leases 1 of unlimited, ports 60 of 256, flows 0 of unlimited, interfaces 0 of unlimited\nrule text:\n  [[rule]]\n  user = 0\n";
        assert_eq!(in_words(&allowance), text);
        let refused = Allowance { rule: Some(Rule { refuse: true, ..rule }), ..allowance.clone() };
        let text = "user root, groups root\nrule 2 refuses everything:\n  [[rule]]\n  user = 0\n";
        assert_eq!(in_words(&refused), text);
        let nobodys = Allowance { user: 4_000_000_000, groups: vec![], rule: None, ..allowance };
        let text = "user 4000000000\nno rule of the policy names this user: nothing is allowed\n";
        assert_eq!(in_words(&nobodys), text);
    }
}
