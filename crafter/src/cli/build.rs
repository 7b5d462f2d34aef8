//! `crafter build`: bytes of packets given as text.

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::cli::exit;
use crafter::{
    capture::{Entry, Writer},
    layer::{Kind, Packet, value::hex},
};

use super::{Globals, complete, print, system_names::SystemNames};

/// `crafter build`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The packets, e.g. 'IP(dst="192.0.2.1")/TCP(dport=[80,443], flags="S")'
    #[arg(value_name = "EXPR", add = complete::expressions())]
    expression: String,
    /// Write raw bytes instead of hex digits, without a separator between packets
    #[arg(long, conflicts_with_all = ["write", "json"])]
    raw: bool,
    /// Write a capture file: pcapng, or pcap if the name ends in .pcap; - writes pcapng to stdout
    #[arg(long, short, alias = "pcap", value_name = "FILE", conflicts_with = "json")]
    write: Option<PathBuf>,
    /// Largest number of packets that the expression may expand to
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    limit: u64,
}

const HELP: &str = "\
Prints one line of hex digits for each packet. A field holds a value, a range (1,5), a list
[80,443] or a prefix \"192.0.2.0/28\"; there is one packet for each combination of values.
`crafter ls` lists the layers, `crafter ls TCP` the fields of TCP.
--json: an object with packets, each: summary, expression, bytes, and layers with
all fields.
Exit code 0: all packets are built; 2: a syntax error in the text, or a value that does not fit.

Examples:
  crafter build 'IP(dst=\"192.0.2.1\")/TCP(dport=[80,443], flags=\"S\")'
  crafter build -w queries.pcapng 'IP(dst=\"192.0.2.1\")/UDP(dport=53)/DNS(id=(1,100))'";

/// Builds and prints, or writes a capture.
///
/// # Errors
/// Those of the expression, of values that do not fit, and of writing.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let set = SystemNames::parse(&args.expression)?;
    let packets = set.packets(args.limit.into())?;
    if globals.json {
        let all = packets.map(|packet| packet.to_json()).collect::<Result<Vec<_>, _>>()?;
        print::json(&serde_json::json!({ "packets": all }))?;
        return Ok(exit::SUCCESS);
    }
    let written = if let Some(path) = &args.write {
        capture(packets, path)
    } else {
        let mut out = BufWriter::new(io::stdout().lock());
        let mut bytes = Vec::new();
        let each = || {
            for packet in packets {
                packet.build_into(&mut bytes)?;
                if args.raw { out.write_all(&bytes)? } else { writeln!(out, "{}", hex(&bytes))? }
            }
            Ok(out.flush()?)
        };
        each()
    };
    match written {
        // The reader has closed the pipe (`crafter build ... | head`).
        Err(error) if print::is_broken_pipe(&error) => Ok(exit::SUCCESS),
        result => result.map(|()| exit::SUCCESS),
    }
}

fn capture(packets: impl Iterator<Item = Packet>, path: &Path) -> anyhow::Result<()> {
    // Live mode flushes after each packet; nothing arrives late here.
    let mut writer = Writer::create(path)?.live(false);
    let mut bytes = Vec::new();
    for packet in packets {
        packet.build_into(&mut bytes)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
        writer.write(&Entry::new(now, first, &bytes))?;
    }
    writer.finish()?;
    Ok(())
}
