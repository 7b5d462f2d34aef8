//! `crafter show`: packets of a capture file or hex digits, for people.

use std::{
    io::{self, Read as _, Write as _},
    path::Path,
};

use anyhow::Context as _;
use crafter::{
    Error,
    capture::{self, Capture, Captured},
    error::exit,
    layer::{Kind, Packet},
};
use serde_json::json;

use super::{Globals, print};

/// `crafter show`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// A capture file (pcap or pcapng), hex digits of one packet, or - for either on stdin
    #[arg(value_name = "FILE|HEX|-")]
    input: String,
    /// What to print of each packet
    #[arg(long = "as", value_name = "FORM", default_value = "fields")]
    form: Form,
    /// What hex digits begin with, e.g. Ether or IP [default: IP or IPv6 where the lengths fit, else Ether]
    #[arg(long, value_name = "LAYER", value_parser = layer)]
    first: Option<Kind>,
}

/// What to print of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// All fields, one a line
    Fields,
    /// One line
    Summary,
    /// The text form, as `crafter build` reads it, without what would be computed the same
    Expr,
    /// Bytes in hex digits and as text
    Hexdump,
    /// Bytes in hex digits, each layer in a colour of its own
    Map,
}

const HELP: &str = "\
Every packet, built again, gives the same bytes; what no layer is known for is Raw.
A capture that is cut short gives the packets before the cut, a message on stderr and
exit code 2.
--json: an object with packets (summary, expression, bytes, layers with all fields) and
broken (why there are no more, or null).";

fn layer(name: &str) -> Result<Kind, String> {
    Kind::named(name)
}

/// Reads and prints.
///
/// # Errors
/// Those of reading; [`Error::Invalid`] for what is neither a capture nor hex digits.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let capture = read(&args)?;
    if globals.json {
        let packet = |captured: &Captured| {
            let mut object = captured.packet().to_json()?;
            object["time"] = json!(captured.time.map(|time| time.as_secs_f64()));
            object["original_length"] = json!(captured.original_length);
            object["interface"] = json!(captured.interface);
            Ok(object)
        };
        let packets = capture.packets.iter().map(packet).collect::<crafter::Result<Vec<_>>>()?;
        print::json(&json!({ "packets": packets, "broken": capture.broken }))?;
    } else {
        for captured in &capture.packets {
            print::out(text(captured.packet(), args.form)?)?;
        }
    }
    Ok(match &capture.broken {
        Some(reason) => {
            // Nothing is left to complain to when stderr is gone.
            let _ = writeln!(io::stderr().lock(), "crafter: {}: {reason}", args.input);
            exit::USAGE
        }
        None => exit::SUCCESS,
    })
}

/// A packet in a form, with the end of its last line.
///
/// # Errors
/// Those of building it.
pub fn text(mut packet: Packet, form: Form) -> crafter::Result<String> {
    Ok(match form {
        Form::Fields => packet.show()? + "\n",
        Form::Summary => packet.summary() + "\n",
        Form::Expr => {
            packet.simplify()?;
            format!("{packet}\n")
        }
        Form::Hexdump => packet.hexdump()? + "\n",
        Form::Map => packet.map()? + "\n",
    })
}

fn read(args: &Args) -> anyhow::Result<Capture> {
    let path = Path::new(&args.input);
    let bytes = if args.input == "-" {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).context("cannot read stdin")?;
        bytes
    } else if path.exists() {
        std::fs::read(path).with_context(|| format!("cannot read {}", args.input))?
    } else {
        return match hex(&args.input) {
            Some(bytes) => Ok(one(bytes, args.first)),
            None => Err(Error::invalid(&args.input, "it is neither a file nor hex digits").into()),
        };
    };
    if capture::is_capture(&bytes) {
        return Ok(Capture::read(&bytes)?);
    }
    // Text on stdin or in a file: hex digits, one packet a line, as `crafter build` prints them.
    let lines = std::str::from_utf8(&bytes).ok().map(|text| text.lines().filter(|line| !line.trim().is_empty()));
    let packets =
        lines.map(|lines| lines.map(|line| hex(line).map(|bytes| one(bytes, args.first))).collect::<Option<Vec<_>>>());
    match packets.flatten() {
        Some(packets) if !packets.is_empty() => {
            Ok(Capture { packets: packets.into_iter().flat_map(|capture| capture.packets).collect(), broken: None })
        }
        _ => Err(Error::invalid(&args.input, "it is neither a pcap or pcapng file nor lines of hex digits").into()),
    }
}

fn one(bytes: Vec<u8>, first: Option<Kind>) -> Capture {
    let first = first.unwrap_or_else(|| Kind::guess(&bytes));
    Capture { packets: vec![Captured::of(first, bytes)], broken: None }
}

/// Bytes from hex digits; blanks and colons between them do not matter.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|char| !char.is_whitespace() && *char != ':')
        .map(|char| char.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len().is_multiple_of(2))?;
    Some(digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect())
}
