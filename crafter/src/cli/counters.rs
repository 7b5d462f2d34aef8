//! `crafter counters`: the counters of the service, or of running crafters, one per verdict reason.

use std::collections::BTreeMap;

use crate::cli::exit;
use crafter::{
    datapath::{maps, running::Process},
    protocol::{control::Control, wire::CountersCall},
};
use crafter_common::reason::{Reason, Verdict};
use serde::Serialize;

use super::{Globals, print, running, service};

/// `crafter counters`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    which: running::Args,
    /// Only those of the service on this interface
    #[arg(long, short, visible_alias = "iface", value_name = "IF", conflicts_with_all = ["direct", "pid"])]
    interface: Option<String>,
    #[command(flatten)]
    service: service::Args,
}

const HELP: &str = "\
The counters of the running service on each interface that it is attached to. Where no service
runs, and with --direct or --pid, those of all crafters that run on this host by themselves,
which takes CAP_SYS_ADMIN.
Every packet that a hook sees gets exactly one reason, so that the reasons of a hook sum
up to its total.
--json: an array with one object per running crafter: map_id, holders (pid, name),
ingress and egress (packets seen), counters (packets by reason). Through the service one
object per interface: interface in the place of map_id, the service's process as holder.
Exit code 0; 1: the service that --socket names does not answer; 2: it is not attached to
--interface; 3: no permission; 4: its policy allows this user nothing.

Examples:
  crafter counters
  crafter counters --interface eth0 --json
  crafter counters --direct";

#[derive(Serialize)]
struct Found {
    map_id: u32,
    holders: Vec<Process>,
    ingress: u64,
    egress: u64,
    counters: maps::Counters,
}

#[derive(Serialize)]
struct Served {
    interface: String,
    holders: Vec<Process>,
    ingress: u64,
    egress: u64,
    counters: BTreeMap<String, u64>,
}

/// Prints the counters.
///
/// # Errors
/// Those of the service, or of looking the maps up.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let control = match args.which.is_one() {
        true => None,
        false => args.service.open().await?,
    };
    let tables: Vec<String>;
    if let Some(control) = control {
        let found = served(&control, args.interface).await?;
        if globals.json {
            return print::json(&found).map(|()| exit::SUCCESS);
        }
        tables = found.iter().map(Served::table).collect();
    } else {
        let found = direct(&args)?;
        if globals.json {
            return print::json(&found).map(|()| exit::SUCCESS);
        }
        tables = found.iter().map(Found::table).collect();
    }
    print::out(tables.join("\n"))?;
    Ok(exit::SUCCESS)
}

/// What the service tells; says on stderr if that is nothing.
async fn served(control: &Control, interface: Option<String>) -> crafter::Result<Vec<Served>> {
    let told = control.call(&CountersCall { interface }).await?.interfaces;
    let holders = running::service(control).await?;
    if told.is_empty() {
        running::say("the service is attached to no interface");
    }
    let served = told.into_iter().map(|told| Served {
        interface: told.interface,
        holders: holders.clone(),
        ingress: told.ingress,
        egress: told.egress,
        counters: told.counters,
    });
    Ok(served.collect())
}

/// What is in the maps.
fn direct(args: &Args) -> crafter::Result<Vec<Found>> {
    if args.interface.is_some() {
        let reason = "only the service tells counters by interface, and none is there; use `--pid`, or none of both";
        return Err(crafter::Error::invalid("--interface", reason));
    }
    let found = args.which.find()?.into_iter().map(|running| {
        let counters = running.counters()?;
        Ok(Found {
            map_id: running.map_id,
            holders: running.holders,
            ingress: counters.ingress(),
            egress: counters.egress(),
            counters,
        })
    });
    found.collect()
}

impl Found {
    fn table(&self) -> String {
        let rows = rows(|reason| self.counters.get(reason), self.ingress, self.egress);
        table(running::title(&self.holders), rows)
    }
}

impl Served {
    fn table(&self) -> String {
        let count = |reason: Reason| self.counters.get(reason.name()).copied().unwrap_or(0);
        let mut rows = rows(count, self.ingress, self.egress);
        // A service that is newer than this command knows more of them.
        let known = |name: &str| Reason::ALL.iter().any(|reason| reason.name() == name);
        let unknown = self.counters.iter().filter(|(name, _)| !known(name));
        rows.extend(unknown.map(|(name, count)| ["-", name, "-", &count.to_string()].map(str::to_owned)));
        table(running::served_title(&self.interface, &self.holders), rows)
    }
}

fn rows(count: impl Fn(Reason) -> u64, ingress: u64, egress: u64) -> Vec<[String; 4]> {
    let mut rows = vec![["HOOK", "REASON", "VERDICT", "PACKETS"].map(str::to_owned)];
    for (hook, is_ingress, total) in [("ingress", true, ingress), ("egress", false, egress)] {
        let reasons = Reason::ALL.into_iter().filter(|reason| reason.is_ingress() == is_ingress);
        rows.extend(reasons.map(|reason| {
            let verdict = match reason.verdict() {
                Verdict::Pass => "pass",
                Verdict::Drop => "drop",
                Verdict::Redirect => "redirect",
            };
            [hook, reason.name(), verdict, &count(reason).to_string()].map(str::to_owned)
        }));
        rows.push([hook, "total", "", &total.to_string()].map(str::to_owned));
    }
    rows
}

fn table(title: String, rows: Vec<[String; 4]>) -> String {
    let mut text = title;
    print::columns(&mut text, &rows, &["HOOK", "REASON", "VERDICT"]);
    text
}
