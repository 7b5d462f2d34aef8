//! `crafter sniff`: captures the packets of an interface.

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
use serde_json::{Value, json};

use super::{
    Globals, complete, print, service,
    show::{self, Form},
    signals::{Interruption, Limit, Phase, Signals},
    style::Paint,
};

/// Timeout after which the kernel hands over a block that is not full. Larger blocks need fewer wake-ups.
const BLOCK_TIMEOUT: Duration = Duration::from_millis(10);
const MEBIBYTE: u32 = 1 << 20;

/// `crafter sniff`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Filter in the syntax of tcpdump (man pcap-filter) [default: all packets]
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Interface to capture on [default: the first interface that is up, except lo]
    #[arg(long, short, visible_alias = "iface", value_name = "IF", add = complete::interfaces())]
    interface: Option<String>,
    /// Stop after N packets
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    limit: Limit,
    /// Write a capture file: pcapng, or pcap if the name ends in .pcap; - writes pcapng to stdout
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Form in which packets are printed [default: time and summary; with -w nothing]
    #[arg(long = "as", value_name = "FORM")]
    form: Option<Form>,
    /// Capture only received packets, or only sent packets
    #[arg(long, value_name = "DIRECTION", value_parser = ["in", "out"])]
    direction: Option<String>,
    /// Do not capture frames addressed to other stations
    #[arg(long, short = 'p')]
    no_promiscuous: bool,
    /// Capture at most this many bytes of each packet
    #[arg(long, value_name = "BYTES", default_value_t = 262_144)]
    snaplen: u32,
    /// Size of the kernel's capture buffer
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    buffer: u32,
    #[command(flatten)]
    service: service::Args,
}

const HELP: &str = "\
Stops with Ctrl-C, after --count packets or at --timeout, and prints on stderr how many
packets it saw and how many the kernel dropped. Times are UTC. Programs of Wireshark can read
the capture while it runs:
  crafter sniff -w - tcp port 80 | tshark -r -
Needs CAP_NET_RAW, or the service and a policy that lets the user observe. Through the service
it does not see frames addressed to other stations.
It sees packets that reach the kernel's network stack. It does not see packets that an XDP
program consumes, e.g. those for ports that another crafter owns in native XDP mode, nor
packets sent past the stack (AF_XDP, replay --top-speed).
--json: one object per line as packets arrive, distinguished by type: packet (time_ns, interface,
original_length, and the keys of `crafter show --json`), then one summary (interface, packets,
received, dropped). docs/schema/v1/sniff.json describes both.
Exit code 0: stopped as requested; 5: --timeout passed before --count packets were seen; 130:
Ctrl-C before that; others as `crafter --help` lists them.

Examples:
  crafter sniff -i eth0 tcp port 80 and host 192.0.2.1
  crafter sniff --count 10 --timeout 60 --json icmp
  crafter sniff -w trace.pcapng --as summary";

/// Captures.
///
/// # Errors
/// [`Error::Invalid`] for the filter, those of the interface and of writing.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let options = TapOptions {
        filter: Some(args.filter.join(" ")).filter(|filter| !filter.is_empty()),
        promiscuous: !args.no_promiscuous,
        snaplen: args.snaplen,
        direction: args.direction.as_deref().map(|name| if name == "in" { Direction::In } else { Direction::Out }),
        buffer: args.buffer * MEBIBYTE,
        gather: BLOCK_TIMEOUT,
    };
    let mut signals = Signals::new(args.limit)?;
    // Reports an error of the filter before a missing permission.
    options.check()?;
    let mut sink = Sink::check(&args, globals)?;
    let interface = match &args.interface {
        Some(interface) => interface.clone(),
        None => first_interface().await?,
    };
    let opening = async {
        let service = args.service.open().await?;
        Sniffer::open(service.as_ref(), &interface, &options).await
    };
    let mut tap = match signals.unless(opening).await {
        Ok(tap) => tap?,
        // As after the first packet.
        Err(interruption @ Interruption::Signal(_)) => {
            if globals.json {
                print::json(&summary(&interface, 0, None))?;
            }
            return Ok(interruption.usual_code(args.count.is_none()));
        }
        Err(interruption) => return Err(interruption.into()),
    };
    if let Err(error) = sink.open(args.write.as_deref(), &tap) {
        return end(Err(error), exit::SUCCESS);
    }
    print::remark(format_args!("crafter sniff: listening on {interface} ({}); Ctrl-C stops", tap.link()));

    let wanted = args.count.unwrap_or(u64::MAX);
    let mut seen = 0;
    signals.clock().set_phase(Phase::Exchange);
    let (result, interruption) = match signals.unless(listen(&mut tap, &mut sink, wanted, &mut seen)).await {
        Ok(result) => (result, None),
        // Ctrl-C and the time limit end the capture. Packets in blocks that are not full arrived in time.
        Err(interruption) => {
            tokio::time::sleep(2 * BLOCK_TIMEOUT).await;
            (empty(&mut tap, &mut sink, wanted, &mut seen), Some(interruption))
        }
    };
    let counts = tap.counts();
    let result = result.and_then(|()| sink.finish(&summary(&interface, seen, counts.as_ref().ok().copied())));
    let (received, dropped) = counts?;
    print::remark(format_args!(
        "crafter sniff: {seen} packets seen, {received} received by the filter, {dropped} dropped by the kernel"
    ));
    let is_complete = args.count.is_none_or(|count| seen >= count);
    let code = interruption.map_or(exit::SUCCESS, |interruption| interruption.usual_code(is_complete));
    end(result, code)
}

/// The exit code of a capture, or success if the reader has closed the pipe (`crafter sniff | head`).
fn end(result: Result<()>, code: u8) -> anyhow::Result<u8> {
    match result {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(exit::SUCCESS),
        ended => ended.map(|()| code).map_err(anyhow::Error::from),
    }
}

/// The last record of JSON. `counts`: packets that passed the filter, and those of them that the kernel dropped.
fn summary(interface: &str, packets: u64, counts: Option<(u64, u64)>) -> Value {
    let (received, dropped) = counts.unzip();
    json!({
        "type": "summary", "interface": interface, "packets": packets, "received": received, "dropped": dropped,
    })
}

/// Passes packets to the sink until `wanted` packets were seen.
async fn listen(tap: &mut Sniffer, sink: &mut Sink, wanted: u64, seen: &mut u64) -> Result<()> {
    while *seen < wanted {
        let captured = tap.next().await?;
        *seen += 1;
        sink.take(&captured)?;
        drain(tap, sink, wanted, seen)?;
    }
    Ok(())
}

/// Passes pending packets to the sink, then flushes it.
fn drain(tap: &mut Sniffer, sink: &mut Sink, wanted: u64, seen: &mut u64) -> Result<()> {
    /// Limit of packets between two checks for Ctrl-C on a busy link.
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

/// Passes all pending packets to the sink, for at most a second on a busy link.
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

/// The interface to capture on by default.
///
/// # Errors
/// [`Error::Invalid`] if no interface except lo is up.
pub async fn first_interface() -> Result<String> {
    let links = interfaces().await?;
    let usable = links.into_iter().find(|link| link.up && link.carrier && !link.loopback);
    usable.map(|link| link.name).ok_or_else(|| {
        Error::invalid(
            "--interface",
            "none is given, and no interface except lo is up; name one (`ip link` lists them)",
        )
    })
}

/// Prints packets, writes them to a capture, or both.
struct Sink {
    print: Option<(BufWriter<io::Stdout>, Option<Form>)>,
    paint: Paint,
    write: Option<Writer<Out>>,
}

impl Sink {
    /// Checks the combination of options.
    fn check(args: &Args, globals: &Globals) -> Result<Self> {
        let form = if globals.json { None } else { Some(args.form.unwrap_or(Form::Summary)) };
        let printing = args.write.is_none() || args.form.is_some() || globals.json;
        if printing && args.write.as_deref() == Some(Path::new("-")) {
            return Err(Error::invalid(
                "--write",
                "- writes to stdout, where --as and --json print; write to a file, or leave them out",
            ));
        }
        let print = printing.then(|| (BufWriter::new(io::stdout()), form));
        Ok(Self { print, paint: Paint::stdout(), write: None })
    }

    fn open(&mut self, path: Option<&Path>, tap: &Sniffer) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        // `drain` flushes when no packet is pending: as timely as live mode, with fewer writes.
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
            Some(Form::Summary) => {
                let clock = clock(captured.time.unwrap_or_default());
                self.paint.packets(&format!("{clock} {}\n", captured.packet().summary()))
            }
            Some(form) => show::text(captured.packet(), *form, self.paint)?,
            None => {
                let mut object = show::object(captured)?;
                object["type"] = json!("packet");
                object["time_ns"] = json!(print::nanoseconds(captured.time.unwrap_or_default()));
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

    /// Prints the counts as JSON, and ends the capture.
    fn finish(&mut self, counts: &Value) -> Result<()> {
        if let Some((out, None)) = &mut self.print {
            writeln!(out, "{counts}").map_err(printing)?;
        }
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

/// The time of day with nanoseconds, UTC.
fn clock(time: Duration) -> String {
    format!("{}.{:09}", print::time_of_day(time), time.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_day_has_nanoseconds() {
        assert_eq!(clock(Duration::new(1_700_000_000, 1_002)), "22:13:20.000001002");
    }
}
