//! `crafter sr` and `crafter sr1`: send packets and match the replies.

mod tally;

use std::{
    cell::RefCell,
    io,
    time::{Duration, Instant},
};

use crate::cli::exit;
use crafter::{
    Error,
    layer::Packet,
    probe::{TargetReport, TargetState},
    session::{Event, Exchanged, Outcome, SrOptions},
};
use serde_json::{Value, json};

use self::tally::Tally;
use super::{
    Globals,
    exchange::{self, Closed},
    live::{Counts, Live},
    paint, print,
    signals::{self, Limit, Signals},
    style::{self, Paint},
};

/// Number of requests up to which all of them are printed by default.
const MAX_PRINTED: u64 = 64;

/// How long to wait for replies by default.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// `crafter sr`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    waiting: Waiting,
    /// Collect all replies to a request, not only the first; waits until the timeout
    #[arg(long)]
    multi: bool,
    /// Which requests to print [default: all; text of more than 64 requests: open]
    #[arg(long, value_name = "WHICH")]
    show: Option<Show>,
    // Last: options after it would be below its headings.
    #[command(flatten)]
    exchange: exchange::Args,
}

impl Args {
    /// Bounds the wait for the next hop, too.
    pub fn bounded(mut self) -> Self {
        self.exchange.link.hop_timeout = self.waiting.next_hop();
        self
    }
}

/// Which requests `sr` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Show {
    /// Open ports, hosts that are up, and answers that are neither positive nor negative
    Open,
    /// All requests with an answer
    Answered,
    /// All requests
    All,
}

impl Show {
    fn includes(self, state: TargetState) -> bool {
        match self {
            Self::Open => matches!(state, TargetState::Open | TargetState::Up | TargetState::Answered),
            Self::Answered => state != TargetState::NoAnswer,
            Self::All => true,
        }
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
    /// Bounds the wait for the next hop, too.
    pub fn bounded(mut self) -> Self {
        self.exchange.link.hop_timeout = self.waiting.next_hop();
        self.exchange.link.is_small = true;
        self
    }
}

#[derive(Debug, clap::Args)]
struct Waiting {
    #[command(flatten)]
    limit: Limit,
    /// Time to wait for replies after the last packet is sent [default: 2; with --timeout that time, divided by the
    /// attempts]
    #[arg(long, short = 'W', value_name = "TIME", value_parser = signals::duration)]
    wait: Option<Duration>,
    /// Send an unanswered packet again, up to N times
    #[arg(long, short, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    retry: u32,
}

impl Waiting {
    fn next_hop(&self) -> Option<Duration> {
        self.limit.next_hop(self.wait, self.retry.saturating_add(1))
    }

    /// How long to wait for replies after each attempt.
    fn timeout(&self) -> Duration {
        self.limit.wait(self.wait, REPLY_TIMEOUT, self.retry.saturating_add(1))
    }
}

const HELP: &str = "\
A packet begins with IP, IPv6, Ether or ARP. Unset fields are filled in: source address and
next hop from the route, the source port (or ICMP identifier) from a lease. While the lease
lasts, replies to the port are delivered to crafter and the kernel sends no RST.
Prints a line for each request with its reply when the reply arrives, at the end a line for each
request without one. Of more than 64 requests it prints only those that --show open includes, and
at the end the ports of each host by state. On stderr: how many targets are in each state, an
account of all packets, and whether the counters of the kernel half agree with it.
Ctrl-C and --timeout end it with everything so far, a second Ctrl-C at once.
A SYN-ACK leaves a connection half open, and the peer repeats it. Before the lease of the port
ends, also after Ctrl-C, crafter resets such connections and prints on stderr how many
(half_open_reset of the account). That takes at most 5 s, at --rate or 1000 per second,
whichever is higher. Connections are not reset with --leave-open, if crafter is killed, or if
more than 131072 later SYNs were answered: then the kernel resets each when the peer repeats
its SYN-ACK, a second or more later.
--json: one object per line as results arrive, distinguished by type: answer (number, request,
reply, rtt_ns, verdict), no_answer (number, request), unmatched (reply), then one summary (states,
account, mechanism, error, exit_code). Packets as in `crafter show --json`, requests also with
time_ns, replies with time_ns, interface and reason (docs/schema/v1/sr.json).
Exit code 0: at least one reply; 5: none, or --timeout passed before all packets were sent;
130: Ctrl-C; others as `crafter --help` lists them.

Examples:
  crafter sr 'IP(dst=\"192.0.2.1\")/TCP(dport=[22,80,443], flags=\"S\")'
  crafter sr --multi --wait 1 --json 'IP(dst=\"192.0.2.1\")/ICMP()'";

const HELP_ONE: &str = "\
Like `crafter sr`, but ends with the first reply and prints it field by field.
Prints on stderr what the reply means: the port is open or closed, the host is up, the
destination is unreachable (with the ICMP code), or there was no reply in time.
A half-open connection is reset at the end. With --leave-open the kernel resets it when the
peer repeats its SYN-ACK.
--json: an object with request, reply (or null), rtt_ns, verdict (state, from, text), account,
mechanism, error and exit_code (docs/schema/v1/sr1.json). States: open, closed, up, unreachable,
ttl_exceeded, error, answered, no_answer.
Exit code 0: a reply; 5: none in time; 130: Ctrl-C; others as `crafter --help` lists them.

Examples:
  crafter sr1 'IP(dst=\"192.0.2.1\")/TCP(dport=80, flags=\"S\")'
  crafter sr1 --json 'IP(dst=\"192.0.2.1\")/UDP(dport=53)/DNS(rd=1, qd=DNSQR(qname=\"example.com\"))'";

/// Sends, waits and prints.
///
/// # Errors
/// Those of the expression, of values that do not fit, and of sending.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let Args { mut exchange, waiting, multi, show } = args;
    let mut signals = Signals::new(waiting.limit)?;
    let set = match exchange.set(&mut signals).await? {
        Ok(set) => set,
        Err(interruption) => {
            let form = if globals.json && !exchange.capture.is_stdout() { Form::Json } else { Form::Nothing };
            let live = Live::new(false, Counts::default());
            return finish(&Printer::new(form, Show::All), &Exchanged::default(), Closed::early(interruption), live);
        }
    };
    let is_large = exchange.total(&set) > MAX_PRINTED;
    exchange.link.is_small = !is_large;
    let form = match (exchange.capture.is_stdout(), globals.json) {
        (true, _) => Form::Nothing,
        (false, true) => Form::Json,
        (false, false) => Form::Text,
    };
    let default = if is_large && form == Form::Text { Show::Open } else { Show::All };
    let mut printer = Printer::new(form, show.unwrap_or(default));
    let (total, timeout) = (exchange.total(&set), waiting.timeout());
    let counts = Counts { total: Some(total), answered: Some(0), wait: timeout, ..Counts::default() };
    let live = RefCell::new(Live::new(false, counts));
    let packets = exchange.packets(&set)?;
    let (retry, pace, fragment) = (waiting.retry, exchange.pace(), exchange.fragment());
    let options = SrOptions { timeout, retry, pace, multi, fragment, discard_replies: true };
    let on_event = |event: &Event<'_>| printer.handle(event, &mut live.borrow_mut());
    let running = exchange.run(&mut signals, &live, on_event, async |session, observer| {
        session.sr_with(packets, &options, observer).await
    });
    let (mut exchanged, mut closed): (Exchanged, _) = running.await?;
    exchanged.account.half_open_reset += closed.reset;
    closed.complete_if(exchanged.account.requests == total);
    if let Some(error) = printer.fault.take() {
        return Err(error.into());
    }
    let mut live = live.into_inner();
    printer.unanswered(&exchanged, &mut live)?;
    if is_large && form == Form::Text {
        let map = paint::fill(&printer.tally.map(), style::columns(&io::stdout()));
        live.print(&Paint::stdout().states(&map));
    }
    finish(&printer, &exchanged, closed, live)
}

/// Prints the summary; returns the exit code.
fn finish(printer: &Printer, exchanged: &Exchanged, mut closed: Closed, mut live: Live) -> anyhow::Result<u8> {
    let code = code(exchanged);
    if printer.form == Form::Json {
        let mut summary = json!({ "type": "summary", "states": printer.tally.total_object() });
        closed.add_to(&mut summary, &exchanged.account, code);
        live.print(&format!("{summary}\n"));
    }
    live.end_progress();
    if printer.form != Form::Json {
        let totals = printer.tally.total_line();
        if !totals.is_empty() {
            print::note(Paint::stderr().states(&totals));
        }
        account(exchanged);
    }
    let code = live.finish(closed.end(code))?;
    closed.check_recorded()?;
    Ok(code)
}

/// Sends one packet, waits and prints.
///
/// # Errors
/// As [`run`]; [`Error::Invalid`] for an expression that expands to more than one packet.
pub async fn run_one(args: OneArgs, globals: &Globals) -> anyhow::Result<u8> {
    let OneArgs { exchange, waiting } = args;
    let timeout = waiting.timeout();
    let mut signals = Signals::new(waiting.limit)?;
    let set = match exchange.set(&mut signals).await? {
        Ok(set) => set,
        Err(interruption) => {
            return finish_one(&exchange, globals, &Exchanged::default(), Closed::early(interruption), None, None);
        }
    };
    set.single()?;
    let packets = exchange.packets(&set)?;
    let (retry, pace, fragment) = (waiting.retry, exchange.pace(), exchange.fragment());
    let options = SrOptions { timeout, retry, pace, fragment, ..SrOptions::default() };
    let counts = Counts { total: Some(1), answered: Some(0), wait: timeout, ..Counts::default() };
    let live = RefCell::new(Live::new(false, counts));
    let (mut sent, mut sent_time) = (None, None);
    let on_event = |event: &Event<'_>| {
        if matches!(event.outcome, Outcome::Sent { .. }) {
            (sent, sent_time) = (Some(Instant::now()), Some(event.time));
            live.borrow_mut().count(|counts| counts.sent = 1);
        }
    };
    let running = exchange.run(&mut signals, &live, on_event, async |session, observer| {
        session.sr_with(packets, &options, observer).await
    });
    let (mut exchanged, mut closed): (Exchanged, _) = running.await?;
    exchanged.account.half_open_reset += closed.reset;
    closed.complete_if(exchanged.account.requests == 1);
    let first = exchanged.answered.first();
    let request = first.map(|pair| &pair.request).or(exchanged.unanswered.first());
    let verdict = match (first, request) {
        (Some(pair), _) => Some(TargetReport::answered(&pair.request, &pair.reply.packet, pair.rtt)),
        (None, Some(request)) => {
            let attempts = u32::try_from(exchanged.account.sent).unwrap_or(u32::MAX);
            // After Ctrl-C, the time until then.
            let waited = sent.map_or(Duration::ZERO, |sent| sent.elapsed()).as_millis() as u64;
            let waited = Duration::from_millis(waited).min(timeout);
            let waited = if closed.interruption.is_some() { waited } else { timeout };
            Some(TargetReport::unanswered(request, waited, attempts))
        }
        (None, None) => None,
    };
    finish_one(&exchange, globals, &exchanged, closed, verdict, sent_time)
}

/// Prints the result of `sr1`; returns the exit code.
fn finish_one(
    exchange: &exchange::Args,
    globals: &Globals,
    exchanged: &Exchanged,
    mut closed: Closed,
    verdict: Option<TargetReport>,
    sent_time: Option<Duration>,
) -> anyhow::Result<u8> {
    let code = code(exchanged);
    let first = exchanged.answered.first();
    let request = first.map(|pair| &pair.request).or(exchanged.unanswered.first());
    if globals.json && !exchange.capture.is_stdout() {
        let reply = first.map(|pair| &pair.reply);
        let mut object = json!({
            "request": request.map(|packet| request_object(packet, sent_time)).transpose()?,
            "reply": reply.map(|reply| packet_object(&reply.packet, reply.time, &reply.interface, reply.reason.name())).transpose()?,
            "rtt_ns": first.map(|pair| print::nanoseconds(pair.rtt)),
            "verdict": verdict,
        });
        closed.add_to(&mut object, &exchanged.account, code);
        print::json(&object)?;
    } else {
        if let Some(pair) = first.filter(|_| !exchange.capture.is_stdout()) {
            print::packets_out(pair.reply.packet.show()? + "\n")?;
        }
        if let Some(verdict) = verdict {
            print::note(Paint::stderr().verdict(&verdict));
        }
        account(exchanged);
    }
    closed.check_recorded()?;
    Ok(closed.end(code))
}

fn code(exchanged: &Exchanged) -> u8 {
    if exchanged.account.answered == 0 { exit::TIMED_OUT } else { exit::SUCCESS }
}

/// Writes the account to stderr.
fn account(exchanged: &Exchanged) {
    print::note(exchanged.account);
    print::half_open_reset(exchanged.account.half_open_reset);
}

/// In which form `sr` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    /// A capture is written to stdout.
    Nothing,
}

/// Prints the replies of `sr` as they arrive, and keeps the state of each target.
struct Printer {
    form: Form,
    show: Show,
    tally: Tally,
    /// The first error of building a packet to print.
    fault: Option<Error>,
}

impl Printer {
    fn new(form: Form, show: Show) -> Self {
        Self { form, show, tally: Tally::default(), fault: None }
    }

    fn handle(&mut self, event: &Event<'_>, live: &mut Live) {
        match (event.outcome, event.request, event.reply) {
            (Outcome::Sent { request: number, attempt }, request, _) => {
                self.tally.handle_sent(number, request, event.time);
                if attempt == 0 {
                    live.count(|counts| counts.sent += 1);
                }
            }
            (Outcome::Matched { request: number, rtt, reason }, Some(request), Some(reply)) => {
                let state = TargetState::of_reply(request, reply);
                let (is_first, sent) = self.tally.handle_reply(number, state);
                if is_first {
                    live.count(|counts| counts.answered = counts.answered.map(|count| count + 1));
                }
                match self.form {
                    Form::Text if self.show.includes(state) => {
                        let milliseconds = rtt.as_secs_f64() * 1e3;
                        let line = format!("{} ==> {}  {milliseconds:.3} ms\n", request.summary(), reply.summary());
                        live.print(&live.paint().packets(&line));
                    }
                    Form::Json if self.show.includes(state) => {
                        let record = || {
                            Ok::<_, Error>(json!({
                                "type": "answer",
                                "number": number,
                                "request": request_object(request, sent)?,
                                "reply": packet_object(reply, event.time, event.interface, reason.name())?,
                                "rtt_ns": print::nanoseconds(rtt),
                                "verdict": TargetReport::answered(request, reply, rtt),
                            }))
                        };
                        self.record(record(), live);
                    }
                    Form::Text | Form::Json | Form::Nothing => {}
                }
            }
            (Outcome::Unmatched { reason }, ..) if self.form == Form::Json && self.show == Show::All => {
                let packet = Packet::parse(event.first, event.bytes);
                let reply = packet_object(&packet, event.time, event.interface, reason.name());
                self.record(reply.map(|reply| json!({ "type": "unmatched", "reply": reply })), live);
            }
            _ => {}
        }
    }

    fn record(&mut self, record: Result<Value, Error>, live: &mut Live) {
        match record {
            Ok(record) => live.print(&format!("{record}\n")),
            Err(error) => {
                self.fault.get_or_insert(error);
            }
        }
    }

    /// Prints the requests without a reply, after the end.
    fn unanswered(&self, exchanged: &Exchanged, live: &mut Live) -> Result<(), Error> {
        if !self.show.includes(TargetState::NoAnswer) {
            return Ok(());
        }
        let numbers = self.tally.unanswered(exchanged.account.requests);
        for (number, request) in numbers.zip(&exchanged.unanswered) {
            match self.form {
                Form::Text => {
                    let line = live.paint().packets(&format!("{} ==> no answer\n", request.summary()));
                    live.print(&line);
                }
                Form::Json => {
                    let request = request_object(request, self.tally.sent(number))?;
                    live.print(&format!("{}\n", json!({ "type": "no_answer", "number": number, "request": request })));
                }
                Form::Nothing => {}
            }
        }
        Ok(())
    }
}

/// A request, and when it was sent the last time.
fn request_object(request: &Packet, sent: Option<Duration>) -> Result<Value, Error> {
    let mut object = request.to_json()?;
    object["time_ns"] = json!(sent.map(print::nanoseconds));
    Ok(object)
}

/// A received packet.
fn packet_object(packet: &Packet, time: Duration, interface: &str, reason: &str) -> Result<Value, Error> {
    let mut object = packet.to_json()?;
    object["time_ns"] = json!(print::nanoseconds(time));
    object["interface"] = json!(interface);
    object["reason"] = json!(reason);
    Ok(object)
}
