//! `crafter traceroute`: the routers on the path to a host.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crate::cli::exit;
use crafter::{
    layer::MplsLabel,
    probe::{Ending, Hop, HopAnswer, Method, Trace, TraceOptions},
};
use serde_json::{Value, json};

use super::{
    Globals,
    live::Counts,
    print,
    probe::{self, Output, Plan},
    signals::{self, Limit, Signals},
};

/// How long to wait for the answer to a probe by default.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// `crafter traceroute`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Send TCP SYNs to this port [default port: 80]; a SYN-ACK is reset at once
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "80", value_parser = port, conflicts_with = "udp")]
    tcp: Option<u16>,
    /// Send UDP datagrams to this port [default: one port for each, from 33434 on]
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "0", value_parser = port_or_many)]
    udp: Option<u16>,
    /// Send ICMP echo requests
    #[arg(long, conflicts_with_all = ["tcp", "udp"])]
    icmp: bool,
    /// First TTL, or hop limit
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    first: u8,
    /// Last TTL, or hop limit
    #[arg(long, short, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
    max: u8,
    /// Probes for each hop
    #[arg(long, short = 'q', value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=10))]
    probes: u8,
    #[command(flatten)]
    limit: Limit,
    /// Time to wait for the answer to a probe before it is repeated [default: 1, or --timeout divided by the attempts if
    /// that is less]
    #[arg(long, short = 'W', value_name = "TIME", value_parser = signals::duration)]
    wait: Option<Duration>,
    /// Send an unanswered packet again, up to N times; routers limit the rate of ICMP errors
    #[arg(long, short, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(..=20))]
    retry: u8,
    /// Number of hops to probe at the same time
    #[arg(long, visible_alias = "hops-at-once", value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
    parallel: u8,
    /// Time between two hops: the probes of one and those of the next
    #[arg(long, value_name = "TIME", default_value = "0.01", value_parser = signals::duration)]
    interval: Duration,
    // Without `-q`, which is `--probes` as in traceroute.
    /// Print less: only results and errors, no notes, no summary on stderr, no progress
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    probe: probe::Args,
}

impl Args {
    /// Bounds the wait for the next hop, too.
    pub fn bounded(mut self) -> Self {
        self.probe.link.hop_timeout = self.limit.next_hop(self.wait, u32::from(self.retry) + 1);
        self.probe.link.is_small = true;
        self
    }
}

const HELP: &str = "\
Prints a line for each hop: the address that answered, its MPLS labels, and the time of each
probe; a star for a probe without an answer. Names of routers are not looked up.
After a time: !N, !H, !P network, host or protocol unreachable, !X prohibited, !S source route
failed, !F-MTU fragmentation needed, !V, !C precedence, !<N> code N; also from the destination.
Ctrl-C and --timeout end it with the hops so far, a second Ctrl-C at once.
--json: one object per line as results arrive: type hop for each hop, then one of type summary
with ending (reached, unreachable, not_reached or interrupted), icmp_error, account, mechanism,
error and exit_code (docs/schema/v1/traceroute.json).
Exit code 0: the host was reached; 5: it was not; 4: an ICMP error reported it as unreachable;
130: Ctrl-C; others as `crafter --help` lists them.

Examples:
  crafter traceroute 192.0.2.1
  crafter traceroute --json 2001:db8::1";

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| "not a port; give 1 to 65535, and the host before the option or after its port".to_owned())
}

/// A port; 0 for one port per probe.
fn port_or_many(text: &str) -> Result<u16, String> {
    if text == "0" { Ok(0) } else { port(text) }
}

/// Traces.
///
/// # Errors
/// Those of the host's name, of values that do not fit, and of sending.
pub async fn run(mut args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut signals = Signals::new(args.limit)?;
    let (destination, interruption) = match args.probe.address(&mut signals).await? {
        Ok(address) => (address, None),
        Err(interruption) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Some(interruption)),
    };
    let method = match (args.tcp, args.udp, args.icmp) {
        (Some(port), ..) => Method::Tcp(port),
        (_, Some(port @ 1..), _) => Method::Udp(port),
        (.., true) => Method::Icmp,
        _ => Method::UdpFrom(33_434),
    };
    let Args { first, max, probes, limit, wait, retry: retries, parallel, interval, probe, .. } = args;
    let timeout = wait.unwrap_or(limit.wait(None, REPLY_TIMEOUT, u32::from(retries) + 1).min(REPLY_TIMEOUT));
    let options = TraceOptions { destination, method, first, max, probes, timeout, retries, parallel, interval };
    let next_result = |trace: &mut Trace, has_ended| {
        let hop = trace.poll_hop().or_else(|| if has_ended { trace.poll_unfinished() } else { None });
        hop.map(|hop| (line(&hop), in_json(&hop)))
    };
    let update = |trace: &Trace, counts: &mut Counts| {
        let (sent, answered) = trace.counts();
        (counts.sent, counts.answered) = (sent, Some(answered));
    };
    let output = if globals.json { Output::Json } else { Output::Lines };
    let heading = format!("{}: at most {max} hops, {method}\n", probe.label(destination));
    let counts = Counts { answered: Some(0), ..Counts::default() };
    let address = interruption.is_none().then_some(destination);
    let plan = Plan { heading, output, counts, interruption };
    let ran = probe.run(&mut signals, Trace::new(options)?, next_result, update, plan).await?;
    let (code, ending, error) = match ran.probe.ending() {
        Ending::Reached => (exit::SUCCESS, "reached", None),
        Ending::Unreachable(fault) => (exit::REFUSED, "unreachable", Some(fault.to_string())),
        Ending::NotReached if ran.is_interrupted() => (exit::TIMED_OUT, "interrupted", None),
        Ending::NotReached => (exit::TIMED_OUT, "not_reached", None),
    };
    let object = json!({
        "host": probe.host, "address": address, "method": method.to_string(), "max_hops": max,
        "ending": ending, "icmp_error": error,
    });
    ran.finish("", object, code)
}

/// Address and labels of an answer: printed before its time, once for consecutive answers that share them.
fn origin(answer: &HopAnswer) -> (IpAddr, &[MplsLabel]) {
    (answer.answer.from, answer.labels())
}

fn line(hop: &Hop) -> String {
    let mut line = format!("{:2} ", hop.ttl);
    let mut last = None;
    for answer in &hop.answers {
        let Some(answer) = answer else {
            line += " *";
            continue;
        };
        // Writing to a String cannot fail.
        if last.replace(origin(answer)) != Some(origin(answer)) {
            let _ = write!(line, " {}", answer.answer.from);
            let labels: Vec<String> = answer.labels().iter().map(ToString::to_string).collect();
            if !labels.is_empty() {
                let _ = write!(line, " <MPLS:{}>", labels.join("/"));
            }
            line.push(' ');
        }
        let _ = write!(line, " {:.3} ms", answer.rtt.as_secs_f64() * 1e3);
        let annotation = answer.annotation();
        if !annotation.is_empty() {
            let _ = write!(line, " {annotation}");
        }
        line.push(' ');
    }
    line.truncate(line.trim_end().len());
    line + "\n"
}

fn in_json(hop: &Hop) -> Value {
    let answer = |answer: &HopAnswer| {
        let label =
            |label: &MplsLabel| json!({ "label": label.label, "exp": label.cos, "s": label.s, "ttl": label.ttl });
        json!({
            "from": answer.answer.from,
            "ttl": answer.answer.ttl,
            "rtt_ns": print::nanoseconds(answer.rtt),
            "icmp_error": answer.answer.icmp_error().map(|error| error.to_string()),
            "annotation": answer.annotation(),
            "reached": answer.reached,
            "mpls": answer.labels().iter().map(label).collect::<Vec<_>>(),
        })
    };
    let probes: Vec<_> = hop.answers.iter().map(|each| each.as_ref().map(answer)).collect();
    json!({ "type": "hop", "ttl": hop.ttl, "probes": probes })
}
