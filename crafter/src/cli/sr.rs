//! `crafter sr` and `crafter sr1`: send packets and match the replies.

use std::{fmt::Write as _, time::Duration};

use crate::cli::exit;
use crafter::{
    Error,
    datapath::program::Report,
    layer::Packet,
    probe::TargetReport,
    session::{Exchanged, Pair, Reply, SrOptions},
};
use serde_json::{Value, json};

use super::{
    Globals,
    exchange::{self, Closed},
    interface, print,
};

/// `crafter sr`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    waiting: Waiting,
    /// Collect all replies to a request, not only the first; waits until the timeout
    #[arg(long)]
    multi: bool,
    // Last: options after it would be below its headings.
    #[command(flatten)]
    exchange: exchange::Args,
}

impl Args {
    /// Bounds the wait for the next hop, too, by `--timeout`.
    pub fn bounded(mut self) -> Self {
        self.exchange.link.hop_timeout = Some(self.waiting.longest());
        self
    }
}

/// `crafter sr1`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP_ONE)]
pub struct OneArgs {
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    exchange: exchange::Args,
}

impl OneArgs {
    /// Bounds the wait for the next hop, too, by `--timeout`.
    pub fn bounded(mut self) -> Self {
        self.exchange.link.hop_timeout = Some(self.waiting.longest());
        self
    }
}

#[derive(Debug, clap::Args)]
struct Waiting {
    /// Time to wait for replies after the last packet is sent; at most as long for each next hop to answer
    #[arg(long, short, value_name = "SECONDS", default_value = "2", value_parser = interface::seconds)]
    timeout: Duration,
    /// Send an unanswered packet again, up to N times
    #[arg(long, short, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    retry: u32,
}

impl Waiting {
    /// The time that one packet may take, with its repetitions.
    fn longest(&self) -> Duration {
        self.timeout.saturating_mul(self.retry.saturating_add(1))
    }
}

const HELP: &str = "\
A packet begins with IP, IPv6, Ether or ARP. Unset fields are filled in: source address and
next hop from the route, the source port (or ICMP identifier) from a lease. While the lease
lasts, replies to the port are delivered to crafter and the kernel sends no RST.
Prints a line for each request with its reply; on stderr an account of all packets, and
whether the counters of the kernel half agree with it.
A SYN-ACK leaves a connection half open, and the peer repeats it. Before the lease of the port
ends, also after Ctrl-C, crafter resets such connections and prints on stderr how many
(half_open_reset of the account). That takes at most 5 s, at --rate or 1000 per second,
whichever is higher. Connections are not reset with --leave-open, if crafter is killed, or if
more than 131072 later SYNs were answered: then the kernel resets each when the peer repeats
its SYN-ACK, a second or more later.
--json: an object with answered (number, sent, request, reply, rtt_ms), unanswered, unmatched,
account and mechanism; packets as in `crafter show --json`, replies also with time, interface
and reason.
Exit code 0: at least one reply; 5: none; others as `crafter --help` lists them.

Examples:
  crafter sr 'IP(dst=\"192.0.2.1\")/TCP(dport=[22,80,443], flags=\"S\")'
  crafter sr --multi --timeout 1 --json 'IP(dst=\"192.0.2.1\")/ICMP()'";

const HELP_ONE: &str = "\
Like `crafter sr`, but ends with the first reply and prints it field by field.
Prints on stderr what the reply means: the port is open or closed, the host is up, the
destination is unreachable (with the ICMP code), or there was no reply in time.
A half-open connection is reset at the end. With --leave-open the kernel resets it when the
peer repeats its SYN-ACK.
--json: an object with request, reply (or null), rtt_ms, verdict (state, from, text), account
and mechanism. States: open, closed, up, unreachable, ttl_exceeded, error, answered, no_answer.
Exit code 0: a reply; 5: none; others as `crafter --help` lists them.

Examples:
  crafter sr1 'IP(dst=\"192.0.2.1\")/TCP(dport=80, flags=\"S\")'
  crafter sr1 --json 'IP(dst=\"192.0.2.1\")/UDP(dport=53)/DNS(rd=1, qd=DNSQR(qname=\"example.com\"))'";

/// Sends, waits and prints.
///
/// # Errors
/// Those of the expression, of values that do not fit, and of sending.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let Args { exchange, waiting, multi } = args;
    let (exchanged, Closed { reports, signal, .. }) = sr(&exchange, &waiting, multi).await?;
    if exchange.capture.is_stdout() {
        account(&exchanged);
    } else if globals.json {
        print::json(&all(&exchanged, &reports)?)?;
    } else {
        print::out(lines(&exchanged))?;
        account(&exchanged);
    }
    Ok(signal.unwrap_or_else(|| code(&exchanged)))
}

/// Sends one packet, waits and prints.
///
/// # Errors
/// As [`run`]; [`Error::Invalid`] for an expression that expands to more than one packet.
pub async fn run_one(args: OneArgs, globals: &Globals) -> anyhow::Result<u8> {
    let OneArgs { exchange, waiting } = args;
    exchange.set()?.single()?;
    let (exchanged, Closed { reports, signal, .. }) = sr(&exchange, &waiting, false).await?;
    let first = exchanged.answered.first();
    let request = first.map(|pair| &pair.request).or(exchanged.unanswered.first());
    let verdict = match (first, request) {
        (Some(pair), _) => Some(TargetReport::answered(&pair.request, &pair.reply.packet, pair.rtt)),
        (None, Some(request)) => {
            let attempts = u32::try_from(exchanged.account.sent).unwrap_or(u32::MAX);
            Some(TargetReport::unanswered(request, waiting.timeout, attempts))
        }
        (None, None) => None,
    };
    if globals.json && !exchange.capture.is_stdout() {
        print::json(&json!({
            "request": request.map(Packet::to_json).transpose()?,
            "reply": first.map(|pair| reply(&pair.reply)).transpose()?,
            "rtt_ms": first.map(|pair| milliseconds(pair.rtt)),
            "verdict": verdict,
            "account": exchanged.account,
            "mechanism": reports,
        }))?;
    } else {
        if let Some(pair) = first.filter(|_| !exchange.capture.is_stdout()) {
            print::out(pair.reply.packet.show()? + "\n")?;
        }
        if let Some(verdict) = verdict {
            print::note(verdict);
        }
        account(&exchanged);
    }
    Ok(signal.unwrap_or_else(|| code(&exchanged)))
}

async fn sr(args: &exchange::Args, waiting: &Waiting, multi: bool) -> anyhow::Result<(Exchanged, Closed)> {
    let set = args.set()?;
    let packets = args.packets(&set)?;
    let options = SrOptions { timeout: waiting.timeout, retry: waiting.retry, pace: args.pace(), multi };
    let running = args.run(async |session, observer| session.sr_with(packets, &options, observer).await);
    let (mut exchanged, mut closed) = running.await?;
    closed.check_recorded()?;
    exchanged.account.half_open_reset += closed.reset;
    Ok((exchanged, closed))
}

fn code(exchanged: &Exchanged) -> u8 {
    if exchanged.answered.is_empty() { exit::TIMED_OUT } else { exit::SUCCESS }
}

/// Writes the account to stderr.
fn account(exchanged: &Exchanged) {
    print::note(exchanged.account);
    print::half_open_reset(exchanged.account.half_open_reset);
}

fn lines(exchanged: &Exchanged) -> String {
    let mut text = String::new();
    for Pair { request, reply, rtt, .. } in &exchanged.answered {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} ==> {}  {:.3} ms", request.summary(), reply.packet.summary(), milliseconds(*rtt));
    }
    for request in &exchanged.unanswered {
        let _ = writeln!(text, "{} ==> no answer", request.summary());
    }
    text
}

fn all(exchanged: &Exchanged, reports: &[Report]) -> Result<Value, Error> {
    let pair = |pair: &Pair| {
        Ok::<_, Error>(json!({
            "number": pair.number,
            "sent": pair.sent.as_secs_f64(),
            "request": pair.request.to_json()?,
            "reply": reply(&pair.reply)?,
            "rtt_ms": milliseconds(pair.rtt),
        }))
    };
    Ok(json!({
        "answered": exchanged.answered.iter().map(pair).collect::<Result<Vec<_>, _>>()?,
        "unanswered": exchanged.unanswered.iter().map(Packet::to_json).collect::<Result<Vec<_>, _>>()?,
        "unmatched": exchanged.unmatched.iter().map(reply).collect::<Result<Vec<_>, _>>()?,
        "account": exchanged.account,
        "mechanism": reports,
    }))
}

fn reply(reply: &Reply) -> Result<Value, Error> {
    let mut object = reply.packet.to_json()?;
    object["time"] = json!(reply.time.as_secs_f64());
    object["interface"] = json!(reply.interface);
    object["reason"] = json!(reply.reason.name());
    Ok(object)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
