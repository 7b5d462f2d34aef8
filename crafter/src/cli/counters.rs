//! `crafter counters`: the counters of running crafters, one per verdict reason.

use crafter::{
    datapath::{maps::Counters, running::Process},
    error::exit,
};
use crafter_common::reason::{Reason, Verdict};
use serde::Serialize;

use super::{Globals, print, running};

/// `crafter counters`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    which: running::Args,
}

const HELP: &str = "\
Every packet that a hook sees gets exactly one reason, so that the reasons of a hook sum
up to its total.
--json: an array with one object per running crafter: map_id, holders (pid, name),
ingress and egress (packets seen), counters (packets by reason).";

#[derive(Serialize)]
struct Found {
    map_id: u32,
    holders: Vec<Process>,
    ingress: u64,
    egress: u64,
    counters: Counters,
}

/// Prints the counters.
///
/// # Errors
/// Those of looking the maps up.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut found = Vec::new();
    for running in args.which.find()? {
        let counters = running.counters()?;
        found.push(Found {
            map_id: running.map_id,
            holders: running.holders,
            ingress: counters.ingress(),
            egress: counters.egress(),
            counters,
        });
    }
    if globals.json {
        print::json(&found)?;
    } else {
        let tables: Vec<String> = found.iter().map(table).collect();
        print::out(tables.join("\n"))?;
    }
    Ok(exit::SUCCESS)
}

fn table(found: &Found) -> String {
    let mut text = running::title(&found.holders);
    let mut rows = vec![["HOOK", "REASON", "VERDICT", "PACKETS"].map(str::to_owned)];
    for (hook, is_ingress, total) in [("ingress", true, found.ingress), ("egress", false, found.egress)] {
        let reasons = Reason::ALL.into_iter().filter(|reason| reason.is_ingress() == is_ingress);
        rows.extend(reasons.map(|reason| {
            let verdict = match reason.verdict() {
                Verdict::Pass => "pass",
                Verdict::Drop => "drop",
                Verdict::Redirect => "redirect",
            };
            [hook, reason.name(), verdict, &found.counters.get(reason).to_string()].map(str::to_owned)
        }));
        rows.push([hook, "total", "", &total.to_string()].map(str::to_owned));
    }
    print::columns(&mut text, &rows, &["HOOK", "REASON", "VERDICT"]);
    text
}
