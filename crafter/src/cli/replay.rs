//! `crafter replay`: sends the packets of a capture.

mod outlet;
mod schedule;
mod tape;

use std::{
    cell::RefCell,
    future::poll_fn,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use crate::cli::exit;
use anyhow::Context as _;
use crafter::{Error, Result, session::Stop};
use serde::Serialize;

use self::{outlet::Outlet, schedule::Schedule, tape::Tape};
use super::{
    Globals, complete,
    live::{self, Counts, Live},
    print,
    signals::{Interruption, Limit, Phase, Signals},
};

/// `crafter replay`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// A capture file (pcap or pcapng), or - to read it from stdin
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Interface to send on; required for Ethernet frames [default for IP packets: by route]
    #[arg(long, short, visible_alias = "iface", value_name = "IF", add = complete::interfaces())]
    interface: Option<String>,
    /// Send at most this many packets per second, instead of by the times in the capture
    #[arg(long, value_name = "PPS", conflicts_with_all = ["speed", "top_speed"])]
    rate: Option<f64>,
    /// Divide the time between packets by FACTOR
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor)]
    speed: f64,
    /// Send as fast as possible
    #[arg(long, conflicts_with = "speed")]
    top_speed: bool,
    /// Send the capture N times
    #[arg(long = "loop", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    #[command(flatten)]
    limit: Limit,
}

const HELP: &str = "\
Sends the packets unchanged, in the order of the file: Ethernet frames on --interface, IP packets
by the routes of their destinations. All packets are checked before the first is sent; a packet
that is longer than the MTU or has no route is an error. Ports are not owned: the kernel of
this host receives the replies.
Frames pass the queueing discipline with crafter's socket mark. With --top-speed they bypass
it, programs on the egress hook, and tcpdump on this host.
Needs CAP_NET_RAW (before Linux 5.17 also CAP_NET_ADMIN, for the mark).
Ctrl-C and --timeout end it with the summary so far, a second Ctrl-C at once.
--json: the summary as one object: file, packets, shortened, sent, refused, duration_ns,
packets_per_second, loops, broken, error, exit_code (docs/schema/v1/replay.json).
Exit code 0: all packets were sent; 1: the kernel rejected some; 2: the capture is truncated,
and the packets before that were sent; 5: --timeout passed before all were sent; 130: Ctrl-C;
others as `crafter --help` lists them.

Examples:
  crafter replay --interface veth0 frames.pcapng
  crafter replay --json packets.pcap";

fn factor(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|factor| (1e-6..=1e6).contains(factor))
        .ok_or_else(|| "not a factor; give a number from 0.000001 to 1000000".to_owned())
}

/// The result.
#[derive(Debug, Serialize)]
struct Summary {
    file: String,
    packets: usize,
    /// Packets that the capture holds only the beginning of; sent as short as they are.
    shortened: usize,
    sent: u64,
    refused: u64,
    duration_ns: u64,
    packets_per_second: f64,
    loops: u32,
    broken: Option<String>,
    error: Option<String>,
    exit_code: u8,
}

/// Reads, checks, and sends.
///
/// # Errors
/// Those of reading, [`Error::Invalid`] for packets that cannot be sent, those of routes and interfaces.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut signals = Signals::new(args.limit)?;
    let mut summary = Summary::new(&args);
    let path = args.file.clone();
    let tape = match signals.unless_blocking(move || Tape::read(&path)).await {
        Ok(tape) => tape?,
        Err(interruption) => return summary.finish(None, Some(interruption), globals),
    };
    summary.read(&tape);
    let schedule = match (args.rate, args.top_speed) {
        (Some(rate), _) => Schedule::rate(rate)?,
        (None, true) => Schedule::top_speed(),
        (None, false) => Schedule::times(&tape, args.speed)?,
    };
    let outlet = match signals.unless(Outlet::open(&tape, args.interface.as_deref(), args.top_speed)).await {
        Ok(outlet) => outlet?,
        Err(interruption) => return summary.finish(None, Some(interruption), globals),
    };
    signals.clock().set_phase(Phase::Exchange);
    // A separate thread: the runtime's timers have millisecond resolution, and a batch at top speed blocks.
    let (end, ended) = mpsc::channel::<()>();
    let total = (tape.items.len() as u64).saturating_mul(args.times.into());
    let live = RefCell::new(Live::new(false, Counts { total: Some(total), ..Counts::default() }));
    let stop = Stop::default();
    let progress = Arc::new(AtomicU64::new(0));
    let done = progress.clone();
    let mut playing = tokio::task::spawn_blocking(move || play(&tape, schedule, outlet, args.times, &ended, &done));
    let played = poll_fn(|context| {
        live.borrow_mut().count(|counts| counts.sent = progress.load(Ordering::Relaxed));
        Pin::new(&mut playing).poll(context)
    });
    let played = async {
        tokio::pin!(played);
        tokio::select! {
            played = &mut played => return played,
            () = stop.stopped() => drop(end),
        }
        played.await
    };
    let (played, mut interruption) = live::drive(played, &live, &mut signals, &stop).await?;
    live.into_inner().end_progress();
    let played = played.context("the sending thread panicked; this is a bug in crafter")?;
    summary.sent = played.outlet.sent();
    summary.refused = played.outlet.refused();
    let seconds = played.took.as_secs_f64();
    summary.duration_ns = print::nanoseconds(played.took);
    summary.packets_per_second = if seconds > 0.0 { summary.sent as f64 / seconds } else { 0.0 };
    interruption.take_if(|interruption| interruption.is_timeout() && summary.sent + summary.refused == total);
    summary.finish(played.error, interruption, globals)
}

impl Summary {
    /// A summary before anything is read.
    fn new(args: &Args) -> Self {
        Self {
            file: args.file.display().to_string(),
            packets: 0,
            shortened: 0,
            sent: 0,
            refused: 0,
            duration_ns: 0,
            packets_per_second: 0.0,
            loops: args.times,
            broken: None,
            error: None,
            exit_code: exit::SUCCESS,
        }
    }

    /// Adds what the capture holds.
    fn read(&mut self, tape: &Tape) {
        (self.packets, self.shortened, self.broken) = (tape.items.len(), tape.shortened, tape.broken.clone());
    }

    /// Prints the summary; returns the exit code.
    fn finish(
        mut self,
        error: Option<Error>,
        interruption: Option<Interruption>,
        globals: &Globals,
    ) -> anyhow::Result<u8> {
        self.conclude(error, interruption);
        self.print(globals)?;
        Ok(self.exit_code)
    }

    /// Sets the exit code: an interruption before an error, before a truncated capture, before rejected packets.
    fn conclude(&mut self, error: Option<Error>, interruption: Option<Interruption>) {
        if let Some(interruption) = interruption {
            self.exit_code = interruption.code();
            self.error = Some(interruption.to_string());
        } else if let Some(error) = error {
            self.exit_code = exit::code(&error);
            self.error = Some(print::sentence(&error.into()));
        } else if self.broken.is_some() {
            self.exit_code = exit::USAGE;
        } else if self.refused > 0 {
            self.exit_code = exit::FAILURE;
        }
    }

    fn print(&self, globals: &Globals) -> anyhow::Result<()> {
        print::result(globals, self, |Self { sent, refused, duration_ns, packets_per_second: rate, .. }| {
            let seconds = *duration_ns as f64 / 1e9;
            format!("{sent} packets sent in {seconds:.3} s, {rate:.0} packets/s; {refused} rejected by the kernel\n")
        })?;
        if self.shortened > 0 && !globals.json {
            print::remark(format_args!("{} packets were sent truncated, as the capture holds them", self.shortened));
        }
        if let Some(error) = &self.error {
            print::message(error);
        } else if let Some(reason) = &self.broken {
            print::message(format_args!("{}: {reason}", self.file));
        }
        Ok(())
    }
}

/// How sending ended.
struct Played {
    outlet: Outlet,
    took: Duration,
    error: Option<Error>,
}

/// Sends all of `tape` `times` times, or until the sender of `stopped` is dropped.
fn play(
    tape: &Tape,
    mut schedule: Schedule,
    mut outlet: Outlet,
    times: u32,
    stopped: &Receiver<()>,
    progress: &AtomicU64,
) -> Played {
    /// Packets between two checks of `stopped`: at most a millisecond of work.
    const CHUNK: usize = 512;
    let begun = Instant::now();
    let total = tape.items.len() as u64 * u64::from(times);
    let (mut done, mut error) = (0, None);
    while done < total && error.is_none() {
        let now = Instant::now();
        let at = (done % tape.items.len() as u64) as usize;
        let ready = schedule.ready(now, at).min(CHUNK).min(tape.items.len() - at);
        let pause = if ready > 0 {
            error = outlet.send(tape, at..at + ready).err();
            done += ready as u64;
            progress.store(done, Ordering::Relaxed);
            schedule.sent(ready, at + ready == tape.items.len());
            Duration::ZERO
        } else {
            schedule.next(now, at).saturating_duration_since(now)
        };
        if !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
            break;
        }
    }
    Played { outlet, took: begun.elapsed(), error }
}
