//! `crafter ping`: whether a host answers, how fast, and how reliably.

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::cli::exit;
use crafter::{
    probe::{Method, Ping, PingOptions, PingOutcome, PingSummary, ProbeOutcome, ReplyKind},
    session::{Account, Event, Pace, Script, Step},
};
use serde_json::{Value, json};

use super::{
    Globals,
    exchange::{self, Closed, Recorder},
    host,
    interface::{self, Ended},
    print,
};

/// `crafter ping`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    host: host::Args,
    /// How many requests to send [default: until Ctrl-C]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// From one request to the next, whether answers have come or not
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interface::seconds)]
    interval: Duration,
    /// Bytes of payload
    #[arg(long, short, value_name = "BYTES", default_value_t = 56, value_parser = clap::value_parser!(u16).range(..=65_507))]
    size: u16,
    /// TTL, or hop limit, of the requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    ttl: Option<u8>,
    /// How long each request may be answered
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interface::seconds)]
    timeout: Duration,
    /// Send TCP SYNs to this port instead: SYN-ACKs, which are reset at once, and RSTs are answers
    #[arg(long, value_name = "PORT", conflicts_with = "udp", value_parser = clap::value_parser!(u16).range(1..))]
    tcp: Option<u16>,
    /// Send UDP datagrams to this port instead: datagrams and the host's port-unreachables are answers
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    udp: Option<u16>,
    /// Only the summary
    #[arg(long, short)]
    quiet: bool,
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
A line for each answer as it comes, for each error with who sent it, and for each request
that was not answered in time; then a summary. Ctrl-C ends with the summary, too.
The payload of echo replies is compared with what was sent.
--json: one object with the numbers of the summary, replies, account and mechanism.
Exit code 0: the host answered; 5: it did not; 4: somebody said that it is unreachable;
others as `crafter --help` lists them.

Examples:
  crafter ping --count 3 192.0.2.1
  crafter ping --tcp 80 --interval 0.2 --count 10 --json 192.0.2.1";

/// Pings.
///
/// # Errors
/// Those of the host's name, of values that do not fit, and of sending.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let address = args.host.address(args.link.source).await?;
    let method = match (args.tcp, args.udp) {
        (Some(port), _) => Method::Tcp(port),
        (_, Some(port)) => Method::Udp(port),
        _ => Method::Icmp,
    };
    let size = if args.tcp.is_some() { 0 } else { args.size.into() };
    let (Args { count, interval, ttl, timeout, .. }, destination) = (&args, address);
    let (count, interval, ttl, timeout) = (*count, *interval, *ttl, *timeout);
    let ping = Ping::new(PingOptions { destination, method, count, interval, size, ttl, timeout })?;
    let session = args.link.session(Default::default(), &args.half_open).await?;
    let host = args.host.with(address);
    let mut live = Live {
        ping,
        recorder: Recorder::create(args.write.as_deref())?,
        out: print::Lines::new(args.write.as_deref().is_some_and(|path| path.as_os_str() == "-")),
        lines: !args.quiet && !globals.json,
        timeout,
        replies: globals.json.then(Vec::new),
    };
    if !globals.json {
        live.out.print(&format!("{host}: {method}, {size} bytes of payload\n"));
    }
    let ended = interface::until_signal(session.run(&mut live)).await?;
    let Closed { reports, reset, .. } =
        exchange::close(session, Pace::default(), &mut |event| live.recorder.handle(event)).await?;
    let account = match ended {
        Ended::Itself(Ok(account)) => Some(Account { half_open_reset: account.half_open_reset + reset, ..account }),
        Ended::Itself(Err(error)) => return Err(exchange::fail(error, reset, live.recorder)),
        Ended::Signal(_) => None,
    };
    let summary = live.ping.summary();
    if let Some(replies) = live.replies.take() {
        let object = json!({
            "host": args.host.host, "address": address, "method": method.to_string(), "size": size,
            "sent": summary.sent, "received": summary.received, "loss": summary.loss(),
            "duplicates": summary.duplicates, "corrupt": summary.corrupt, "errors": summary.errors, "late": summary.late,
            "rtt_ms": summary.times().map(|[min, avg, max, mdev]| json!({
                "min": min * 1e3, "avg": avg * 1e3, "max": max * 1e3, "mdev": mdev * 1e3,
            })),
            "replies": replies, "account": account, "mechanism": reports,
        });
        live.out.print(&(serde_json::to_string(&object)? + "\n"));
        if account.is_none() {
            print::half_open_reset(reset);
        }
    } else {
        live.out.print(&in_words(&host, &summary, account.as_ref()));
        print::half_open_reset(account.map_or(reset, |account| account.half_open_reset));
    }
    live.recorder.finish()?;
    live.out.finish()?;
    Ok(match summary {
        PingSummary { received: 1.., .. } => exit::SUCCESS,
        PingSummary { unreachable: 1.., .. } => exit::REFUSED,
        _ => exit::TIMED_OUT,
    })
}

/// A ping whose packets are recorded, and whose outcomes are printed as they come.
struct Live {
    ping: Ping,
    recorder: Recorder,
    out: print::Lines,
    lines: bool,
    timeout: Duration,
    /// For JSON.
    replies: Option<Vec<Value>>,
}

impl Live {
    fn drain(&mut self) {
        while let Some(outcome) = self.ping.poll_outcome() {
            if let Some(replies) = &mut self.replies {
                replies.push(in_json(&outcome));
            }
            if self.lines {
                self.out.print(&line(&outcome, self.timeout));
            }
        }
    }
}

impl Script for Live {
    fn next(&mut self, now: Instant) -> Step {
        let step = self.ping.next(now);
        self.drain();
        // Nobody reads what cannot be written.
        if self.out.have_failed() { Step::Done } else { step }
    }

    fn handle(&mut self, event: &Event<'_>, now: Instant) {
        self.recorder.handle(event);
        self.ping.handle(event, now);
        self.drain();
    }

    fn oldest(&self) -> usize {
        self.ping.oldest()
    }

    fn fresh_ports(&self) -> bool {
        self.ping.fresh_ports()
    }
}

fn kind_name(kind: ReplyKind) -> &'static str {
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
        ProbeOutcome::Late => format!("seq={number}: an answer came too late\n"),
        ProbeOutcome::Reply { reply, bytes, rtt, duplicate, corrupt } => {
            let mut line = match reply.kind {
                ReplyKind::IcmpError(error) => format!("from {}: seq={number} {error}", reply.from),
                other => format!("{bytes} bytes from {}: seq={number}{}", reply.from, kind_name(other)),
            };
            // Writing to a String cannot fail.
            let _ = write!(line, " ttl={} time={:.3} ms", reply.ttl, rtt.as_secs_f64() * 1e3);
            if *duplicate {
                line += " (duplicate)";
            }
            if let Some(at) = corrupt {
                let _ = write!(line, " (payload differs from byte {at} on)");
            }
            line + "\n"
        }
    }
}

fn in_json(PingOutcome { number, outcome }: &PingOutcome) -> Value {
    match outcome {
        ProbeOutcome::Lost => json!({ "seq": number, "status": "lost" }),
        ProbeOutcome::Late => json!({ "seq": number, "status": "late" }),
        ProbeOutcome::Reply { reply, bytes, rtt, duplicate, corrupt } => {
            let status = match (reply.kind, duplicate) {
                (_, true) => "duplicate",
                (ReplyKind::IcmpError(_), _) => "error",
                (ReplyKind::SynAck, _) => "syn-ack",
                (ReplyKind::Reset, _) => "rst",
                _ => "reply",
            };
            json!({
                "seq": number, "status": status, "from": reply.from, "bytes": bytes, "ttl": reply.ttl,
                "rtt_ms": rtt.as_secs_f64() * 1e3, "error": reply.icmp_error().map(|error| error.to_string()),
                "corrupt_from": corrupt,
            })
        }
    }
}

fn in_words(host: &str, summary: &PingSummary, account: Option<&Account>) -> String {
    let PingSummary { sent, received, duplicates, corrupt, errors, late, .. } = *summary;
    let mut text = format!("--- {host}: {sent} sent, {received} received, {:.4}", summary.loss() * 1e2);
    // As few digits as it takes.
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    text += "% lost";
    let unsent = account.map_or(0, |account| account.not_sent + account.unroutable);
    for (count, what) in [
        (duplicates, "duplicates"),
        (corrupt, "corrupt"),
        (errors, "errors"),
        (late, "late"),
        (unsent, "not taken by the kernel or without a way"),
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
