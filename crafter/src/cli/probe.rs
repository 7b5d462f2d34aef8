//! What `ping` and `traceroute` share: the host, and running a probe whose results are printed as they arrive.

use std::{net::IpAddr, time::Instant};

use crafter::{
    Error, Result,
    datapath::program::Report,
    session::{Account, Event, Pace, Script, Step},
};
use serde_json::{Value, json};

use super::{
    exchange::{self, Capture, Recorder},
    interface::{self, Ended, Interrupted},
    print::{self, Lines},
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
    /// `--source`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name is unknown or has no such address.
    pub async fn address(&self) -> Result<IpAddr> {
        let wanted = match (self.ipv4, self.ipv6, self.link.source) {
            (true, ..) => Some(true),
            (_, true, _) => Some(false),
            (.., source) => source.map(|source| source.is_ipv4()),
        };
        let what = || format!("host '{}'", self.host);
        let bare = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host);
        let found: Vec<IpAddr> = match bare.parse() {
            Ok(address) => vec![address],
            Err(_) => match tokio::net::lookup_host((bare, 0)).await {
                Ok(found) => found.map(|address| address.ip()).collect(),
                Err(error) => {
                    return Err(Error::invalid(what(), format_args!("{error}; check the name, or give an address")));
                }
            },
        };
        found.into_iter().find(|address| wanted.is_none_or(|v4| address.is_ipv4() == v4)).ok_or_else(|| {
            let (version, other) = if wanted == Some(true) { ("IPv4", "-6") } else { ("IPv6", "-4") };
            Error::invalid(what(), format_args!("it has no {version} address; try {other}"))
        })
    }

    /// The host as given, with its address unless they are the same.
    pub fn label(&self, address: IpAddr) -> String {
        match self.host == address.to_string() {
            true => self.host.clone(),
            false => format!("{} ({address})", self.host),
        }
    }

    /// Runs a probe until it ends or a signal arrives. `next_result` takes a result from the probe, as a line and as
    /// JSON; the lines are printed unless `output` says otherwise.
    ///
    /// # Errors
    /// Those of the session and of sending.
    pub async fn run<P: Script>(
        &self,
        probe: P,
        next_result: impl FnMut(&mut P) -> Option<(String, Value)>,
        heading: &str,
        output: Output,
    ) -> anyhow::Result<Ran<P>> {
        let session = self.link.session(Default::default(), &self.half_open).await?;
        let recorder = self.capture.recorder()?;
        let out = Lines::new(self.capture.is_stdout());
        let mut running = Running { probe, next_result, recorder, out, output, results: Vec::new() };
        if output != Output::Json {
            running.out.print(heading);
        }
        let ended = interface::until_signal(session.run(&mut running)).await?;
        let closed = exchange::close(session, Pace::default(), &mut |event| running.recorder.handle(event)).await?;
        let (account, signal) = match ended {
            Ended::Itself(Ok(mut account)) => {
                account.half_open_reset += closed.reset;
                (Some(account), None)
            }
            Ended::Itself(Err(error)) => return Err(exchange::fail(error, closed.reset, running.recorder)),
            Ended::Signal(code) => (None, Some(Interrupted(code))),
        };
        running.drain();
        let Running { probe, recorder, out, results, .. } = running;
        let (reports, reset) = (closed.reports, closed.reset);
        Ok(Ran { probe, account, signal, reset, reports, results, recorder, out, output })
    }
}

/// What a probe prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Each result, then a summary.
    Lines,
    /// The summary only.
    Summary,
    /// One JSON object.
    Json,
}

/// A probe whose packets are recorded, and whose results are printed as they arrive.
struct Running<P, F> {
    probe: P,
    next_result: F,
    recorder: Recorder,
    out: Lines,
    output: Output,
    /// For JSON.
    results: Vec<Value>,
}

impl<P, F: FnMut(&mut P) -> Option<(String, Value)>> Running<P, F> {
    fn drain(&mut self) {
        while let Some((line, object)) = (self.next_result)(&mut self.probe) {
            match self.output {
                Output::Lines => self.out.print(&line),
                Output::Summary => {}
                Output::Json => self.results.push(object),
            }
        }
    }
}

impl<P: Script, F: FnMut(&mut P) -> Option<(String, Value)>> Script for Running<P, F> {
    fn next(&mut self, now: Instant) -> Step {
        let step = self.probe.next(now);
        self.drain();
        // The reader of the pipe has closed it.
        if self.out.have_failed() { Step::Done } else { step }
    }

    fn handle(&mut self, event: &Event<'_>, now: Instant) {
        self.recorder.handle(event);
        self.probe.handle(event, now);
        self.drain();
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
    /// `None` if a signal ended it.
    pub account: Option<Account>,
    /// The signal.
    signal: Option<Interrupted>,
    reset: u64,
    reports: Vec<Report>,
    results: Vec<Value>,
    recorder: Recorder,
    out: Lines,
    output: Output,
}

impl<P> Ran<P> {
    /// This probe, unless a signal has ended it.
    ///
    /// # Errors
    /// [`Interrupted`], and those of writing the capture.
    pub fn complete(self) -> anyhow::Result<Self> {
        let Some(signal) = self.signal else { return Ok(self) };
        print::half_open_reset(self.reset);
        self.recorder.finish()?;
        Err(signal.into())
    }

    /// Prints `summary`, or `object` with the results in its field `key`, and ends the capture.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self, summary: &str, key: &str, mut object: Value) -> anyhow::Result<()> {
        let is_json = self.output == Output::Json;
        if is_json {
            object[key] = json!(self.results);
            object["account"] = json!(self.account);
            object["mechanism"] = json!(self.reports);
            self.out.print(&(serde_json::to_string(&object)? + "\n"));
        } else {
            self.out.print(summary);
        }
        match self.account {
            Some(_) if is_json => {}
            Some(account) => print::half_open_reset(account.half_open_reset),
            None => print::half_open_reset(self.reset),
        }
        self.recorder.finish()?;
        Ok(self.out.finish()?)
    }
}
