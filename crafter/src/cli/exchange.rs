//! What `send`, `sr` and `sr1` share: the packets, their rate, the capture, and running an exchange in a session.

use std::{cell::RefCell, io, path::PathBuf, time::Duration};

use crafter::{
    Error, Result,
    capture::{Direction, Entry, Out, Writer},
    datapath::program::Report,
    expr::{PacketSet, Packets},
    layer::Packet,
    session::{Account, Event, Pace, Session},
};
use serde_json::{Value, json};

use super::{
    complete,
    interface::{self, Ended, Interrupted, until_signal},
    live::{self, Live, Signals},
    print,
    system_names::SystemNames,
};

/// Which packets to send, at which rate, and from where.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The packets, e.g. 'IP(dst="192.0.2.1")/TCP(dport=[80,443], flags="S")'
    #[arg(value_name = "EXPR", add = complete::expressions())]
    expression: String,
    /// Send all of them N times
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Time between two packets
    #[arg(long, value_name = "SECONDS", value_parser = interface::seconds, conflicts_with = "rate")]
    interval: Option<Duration>,
    /// Send at most this many packets per second [default: no limit]
    #[arg(long, value_name = "PPS", value_parser = rate)]
    rate: Option<f64>,
    /// Largest number of packets that the expression may expand to
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    limit: u64,
    #[command(flatten)]
    pub capture: Capture,
    #[command(flatten)]
    pub link: interface::Link,
    #[command(flatten)]
    policy: interface::Policy,
    #[command(flatten)]
    half_open: interface::HalfOpen,
}

/// Where to record the packets of an exchange.
#[derive(Debug, clap::Args)]
pub struct Capture {
    /// Write a capture file of sent and received packets, each with a comment on its outcome: pcapng, or pcap
    /// without comments if the name ends in .pcap; - writes pcapng to stdout, which then gets no text
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl Capture {
    /// Whether the capture goes to stdout.
    pub fn is_stdout(&self) -> bool {
        self.write.as_deref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// Writes the capture; does nothing if none was requested.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be created.
    pub fn recorder(&self) -> Result<Recorder> {
        Ok(Recorder { writer: self.write.as_deref().map(Writer::create).transpose()?, fault: None })
    }
}

/// Reads a rate in packets per second.
///
/// # Errors
/// A sentence for clap.
pub fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (1e-6..=1e9).contains(rate));
    rate.ok_or_else(|| "not a rate; give packets per second, from 0.000001 to 1000000000".to_owned())
}

impl Args {
    /// The packets of the expression.
    ///
    /// # Errors
    /// Those of the expression.
    pub fn set(&self) -> Result<PacketSet> {
        SystemNames::parse(&self.expression)
    }

    /// All packets to send, each built when it is requested.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the set is larger than the limit.
    pub fn packets<'s>(&self, set: &'s PacketSet) -> Result<impl Iterator<Item = Packet> + use<'s>> {
        let packets: Packets<'s> = set.packets(self.limit.into())?;
        Ok((0..self.count).flat_map(move |_| packets.clone()))
    }

    /// The rate to send at.
    pub fn pace(&self) -> Pace {
        Pace { rate: self.rate.or(self.interval.map(|interval| interval.as_secs_f64().recip())) }
    }

    /// Number of packets to send.
    pub fn total(&self, set: &PacketSet) -> u64 {
        u64::try_from(set.len()).unwrap_or(u64::MAX).saturating_mul(self.count)
    }

    /// Runs `exchange` in a session, records its packets and passes them to `on_event`, and closes the session. A first
    /// signal ends the exchange early: the result has everything so far.
    ///
    /// # Errors
    /// Those of the session and of `exchange`; [`Interrupted`] after a second signal.
    pub async fn run<T: Default>(
        &self,
        signals: &mut Signals,
        live: &RefCell<Live>,
        mut on_event: impl FnMut(&Event<'_>),
        exchange: impl AsyncFnOnce(&Session, &mut dyn FnMut(&Event<'_>)) -> Result<T>,
    ) -> anyhow::Result<(T, Closed)> {
        let opening = self.link.session(self.policy.terms(), &self.half_open);
        let session = tokio::select! {
            session = opening => session?,
            code = signals.next() => return Ok((T::default(), Closed { signal: Some(code), ..Closed::default() })),
        };
        let mut recorder = self.capture.recorder()?;
        let stop = session.stopper();
        let mut observer = |event: &Event<'_>| {
            recorder.handle(event);
            on_event(event);
        };
        let ended = live::drive(exchange(&session, &mut observer), live, signals, &stop).await;
        live.borrow_mut().end_progress();
        let (result, signal) = match ended {
            Ok((Ok(result), signal)) => (result, signal),
            Ok((Err(error), _)) => {
                let closed = close(session, self.pace(), &mut |event| recorder.handle(event)).await?;
                return Err(fail(error, closed.reset, recorder));
            }
            Err(interrupted) => {
                let reset = session.reset_at_once(&mut |event| recorder.handle(event)).await;
                print::half_open_reset(reset);
                recorder.finish()?;
                return Err(interrupted.into());
            }
        };
        let mut closed = close(session, self.pace(), &mut |event| recorder.handle(event)).await?;
        closed.signal = signal.or(closed.signal);
        closed.fault = recorder.finish().err();
        Ok((result, closed))
    }
}

/// How a session was closed.
#[derive(Default)]
pub struct Closed {
    /// What was attached to each interface.
    pub reports: Vec<Report>,
    /// Half-open connections that were reset while the session was closed.
    pub reset: u64,
    /// The exit code, if a signal arrived.
    pub signal: Option<u8>,
    /// The first error of writing the capture.
    fault: Option<Error>,
}

impl Closed {
    /// The keys that end the JSON object of each command that sends: account, mechanism, error and exit code.
    pub fn complete(&self, object: &mut Value, account: &Account, code: u8) {
        object["account"] = json!(account);
        object["mechanism"] = json!(self.reports);
        object["error"] = json!(self.signal.map(|_| Interrupted::TEXT));
        object["exit_code"] = json!(self.signal.unwrap_or(code));
    }

    /// Checks that the capture is complete.
    ///
    /// # Errors
    /// The first error of writing it.
    pub fn check_recorded(&mut self) -> Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }
}

/// Resets half-open connections of a session, reports each RST to `observer`, and releases the leases. Ctrl-C and
/// SIGTERM end the wait: the remaining connections are reset at once.
///
/// # Errors
/// If no signal handler can be installed.
pub async fn close(session: Session, pace: Pace, observer: &mut dyn FnMut(&Event<'_>)) -> io::Result<Closed> {
    let reports = session.reports().await;
    let (mut reset, mut signal) = match until_signal(session.reset_half_open(pace, &mut *observer)).await? {
        Ended::Itself(reset) => (reset, None),
        Ended::Signal(code) => (session.reset_at_once(&mut *observer).await, Some(code)),
    };
    match until_signal(session.close_with(observer)).await? {
        Ended::Itself(late) => reset += late,
        Ended::Signal(code) => signal = Some(code),
    }
    Ok(Closed { reports, reset, signal, fault: None })
}

/// Prints the number of resets and ends the capture of an exchange that failed; returns its error.
pub fn fail(error: Error, reset: u64, recorder: Recorder) -> anyhow::Error {
    print::half_open_reset(reset);
    if let Err(fault) = recorder.finish() {
        log::warn!("{fault}");
    }
    error.into()
}

/// Writes the packets of an exchange to a capture.
pub struct Recorder {
    writer: Option<Writer<Out>>,
    fault: Option<Error>,
}

impl Recorder {
    /// Records a packet.
    pub fn handle(&mut self, event: &Event<'_>) {
        let Some(writer) = &mut self.writer else { return };
        let comment = event.outcome.to_string();
        let entry = Entry {
            interface: Some(event.interface),
            comment: Some(&comment),
            direction: Some(if event.outcome.is_outgoing() { Direction::Out } else { Direction::In }),
            ..Entry::new(event.time, event.first, event.bytes)
        };
        if let Err(fault) = writer.write(&entry) {
            // The exchange continues; `finish` reports the error.
            self.writer = None;
            self.fault = Some(fault.into());
        }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The first error of writing, except a pipe whose reader has closed it.
    pub fn finish(self) -> Result<()> {
        let ended = match (self.fault, self.writer) {
            (Some(fault), _) => Err(fault),
            (None, Some(writer)) => writer.finish().map(drop).map_err(Error::from),
            (None, None) => Ok(()),
        };
        match ended {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            ended => ended,
        }
    }
}
