//! What `ping` and `traceroute` share: the host, and running a probe whose results are printed as they arrive.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Instant,
};

use crafter::{
    Error, Result,
    session::{Account, Event, Outcome, Pace, Script, Step},
};
use serde_json::{Value, json};

use super::{
    exchange::{self, Capture, Closed, Recorder},
    interface,
    live::{self, Counts, Live},
    print,
    signals::{Clock, Interruption, Phase, Signals},
    zone,
};

/// The host to probe, and how.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Name or address of the host
    #[arg(value_name = "HOST")]
    pub host: String,
    /// Use only IPv4 addresses of HOST
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use only IPv6 addresses of HOST
    #[arg(short = '6', long)]
    ipv6: bool,
    #[command(flatten)]
    capture: Capture,
    #[command(flatten)]
    pub link: interface::Link,
    #[command(flatten)]
    half_open: interface::HalfOpen,
}

impl Args {
    /// The host's address: the first one that the system's resolver returns of the requested IP version, or of that of
    /// `--source`; or the interruption that arrives before that. The zone of the address is the interface to use.
    ///
    /// # Errors
    /// [`Error::UnknownHost`] if the name is unknown or has no such address; [`Error::Invalid`] for an address of the
    /// other IP version; those of [`interface::Link::name`].
    pub async fn address(&mut self, signals: &mut Signals) -> Result<std::result::Result<IpAddr, Interruption>> {
        signals.clock().set_phase(Phase::LookUp);
        let found = signals.unless(self.look_up()).await;
        signals.clock().set_phase(Phase::Opening);
        let address = match found {
            Ok(found) => found?,
            Err(interruption) => return Ok(Err(interruption)),
        };
        self.link.interface = self.link.name(address)?;
        Ok(Ok(address.ip()))
    }

    async fn look_up(&self) -> Result<SocketAddr> {
        let wanted = match (self.ipv4, self.ipv6, self.link.source) {
            (true, ..) => Some(true),
            (_, true, _) => Some(false),
            (.., source) => source.map(|source| source.is_ipv4()),
        };
        let bare = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host);
        let found: Vec<SocketAddr> = match (bare.parse::<IpAddr>(), zone::parse(bare)?) {
            (Ok(address), _) => vec![(address, 0).into()],
            (_, Some(address)) => vec![address.into()],
            _ => match tokio::net::lookup_host((bare, 0)).await {
                Ok(found) => found.collect(),
                Err(error) => {
                    return Err(Error::UnknownHost { name: self.host.clone(), reason: print::resolver(&error) });
                }
            },
        };
        found.into_iter().find(|address| wanted.is_none_or(|v4| address.is_ipv4() == v4)).ok_or_else(|| {
            let (version, other) = if wanted == Some(true) { ("IPv4", "-6") } else { ("IPv6", "-4") };
            let reason = format!("it has no {version} address; try {other}");
            match bare.parse::<IpAddr>() {
                Ok(_) => Error::invalid(format!("host '{}'", self.host), reason),
                Err(_) => Error::UnknownHost { name: self.host.clone(), reason },
            }
        })
    }

    /// The host as given, with its address unless they are the same.
    pub fn label(&self, address: IpAddr) -> String {
        match self.host == address.to_string() {
            true => self.host.clone(),
            false => format!("{} ({address})", self.host),
        }
    }

    /// Runs a probe until it ends or is interrupted. `next_result` takes a result from the probe, as a line and as a
    /// record of JSON, after the end also unfinished ones; `update` updates the counts of the progress line. Results are
    /// printed as they arrive unless `output` says otherwise.
    ///
    /// # Errors
    /// Those of the session and of sending; [`Interruption`] for a second signal.
    pub async fn run<P: Script>(
        &self,
        signals: &mut Signals,
        probe: P,
        next_result: impl FnMut(&mut P, bool) -> Option<(String, Value)>,
        update: impl FnMut(&P, &mut Counts),
        Plan { heading, output, counts, interruption }: Plan,
    ) -> anyhow::Result<Ran<P>> {
        let live = RefCell::new(Live::new(self.capture.is_stdout(), counts));
        let opened = match interruption {
            Some(interruption) => Err(interruption),
            None => signals.unless(self.link.session(Default::default(), &self.half_open)).await,
        };
        let recorder = self.capture.recorder()?;
        let clock = signals.clock();
        let mut running = Running { probe, next_result, update, recorder, live: &live, output, clock };
        let (mut account, mut closed) = (Account::default(), Closed::default());
        match opened {
            Ok(session) => {
                let session = session?;
                if output != Output::Json {
                    let mut live = live.borrow_mut();
                    let heading = live.paint().table(&heading);
                    live.print(&heading);
                }
                let stop = session.stopper();
                let ended = live::drive(session.run(&mut running), &live, signals, &stop).await;
                if ended.is_ok() {
                    running.drain(true);
                }
                live.borrow_mut().end_progress();
                let mut observer = |event: &Event<'_>| running.recorder.handle(event);
                let (ended, interruption) = match ended {
                    Ok((ended, interruption)) => (ended, interruption),
                    Err(interruption) if interruption.is_timeout() => (Ok(Account::default()), Some(interruption)),
                    Err(interruption) => {
                        print::half_open_reset(session.reset_at_once(&mut observer).await);
                        running.recorder.finish()?;
                        return Err(interruption.into());
                    }
                };
                closed = exchange::close(session, Pace::default(), signals, &mut observer).await;
                match ended {
                    Ok(found) => account = found,
                    Err(error) => return Err(exchange::fail(error, closed.reset, running.recorder)),
                }
                account.half_open_reset += closed.reset;
                closed.interruption = interruption.or(closed.interruption);
            }
            Err(interruption) => closed.interruption = Some(interruption),
        }
        let Running { probe, recorder, .. } = running;
        Ok(Ran { probe, account, closed, recorder, live: live.into_inner(), output })
    }
}

/// What a probe prints.
pub struct Plan {
    /// The first line of the output as text.
    pub heading: String,
    pub output: Output,
    /// The initial counts of the progress line.
    pub counts: Counts,
    /// What has ended the command before the probe begins.
    pub interruption: Option<Interruption>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Each result, then a summary.
    Lines,
    /// The summary only.
    Summary,
    /// A record of JSON for each result, then the summary.
    Json,
}

/// A probe whose packets are recorded, and whose results are printed as they arrive.
struct Running<'a, P, F, U> {
    probe: P,
    next_result: F,
    update: U,
    recorder: Recorder,
    live: &'a RefCell<Live>,
    output: Output,
    clock: Rc<Clock>,
}

impl<P, F: FnMut(&mut P, bool) -> Option<(String, Value)>, U: FnMut(&P, &mut Counts)> Running<'_, P, F, U> {
    fn drain(&mut self, has_ended: bool) {
        let mut live = self.live.borrow_mut();
        while let Some((line, record)) = (self.next_result)(&mut self.probe, has_ended) {
            match self.output {
                Output::Lines => {
                    let line = live.paint().table(&line);
                    live.print(&line);
                }
                Output::Summary => {}
                Output::Json => live.print(&format!("{record}\n")),
            }
        }
        live.count(|counts| (self.update)(&self.probe, counts));
    }
}

impl<P, F, U> Script for Running<'_, P, F, U>
where
    P: Script,
    F: FnMut(&mut P, bool) -> Option<(String, Value)>,
    U: FnMut(&P, &mut Counts),
{
    fn next(&mut self, now: Instant) -> Step {
        let step = self.probe.next(now);
        self.drain(false);
        step
    }

    fn handle(&mut self, event: &Event<'_>, now: Instant) {
        if matches!(event.outcome, Outcome::Sent { .. }) {
            self.clock.set_phase(Phase::Exchange);
        }
        self.recorder.handle(event);
        self.probe.handle(event, now);
        self.drain(false);
    }

    fn oldest(&self) -> usize {
        self.probe.oldest()
    }

    fn fresh_ports(&self) -> bool {
        self.probe.fresh_ports()
    }
}

/// A probe that has ended, and its session is closed.
pub struct Ran<P> {
    pub probe: P,
    pub account: Account,
    closed: Closed,
    recorder: Recorder,
    live: Live,
    output: Output,
}

impl<P> Ran<P> {
    /// Whether a signal has ended it.
    pub fn is_interrupted(&self) -> bool {
        self.closed.interruption.is_some_and(|interruption| !interruption.is_timeout())
    }

    /// Ignores a time limit that passed when the probe had sent everything.
    pub fn complete_if(&mut self, is_complete: bool) {
        self.closed.complete_if(is_complete);
    }

    /// Prints `summary`, or the record `object`, and ends the capture. Returns the exit code: `code` unless the probe was
    /// interrupted.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self, summary: &str, mut object: Value, code: u8) -> anyhow::Result<u8> {
        if self.output == Output::Json {
            object["type"] = json!("summary");
            self.closed.add_to(&mut object, &self.account, code);
            self.live.print(&format!("{object}\n"));
        } else {
            let summary = self.live.paint().table(summary);
            self.live.print(&summary);
        }
        self.live.end_progress();
        if self.output != Output::Json {
            print::half_open_reset(self.account.half_open_reset);
        }
        self.recorder.finish()?;
        self.live.finish(self.closed.end(code))
    }
}
