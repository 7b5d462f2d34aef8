//! `crafter sr` and `crafter sr1`: packets sent, and what answers them.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};

use crate::cli::exit;
use crafter::{
    Error,
    datapath::program::Report,
    layer::Packet,
    probe::TargetReport,
    session::{Event, Exchanged, Pair, Reply, SrOptions},
};
use serde_json::{Value, json};

use super::{
    Globals,
    exchange::{self, Closed},
    interface::{self, Ended},
    print,
};

/// `crafter sr`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    exchange: exchange::Args,
    #[command(flatten)]
    waiting: Waiting,
    /// Take every answer to a request, not only the first, and so wait until the time is up
    #[arg(long)]
    multi: bool,
}

/// `crafter sr1`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP_ONE)]
pub struct OneArgs {
    #[command(flatten)]
    exchange: exchange::Args,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, clap::Args)]
struct Waiting {
    /// How long to wait for answers once the last packet is sent
    #[arg(long, short, value_name = "SECONDS", default_value = "2", value_parser = interface::seconds)]
    timeout: Duration,
    /// How often to send again what is not answered
    #[arg(long, short, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    retry: u32,
}

const HELP: &str = "\
A packet begins with IP, IPv6, Ether or ARP. What it leaves unset is filled in: source
address and next hop by the route, the source port (or ICMP identifier) by a lease, under
which the answers come here and the kernel resets nothing.
A line for each request and its answer; one on stderr that tells what became of all packets,
and whether the kernel half counted the same.
A SYN-ACK that answers a SYN leaves a connection half open, and the peer repeats it. Before the
lease of the port ends, crafter resets such connections from it, also after Ctrl-C, and says on
stderr how many (half_open_reset of the account). That takes 5 s at most, at --rate or 1000 a
second, whichever is more. Not so with --leave-open, if crafter is killed, and for SYNs answered
when 131072 others have followed: then the kernel resets each a second or more later, when the
peer repeats its SYN-ACK.
--json: an object with answered (number, sent, request, reply, rtt_ms), unanswered, unmatched,
account and mechanism; packets are as `crafter show --json` has them, replies with time,
interface and reason.
Exit code 0: something answered; 5: nothing did; others as `crafter --help` lists them.

Examples:
  crafter sr 'IP(dst=\"192.0.2.1\")/TCP(dport=[22,80,443], flags=\"S\")'
  crafter sr --multi --timeout 1 --json 'IP(dst=\"192.0.2.1\")/ICMP()'";

const HELP_ONE: &str = "\
As `crafter sr`, until the first answer, which is shown field by field.
A line on stderr says what the answer means: the port is open or closed, the host is up, what
is unreachable and by which ICMP code, or that no answer came in time.
A connection that a SYN-ACK leaves half open is reset at the end; --leave-open leaves that to
the kernel, which does it when the peer repeats its SYN-ACK.
--json: an object with request, reply (or null), rtt_ms, verdict (state, from, text), account
and mechanism. States: open, closed, up, unreachable, ttl_exceeded, error, answered, no_answer.
Exit code 0: it was answered; 5: it was not; others as `crafter --help` lists them.

Examples:
  crafter sr1 'IP(dst=\"192.0.2.1\")/TCP(dport=80, flags=\"S\")'
  crafter sr1 --json 'IP(dst=\"192.0.2.1\")/UDP(dport=53)/DNS(rd=1, qd=DNSQR(qname=\"example.com\"))'";

/// Sends, waits and prints.
///
/// # Errors
/// Those of the expression, of values that do not fit, and of sending.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let Args { exchange, waiting, multi } = args;
    let (exchanged, Closed { reports, signal, .. }) = match sr(&exchange, &waiting, multi).await? {
        Ended::Itself(result) => result,
        Ended::Signal(code) => return Ok(code),
    };
    if exchange.writes_to_stdout() {
        told(&exchanged);
    } else if globals.json {
        print::json(&all(&exchanged, &reports)?)?;
    } else {
        print::out(lines(&exchanged))?;
        told(&exchanged);
    }
    Ok(signal.unwrap_or_else(|| code(&exchanged)))
}

/// Sends one packet, waits and prints.
///
/// # Errors
/// As [`run`]; [`Error::Invalid`] for an expression that stands for more packets than one.
pub async fn run_one(args: OneArgs, globals: &Globals) -> anyhow::Result<u8> {
    let OneArgs { exchange, waiting } = args;
    exchange.set()?.single()?;
    let (exchanged, Closed { reports, signal, .. }) = match sr(&exchange, &waiting, false).await? {
        Ended::Itself(result) => result,
        Ended::Signal(code) => return Ok(code),
    };
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
    if globals.json && !exchange.writes_to_stdout() {
        print::json(&json!({
            "request": request.map(Packet::to_json).transpose()?,
            "reply": first.map(|pair| reply(&pair.reply)).transpose()?,
            "rtt_ms": first.map(|pair| milliseconds(pair.rtt)),
            "verdict": verdict,
            "account": exchanged.account,
            "mechanism": reports,
        }))?;
    } else {
        if let Some(pair) = first.filter(|_| !exchange.writes_to_stdout()) {
            print::out(pair.reply.packet.show()? + "\n")?;
        }
        if let Some(verdict) = verdict {
            // Nothing is left to complain to when stderr is gone.
            let _ = writeln!(io::stderr().lock(), ";; {verdict}");
        }
        told(&exchanged);
    }
    Ok(signal.unwrap_or_else(|| code(&exchanged)))
}

/// A signal ends the exchange, not what its end takes.
async fn sr(args: &exchange::Args, waiting: &Waiting, multi: bool) -> anyhow::Result<Ended<(Exchanged, Closed)>> {
    let set = args.set()?;
    let packets = args.packets(&set)?;
    let session = match interface::until_signal(args.session()).await? {
        Ended::Itself(session) => session?,
        Ended::Signal(code) => return Ok(Ended::Signal(code)),
    };
    let mut recorder = args.recorder()?;
    let options = SrOptions { timeout: waiting.timeout, retry: waiting.retry, pace: args.pace(), multi };
    let observer = &mut |event: &Event<'_>| recorder.handle(event);
    let ended = interface::until_signal(session.sr_with(packets, &options, observer)).await?;
    let closed = exchange::close(session, options.pace, &mut |event| recorder.handle(event)).await?;
    let (mut exchanged, recorded) = match exchange::settle(ended, closed.reset, recorder)? {
        Ended::Itself(result) => result,
        Ended::Signal(code) => return Ok(Ended::Signal(code)),
    };
    recorded?;
    exchanged.account.half_open_reset += closed.reset;
    Ok(Ended::Itself((exchanged, closed)))
}

fn code(exchanged: &Exchanged) -> u8 {
    if exchanged.answered.is_empty() { exit::TIMED_OUT } else { exit::SUCCESS }
}

fn told(exchanged: &Exchanged) {
    // Nothing is left to complain to when stderr is gone.
    let _ = writeln!(io::stderr().lock(), ";; {}", exchanged.account);
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
