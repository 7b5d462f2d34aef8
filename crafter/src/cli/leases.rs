//! `crafter leases`: the leases of the service.

use crate::cli::exit;
use crafter::{
    Result,
    protocol::{
        control::Control,
        wire::{Lease, ListLeasesCall},
    },
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Globals, complete, pages, print,
    service::Socket,
    who::{self, Processes, Users},
};

/// `crafter leases`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Show only leases of this user
    #[arg(long)]
    mine: bool,
    /// Interface whose leases to show [default: all]
    #[arg(long, short, visible_alias = "iface", value_name = "IF", add = complete::interfaces())]
    interface: Option<String>,
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
One line for each lease of the running service: all leases if its policy lets this user observe,
else the user's own. PROCESS requested the lease; - if it has ended. OPTIONS: frames (Ethernet
frames may be sent), observe (the kernel sees the packets too), rst (the kernel's RSTs are sent).
NOT-SENT counts packets that the kernel rejected, REFUSED packets that the policy forbids or that
have no route, LOST packets that arrived but were not delivered: the client did not read in time, or
(queue_full) the lease's share of the receive queues was full. DROPPED: the kernel's RSTs and
port-unreachables that were suppressed.
--json: an object with leases, each as in the reply of method ListLeases of org.crafter.v1 (lease,
user, pid, interface, protocol, address, first_port, last_port, frames, observe, suppress, began_ns
since 1970, sent, sent_bytes, not_sent, refused, delivered,
delivered_bytes, lost, queue_full, suppressed), and user_name and process, null if unknown.
Exit code 0: the service answered, with or without leases; 1: it does not answer.

Examples:
  crafter leases
  crafter leases --mine --json
  crafter leases --interface eth0";

/// A lease, and the names that belong to it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NamedLease {
    #[serde(flatten)]
    pub lease: Lease,
    pub user_name: Option<String>,
    /// The process that requested the lease, if it still runs.
    pub process: Option<String>,
}

impl NamedLease {
    fn object(&self) -> serde_json::Result<Value> {
        let mut object = serde_json::to_value(self)?;
        print::rename_microseconds(&mut object, "began", "began_ns");
        Ok(object)
    }

    /// The user's name, or the number if it has none.
    pub fn user(&self) -> String {
        self.user_name.clone().unwrap_or_else(|| self.lease.user.to_string())
    }
}

/// Prints the leases.
///
/// # Errors
/// Those of the service.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let control = args.service.open().await?;
    let mine = args.mine.then_some(true);
    let call = ListLeasesCall { mine, interface: args.interface, ..ListLeasesCall::default() };
    let leases = list(&control, call, &mut Users::default()).await?;
    if globals.json {
        let leases: Vec<Value> = leases.iter().map(NamedLease::object).collect::<Result<_, _>>()?;
        print::json(&json!({ "leases": leases }))?;
    } else {
        print::table_out(table(&leases))?;
    }
    Ok(exit::SUCCESS)
}

/// Leases of the service, with names.
///
/// # Errors
/// Those of [`Control::call`].
pub async fn list(control: &Control, call: ListLeasesCall, users: &mut Users) -> Result<Vec<NamedLease>> {
    let mut processes = Processes::default();
    let named = |lease: Lease| NamedLease {
        user_name: users.name(lease.user).map(str::to_owned),
        process: lease.pid.and_then(|pid| processes.name(pid, lease.began)),
        lease,
    };
    Ok(pages::leases(control, call).await?.into_iter().map(named).collect())
}

fn table(leases: &[NamedLease]) -> String {
    let heading = [
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
    ];
    let rows = leases.iter().map(|named| {
        let lease = &named.lease;
        [
            lease.lease.to_string(),
            named.user(),
            lease.pid.map_or_else(dash, |pid| pid.to_string()),
            named.process.clone().unwrap_or_else(dash),
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
    });
    let left = ["USER", "PROCESS", "INTERFACE", "PROTO", "ADDRESS", "PORTS", "OPTIONS"];
    print::table(heading, &left, rows) + if leases.is_empty() { "no leases\n" } else { "" }
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

/// Options of a lease that differ from the defaults; `-` for none.
pub fn options(lease: &Lease) -> String {
    // A lease without a port suppresses nothing anyway.
    let owns = lease.first_port.is_some();
    let options = [(lease.frames, "frames"), (lease.observe, "observe"), (owns && !lease.suppress, "rst")];
    let options: Vec<&str> = options.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
    if options.is_empty() { dash() } else { options.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_options_as_text() {
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
