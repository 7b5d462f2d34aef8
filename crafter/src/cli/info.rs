//! `crafter info`: the running service.

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
Whether the service runs, since when and as whom, and the interfaces that it is attached to:
with which ingress hook (MODE: native, generic or tc), which egress hook (EGRESS: tcx or
clsact), how many AF_XDP sockets, how many leases, and behind the table why nothing faster.
--json: an object with what method Info of org.crafter.v1 tells (version, abi, pid, user,
policy, started in microseconds since 1970, leases), socket, and interfaces: all of the host, as
method Interfaces has them (name, index, up, mtu, kind, mac, addresses, mode, classifier,
sockets, notes, leases); mode is null where the service is not attached.
Exit code 0: the service answered; 1: it does not.

Examples:
  crafter info
  crafter info --json --socket /run/crafter/crafter.sock";

#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    info: Info,
    socket: String,
    interfaces: Vec<Interface>,
}

/// Prints what the service says of itself.
///
/// # Errors
/// Those of the service.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let control = args.service.open().await?;
    let info = control.call(&InfoCall {}).await?;
    let interfaces = control.call(&InterfacesCall { name: None }).await?.interfaces;
    let told = Told { info, socket: control.path().display().to_string(), interfaces };
    if globals.json {
        print::json(&told)?;
    } else {
        print::out(text(&told))?;
    }
    Ok(exit::SUCCESS)
}

fn text(Told { info, socket, interfaces }: &Told) -> String {
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
    let mut rows = vec![["INTERFACE", "MODE", "EGRESS", "SOCKETS", "LEASES", "MTU", "ADDRESSES"].map(str::to_owned)];
    rows.extend(attached.iter().map(|interface| {
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
    }));
    print::columns(&mut text, &rows, &["INTERFACE", "MODE", "EGRESS", "ADDRESSES"]);
    for interface in attached {
        for note in &interface.notes {
            text += &format!("{}: {note}\n", interface.name);
        }
    }
    text
}
