//! The lines of a script.

use std::{str::SplitWhitespace, time::Duration};

use crafter::packet::Flags;

/// When, after the line before; and what.
#[derive(Debug)]
pub struct Line {
    /// `None`: at once.
    pub after: Option<Duration>,
    pub event: Event,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    Connect(Opening),
    Sends(Told),
    Comes(Told),
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

/// How the program opens.
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

/// A segment as far as it is told; numbers count from each side's first.
#[derive(Debug, Default)]
pub struct Told {
    pub flags: Flags,
    pub seq: u32,
    pub length: usize,
    pub ack: Option<u32>,
    pub window: Option<u16>,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub sack_permitted: bool,
    pub sack: Option<(u32, u32)>,
    /// Value, from the first on, and echo.
    pub timestamps: Option<(u32, u32)>,
}

/// Lines with their numbers.
///
/// # Errors
/// The number of the first line that is none, and why.
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
        first = words.next().ok_or("nothing behind the time")?;
    }
    let rest = || words.clone().collect::<Vec<_>>().join(" ");
    let event = match first {
        "connect" => Event::Connect(opening(words)?),
        ">" => Event::Sends(told(words)?),
        "<" => Event::Comes(told(words)?),
        "quiet" => Event::Quiet(duration(&rest())?),
        "write" => Event::Write(number("write", words.next())?),
        "read" => Event::Read(number("read", words.next())?),
        "eof" => Event::Eof,
        "close" => Event::Close,
        "abort" => Event::Abort,
        "state" => Event::State(rest()),
        "error" => Event::Error(rest()),
        "finished" => Event::Finished,
        other => return Err(format!("'{other}' is no word of a story")),
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
            other => return Err(format!("connect: '{other}' is no option")),
        }
    }
    Ok(opening)
}

fn told(mut words: SplitWhitespace<'_>) -> Result<Told, String> {
    let letters = words.next().ok_or("flags are missing")?;
    let mut told = Told { flags: flags(letters)?, ..Told::default() };
    let place = words.next().ok_or("a sequence number is missing")?;
    let (from, to) = span(place)?;
    (told.seq, told.length) = (from, (to - from) as usize);
    while let Some(word) = words.next() {
        match word {
            "ack" => told.ack = Some(number(word, words.next())?),
            "win" => told.window = Some(number(word, words.next())?),
            "mss" => told.mss = Some(number(word, words.next())?),
            "wscale" => told.scale = Some(number(word, words.next())?),
            "sackOK" => told.sack_permitted = true,
            "ts" => told.timestamps = Some((number(word, words.next())?, number(word, words.next())?)),
            "sack" => told.sack = Some(span(words.next().ok_or("sack: a span is missing")?)?),
            other => return Err(format!("'{other}' is nothing that a segment has")),
        }
    }
    Ok(told)
}

/// `7` or `7:20`.
fn span(text: &str) -> Result<(u32, u32), String> {
    let (from, to) = text.split_once(':').unwrap_or((text, text));
    let (from, to) = (number("sequence number", Some(from))?, number("sequence number", Some(to))?);
    if from <= to { Ok((from, to)) } else { Err(format!("{text} ends before it begins")) }
}

/// tcpdump's letters.
fn flags(letters: &str) -> Result<Flags, String> {
    let mut flags = Flags::NONE;
    for letter in letters.chars() {
        flags |= match letter {
            'S' => Flags::SYN,
            'F' => Flags::FIN,
            'R' => Flags::RST,
            'P' => Flags::PSH,
            '.' => Flags::ACK,
            _ => return Err(format!("'{letters}': flags are of S, F, R, P and '.'")),
        };
    }
    Ok(flags)
}

fn number<T: std::str::FromStr>(what: &str, word: Option<&str>) -> Result<T, String> {
    word.and_then(|word| word.parse().ok()).ok_or(format!("{what}: a number is missing"))
}

/// `20ms`, `1.5s`
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time, such as 20ms or 1.5s");
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}
