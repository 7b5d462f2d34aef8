//! `crafter leases`: the leases of the service.

use crate::cli::exit;
use crafter::protocol::wire::{Lease, ListLeasesCall};
use serde::Serialize;

use super::{
    Globals, pages, print,
    service::Socket,
    who::{self, Processes, Users},
};

/// `crafter leases`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Only those of this user
    #[arg(long)]
    mine: bool,
    /// Only those on this interface
    #[arg(long, short, visible_alias = "iface", value_name = "IF")]
    interface: Option<String>,
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
One line per lease of the running service: those of everybody where its policy lets this user
observe, otherwise one's own. PROCESS asked for the lease, and is - once it has ended. OPTIONS:
frames (Ethernet frames go out), observe (the kernel sees the packets too), rst (the kernel's
RSTs leave). NOT-SENT are packets that the kernel did not take, REFUSED those that the policy
did not let out or that no route led for, LOST messages that the client did not read in time,
DROPPED the kernel's RSTs and port-unreachables that were suppressed.
--json: an array with one object per lease: what method ListLeases of org.crafter.v1 tells
(lease, user, pid, interface, protocol, address, first_port, last_port, frames, observe,
suppress, began in microseconds since 1970, sent, sent_bytes, not_sent, refused, delivered,
delivered_bytes, lost, suppressed), and user_name and process, null if not known.
Exit code 0: the service answered, with or without leases; 1: it does not answer.

Examples:
  crafter leases
  crafter leases --mine --json
  crafter leases --interface eth0";

#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    lease: Lease,
    user_name: Option<String>,
    process: Option<String>,
}

/// Prints the leases.
///
/// # Errors
/// Those of the service.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let control = args.service.open().await?;
    let mine = args.mine.then_some(true);
    let call = ListLeasesCall { mine, interface: args.interface, ..ListLeasesCall::default() };
    let (mut users, mut processes) = (Users::default(), Processes::default());
    let leases: Vec<Told> =
        pages::leases(&control, call).await?.into_iter().map(|lease| tell(lease, &mut users, &mut processes)).collect();
    if globals.json {
        print::json(&leases)?;
    } else {
        print::out(table(&leases))?;
    }
    Ok(exit::SUCCESS)
}

fn tell(lease: Lease, users: &mut Users, processes: &mut Processes) -> Told {
    let process = lease.pid.and_then(|pid| processes.name(pid, lease.began));
    Told { user_name: users.name(lease.user).map(str::to_owned), process, lease }
}

fn table(leases: &[Told]) -> String {
    let mut rows = vec![
        [
            "LEASE",
            "USER",
            "PID",
            "PROCESS",
            "INTERFACE",
            "PROTO",
            "ADDRESS",
            "PORTS",
            "OPTIONS",
            "AGE",
            "SENT",
            "NOT-SENT",
            "REFUSED",
            "DELIVERED",
            "LOST",
            "DROPPED",
        ]
        .map(str::to_owned),
    ];
    rows.extend(leases.iter().map(|Told { lease, user_name, process }| {
        [
            lease.lease.to_string(),
            user_name.clone().unwrap_or_else(|| lease.user.to_string()),
            lease.pid.map_or_else(dash, |pid| pid.to_string()),
            process.clone().unwrap_or_else(dash),
            lease.interface.clone(),
            lease.protocol.clone(),
            lease.address.clone().unwrap_or_else(|| "any".to_owned()),
            ports(lease.first_port, lease.last_port),
            options(lease),
            who::age(who::since(lease.began)),
            lease.sent.to_string(),
            lease.not_sent.to_string(),
            lease.refused.to_string(),
            lease.delivered.to_string(),
            lease.lost.to_string(),
            lease.suppressed.to_string(),
        ]
    }));
    let mut text = String::new();
    print::columns(&mut text, &rows, &["USER", "PROCESS", "INTERFACE", "PROTO", "ADDRESS", "PORTS", "OPTIONS"]);
    if leases.is_empty() {
        text += "no leases\n";
    }
    text
}

fn dash() -> String {
    "-".to_owned()
}

/// `50000`, `50000-50059` or `-`
pub fn ports(first: Option<u16>, last: Option<u16>) -> String {
    match (first, last) {
        (Some(first), Some(last)) if last != first => format!("{first}-{last}"),
        (Some(port), _) => port.to_string(),
        (None, _) => dash(),
    }
}

/// What is not as usual about a lease; `-` for nothing.
pub fn options(lease: &Lease) -> String {
    // What only listens, or owns no port, suppresses nothing anyway.
    let owns = lease.first_port.is_some();
    let options = [(lease.frames, "frames"), (lease.observe, "observe"), (owns && !lease.suppress, "rst")];
    let options: Vec<&str> = options.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
    if options.is_empty() { dash() } else { options.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells() {
        assert_eq!(
            (ports(None, None), ports(Some(7), Some(7)), ports(Some(7), None)),
            (dash(), "7".into(), "7".into())
        );
        assert_eq!(ports(Some(50_000), Some(50_059)), "50000-50059");
        let plain = Lease { first_port: Some(1), suppress: true, ..Lease::default() };
        assert_eq!(options(&plain), "-");
        assert_eq!(options(&Lease { frames: true, observe: true, suppress: false, ..plain }), "frames,observe,rst");
        assert_eq!(options(&Lease::default()), "-");
    }
}
