//! Output that the commands share: results, messages, tables.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::cli::exit;
use anstyle::Style;
use crafter::packet::{self, Excerpt};
use serde::Serialize;
use serde_json::Value;

use super::{
    Globals, excerpt, paint,
    style::{self, Paint},
};

/// Whether `--quiet` is given.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Sets whether this process prints notes and progress.
pub fn set_quiet(is_quiet: bool) {
    QUIET.store(is_quiet, Ordering::Relaxed);
}

/// Whether this process prints neither notes nor progress.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a line to stderr. A failure is ignored: no other stream is left to report it on.
pub fn stderr(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes `crafter: TEXT` to stderr.
pub fn message(text: impl Display) {
    stderr(format_args!("crafter: {text}"));
}

/// Writes `;; TEXT` to stderr unless `--quiet` is given: information that is not part of the result.
pub fn note(text: impl Display) {
    remark(format_args!(";; {text}"));
}

/// Writes a line to stderr unless `--quiet` is given.
pub fn remark(line: impl Display) {
    if !is_quiet() {
        stderr(line);
    }
}

/// Writes `crafter: FILE: warning: TEXT` to stderr, with the line that it is about; without a file `crafter: warning:
/// TEXT`.
pub fn warning(file: Option<&str>, text: impl Display, excerpts: &[&Excerpt]) {
    let file = file.map(|file| format!("{file}: ")).unwrap_or_default();
    let word = Paint::stderr().styled(style::WARNING, "warning:");
    write_report(&format!("crafter: {}{word} {}", harmless(&file), harmless(&text)), excerpts, style::WARNING);
}

/// Writes an error to stderr as one sentence, with the lines that it is about.
pub fn error(error: &anyhow::Error) {
    let mut excerpts = Vec::new();
    for cause in error.chain() {
        match (cause.downcast_ref(), cause.downcast_ref()) {
            (Some(crafter::Error::Text { excerpt, .. }), _) | (_, Some(packet::Error::Text { excerpt, .. })) => {
                excerpts.push(&**excerpt);
            }
            (Some(crafter::Error::Policy { excerpts: all, .. }), _) => excerpts.extend(all),
            _ => {}
        }
    }
    report(sentence(error), &excerpts);
}

/// Writes `crafter: TEXT` to stderr, with the lines that it is about.
pub fn report(text: impl Display, excerpts: &[&Excerpt]) {
    let word = Paint::stderr().styled(style::ERROR, "crafter:");
    write_report(&format!("{word} {}", harmless(&text)), excerpts, style::ERROR);
}

/// A message without characters that could control the terminal: it may quote a file.
fn harmless(text: &impl Display) -> String {
    text.to_string().chars().map(|char| if char.is_control() && char != '\n' { '?' } else { char }).collect()
}

/// Writes a message and its lines at once, so that no other output is between them.
fn write_report(message: &str, excerpts: &[&Excerpt], mark: Style) {
    let is_numbered = excerpts.len() > 1 || excerpts.iter().any(|excerpt| excerpt.number > 1);
    let (columns, paint) = (style::columns(&io::stderr()), Paint::stderr());
    let lines = excerpts.iter().map(|excerpt| excerpt::render(excerpt, is_numbered, columns, paint, mark));
    let text = format!("{message}\n{}", lines.collect::<String>());
    // No other stream is left to report a failure on.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// An error and its causes as one sentence, without causes that the sentence already contains.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |sentence, cause| match sentence.as_str() {
        "" => cause,
        outer if outer.contains(&cause) => sentence,
        outer => format!("{outer}: {cause}"),
    })
}

/// An error of the system's resolver, without the prefix of the standard library.
pub fn resolver(error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").map(str::to_owned).unwrap_or(text)
}

/// Prints clap's output: help and version on stdout, errors on stderr. Returns the exit code.
pub fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let (plain, text) = (error.render().to_string(), error.render().ansi().to_string());
        // Without clap's prefix "error: ", whose styles end before its space.
        let after_prefix = || text.split_once("error:")?.1.split_once(' ');
        let text = plain.strip_prefix("error: ").and_then(|_| after_prefix()).map_or(text.as_str(), |(_, text)| text);
        let text = if Paint::stderr().is_on() { text } else { plain.strip_prefix("error: ").unwrap_or(&plain) };
        let _ = write!(io::stderr().lock(), "{} {text}", Paint::stderr().styled(style::ERROR, "crafter:"));
        return exit::USAGE.into();
    }
    match error.print() {
        Err(fault) if fault.kind() != io::ErrorKind::BrokenPipe => {
            self::error(&failed(fault));
            exit::FAILURE.into()
        }
        _ => exit::SUCCESS.into(),
    }
}

/// The error of writing results to stdout.
pub fn failed(source: io::Error) -> anyhow::Error {
    crafter::Error::Io { action: "print the results".to_owned(), source }.into()
}

/// Prints text on stdout.
///
/// # Errors
/// Those of writing, except a pipe whose reader has closed it (`crafter ... | head`).
pub fn out(text: impl AsRef<str>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref().as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("print the results: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a table, or lines, on stdout: with colours, and filled to the width of the terminal.
///
/// # Errors
/// As [`out`].
pub fn table_out(text: impl AsRef<str>) -> io::Result<()> {
    out(Paint::stdout().table(&paint::fill(text.as_ref(), style::columns(&io::stdout()))))
}

/// Prints packets on stdout, with colours.
///
/// # Errors
/// As [`out`].
pub fn packets_out(text: impl AsRef<str>) -> io::Result<()> {
    out(Paint::stdout().packets(text.as_ref()))
}

/// Prints a value as one line of JSON on stdout.
///
/// # Errors
/// As [`out`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(out(serde_json::to_string(value)? + "\n")?)
}

/// Prints the result of a command on stdout: one line of JSON with `--json`, else `text` of it.
///
/// # Errors
/// As [`out`].
pub fn result<T: Serialize + ?Sized>(
    globals: &Globals,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if globals.json { json(&value) } else { Ok(table_out(text(value))?) }
}

/// Writes to stderr how many half-open connections were reset, if any were.
pub fn half_open_reset(count: u64) {
    if count > 0 {
        note(format_args!("reset {}", counted(count, "half-open connection")));
    }
}

/// Whether writing failed because the reader has closed the pipe (`crafter ... | head`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// Renames a time of the service, in microseconds since 1970, and changes it to nanoseconds, as all times in JSON.
pub fn rename_microseconds(object: &mut Value, from: &str, to: &str) {
    let microseconds = object.as_object_mut().and_then(|map| map.remove(from)).and_then(|time| time.as_u64());
    object[to] = microseconds.map(|time| time.saturating_mul(1000)).into();
}

/// A time in JSON: whole nanoseconds.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `1 rule`, `2 rules`
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Hours, minutes and seconds: `22:13:20`
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The time of day, UTC, of a time since 1970.
pub fn time_of_day(time: Duration) -> String {
    clock(Duration::from_secs(time.as_secs() % 86_400))
}

/// A table: `heading`, then `rows`. Columns whose heading is in `left` are aligned to the left, others to the right.
pub fn table<const N: usize>(heading: [&str; N], left: &[&str], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heading.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, width), name) in row.iter().zip(widths).zip(heading) {
            line += &if left.contains(&name) { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_cannot_control_the_terminal() {
        assert_eq!(harmless(&"'\u{1b}[2J\u{9b}' is\nno address\r"), "'?[2J?' is\nno address?");
    }
}
