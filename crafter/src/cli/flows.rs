//! `crafter flows`: the flow maps of running crafters.

use std::fmt::Write as _;

use crafter::datapath::{maps::Flow, running::Process};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::{Globals, print, running};

/// `crafter flows`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    which: running::Args,
}

const HELP: &str = "\
One line per flow, that seen last first; bytes count from the IP header on. IDLE is the
time since the latest packet, FLAGS are those of the latest segment received, DROPPED
counts the RSTs or port-unreachables of the kernel that were suppressed. Crafted packets
that do not pass the egress hook are not in TX.
--json: an array with one object per running crafter: map_id, holders (pid, name), flows;
times are CLOCK_MONOTONIC nanoseconds.";

#[derive(Serialize)]
struct Found {
    map_id: u32,
    holders: Vec<Process>,
    flows: Vec<Flow>,
}

/// Prints the flows.
///
/// # Errors
/// Those of looking the maps up.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut found = Vec::new();
    for running in args.which.find()? {
        let mut flows = running.flows();
        flows.sort_by_key(|flow| (std::cmp::Reverse(flow.last_seen_ns), flow.local, flow.remote));
        found.push(Found { map_id: running.map_id, holders: running.holders, flows });
    }
    if globals.json {
        print::json(&found)?;
    } else {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let now = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        let tables: Vec<String> = found.iter().map(|found| table(found, now)).collect();
        print::out(tables.join("\n"))?;
    }
    Ok(crafter::error::exit::SUCCESS)
}

fn table(found: &Found, now: u64) -> String {
    let mut text = running::title(&found.holders);
    let mut rows = vec![
        ["PROTO", "LOCAL", "REMOTE", "RX", "RX-BYTES", "TX", "TX-BYTES", "AGE", "IDLE", "FLAGS", "DROPPED"]
            .map(str::to_owned),
    ];
    rows.extend(found.flows.iter().map(|flow| {
        let flags = if flow.protocol == "tcp" {
            crafter::packet::Flags(flow.last_flags.into()).to_string()
        } else {
            "-".to_owned()
        };
        [
            flow.protocol.to_owned(),
            flow.local.to_string(),
            flow.remote.to_string(),
            flow.rx_packets.to_string(),
            flow.rx_bytes.to_string(),
            flow.tx_packets.to_string(),
            flow.tx_bytes.to_string(),
            ago(now, flow.first_seen_ns),
            ago(now, flow.last_seen_ns),
            flags,
            flow.suppressed.to_string(),
        ]
    }));
    print::columns(&mut text, &rows, &["PROTO", "LOCAL", "REMOTE", "FLAGS"]);
    if found.flows.is_empty() {
        let _ = writeln!(text, "no flows yet");
    }
    text
}

/// `1.234s`
fn ago(now: u64, then: u64) -> String {
    format!("{:.3}s", now.saturating_sub(then) as f64 / 1e9)
}
