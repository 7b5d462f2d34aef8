//! `crafter flows`: flows of the service, or in the flow maps of running crafters.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use crate::cli::exit;
use crafter::{
    Result,
    datapath::maps,
    protocol::{
        control::Control,
        wire::{Flow, ListFlowsCall},
    },
};
use nix::time::{ClockId, clock_gettime};
use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::json;

use super::{
    Globals, pages, print,
    running::{self, Origin, Report, Section},
};

/// `crafter flows`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Protocol: tcp, udp or icmp [default: all]
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "icmp"])]
    protocol: Option<String>,
    /// Port of the flows to show, local or remote
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Peer of the flows to show
    #[arg(long, value_name = "ADDR")]
    remote: Option<IpAddr>,
    #[command(flatten)]
    which: running::Args,
}

const HELP: &str = "\
Flows of the running service: of all leases if its policy lets this user observe, else of the
user's own leases. If no service runs, and with --direct or --pid, flows of all crafters that
run on this host without it; that needs CAP_SYS_ADMIN.
One line for each flow, the most recent first. Bytes are counted from the IP header on. AGE and
IDLE are the times since the first and the latest packet, FLAGS those of the latest segment
received. DROPPED counts the RSTs and port-unreachables of the kernel that were suppressed. TX
does not include crafted packets that bypass the egress hook.
--json: an object with sections, one for each running crafter: map_id, interface, holders (pid,
name), flows (protocol, local, remote, rx_packets, rx_bytes, tx_packets, tx_bytes, first_seen_ns,
last_seen_ns, last_seq, last_ack, last_flags, suppressed); times are CLOCK_MONOTONIC
nanoseconds. Through the service one section for each interface that has flows, with the
service's process as holder; of map_id and interface, one is null. skipped lists crafters of
another version whose maps have another layout (program_id, holders, reason).
Exit code 0, with or without flows; 1: the service that --socket names does not answer;
3: no permission.

Examples:
  crafter flows
  crafter flows --protocol tcp --remote 192.0.2.1 --json
  crafter flows --direct --pid 1234";

/// Serialized as the service reports them, without the interface, which the section has.
struct Flows {
    flows: Vec<Flow>,
}

impl Serialize for Flows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let flow = |flow: &Flow| {
            let mut object = serde_json::to_value(flow).map_err(S::Error::custom)?;
            if let Some(map) = object.as_object_mut() {
                map.remove("interface");
            }
            Ok(object)
        };
        let flows = self.flows.iter().map(flow).collect::<Result<Vec<_>, S::Error>>()?;
        json!({ "flows": flows }).serialize(serializer)
    }
}

/// Prints the flows.
///
/// # Errors
/// Those of the service, or of reading the maps.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    match args.which.control().await? {
        Some(control) => show(&served(&control, args).await?, globals),
        None => show(&direct(&args)?, globals),
    }
}

/// Prints a table for each section, its flows as the service reports them.
fn show(report: &Report<Flows>, globals: &Globals) -> anyhow::Result<u8> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let now = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
    report.print(globals, |content| table(content.flows.iter(), now))?;
    Ok(exit::SUCCESS)
}

/// Flows from the service, by interface. Reports on stderr if there are none.
async fn served(control: &Control, args: Args) -> Result<Report<Flows>> {
    let Args { protocol, port, remote, which } = args;
    let (port, remote) = (port.map(u64::from), remote.map(|address| address.to_string()));
    let call = ListFlowsCall { interface: which.interface, protocol, port, remote, ..ListFlowsCall::default() };
    let mut by_interface: BTreeMap<String, Vec<Flow>> = BTreeMap::new();
    for flow in pages::flows(control, call, usize::MAX).await?.0 {
        by_interface.entry(flow.interface.clone()).or_default().push(flow);
    }
    let holders = running::service(control).await?;
    if by_interface.is_empty() {
        print::message("the service has no flows");
    }
    let section = |(interface, mut flows): (_, Vec<Flow>)| {
        flows.sort_by(|a, b| {
            let key = |flow: &Flow| Reverse(flow.last_seen_ns);
            key(a).cmp(&key(b)).then_with(|| (&a.local, &a.remote).cmp(&(&b.local, &b.remote)))
        });
        Section { origin: Origin::Interface(interface), holders: holders.clone(), content: Flows { flows } }
    };
    Ok(Report { sections: by_interface.into_iter().map(section).collect(), skipped: Vec::new() })
}

/// Flows from the maps of running crafters.
fn direct(args: &Args) -> Result<Report<Flows>> {
    let is_wanted = |flow: &maps::Flow| {
        args.protocol.as_deref().is_none_or(|protocol| protocol == flow.protocol)
            && args.port.is_none_or(|port| [flow.local.port(), flow.remote.port()].contains(&port))
            && args.remote.is_none_or(|remote| remote == flow.remote.ip())
    };
    let (found, skipped) = args.which.find()?;
    let sections = found.into_iter().map(|running| {
        let mut flows = running.flows();
        flows.retain(is_wanted);
        flows.sort_by_key(|flow| (Reverse(flow.last_seen_ns), flow.local, flow.remote));
        let flows = flows.iter().map(|flow| Flow::of_map(String::new(), flow)).collect();
        Section { origin: Origin::MapId(running.map_id), holders: running.holders, content: Flows { flows } }
    });
    Ok(Report { sections: sections.collect(), skipped })
}

fn table<'f>(flows: impl Iterator<Item = &'f Flow>, now: u64) -> String {
    let rows: Vec<_> = flows
        .map(|flow| {
            [
                flow.protocol.clone(),
                flow.local.clone(),
                flow.remote.clone(),
                flow.rx_packets.to_string(),
                flow.rx_bytes.to_string(),
                flow.tx_packets.to_string(),
                flow.tx_bytes.to_string(),
                ago(now, flow.first_seen_ns),
                ago(now, flow.last_seen_ns),
                flags(flow),
                flow.suppressed.to_string(),
            ]
        })
        .collect();
    let is_empty = rows.is_empty();
    let heading = ["PROTO", "LOCAL", "REMOTE", "RX", "RX-BYTES", "TX", "TX-BYTES", "AGE", "IDLE", "FLAGS", "DROPPED"];
    print::table(heading, &["PROTO", "LOCAL", "REMOTE", "FLAGS"], rows) + if is_empty { "no flows yet\n" } else { "" }
}

/// Flags of the latest TCP segment received; `-` for other protocols.
pub fn flags(flow: &Flow) -> String {
    match flow.protocol.as_str() {
        "tcp" => crafter::packet::Flags(flow.last_flags.into()).to_string(),
        _ => "-".to_owned(),
    }
}

/// Time since `then`, both in nanoseconds: `1.234s`
fn ago(now: u64, then: u64) -> String {
    format!("{:.3}s", now.saturating_sub(then) as f64 / 1e9)
}
