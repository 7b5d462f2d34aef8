//! `crafter info`: state of the running service.

use crate::cli::exit;
use crafter::protocol::wire::{Info, InfoCall, Interface, InterfacesCall};
use serde::Serialize;

use super::{
    Globals, print,
    service::Socket,
    who::{self, Users},
};

/// `crafter info`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
Version, process, user and uptime of the service, and the interfaces that it is attached to:
ingress hook (MODE: native, generic or tc), egress hook (EGRESS: tcx or clsact), number of
AF_XDP sockets and of leases. Below the table: why an interface has no faster hook.
--json: an object with the reply of method Info of org.crafter.v1 (version, abi, pid, user,
policy, started_ns since 1970, leases), socket, and interfaces: all of the host, as
method Interfaces returns them (name, index, up, mtu, kind, mac, addresses, mode, classifier,
sockets, notes, leases); mode is null if the service is not attached.
Exit code 0: the service answered; 1: it does not.

Examples:
  crafter info
  crafter info --json --socket /run/crafter/crafter.sock";

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    info: Info,
    socket: String,
    interfaces: Vec<Interface>,
}

/// Prints the state of the service.
///
/// # Errors
/// Those of the service.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let control = args.service.open().await?;
    let info = control.call(&InfoCall {}).await?;
    let interfaces = control.call(&InterfacesCall { name: None }).await?.interfaces;
    let report = Report { info, socket: control.path().display().to_string(), interfaces };
    if globals.json {
        let mut object = serde_json::to_value(&report)?;
        print::rename_microseconds(&mut object, "started", "started_ns");
        print::json(&object)?;
    } else {
        print::table_out(text(&report))?;
    }
    Ok(exit::SUCCESS)
}

fn text(Report { info, socket, interfaces }: &Report) -> String {
    let Info { version, abi, pid, user, policy, started, leases } = info;
    let (user, uptime) = (Users::default().label(*user), who::age(who::since(*started)));
    let mut text = format!(
        "crafter {version}, abi {abi}, on {socket}\nprocess {pid}, user {user}, up {uptime}\n\
         policy: {}\nleases: {leases}\n",
        who::printable(policy)
    );
    let attached: Vec<&Interface> = interfaces.iter().filter(|interface| interface.mode.is_some()).collect();
    if attached.is_empty() {
        return text + "attached to no interface\n";
    }
    let rows = attached.iter().map(|interface| {
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".to_owned());
        [
            interface.name.clone(),
            word(&interface.mode),
            word(&interface.classifier),
            interface.sockets.unwrap_or(0).to_string(),
            interface.leases.to_string(),
            interface.mtu.to_string(),
            interface.addresses.join(" "),
        ]
    });
    let heading = ["INTERFACE", "MODE", "EGRESS", "SOCKETS", "LEASES", "MTU", "ADDRESSES"];
    text += &print::table(heading, &["INTERFACE", "MODE", "EGRESS", "ADDRESSES"], rows);
    for interface in attached {
        for note in &interface.notes {
            text += &format!("{}: {note}\n", interface.name);
        }
    }
    text
}
