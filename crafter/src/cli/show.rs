//! `crafter show`: prints packets of a capture file, or given as hex digits.

use std::{
    fmt::Write as _,
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
use serde_json::{Value, json};

use super::{
    Globals, complete, print,
    style::{self, Paint},
    who::printable,
};

/// First bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// `crafter show`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// A capture file (pcap or pcapng), hex digits of one packet, or - to read either from stdin
    #[arg(value_name = "FILE|HEX|-")]
    input: String,
    /// Form in which packets are printed
    #[arg(long = "as", value_name = "FORM", default_value = "fields")]
    form: Form,
    /// First layer of hex digits, e.g. Ether or IP [default: IP or IPv6 if the lengths match, else Ether]
    #[arg(long, value_name = "LAYER", value_parser = layer, add = complete::layers())]
    first: Option<Kind>,
}

/// A form in which a packet is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// All fields, one per line
    Fields,
    /// One line
    Summary,
    /// The expression that `crafter build` reads, without fields whose computed value is the same
    Expr,
    /// Bytes in hex digits and as text
    Hexdump,
    /// Bytes in hex digits, each layer in its own colour, and where each layer is
    Map,
}

const HELP: &str = "\
Building a printed packet gives the same bytes. Bytes of unknown protocols become a Raw layer.
For a truncated capture the packets before the truncation are printed, with a message on stderr
and exit code 2. Packets from stdin are printed as they arrive: `crafter sniff -w - | crafter
show -`. Comments of a pcapng file follow a #.
--json: one object per line, distinguished by type: packet (summary, expression, bytes, layers with
all fields, time_ns, original_length, interface, direction, comment), then one summary (packets:
how many, broken: why reading stopped early, or null). docs/schema/v1/show.json describes both.
Exit code 0; 2: not a capture and not a packet, or truncated; 1: the file cannot be read.

Examples:
  crafter show capture.pcapng
  crafter show --as expr 4500001c0001000040017ccdc0000202c00002010800f7ff00000000
  crafter sniff -w - | crafter show --as summary -";

fn layer(name: &str) -> Result<Kind, String> {
    Kind::named(name)
}

/// Reads and prints packets one by one.
///
/// # Errors
/// Those of reading; [`Error::Invalid`] for input that is neither a capture nor hex digits.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let packets = open(&args)?;
    let mut out = Output {
        out: BufWriter::new(io::stdout().lock()),
        json: globals.json,
        form: args.form,
        paint: Paint::stdout(),
        // The writer of a pipe may send packets at any time.
        flush_each: args.input == "-",
        packets: 0,
    };
    let mut broken = None;
    let mut whole = packets.map_while(|captured| captured.map_err(|error| broken = Some(error)).ok());
    let written = whole.try_for_each(|captured| out.packet(&captured));
    drop(whole);
    let reason = broken.as_ref().map(|error| match error {
        Error::Invalid { reason, .. } => reason.clone(),
        other => other.to_string(),
    });
    match written.and_then(|()| out.end(reason.as_deref())) {
        Err(error) if print::is_broken_pipe(&error) => return Ok(exit::SUCCESS),
        result => result?,
    }
    if let Some(reason) = reason {
        print::message(format_args!("{}: {reason}", args.input));
    }
    Ok(broken.map_or(exit::SUCCESS, |error| exit::code(&error)))
}

/// Prints packets on stdout.
struct Output<W: Write> {
    out: BufWriter<W>,
    json: bool,
    form: Form,
    paint: Paint,
    flush_each: bool,
    /// Packets printed as JSON.
    packets: u64,
}

impl<W: Write> Output<W> {
    fn packet(&mut self, captured: &Captured) -> anyhow::Result<()> {
        if self.json {
            let mut object = object(captured)?;
            object["direction"] = json!(captured.direction.map(Direction::name));
            object["comment"] = json!(captured.comment);
            object["type"] = json!("packet");
            self.packets += 1;
            writeln!(self.out, "{object}")?;
        } else {
            self.out.write_all(commented(captured, self.form, self.paint)?.as_bytes())?;
        }
        if self.flush_each { Ok(self.out.flush()?) } else { Ok(()) }
    }

    fn end(&mut self, broken: Option<&str>) -> anyhow::Result<()> {
        if self.json {
            let summary = json!({ "type": "summary", "packets": self.packets, "broken": broken });
            writeln!(self.out, "{summary}")?;
        }
        Ok(self.out.flush()?)
    }
}

/// A captured packet as JSON.
///
/// # Errors
/// Those of building it.
pub fn object(captured: &Captured) -> crafter::Result<Value> {
    let mut object = captured.packet().to_json()?;
    object["time_ns"] = json!(captured.time.map(print::nanoseconds));
    object["original_length"] = json!(captured.original_length);
    object["interface"] = json!(captured.interface);
    Ok(object)
}

/// A packet in a form, ending with a newline.
///
/// # Errors
/// Those of building it.
pub fn text(mut packet: Packet, form: Form, paint: Paint) -> crafter::Result<String> {
    Ok(match form {
        Form::Fields => paint.packets(&packet.show()?) + "\n",
        Form::Summary => paint.packets(&packet.summary()) + "\n",
        Form::Expr => {
            packet.simplify()?;
            format!("{packet}\n")
        }
        Form::Hexdump => packet.hexdump()? + "\n",
        Form::Map => map(&packet, paint)? + "\n",
    })
}

/// A hex dump with a colour for each layer, and the layers with their first and last byte.
fn map(packet: &Packet, paint: Paint) -> crafter::Result<String> {
    let (bytes, layers) = (packet.build()?, packet.layout()?);
    let style = |layer: usize| style::MAP[layer % style::MAP.len()];
    // A byte outside of all layers has the colour of the one before it.
    let layer_of = |at: usize| layers.iter().rposition(|(_, range)| range.start <= at && !range.is_empty());
    let mut text = String::new();
    for (line, chunk) in bytes.chunks(16).enumerate() {
        let byte = |(column, byte): (usize, &u8)| {
            paint.styled(style(layer_of(line * 16 + column).unwrap_or(0)), format_args!("{byte:02x}")) + " "
        };
        let readable = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' };
        let digits: String = chunk.iter().enumerate().map(byte).collect();
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            text,
            "{:04x}  {digits}{:2$} {3}",
            line * 16,
            "",
            3 * (16 - chunk.len()),
            chunk.iter().map(readable).collect::<String>()
        );
    }
    for (layer, (name, range)) in layers.iter().enumerate().filter(|(_, (_, range))| !range.is_empty()) {
        let name = paint.styled(style(layer), format_args!("{name:<24}"));
        let _ = writeln!(text, "{name}{:04x}-{:04x}", range.start, range.end - 1);
    }
    Ok(text)
}

/// The same with the comments of the capture, in forms that no program reads again.
fn commented(captured: &Captured, form: Form, paint: Paint) -> crafter::Result<String> {
    let mut text = text(captured.packet(), form, paint)?;
    let faint = |comment: String| paint.styled(style::FAINT, comment);
    match (&captured.comment, form) {
        (Some(comment), Form::Fields) => {
            comment.lines().for_each(|line| text += &(faint(format!("# {}", printable(line))) + "\n"));
        }
        (Some(comment), Form::Summary) => {
            let comment = printable(&comment.replace('\n', "; "));
            text = format!("{}  {}\n", text.trim_end(), faint(format!("# {comment}")));
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
            None => Err(Error::invalid(
                &args.input,
                "neither an existing file nor hex digits; give a capture file, hex digits, or - for stdin",
            )
            .into()),
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
    // Hex digits, one packet per line, as `crafter build` prints them.
    let mut bytes = begin;
    source.read_to_end(&mut bytes).with_context(reading)?;
    let lines = std::str::from_utf8(&bytes).ok().map(|text| text.lines().filter(|line| !line.trim().is_empty()));
    let packets = lines
        .and_then(|lines| lines.map(|line| hex(line).map(|bytes| one(bytes, args.first))).collect::<Option<Vec<_>>>());
    match packets {
        Some(packets) if !packets.is_empty() => Ok(Box::new(packets.into_iter().map(Ok))),
        _ => Err(Error::invalid(
            &args.input,
            "neither a pcap or pcapng file nor lines of hex digits; `crafter build` writes both",
        )
        .into()),
    }
}

fn one(bytes: Vec<u8>, first: Option<Kind>) -> Captured {
    Captured::of(first.unwrap_or_else(|| Kind::guess(&bytes)), bytes)
}

/// Bytes of hex digits; blanks and colons between them are ignored.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|char| !char.is_whitespace() && *char != ':')
        .map(|char| char.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len().is_multiple_of(2))?;
    Some(digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect())
}
