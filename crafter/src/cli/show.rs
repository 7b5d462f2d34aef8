//! `crafter show`: packets of a capture file or hex digits, for people.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    iter,
    path::Path,
};

use crate::cli::exit;
use anyhow::Context as _;
use crafter::{
    Error,
    capture::{self, Captured, Direction, Reader},
    layer::{Kind, Packet},
};
use serde_json::json;

use super::{Globals, print};

/// What a compressed file begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

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
exit code 2. Packets from stdin are printed as they come: `crafter sniff -w - | crafter show -`.
Comments of a pcapng file stand behind a #.
--json: an object with packets (summary, expression, bytes, layers with all fields) and
broken (why there are no more, or null).
Exit code 0; 2: it is no capture and no packet, or cut short; 1: it cannot be read.

Examples:
  crafter show capture.pcapng
  crafter show --as expr 4500001c0001000040017ccdc0000202c00002010800f7ff00000000
  crafter sniff -w - | crafter show --as summary -";

fn layer(name: &str) -> Result<Kind, String> {
    Kind::named(name)
}

/// Reads and prints, packet by packet.
///
/// # Errors
/// Those of reading; [`Error::Invalid`] for what is neither a capture nor hex digits.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let packets = open(&args)?;
    let mut out = Output {
        out: BufWriter::new(io::stdout().lock()),
        json: globals.json,
        form: args.form,
        // Who writes into a pipe may take its time.
        live: args.input == "-",
        begun: false,
    };
    let mut broken = None;
    let mut written = Ok(());
    for captured in packets {
        written = match captured {
            Ok(captured) => out.packet(&captured),
            Err(error) => {
                broken = Some(error);
                break;
            }
        };
        if written.is_err() {
            break;
        }
    }
    let reason = broken.as_ref().map(|error| match error {
        Error::Invalid { reason, .. } => reason.clone(),
        other => other.to_string(),
    });
    match written.and_then(|()| out.end(reason.as_deref())) {
        Err(error) if print::is_broken_pipe(&error) => return Ok(exit::SUCCESS),
        result => result?,
    }
    if let Some(reason) = reason {
        // Nothing is left to complain to when stderr is gone.
        let _ = writeln!(io::stderr().lock(), "crafter: {}: {reason}", args.input);
    }
    Ok(broken.map_or(exit::SUCCESS, |error| exit::code(&error)))
}

/// Packets on stdout, each written when it comes.
struct Output<W: Write> {
    out: BufWriter<W>,
    json: bool,
    form: Form,
    live: bool,
    /// Whether the JSON object is.
    begun: bool,
}

impl<W: Write> Output<W> {
    fn packet(&mut self, captured: &Captured) -> anyhow::Result<()> {
        if self.json {
            let mut object = captured.packet().to_json()?;
            object["time"] = json!(captured.time.map(|time| time.as_secs_f64()));
            object["original_length"] = json!(captured.original_length);
            object["interface"] = json!(captured.interface);
            object["direction"] = json!(captured.direction.map(Direction::name));
            object["comment"] = json!(captured.comment);
            self.out.write_all(if self.begun { b"," } else { b"{\"packets\":[" })?;
            self.begun = true;
            serde_json::to_writer(&mut self.out, &object).map_err(io::Error::from)?;
        } else {
            self.out.write_all(commented(captured, self.form)?.as_bytes())?;
        }
        if self.live { Ok(self.out.flush()?) } else { Ok(()) }
    }

    fn end(&mut self, broken: Option<&str>) -> anyhow::Result<()> {
        if self.json {
            let begin = if self.begun { "" } else { "{\"packets\":[" };
            writeln!(self.out, "{begin}],\"broken\":{}}}", json!(broken))?;
        }
        Ok(self.out.flush()?)
    }
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

/// The same with the capture's comments, where that is no form that is read again.
fn commented(captured: &Captured, form: Form) -> crafter::Result<String> {
    let mut text = text(captured.packet(), form)?;
    match (&captured.comment, form) {
        (Some(comment), Form::Fields) => comment.lines().for_each(|line| text += &format!("# {line}\n")),
        (Some(comment), Form::Summary) => {
            text = format!("{}  # {}\n", text.trim_end(), comment.replace('\n', "; "));
        }
        _ => {}
    }
    Ok(text)
}

type Packets = Box<dyn Iterator<Item = crafter::Result<Captured>>>;

fn open(args: &Args) -> anyhow::Result<Packets> {
    let path = Path::new(&args.input);
    let mut source: Box<dyn Read> = if args.input == "-" {
        Box::new(io::stdin())
    } else if path.exists() {
        Box::new(File::open(path).with_context(|| format!("cannot open {}", args.input))?)
    } else {
        return match hex(&args.input) {
            Some(bytes) => Ok(Box::new(iter::once(Ok(one(bytes, args.first))))),
            None => Err(Error::invalid(&args.input, "it is neither a file nor hex digits").into()),
        };
    };
    let reading = || format!("cannot read {}", args.input);
    let mut begin = Vec::new();
    source.by_ref().take(4).read_to_end(&mut begin).with_context(reading)?;
    if capture::is_capture(&begin) || begin.starts_with(&GZIP) {
        let reader = Reader::new(io::Cursor::new(begin).chain(source)).map_err(|error| match error.into() {
            Error::Invalid { reason, .. } => Error::invalid(&args.input, reason),
            other => other,
        })?;
        return Ok(Box::new(reader.map(|captured| Ok(captured?))));
    }
    // Text: hex digits, one packet a line, as `crafter build` prints them.
    let mut bytes = begin;
    source.read_to_end(&mut bytes).with_context(reading)?;
    let lines = std::str::from_utf8(&bytes).ok().map(|text| text.lines().filter(|line| !line.trim().is_empty()));
    let packets = lines
        .and_then(|lines| lines.map(|line| hex(line).map(|bytes| one(bytes, args.first))).collect::<Option<Vec<_>>>());
    match packets {
        Some(packets) if !packets.is_empty() => Ok(Box::new(packets.into_iter().map(Ok))),
        _ => Err(Error::invalid(&args.input, "it is neither a pcap or pcapng file nor lines of hex digits").into()),
    }
}

fn one(bytes: Vec<u8>, first: Option<Kind>) -> Captured {
    Captured::of(first.unwrap_or_else(|| Kind::guess(&bytes)), bytes)
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
