//! `crafter counters`: packet counters of the service, or of running crafters, one for each verdict reason.

use std::collections::BTreeMap;

use crate::cli::exit;
use crafter::{
    Result,
    protocol::{control::Control, wire::CountersCall},
};
use crafter_common::reason::{Reason, Verdict};
use serde::Serialize;

use super::{
    Globals, print,
    running::{self, Origin, Report, Section},
};

/// `crafter counters`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    which: running::Args,
}

const HELP: &str = "\
Counters of the running service for each interface that it is attached to. If no service runs,
and with --direct or --pid, counters of all crafters that run on this host without it; that
needs CAP_SYS_ADMIN.
A hook assigns exactly one reason to each packet, so the reasons of a hook add up to its total.
--json: an object with sections, one for each running crafter: map_id, interface, holders (pid,
name), ingress and egress (packets seen), counters (packets by reason). Through the service one
for each interface, with the service's process as holder; of map_id and interface, one is null.
skipped lists crafters of another version whose maps have another layout (program_id, holders,
reason).
Exit code 0; 1: the service that --socket names does not answer; 2: it is not attached to
--interface; 3: no permission; 4: its policy allows this user nothing.

Examples:
  crafter counters
  crafter counters --interface eth0 --json
  crafter counters --direct";

/// Packets that the hooks of one crafter, or of one interface, have seen.
#[derive(Serialize)]
struct Counts {
    ingress: u64,
    egress: u64,
    /// Packets by the name of the reason.
    counters: BTreeMap<String, u64>,
}

/// Prints the counters.
///
/// # Errors
/// Those of the service, or of reading the maps.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let report = match args.which.control().await? {
        Some(control) => served(&control, args.which.interface).await?,
        None => direct(&args.which)?,
    };
    report.print(globals, table)?;
    Ok(exit::SUCCESS)
}

/// Counters from the service. Reports on stderr if it is attached nowhere.
async fn served(control: &Control, interface: Option<String>) -> Result<Report<Counts>> {
    let interfaces = control.call(&CountersCall { interface }).await?.interfaces;
    let holders = running::service(control).await?;
    if interfaces.is_empty() {
        print::message("the service is attached to no interface");
    }
    let sections = interfaces.into_iter().map(|found| Section {
        origin: Origin::Interface(found.interface),
        holders: holders.clone(),
        content: Counts { ingress: found.ingress, egress: found.egress, counters: found.counters },
    });
    Ok(Report { sections: sections.collect(), skipped: Vec::new() })
}

/// Counters from the maps of running crafters.
fn direct(args: &running::Args) -> Result<Report<Counts>> {
    let (found, skipped) = args.find()?;
    let sections = found.into_iter().map(|running| {
        let found = running.counters()?;
        let counters = Reason::ALL.iter().map(|&reason| (reason.name().to_owned(), found.get(reason))).collect();
        Ok(Section {
            origin: Origin::MapId(running.map_id),
            holders: running.holders,
            content: Counts { ingress: found.ingress(), egress: found.egress(), counters },
        })
    });
    Ok(Report { sections: sections.collect::<Result<Vec<_>>>()?, skipped })
}

fn table(counts: &Counts) -> String {
    let mut rows = Vec::new();
    for (hook, is_ingress, total) in hooks(counts.ingress, counts.egress) {
        for reason in reasons(is_ingress) {
            let count = counts.counters.get(reason.name()).copied().unwrap_or(0);
            rows.push([hook, reason.name(), verdict(reason), &count.to_string()].map(str::to_owned));
        }
        rows.push([hook, "total", "", &total.to_string()].map(str::to_owned));
    }
    // A service of a later version may have reasons that this program does not know.
    let is_known = |name: &str| Reason::ALL.iter().any(|reason| reason.name() == name);
    let unknown = counts.counters.iter().filter(|(name, _)| !is_known(name));
    rows.extend(unknown.map(|(name, count)| ["-", name, "-", &count.to_string()].map(str::to_owned)));
    print::table(["HOOK", "REASON", "VERDICT", "PACKETS"], &["HOOK", "REASON", "VERDICT"], rows)
}

/// The two hooks: name, whether it is the ingress hook, packets seen.
pub fn hooks(ingress: u64, egress: u64) -> [(&'static str, bool, u64); 2] {
    [("ingress", true, ingress), ("egress", false, egress)]
}

/// The reasons that a hook can give.
pub fn reasons(is_ingress: bool) -> impl Iterator<Item = Reason> {
    Reason::ALL.into_iter().filter(move |reason| reason.is_ingress() == is_ingress)
}

/// The name of a reason's verdict.
pub fn verdict(reason: Reason) -> &'static str {
    match reason.verdict() {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
        Verdict::Redirect => "redirect",
    }
}
