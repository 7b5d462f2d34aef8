//! What `send`, `sr` and `sr1` share: the packets, their rate, the capture, and running an exchange in a session.

use std::{cell::RefCell, io, path::PathBuf, time::Duration};

use crafter::{
    Error, Result,
    capture::{Direction, Entry, Out, Writer},
    datapath::program::Report,
    expr::{PacketSet, Packets},
    layer::Packet,
    session::{Account, Event, Fragment, Outcome, Pace, Session},
};
use serde_json::{Value, json};

use super::{
    complete, interface,
    live::{self, Live},
    print,
    signals::{self, Interruption, Phase, Signals},
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
    #[arg(long, value_name = "TIME", value_parser = signals::duration, conflicts_with = "rate")]
    interval: Option<Duration>,
    /// Send at most this many packets per second [default: no limit]
    #[arg(long, value_name = "PPS", value_parser = rate)]
    rate: Option<f64>,
    /// Send packets larger than the MTU, or than SIZE bytes, as fragments [default: UDP datagrams and ICMP
    /// queries without the flag DF, larger than the MTU]
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "mtu", value_parser = fragment)]
    fragment: Option<Fragment>,
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
    /// Whether a capture is to be written.
    pub fn is_requested(&self) -> bool {
        self.write.is_some()
    }

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

/// Reads the value of `--fragment`: `mtu`, or a size in bytes.
fn fragment(text: &str) -> Result<Fragment, String> {
    match (text, text.parse()) {
        ("mtu", _) => Ok(Fragment::Mtu),
        (_, Ok(size @ 28..)) => Ok(Fragment::Size(size)),
        _ => Err("not a size of fragments; give the bytes from the IP header on, 28 to 65535".to_owned()),
    }
}

impl Args {
    /// The packets of the expression, or the interruption that arrives while its host names are looked up.
    ///
    /// # Errors
    /// Those of the expression.
    pub async fn set(&self, signals: &mut Signals) -> Result<std::result::Result<PacketSet, Interruption>> {
        let expression = self.expression.clone();
        signals.clock().set_phase(Phase::LookUp);
        let set = signals.unless_blocking(move || SystemNames::parse(&expression)).await;
        signals.clock().set_phase(Phase::Opening);
        set.map_or_else(|interruption| Ok(Err(interruption)), |set| set.map(Ok))
    }

    /// All packets to send, each built when it is requested.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the set is larger than the limit.
    pub fn packets<'s>(&self, set: &'s PacketSet) -> Result<impl Iterator<Item = Packet> + use<'s>> {
        let packets: Packets<'s> = set.packets(self.limit.into())?;
        Ok((0..self.count).flat_map(move |_| packets.clone()))
    }

    /// Which packets are sent as fragments.
    pub fn fragment(&self) -> Fragment {
        self.fragment.unwrap_or_default()
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
    /// interruption ends the exchange early: the result has everything so far.
    ///
    /// # Errors
    /// Those of the session and of `exchange`; [`Interruption`] for a second signal.
    pub async fn run<T: Default>(
        &self,
        signals: &mut Signals,
        live: &RefCell<Live>,
        mut on_event: impl FnMut(&Event<'_>),
        exchange: impl AsyncFnOnce(&Session, &mut dyn FnMut(&Event<'_>)) -> Result<T>,
    ) -> anyhow::Result<(T, Closed)> {
        let session = match signals.unless(self.link.session(self.policy.terms(), &self.half_open)).await {
            Ok(session) => session?,
            Err(interruption) => return Ok((T::default(), Closed::early(interruption))),
        };
        let mut recorder = self.capture.recorder()?;
        let (stop, clock) = (session.stopper(), signals.clock());
        let mut observer = |event: &Event<'_>| {
            if matches!(event.outcome, Outcome::Sent { .. }) {
                clock.set_phase(Phase::Exchange);
            }
            recorder.handle(event);
            on_event(event);
        };
        let ended = live::drive(exchange(&session, &mut observer), live, signals, &stop).await;
        live.borrow_mut().end_progress();
        let (result, interruption) = match ended {
            Ok((Ok(result), interruption)) => (result, interruption),
            Ok((Err(error), _)) => {
                let closed = close(session, self.pace(), signals, &mut |event| recorder.handle(event)).await;
                return Err(fail(error, closed.reset, recorder));
            }
            Err(interruption) => {
                let reset = session.reset_at_once(&mut |event| recorder.handle(event)).await;
                let fault = recorder.finish();
                if interruption.is_timeout() {
                    return Ok((T::default(), Closed { reset, fault: fault.err(), ..Closed::early(interruption) }));
                }
                print::half_open_reset(reset);
                fault?;
                return Err(interruption.into());
            }
        };
        let mut closed = close(session, self.pace(), signals, &mut |event| recorder.handle(event)).await;
        closed.interruption = interruption.or(closed.interruption);
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
    /// What has ended the command early.
    pub interruption: Option<Interruption>,
    /// The first error of writing the capture.
    fault: Option<Error>,
}

impl Closed {
    /// A session that was not opened, because of an interruption before that.
    pub fn early(interruption: Interruption) -> Self {
        Self { interruption: Some(interruption), ..Self::default() }
    }

    /// Ignores a time limit that passed when everything was done that the command was to do, except waiting.
    pub fn complete_if(&mut self, is_complete: bool) {
        self.interruption.take_if(|interruption| is_complete && interruption.is_timeout());
    }

    /// The keys that end the JSON object of each command that sends: account, mechanism, error and exit code.
    pub fn add_to(&self, object: &mut Value, account: &Account, code: u8) {
        object["account"] = json!(account);
        object["mechanism"] = json!(self.reports);
        object["error"] = json!(self.interruption.map(|interruption| interruption.to_string()));
        object["exit_code"] = json!(self.interruption.map_or(code, Interruption::code));
    }

    /// Prints the message of a time limit. Returns the exit code: `code` unless the command was interrupted.
    pub fn end(&self, code: u8) -> u8 {
        if let Some(interruption) = self.interruption.filter(|interruption| interruption.is_timeout()) {
            print::error(&interruption.into());
        }
        self.interruption.map_or(code, Interruption::code)
    }

    /// Checks that the capture is complete.
    ///
    /// # Errors
    /// The first error of writing it.
    pub fn check_recorded(&mut self) -> Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }
}

/// Resets half-open connections of a session, reports each RST to `observer`, and releases the leases. An interruption
/// ends the wait: the remaining connections are reset at once.
pub async fn close(
    session: Session,
    pace: Pace,
    signals: &mut Signals,
    observer: &mut dyn FnMut(&Event<'_>),
) -> Closed {
    let reports = session.reports().await;
    let (mut reset, mut interruption) = match signals.unless(session.reset_half_open(pace, &mut *observer)).await {
        Ok(reset) => (reset, None),
        Err(interruption) => (session.reset_at_once(&mut *observer).await, Some(interruption)),
    };
    match signals.unless(session.close_with(observer)).await {
        Ok(late) => reset += late,
        Err(last) => interruption = interruption.or(Some(last)),
    }
    // Everything was done but closing.
    interruption.take_if(|interruption| interruption.is_timeout());
    Closed { reports, reset, interruption, fault: None }
}

/// Prints the number of resets and ends the capture of an exchange that failed; returns its error.
pub fn fail(error: Error, reset: u64, recorder: Recorder) -> anyhow::Error {
    print::half_open_reset(reset);
    if let Err(fault) = recorder.finish() {
        log::warn!("{fault}");
    }
    error.into()
}

/// Writes the packets of an exchange to a capture; the default writes nothing.
#[derive(Default)]
pub struct Recorder {
    writer: Option<Writer<Out>>,
    fault: Option<Error>,
}

impl Recorder {
    /// Records the packet of an event, with its outcome as the comment.
    pub fn handle(&mut self, event: &Event<'_>) {
        if self.writer.is_none() {
            // Most commands: a comment for each packet would take as long as the packet.
            return;
        }
        let direction = if event.outcome.is_outgoing() { Direction::Out } else { Direction::In };
        let comment = event.outcome.to_string();
        self.record(&Entry {
            interface: Some(event.interface),
            comment: Some(&comment),
            direction: Some(direction),
            ..Entry::new(event.time, event.first, event.bytes)
        });
    }

    /// Records a packet.
    pub fn record(&mut self, entry: &Entry<'_>) {
        let Some(writer) = &mut self.writer else { return };
        if let Err(fault) = writer.write(entry) {
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
