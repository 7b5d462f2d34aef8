//! `crafter flows`: the flows of the service, or those in the flow maps of running crafters.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use crate::cli::exit;
use crafter::{
    Error,
    datapath::{maps, running::Process},
    protocol::{
        control::Control,
        wire::{Flow, ListFlowsCall},
    },
};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::{Globals, pages, print, running, service};

/// `crafter flows`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    which: running::Args,
    /// Only those of the service on this interface
    #[arg(long, short, visible_alias = "iface", value_name = "IF", conflicts_with_all = ["direct", "pid"])]
    interface: Option<String>,
    /// Only tcp, udp or icmp
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "icmp"])]
    protocol: Option<String>,
    /// Only those with this port, at either end
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only those with this peer
    #[arg(long, value_name = "ADDRESS")]
    remote: Option<IpAddr>,
    #[command(flatten)]
    service: service::Args,
}

const HELP: &str = "\
The flows of the running service: those of everybody's leases where its policy lets this user
observe, otherwise those of one's own. Where no service runs, and with --direct or --pid, those
of all crafters that run on this host by themselves, which takes CAP_SYS_ADMIN.
One line per flow, that seen last first; bytes count from the IP header on. IDLE is the
time since the latest packet, FLAGS are those of the latest segment received, DROPPED
counts the RSTs or port-unreachables of the kernel that were suppressed. Crafted packets
that do not pass the egress hook are not in TX.
--json: an array with one object per running crafter: map_id, holders (pid, name), flows
(protocol, local, remote, rx_packets, rx_bytes, tx_packets, tx_bytes, first_seen_ns,
last_seen_ns, last_seq, last_ack, last_flags, suppressed); times are CLOCK_MONOTONIC
nanoseconds. Through the service one object per interface that has flows: interface in the
place of map_id, the service's process as holder, and interface in each flow too.
Exit code 0, with or without flows; 1: the service that --socket names does not answer;
3: no permission.

Examples:
  crafter flows
  crafter flows --protocol tcp --remote 192.0.2.1 --json
  crafter flows --direct --pid 1234";

#[derive(Serialize)]
struct Found {
    map_id: u32,
    holders: Vec<Process>,
    flows: Vec<maps::Flow>,
}

#[derive(Serialize)]
struct Served {
    interface: String,
    holders: Vec<Process>,
    flows: Vec<Flow>,
}

/// Prints the flows.
///
/// # Errors
/// Those of the service, or of looking the maps up.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let control = match args.which.is_one() {
        true => None,
        false => args.service.open().await?,
    };
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let now = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
    let tables: Vec<String>;
    if let Some(control) = control {
        let found = served(&control, args).await?;
        if globals.json {
            return print::json(&found).map(|()| exit::SUCCESS);
        }
        tables = found.iter().map(|f| table(running::served_title(&f.interface, &f.holders), &f.flows, now)).collect();
    } else {
        let found = direct(&args)?;
        if globals.json {
            return print::json(&found).map(|()| exit::SUCCESS);
        }
        let flows = |found: &Found| found.flows.iter().map(as_told).collect::<Vec<_>>();
        tables = found.iter().map(|found| table(running::title(&found.holders), &flows(found), now)).collect();
    }
    print::out(tables.join("\n"))?;
    Ok(exit::SUCCESS)
}

/// What the service tells, by interface; says on stderr if that is nothing.
async fn served(control: &Control, args: Args) -> anyhow::Result<Vec<Served>> {
    let Args { interface, protocol, port, remote, .. } = args;
    let (port, remote) = (port.map(u64::from), remote.map(|address| address.to_string()));
    let call = ListFlowsCall { interface, protocol, port, remote, ..ListFlowsCall::default() };
    let mut by_interface: BTreeMap<String, Vec<Flow>> = BTreeMap::new();
    for flow in pages::flows(control, call, usize::MAX).await?.0 {
        by_interface.entry(flow.interface.clone()).or_default().push(flow);
    }
    let holders = running::service(control).await?;
    if by_interface.is_empty() {
        running::say("the service has no flows");
    }
    let served = |(interface, mut flows): (_, Vec<Flow>)| {
        flows.sort_by(|a, b| {
            let order = |flow: &Flow| std::cmp::Reverse(flow.last_seen_ns);
            order(a).cmp(&order(b)).then_with(|| (&a.local, &a.remote).cmp(&(&b.local, &b.remote)))
        });
        Served { interface, holders: holders.clone(), flows }
    };
    Ok(by_interface.into_iter().map(served).collect())
}

/// What is in the maps.
fn direct(args: &Args) -> Result<Vec<Found>, Error> {
    if args.interface.is_some() {
        let reason = "only the service tells flows by interface, and none is there; use `--pid`, or none of both";
        return Err(Error::invalid("--interface", reason));
    }
    let wanted = |flow: &maps::Flow| {
        args.protocol.as_deref().is_none_or(|protocol| protocol == flow.protocol)
            && args.port.is_none_or(|port| [flow.local.port(), flow.remote.port()].contains(&port))
            && args.remote.is_none_or(|remote| remote == flow.remote.ip())
    };
    let found = args.which.find()?.into_iter().map(|running| {
        let mut flows = running.flows();
        flows.retain(wanted);
        flows.sort_by_key(|flow| (std::cmp::Reverse(flow.last_seen_ns), flow.local, flow.remote));
        Found { map_id: running.map_id, holders: running.holders, flows }
    });
    Ok(found.collect())
}

/// A flow as the service would tell it, its interface apart.
fn as_told(flow: &maps::Flow) -> Flow {
    Flow {
        interface: String::new(),
        protocol: flow.protocol.to_owned(),
        local: flow.local.to_string(),
        remote: flow.remote.to_string(),
        rx_packets: flow.rx_packets,
        rx_bytes: flow.rx_bytes,
        tx_packets: flow.tx_packets,
        tx_bytes: flow.tx_bytes,
        first_seen_ns: flow.first_seen_ns,
        last_seen_ns: flow.last_seen_ns,
        last_seq: flow.last_seq,
        last_ack: flow.last_ack,
        last_flags: flow.last_flags,
        suppressed: flow.suppressed,
    }
}

fn table(title: String, flows: &[Flow], now: u64) -> String {
    let mut text = title;
    let mut rows = vec![
        ["PROTO", "LOCAL", "REMOTE", "RX", "RX-BYTES", "TX", "TX-BYTES", "AGE", "IDLE", "FLAGS", "DROPPED"]
            .map(str::to_owned),
    ];
    rows.extend(flows.iter().map(|flow| {
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
    }));
    print::columns(&mut text, &rows, &["PROTO", "LOCAL", "REMOTE", "FLAGS"]);
    if flows.is_empty() {
        let _ = writeln!(text, "no flows yet");
    }
    text
}

/// The flags of the latest segment received; `-` where there are none.
pub fn flags(flow: &Flow) -> String {
    match flow.protocol.as_str() {
        "tcp" => crafter::packet::Flags(flow.last_flags.into()).to_string(),
        _ => "-".to_owned(),
    }
}

/// `1.234s`
fn ago(now: u64, then: u64) -> String {
    format!("{:.3}s", now.saturating_sub(then) as f64 / 1e9)
}
