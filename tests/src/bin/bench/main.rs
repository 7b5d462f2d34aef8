//! Benchmarks of crafter and its peers in one run: `cargo xtask bench [NAME...]`.
//!
//! Prints the tables of the page `numbers.md`: one row per comparison with the measured value and its target. Figures
//! are medians, and both sides are measured alternately, so that other load affects both. A missed target is not an
//! error.

mod client;
mod download;
mod exchange;
mod handshake;
mod latency;
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

/// The benchmarks by the sections of the page `numbers.md`, in the order in which they run.
const SECTIONS: [(&str, &[Bench]); 6] = [
    // `memory` is first, because it reads the maximum resident size of all children so far.
    ("Streams", &[("memory", memory::measure), ("download", download::measure)]),
    ("Handshakes and exchanges", &[("handshake", handshake::measure), ("exchange", exchange::measure)]),
    ("Whole processes", &[("start", start::measure)]),
    ("Packets", &[("layers", layers::measure), ("send", send::measure)]),
    ("What the kernel half costs others", &[("verdict", verdict::measure), ("bystander", download::bystander)]),
    (
        "The service",
        &[
            ("service-exchange", service::exchanges),
            ("service-packets", service::packets),
            ("service-download", service::downloads),
            ("service-leases", service::leases),
            ("service-latency", latency::measure),
            ("service-tutorial", scapy::tutorial),
        ],
    ),
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
    let all = || SECTIONS.iter().flat_map(|(_, benches)| benches.iter().map(|(name, _)| *name));
    if let Some(unknown) = wanted.iter().find(|name| !all().any(|known| known == *name)) {
        bail!("unknown benchmark '{unknown}'; choose from {}", all().collect::<Vec<_>>().join(", "));
    }
    for (heading, benches) in SECTIONS {
        let mut rows = Vec::new();
        let mut failure = None;
        for (name, measure) in benches.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name))
        {
            eprintln!("measuring {name} ...");
            match measure() {
                Ok(measured) => rows.extend(measured),
                Err(error) => {
                    failure = Some(error.context(*name));
                    break;
                }
            }
        }
        if !rows.is_empty() {
            println!("\n## {heading}\n");
            table::print(&rows);
        }
        if let Some(error) = failure {
            return Err(error);
        }
    }
    Ok(())
}
