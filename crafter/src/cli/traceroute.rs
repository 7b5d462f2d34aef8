//! `crafter traceroute`: the routers on the way to a host.

use std::{
    fmt::Write as _,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::cli::exit;
use crafter::{
    layer::MplsLabel,
    probe::{Ending, Hop, HopAnswer, Method, Trace, TraceOptions},
    session::{Event, Pace, Script, Step},
};
use serde_json::{Value, json};

use super::{
    Globals,
    exchange::{self, Closed, Recorder},
    host,
    interface::{self, Ended},
    print,
};

/// `crafter traceroute`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    host: host::Args,
    /// Send TCP SYNs to this port [default port: 80]; a SYN-ACK is reset at once
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "80", value_parser = port, conflicts_with = "udp")]
    tcp: Option<u16>,
    /// Send UDP datagrams to this port [default: to ports from 33434 on, one for each]
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "0", value_parser = port_or_many)]
    udp: Option<u16>,
    /// Send ICMP echo requests
    #[arg(long, conflicts_with_all = ["tcp", "udp"])]
    icmp: bool,
    /// TTL, or hop limit, to begin with
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    first: u8,
    /// The largest
    #[arg(long, short, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
    max: u8,
    /// Probes of each hop
    #[arg(long, short = 'q', value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=10))]
    probes: u8,
    /// How long a probe is waited for before another one is sent in its place
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interface::seconds)]
    timeout: Duration,
    /// How often another one is sent: routers tell each host of few errors a second
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(..=20))]
    retry: u8,
    /// How many hops are probed at once
    #[arg(long, visible_alias = "hops-at-once", value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
    parallel: u8,
    /// From the probes of one hop to those of the next
    #[arg(long, value_name = "SECONDS", default_value = "0.01", value_parser = interface::seconds)]
    interval: Duration,
    /// Write all packets, sent and received, to FILE, each with a comment on what became of it: pcapng,
    /// or pcap without comments if its name ends so; -: pcapng to stdout, and the text to stderr
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    link: interface::Link,
    #[command(flatten)]
    half_open: interface::HalfOpen,
}

const HELP: &str = "\
A line for each hop: who answered, the labels of MPLS that it tells, and how long each probe
took; a star for a probe without an answer. Names of routers are not looked up.
Behind a time: !N, !H, !P network, host or protocol unreachable, !X prohibited, !S source route
failed, !F-MTU fragmentation needed, !V, !C precedence, !<N> code N; from the destination too.
--json: one object with ending, hops, account and mechanism.
Exit code 0: the host was reached; 5: it was not; 4: somebody said that it is unreachable;
others as `crafter --help` lists them.

Examples:
  crafter traceroute 192.0.2.1
  crafter traceroute --json 2001:db8::1";

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| "a port is needed, 1 to 65535 (the host goes before the option, or behind its port)".to_owned())
}

/// 0 stands for no port in particular.
fn port_or_many(text: &str) -> Result<u16, String> {
    if text == "0" { Ok(0) } else { port(text) }
}

/// Traces.
///
/// # Errors
/// Those of the host's name, of values that do not fit, and of sending.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let destination = args.host.address(args.link.source).await?;
    let method = match (args.tcp, args.udp, args.icmp) {
        (Some(port), ..) => Method::Tcp(port),
        (_, Some(port @ 1..), _) => Method::Udp(port),
        (.., true) => Method::Icmp,
        _ => Method::UdpFrom(33_434),
    };
    let Args { first, max, probes, timeout, retry: retries, parallel, interval, .. } = args;
    let options = TraceOptions { destination, method, first, max, probes, timeout, retries, parallel, interval };
    let trace = Trace::new(options)?;
    let session = args.link.session(Default::default(), &args.half_open).await?;
    let mut live = Live {
        trace,
        recorder: Recorder::create(args.write.as_deref())?,
        out: print::Lines::new(args.write.as_deref().is_some_and(|path| path.as_os_str() == "-")),
        hops: globals.json.then(Vec::new),
    };
    if !globals.json {
        live.out.print(&format!("{}: {max} hops at most, {method}\n", args.host.with(destination)));
    }
    let ended = interface::until_signal(session.run(&mut live)).await?;
    let Closed { reports, reset, .. } =
        exchange::close(session, Pace::default(), &mut |event| live.recorder.handle(event)).await?;
    let mut account = match ended {
        Ended::Itself(Ok(account)) => account,
        Ended::Itself(Err(error)) => return Err(exchange::fail(error, reset, live.recorder)),
        Ended::Signal(code) => {
            print::half_open_reset(reset);
            live.recorder.finish()?;
            return Ok(code);
        }
    };
    account.half_open_reset += reset;
    live.drain();
    let ending = live.trace.ending();
    if let Some(hops) = live.hops.take() {
        let (word, error) = match ending {
            Ending::Reached => ("reached", None),
            Ending::Unreachable(fault) => ("unreachable", Some(fault.to_string())),
            Ending::NotReached => ("not reached", None),
        };
        let object = json!({
            "host": args.host.host, "address": destination, "method": method.to_string(), "max_hops": max,
            "ending": word, "error": error, "hops": hops, "account": account, "mechanism": reports,
        });
        live.out.print(&(serde_json::to_string(&object)? + "\n"));
    } else {
        print::half_open_reset(account.half_open_reset);
    }
    live.recorder.finish()?;
    live.out.finish()?;
    Ok(match ending {
        Ending::Reached => exit::SUCCESS,
        Ending::Unreachable(_) => exit::REFUSED,
        Ending::NotReached => exit::TIMED_OUT,
    })
}

/// A trace whose packets are recorded, and whose hops are printed as they are complete.
struct Live {
    trace: Trace,
    recorder: Recorder,
    out: print::Lines,
    /// For JSON.
    hops: Option<Vec<Value>>,
}

impl Live {
    fn drain(&mut self) {
        while let Some(hop) = self.trace.poll_hop() {
            match &mut self.hops {
                Some(hops) => hops.push(in_json(&hop)),
                None => self.out.print(&line(&hop)),
            }
        }
    }
}

impl Script for Live {
    fn next(&mut self, now: Instant) -> Step {
        let step = self.trace.next(now);
        self.drain();
        // Nobody reads what cannot be written.
        if self.out.have_failed() { Step::Done } else { step }
    }

    fn handle(&mut self, event: &Event<'_>, now: Instant) {
        self.recorder.handle(event);
        self.trace.handle(event, now);
    }

    fn oldest(&self) -> usize {
        self.trace.oldest()
    }

    fn fresh_ports(&self) -> bool {
        self.trace.fresh_ports()
    }
}

/// Who answered and with which labels: written before the times of its answers, once for those that follow each other.
fn who(answer: &HopAnswer) -> (IpAddr, &[MplsLabel]) {
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
        if last.replace(who(answer)) != Some(who(answer)) {
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
            "rtt_ms": answer.rtt.as_secs_f64() * 1e3,
            "error": answer.answer.icmp_error().map(|error| error.to_string()),
            "annotation": answer.annotation(),
            "reached": answer.reached,
            "mpls": answer.labels().iter().map(label).collect::<Vec<_>>(),
        })
    };
    json!({ "ttl": hop.ttl, "probes": hop.answers.iter().map(|each| each.as_ref().map(answer)).collect::<Vec<_>>() })
}
