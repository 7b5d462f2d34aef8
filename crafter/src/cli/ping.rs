//! `crafter ping`: whether a host answers, how fast, and how reliably.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crate::cli::exit;
use crafter::{
    probe::{Method, Ping, PingOptions, PingOutcome, PingSummary, ProbeOutcome, ReplyKind},
    session::Account,
};
use serde_json::{Value, json};

use super::{
    Globals,
    live::Counts,
    print,
    probe::{self, Output, Plan},
    signals::{self, Limit, Signals},
};

/// How long to wait for each answer by default.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// `crafter ping`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Stop after N requests [default: until Ctrl-C]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Time between two requests, answered or not
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = signals::duration)]
    interval: Duration,
    /// Length of the payload
    #[arg(long, short, value_name = "BYTES", default_value_t = 56, value_parser = clap::value_parser!(u16).range(..=65_507))]
    size: u16,
    /// TTL, or hop limit, of the requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    ttl: Option<u8>,
    #[command(flatten)]
    limit: Limit,
    /// Time to wait for the answer to each request [default: 2, or --timeout if that is less]
    #[arg(long, short = 'W', value_name = "TIME", value_parser = signals::duration)]
    wait: Option<Duration>,
    /// Send TCP SYNs to this port; a SYN-ACK, which is reset at once, or a RST is an answer
    #[arg(long, value_name = "PORT", conflicts_with = "udp", value_parser = clap::value_parser!(u16).range(1..))]
    tcp: Option<u16>,
    /// Send UDP datagrams to this port; a datagram or a port-unreachable of the host is an answer
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    udp: Option<u16>,
    /// Print less: only the summary
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    probe: probe::Args,
}

impl Args {
    /// Bounds the wait for the next hop, too.
    pub fn bounded(mut self) -> Self {
        self.probe.link.hop_timeout = self.limit.next_hop(self.wait, 1);
        self.probe.link.is_small = true;
        self
    }
}

const HELP: &str = "\
Prints a line for each answer, for each ICMP error with its sender, and for each request that
was not answered in time; then a summary. Ctrl-C and --timeout also end with the summary, a
second Ctrl-C without. The payload of echo replies is compared with the one sent.
--json: one object per line as results arrive, distinguished by type: probe for each line, then one
summary with the numbers, account, mechanism, error and exit_code (docs/schema/v1/ping.json).
Exit code 0: the host answered; 5: it did not, or --timeout passed before --count requests were
sent; 4: an ICMP error reported it as unreachable; 130: Ctrl-C; others as `crafter --help` lists
them.

Examples:
  crafter ping --count 3 192.0.2.1
  crafter ping --tcp 80 --interval 0.2 --count 10 --json 192.0.2.1";

/// Pings.
///
/// # Errors
/// Those of the host's name, of values that do not fit, and of sending.
pub async fn run(mut args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut signals = Signals::new(args.limit)?;
    let (destination, interruption) = match args.probe.address(&mut signals).await? {
        Ok(address) => (address, None),
        Err(interruption) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Some(interruption)),
    };
    let method = match (args.tcp, args.udp) {
        (Some(port), _) => Method::Tcp(port),
        (_, Some(port)) => Method::Udp(port),
        _ => Method::Icmp,
    };
    let size = if args.tcp.is_some() { 0 } else { args.size.into() };
    let Args { count, interval, ttl, limit, wait, probe, .. } = args;
    let timeout = wait.unwrap_or(limit.timeout.map_or(REPLY_TIMEOUT, |limit| limit.min(REPLY_TIMEOUT)));
    let ping = Ping::new(PingOptions { destination, method, count, interval, size, ttl, timeout })?;
    let host = probe.label(destination);
    let next_result =
        |ping: &mut Ping, _| ping.poll_outcome().map(|outcome| (line(&outcome, timeout), in_json(&outcome)));
    let update = |ping: &Ping, counts: &mut Counts| {
        let PingSummary { sent, received, .. } = ping.summary();
        (counts.sent, counts.answered) = (sent, Some(received));
    };
    let output = match (globals.json, globals.quiet) {
        (true, _) => Output::Json,
        (false, true) => Output::Summary,
        (false, false) => Output::Lines,
    };
    let heading = format!("{host}: {method}, {size} bytes of payload\n");
    let counts = Counts { total: count, answered: Some(0), wait: timeout, ..Counts::default() };
    let address = interruption.is_none().then_some(destination);
    let plan = Plan { heading, output, counts, interruption };
    let mut ran = probe.run(&mut signals, ping, next_result, update, plan).await?;
    let summary = ran.probe.summary();
    ran.complete_if(summary.sent > 0 && count.is_none_or(|count| summary.sent >= count));
    let object = json!({
        "host": probe.host, "address": address, "method": method.to_string(), "size": size,
        "sent": summary.sent, "received": summary.received, "loss": summary.loss(),
        "duplicates": summary.duplicates, "corrupt": summary.corrupt, "errors": summary.errors, "late": summary.late,
        "rtt_ns": summary.times().map(|times| {
            let [min, avg, max, mdev] = times.map(|seconds| print::nanoseconds(Duration::from_secs_f64(seconds)));
            json!({ "min": min, "avg": avg, "max": max, "mdev": mdev })
        }),
    });
    let text = in_words(&host, &summary, &ran.account);
    let code = match summary {
        PingSummary { received: 1.., .. } => exit::SUCCESS,
        PingSummary { unreachable: 1.., .. } => exit::REFUSED,
        _ => exit::TIMED_OUT,
    };
    ran.finish(&text, object, code)
}

fn kind(kind: ReplyKind) -> &'static str {
    match kind {
        ReplyKind::SynAck => " SYN-ACK",
        ReplyKind::Reset => " RST",
        ReplyKind::Datagram => " UDP",
        ReplyKind::Echo | ReplyKind::IcmpError(_) | ReplyKind::Other => "",
    }
}

fn line(PingOutcome { number, outcome }: &PingOutcome, timeout: Duration) -> String {
    match outcome {
        ProbeOutcome::Lost => format!("seq={number}: no answer within {timeout:?}\n"),
        ProbeOutcome::Late => format!("seq={number}: the answer arrived too late\n"),
        ProbeOutcome::Reply { reply, bytes, rtt, duplicate, corrupt } => {
            let mut line = match reply.kind {
                ReplyKind::IcmpError(error) => format!("from {}: seq={number} {error}", reply.from),
                other => format!("{bytes} bytes from {}: seq={number}{}", reply.from, kind(other)),
            };
            // Writing to a String cannot fail.
            let _ = write!(line, " ttl={} time={:.3} ms", reply.ttl, rtt.as_secs_f64() * 1e3);
            if *duplicate {
                line += " (duplicate)";
            }
            if let Some(at) = corrupt {
                let _ = write!(line, " (payload differs from byte {at})");
            }
            line + "\n"
        }
    }
}

fn in_json(PingOutcome { number, outcome }: &PingOutcome) -> Value {
    let (status, answer) = match outcome {
        ProbeOutcome::Lost => ("lost", None),
        ProbeOutcome::Late => ("late", None),
        ProbeOutcome::Reply { reply, bytes, rtt, duplicate, corrupt } => {
            let status = match (reply.kind, duplicate) {
                (_, true) => "duplicate",
                (ReplyKind::IcmpError(_), _) => "error",
                (ReplyKind::SynAck, _) => "syn_ack",
                (ReplyKind::Reset, _) => "rst",
                _ => "reply",
            };
            (status, Some((reply, bytes, rtt, corrupt)))
        }
    };
    json!({
        "type": "probe",
        "seq": number,
        "status": status,
        "from": answer.map(|(reply, ..)| reply.from),
        "bytes": answer.map(|(_, bytes, ..)| bytes),
        "ttl": answer.map(|(reply, ..)| reply.ttl),
        "rtt_ns": answer.map(|(.., rtt, _)| print::nanoseconds(*rtt)),
        "icmp_error": answer.and_then(|(reply, ..)| reply.icmp_error()).map(|error| error.to_string()),
        "corrupt_from": answer.and_then(|(.., corrupt)| *corrupt),
    })
}

fn in_words(host: &str, summary: &PingSummary, account: &Account) -> String {
    let PingSummary { sent, received, duplicates, corrupt, errors, late, .. } = *summary;
    let mut text = format!("--- {host}: {sent} sent, {received} received, {:.4}", summary.loss() * 1e2);
    // Without trailing zeros.
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    text += "% lost";
    let unsent = account.not_sent + account.unroutable;
    for (count, what) in [
        (duplicates, "duplicates"),
        (corrupt, "corrupt"),
        (errors, "errors"),
        (late, "late"),
        (unsent, "rejected by the kernel or without a route"),
    ] {
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, ", {count} {what}");
        }
    }
    if let Some(times) = summary.times() {
        let [min, avg, max, mdev] = times.map(|time| time * 1e3);
        let _ = write!(text, "\nrtt min/avg/max/mdev = {min:.3}/{avg:.3}/{max:.3}/{mdev:.3} ms");
    }
    text + "\n"
}
