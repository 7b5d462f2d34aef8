//! `crafter sniff`: the packets of an interface, as they come.

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::cli::exit;
use crafter::{
    Error, Result,
    capture::{Captured, Direction, Link, Out, Writer},
    datapath::{interface::interfaces, tap::TapOptions},
    layer::Kind,
    session::Sniffer,
};
use serde_json::json;

use super::{
    Globals,
    interface::{Ended, seconds, until_signal},
    service,
    show::{self, Form},
};

/// How long the kernel may gather packets: what a ring of blocks makes of it is worth more than these milliseconds.
const GATHER: Duration = Duration::from_millis(10);
const MEBIBYTE: u32 = 1 << 20;

/// `crafter sniff`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Which packets, as for tcpdump (man pcap-filter) [default: all]
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Listen here [default: the first interface that is up and not lo]
    #[arg(long, short, value_name = "IF")]
    interface: Option<String>,
    /// End after so many packets
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Write a capture file: pcapng, or pcap if its name ends so; -: pcapng to stdout
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    /// What to print of each packet [default: its time and one line; with -w nothing]
    #[arg(long = "as", value_name = "FORM")]
    form: Option<Form>,
    /// Only packets that came, or only those that left
    #[arg(long, value_name = "WAY", value_parser = ["in", "out"])]
    direction: Option<String>,
    /// Leave out frames for other stations
    #[arg(long, short = 'p')]
    no_promiscuous: bool,
    /// Keep so many bytes of each packet
    #[arg(long, value_name = "BYTES", default_value_t = 262_144)]
    snaplen: u32,
    /// Size of the kernel's buffer
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    buffer: u32,
    #[command(flatten)]
    service: service::Args,
}

const HELP: &str = "\
It ends with Ctrl-C, after --count packets or --timeout seconds, and then says on stderr
how many packets there were and how many the kernel dropped. Times are UTC. A running
sniffer can be looked through with Wireshark's programs:
  crafter sniff -w - tcp port 80 | tshark -r -
Needs CAP_NET_RAW, or the service and a policy that lets the user observe; disturbs nobody.
Through the service it sees no frames for other stations.
It sees what reaches the kernel: not what an XDP program consumes, such as what comes to
ports that another crafter owns where that runs as native XDP, and not what leaves past the
kernel's stack (AF_XDP, replay --top-speed).
--json: one JSON object a line for each packet: time (seconds since 1970), time_ns (the
same in nanoseconds), interface, original_length, and what `crafter show` has.
Exit code 0: it ended as asked; 5: --timeout came before --count packets did; others as
`crafter --help` lists them.

Examples:
  crafter sniff -i eth0 tcp port 80 and host 192.0.2.1
  crafter sniff --count 10 --timeout 60 --json icmp
  crafter sniff -w trace.pcapng --as summary";

/// Listens.
///
/// # Errors
/// [`Error::Invalid`] for the filter, those of the interface and of writing.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let options = TapOptions {
        filter: Some(args.filter.join(" ")).filter(|filter| !filter.is_empty()),
        promiscuous: !args.no_promiscuous,
        snaplen: args.snaplen,
        direction: args.direction.as_deref().map(|way| if way == "in" { Direction::In } else { Direction::Out }),
        buffer: args.buffer * MEBIBYTE,
        gather: GATHER,
    };
    // Before anything that may need a privilege.
    options.check()?;
    let mut sink = Sink::check(&args, globals)?;
    let interface = match &args.interface {
        Some(interface) => interface.clone(),
        None => first_interface().await?,
    };
    let service = args.service.open().await?;
    let mut tap = Sniffer::open(service.as_ref(), &interface, &options).await?;
    sink.open(args.write.as_deref(), &tap)?;
    say(&format!("listening on {interface} ({}); Ctrl-C ends", tap.link()));

    let wanted = args.count.unwrap_or(u64::MAX);
    let mut seen = 0;
    let until_end = async {
        let listening = listen(&mut tap, &mut sink, wanted, &mut seen);
        match args.timeout {
            Some(timeout) => tokio::time::timeout(timeout, listening).await.ok(),
            None => Some(listening.await),
        }
    };
    let ended = match until_signal(until_end).await? {
        Ended::Itself(ended) => ended,
        Ended::Signal(_) => None,
    };
    let result = match ended {
        Some(result) => result,
        // What the kernel has gathered meanwhile was there in time.
        None => {
            tokio::time::sleep(2 * GATHER).await;
            empty(&mut tap, &mut sink, wanted, &mut seen)
        }
    };
    let result = result.and_then(|()| sink.finish());
    let (received, dropped) = tap.counts()?;
    say(&format!("{seen} packets seen, {received} received by the filter, {dropped} dropped by the kernel"));
    match result {
        // Nobody reads any more (`crafter sniff | head`).
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(exit::SUCCESS),
        Err(error) => Err(error.into()),
        Ok(()) if args.timeout.is_some() && args.count.is_some_and(|count| seen < count) => Ok(exit::TIMED_OUT),
        Ok(()) => Ok(exit::SUCCESS),
    }
}

/// Hands packets on until so many were seen.
async fn listen(tap: &mut Sniffer, sink: &mut Sink, wanted: u64, seen: &mut u64) -> Result<()> {
    while *seen < wanted {
        let captured = tap.next().await?;
        *seen += 1;
        sink.take(&captured)?;
        drain(tap, sink, wanted, seen)?;
    }
    Ok(())
}

/// Hands on what waits, and sees to it that whoever reads gets it.
fn drain(tap: &mut Sniffer, sink: &mut Sink, wanted: u64, seen: &mut u64) -> Result<()> {
    /// More at once would keep Ctrl-C waiting on a busy link.
    const BATCH: u64 = 1000;
    let until = wanted.min(seen.saturating_add(BATCH));
    while *seen < until
        && let Some(captured) = tap.try_next()?
    {
        *seen += 1;
        sink.take(&captured)?;
    }
    sink.flush()
}

/// Hands on all that waits, though on a busy link not for ever.
fn empty(tap: &mut Sniffer, sink: &mut Sink, wanted: u64, seen: &mut u64) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        let before = *seen;
        drain(tap, sink, wanted, seen)?;
        if *seen == before || Instant::now() > until {
            return Ok(());
        }
    }
}

/// Where to listen if nobody says.
///
/// # Errors
/// [`Error::Invalid`] if there is none.
pub async fn first_interface() -> Result<String> {
    let links = interfaces().await?;
    let usable = links.into_iter().find(|link| link.up && link.carrier && !link.loopback);
    usable.map(|link| link.name).ok_or_else(|| Error::invalid("--interface", "no interface but lo is up: name one"))
}

/// For people, who may have gone.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "crafter sniff: {text}");
}

/// Where packets go.
struct Sink {
    print: Option<(BufWriter<io::Stdout>, Option<Form>)>,
    write: Option<Writer<Out>>,
}

impl Sink {
    /// Whether what is asked for goes together.
    fn check(args: &Args, globals: &Globals) -> Result<Self> {
        let form = if globals.json { None } else { Some(args.form.unwrap_or(Form::Summary)) };
        let printing = args.write.is_none() || args.form.is_some() || globals.json;
        if printing && args.write.as_deref() == Some(Path::new("-")) {
            return Err(Error::invalid("--write", "- takes stdout, so that --as and --json have no place to go"));
        }
        Ok(Self { print: printing.then(|| (BufWriter::new(io::stdout()), form)), write: None })
    }

    fn open(&mut self, path: Option<&Path>, tap: &Sniffer) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        // Flushed when nothing waits any more, which is as good as after every packet and costs less.
        let mut writer = Writer::create(path)?.live(false);
        let first = match tap.link() {
            Link::RAW => Kind::Ip,
            link => link.first(&[]),
        };
        if first != Kind::Raw {
            writer.interface(Some(tap.interface()), first)?;
        }
        writer.flush()?;
        self.write = Some(writer);
        Ok(())
    }

    fn take(&mut self, captured: &Captured) -> Result<()> {
        if let Some(writer) = &mut self.write {
            writer.write(&captured.entry())?;
        }
        let Some((out, form)) = &mut self.print else { return Ok(()) };
        let text = match form {
            Some(Form::Summary) => format!("{} {}\n", clock(captured.time), captured.packet().summary()),
            Some(form) => show::text(captured.packet(), *form)?,
            None => {
                let mut object = captured.packet().to_json()?;
                let time = captured.time.unwrap_or_default();
                object["time"] = json!(time.as_secs_f64());
                object["time_ns"] = json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                object["original_length"] = json!(captured.original_length);
                object["interface"] = json!(captured.interface);
                format!("{object}\n")
            }
        };
        out.write_all(text.as_bytes()).map_err(printing)
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.write {
            writer.flush()?;
        }
        match &mut self.print {
            Some((out, _)) => out.flush().map_err(printing),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        match self.write.take() {
            Some(writer) => Ok(writer.finish().map(drop)?),
            None => Ok(()),
        }
    }
}

fn printing(source: io::Error) -> Error {
    Error::Io { action: "print packets".to_owned(), source }
}

/// The time of day, UTC.
fn clock(time: Option<Duration>) -> String {
    let time = time.unwrap_or_default();
    let seconds = time.as_secs() % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:09}", time.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day() {
        assert_eq!(clock(Some(Duration::new(1_700_000_000, 1_002))), "22:13:20.000001002");
    }
}
