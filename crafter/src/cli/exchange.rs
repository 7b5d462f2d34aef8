//! What `send`, `sr` and `sr1` have in common: which packets, how fast, and the capture of all of it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crafter::{
    Error, Result,
    capture::{Direction, Entry, Out, Writer},
    datapath::program::Report,
    expr::{PacketSet, Packets},
    layer::Packet,
    session::{Event, Pace, Session},
};

use super::{
    interface::{self, Ended, until_signal},
    print,
    system_names::SystemNames,
};

/// Which packets to send, how fast, and where from.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The packets, e.g. 'IP(dst="192.0.2.1")/TCP(dport=[80,443], flags="S")'
    #[arg(value_name = "EXPR")]
    expression: String,
    /// How often to send all of them
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Wait this long between two packets
    #[arg(long, value_name = "SECONDS", value_parser = interface::seconds, conflicts_with = "rate")]
    interval: Option<Duration>,
    /// Send this many packets a second at most [default: as fast as it goes]
    #[arg(long, value_name = "PPS", value_parser = rate)]
    rate: Option<f64>,
    /// How many packets the expression may stand for
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    limit: u64,
    /// Write all packets, sent and received, to FILE, each with a comment on what became of it: pcapng,
    /// or pcap without comments if its name ends so; -: pcapng to stdout
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    pub link: interface::Link,
    #[command(flatten)]
    policy: interface::Policy,
    #[command(flatten)]
    half_open: interface::HalfOpen,
}

/// Packets per second, more than 0.
///
/// # Errors
/// A sentence for clap.
pub fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (1e-6..=1e9).contains(rate));
    rate.ok_or_else(|| "a number of packets a second is needed, from 0.000001 to 1000000000".to_owned())
}

impl Args {
    /// The packets of the expression.
    ///
    /// # Errors
    /// Those of the expression.
    pub fn set(&self) -> Result<PacketSet> {
        Ok(PacketSet::parse_with(&self.expression, &SystemNames)?)
    }

    /// All packets to send, made one after the other.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the set is larger than the limit.
    pub fn packets<'s>(&self, set: &'s PacketSet) -> Result<impl Iterator<Item = Packet> + use<'s>> {
        let packets: Packets<'s> = set.packets(self.limit.into())?;
        Ok((0..self.count).flat_map(move |_| packets.clone()))
    }

    /// How fast to send.
    pub fn pace(&self) -> Pace {
        Pace { rate: self.rate.or(self.interval.map(|interval| interval.as_secs_f64().recip())) }
    }

    /// Whether the capture takes the standard output.
    pub fn writes_to_stdout(&self) -> bool {
        self.write.as_deref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// A session to send them by.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a wrong source address.
    pub async fn session(&self) -> Result<Session> {
        self.link.session(self.policy.terms(), &self.half_open).await
    }

    /// What writes the capture, if one is asked for.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be created.
    pub fn recorder(&self) -> Result<Recorder> {
        Recorder::create(self.write.as_deref())
    }
}

/// How a session was closed.
pub struct Closed {
    /// What was attached to each interface.
    pub reports: Vec<Report>,
    /// Half-open connections that were reset and are not told of yet.
    pub reset: u64,
    /// The exit code, if a signal came meanwhile.
    pub signal: Option<u8>,
}

/// Resets what a session has left half open, tells `observer` of each RST, and gives the leases back. Ctrl-C and SIGTERM
/// end the waiting: what is left is reset at once.
///
/// # Errors
/// Only that no signal can be listened to.
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
    Ok(Closed { reports, reset, signal })
}

/// What an exchange came to whose session is closed, and whether the capture is whole. One that a signal or an error
/// has ended has no account: the connections that were reset are told here.
///
/// # Errors
/// The exchange's own; with a signal, that of writing the capture.
pub fn settle<T>(ended: Ended<Result<T>>, reset: u64, recorder: Recorder) -> anyhow::Result<Ended<(T, Result<()>)>> {
    match ended {
        Ended::Itself(Ok(result)) => Ok(Ended::Itself((result, recorder.finish()))),
        Ended::Itself(Err(error)) => Err(fail(error, reset, recorder)),
        Ended::Signal(code) => {
            print::half_open_reset(reset);
            recorder.finish()?;
            Ok(Ended::Signal(code))
        }
    }
}

/// The error of an exchange whose session is closed: it prints the count of resets and ends the capture.
pub fn fail(error: Error, reset: u64, recorder: Recorder) -> anyhow::Error {
    print::half_open_reset(reset);
    if let Err(fault) = recorder.finish() {
        log::warn!("{fault}");
    }
    error.into()
}

/// Writes what an exchange tells of into a capture.
pub struct Recorder {
    writer: Option<Writer<Out>>,
    fault: Option<Error>,
}

impl Recorder {
    /// Writes into this file, if one is named.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be created.
    pub fn create(path: Option<&Path>) -> Result<Self> {
        Ok(Self { writer: path.map(Writer::create).transpose()?, fault: None })
    }

    /// Takes a packet.
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
            // The exchange goes on; its end tells.
            self.writer = None;
            self.fault = Some(fault.into());
        }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The first error of writing; that nobody reads the standard output any more is none.
    pub fn finish(self) -> Result<()> {
        let ended = match (self.fault, self.writer) {
            (Some(fault), _) => Err(fault),
            (None, Some(writer)) => writer.finish().map(drop).map_err(Error::from),
            (None, None) => Ok(()),
        };
        match ended {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            ended => ended,
        }
    }
}
