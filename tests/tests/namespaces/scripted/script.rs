//! Parser of scripts.

use std::{str::SplitWhitespace, time::Duration};

use crafter::packet::Flags;

/// An event, and its time after the previous line.
#[derive(Debug)]
pub struct Line {
    /// `None`: at once.
    pub after: Option<Duration>,
    pub event: Event,
}

/// An event of a script.
#[derive(Debug)]
pub enum Event {
    Connect(Opening),
    Sends(SegmentSpec),
    Receives(SegmentSpec),
    Quiet(Duration),
    Write(usize),
    Read(usize),
    Eof,
    Close,
    Abort,
    State(String),
    Error(String),
    Finished,
}

/// Options of `connect`.
#[derive(Debug, Default)]
pub struct Opening {
    pub mtu: Option<usize>,
    pub rx: Option<usize>,
    pub acks_after: Option<Duration>,
    pub time_out: Option<Duration>,
    pub give_up: Option<Duration>,
    pub time_wait: Option<Duration>,
    pub nagle: bool,
    pub timestamps: bool,
}

/// The fields of a segment that a script gives; numbers are relative to each side's initial one.
#[derive(Debug, Default)]
pub struct SegmentSpec {
    pub flags: Flags,
    pub seq: u32,
    pub length: usize,
    pub ack: Option<u32>,
    pub window: Option<u16>,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub sack_permitted: bool,
    pub sack: Option<(u32, u32)>,
    /// Value, relative to the first one, and echo.
    pub timestamps: Option<(u32, u32)>,
}

/// Parses a script into lines with their numbers.
///
/// # Errors
/// The number of the first invalid line, and why it is invalid.
pub fn parse(text: &str) -> Result<Vec<(usize, Line)>, (usize, String)> {
    let mut lines = Vec::new();
    for (number, text) in text.lines().enumerate() {
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            lines.push((number + 1, line(text).map_err(|reason| (number + 1, reason))?));
        }
    }
    Ok(lines)
}

fn line(text: &str) -> Result<Line, String> {
    let mut words = text.split_whitespace();
    let mut first = words.next().unwrap_or_default();
    let mut after = None;
    if let Some(time) = first.strip_prefix('+') {
        after = Some(duration(time)?);
        first = words.next().ok_or("an event is missing after the time")?;
    }
    let rest = || words.clone().collect::<Vec<_>>().join(" ");
    let event = match first {
        "connect" => Event::Connect(opening(words)?),
        ">" => Event::Sends(segment(words)?),
        "<" => Event::Receives(segment(words)?),
        "quiet" => Event::Quiet(duration(&rest())?),
        "write" => Event::Write(number("write", words.next())?),
        "read" => Event::Read(number("read", words.next())?),
        "eof" => Event::Eof,
        "close" => Event::Close,
        "abort" => Event::Abort,
        "state" => Event::State(rest()),
        "error" => Event::Error(rest()),
        "finished" => Event::Finished,
        other => return Err(format!("unknown event '{other}'")),
    };
    Ok(Line { after, event })
}

fn opening(mut words: SplitWhitespace<'_>) -> Result<Opening, String> {
    let mut opening = Opening::default();
    while let Some(word) = words.next() {
        let mut time = || words.next().ok_or(format!("{word}: a time is missing")).and_then(duration);
        match word {
            "acks-after" => opening.acks_after = Some(time()?),
            "time-out" => opening.time_out = Some(time()?),
            "give-up" => opening.give_up = Some(time()?),
            "time-wait" => opening.time_wait = Some(time()?),
            "nagle" => opening.nagle = true,
            "timestamps" => opening.timestamps = true,
            "mtu" => opening.mtu = Some(number(word, words.next())?),
            "rx" => opening.rx = Some(number(word, words.next())?),
            other => return Err(format!("connect: unknown option '{other}'")),
        }
    }
    Ok(opening)
}

fn segment(mut words: SplitWhitespace<'_>) -> Result<SegmentSpec, String> {
    let letters = words.next().ok_or("flags are missing")?;
    let mut spec = SegmentSpec { flags: flags(letters)?, ..SegmentSpec::default() };
    let range = words.next().ok_or("a sequence number is missing")?;
    let (from, to) = span(range)?;
    (spec.seq, spec.length) = (from, (to - from) as usize);
    while let Some(word) = words.next() {
        match word {
            "ack" => spec.ack = Some(number(word, words.next())?),
            "win" => spec.window = Some(number(word, words.next())?),
            "mss" => spec.mss = Some(number(word, words.next())?),
            "wscale" => spec.scale = Some(number(word, words.next())?),
            "sackOK" => spec.sack_permitted = true,
            "ts" => spec.timestamps = Some((number(word, words.next())?, number(word, words.next())?)),
            "sack" => spec.sack = Some(span(words.next().ok_or("sack: a span is missing")?)?),
            other => return Err(format!("unknown field '{other}'")),
        }
    }
    Ok(spec)
}

/// A sequence number `7` or a range `7:20`.
fn span(text: &str) -> Result<(u32, u32), String> {
    let (from, to) = text.split_once(':').unwrap_or((text, text));
    let (from, to) = (number("sequence number", Some(from))?, number("sequence number", Some(to))?);
    if from <= to { Ok((from, to)) } else { Err(format!("{text} ends before it begins")) }
}

/// Flags in tcpdump's notation.
fn flags(letters: &str) -> Result<Flags, String> {
    let mut flags = Flags::NONE;
    for letter in letters.chars() {
        flags |= match letter {
            'S' => Flags::SYN,
            'F' => Flags::FIN,
            'R' => Flags::RST,
            'P' => Flags::PSH,
            '.' => Flags::ACK,
            _ => return Err(format!("invalid flags '{letters}': only S, F, R, P and '.' are allowed")),
        };
    }
    Ok(flags)
}

fn number<T: std::str::FromStr>(what: &str, word: Option<&str>) -> Result<T, String> {
    word.and_then(|word| word.parse().ok()).ok_or(format!("{what}: a number is missing"))
}

/// A duration such as `20ms` or `1.5s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid time '{text}': expected a number with s or ms, such as 20ms or 1.5s");
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}
