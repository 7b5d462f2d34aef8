//! Benchmarks of crafter and its peers in one run: `cargo xtask bench [NAME...]`.
//!
//! Prints one row per comparison with the measured value and its target. Figures are medians, and both sides are
//! measured alternately, so that other load affects both. A missed target is not an error.

mod client;
mod download;
mod exchange;
mod handshake;
mod layers;
mod memory;
mod scapy;
mod send;
mod service;
mod start;
mod table;
mod verdict;

use std::process::ExitCode;

use anyhow::{Result, bail};
use table::Row;

/// A benchmark: its name on the command line, and its function.
type Bench = (&'static str, fn() -> Result<Vec<Row>>);

const BENCHES: [Bench; 14] = [
    // First, because it reads the maximum resident size of all children so far.
    ("memory", memory::measure),
    ("start", start::measure),
    ("handshake", handshake::measure),
    ("exchange", exchange::measure),
    ("download", download::measure),
    ("verdict", verdict::measure),
    ("bystander", download::bystander),
    ("layers", layers::measure),
    ("send", send::measure),
    ("service-exchange", service::exchanges),
    ("service-packets", service::packets),
    ("service-download", service::downloads),
    ("service-leases", service::leases),
    ("service-tutorial", scapy::tutorial),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    // The unprivileged process of a benchmark is this program, too.
    let result = match wanted.split_first() {
        Some((first, work)) if first == "client" => client::run(work),
        _ => run(&wanted),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &[String]) -> Result<()> {
    if let Some(unknown) = wanted.iter().find(|name| !BENCHES.iter().any(|(known, _)| known == *name)) {
        bail!("unknown benchmark '{unknown}'; choose from {}", BENCHES.map(|(name, _)| name).join(", "));
    }
    let mut rows = Vec::new();
    for (name, measure) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            eprintln!("measuring {name} ...");
            match measure() {
                Ok(measured) => rows.extend(measured),
                Err(error) => {
                    table::print(&rows);
                    return Err(error.context(name));
                }
            }
        }
    }
    table::print(&rows);
    Ok(())
}
