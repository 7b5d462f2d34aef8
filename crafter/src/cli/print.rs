//! What all commands print alike.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use crate::cli::exit;
use serde::Serialize;

/// Prints an error as one sentence on stderr.
pub fn error(error: &anyhow::Error) {
    // Nothing is left to complain to when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "crafter: {}", sentence(error));
}

/// An error and its causes, without those that the sentence tells already.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |sentence, cause| match sentence.as_str() {
        "" => cause,
        told if told.contains(&cause) => sentence,
        told => format!("{told}: {cause}"),
    })
}

/// Prints what clap has to say: help and version on stdout, errors on stderr.
pub fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let _ = write!(io::stderr().lock(), "crafter: {text}");
        return exit::USAGE.into();
    }
    let _ = error.print();
    exit::SUCCESS.into()
}

/// Prints text on stdout.
///
/// # Errors
/// What writing says, except that nobody reads any more (`crafter ... | head`).
pub fn out(text: impl AsRef<str>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref().as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Lines that are printed while packets come and go.
pub struct Lines {
    to_stderr: bool,
    fault: Option<io::Error>,
}

impl Lines {
    /// To stdout, or to stderr where a capture takes that.
    pub fn new(to_stderr: bool) -> Self {
        Self { to_stderr, fault: None }
    }

    /// Prints; the first error is kept.
    pub fn print(&mut self, text: &str) {
        if self.to_stderr {
            // Nothing is left to complain to when stderr is gone.
            let _ = io::stderr().lock().write_all(text.as_bytes());
        } else if let Err(error) = out(text) {
            self.fault.get_or_insert(error);
        }
    }

    /// Whether nobody can read them any more.
    pub fn have_failed(&self) -> bool {
        self.fault.is_some()
    }

    /// The first error, if there was one.
    ///
    /// # Errors
    /// What writing said.
    pub fn finish(self) -> io::Result<()> {
        self.fault.map_or(Ok(()), Err)
    }
}

/// Prints a value as one line of JSON on stdout.
///
/// # Errors
/// As [`out`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(out(serde_json::to_string(value)? + "\n")?)
}

/// Says on stderr how many half-open connections were reset, if any were.
pub fn half_open_reset(count: u64) {
    if count > 0 {
        let connections = if count == 1 { "connection" } else { "connections" };
        // Nothing is left to complain to when stderr is gone.
        let _ = writeln!(io::stderr().lock(), ";; reset {count} half-open {connections}");
    }
}

/// Whether writing failed because nobody reads any more (`crafter ... | head`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// Appends a table: the first row is the heading; columns whose heading is in `left` are aligned
/// to the left, numbers to the right.
pub fn columns<const N: usize>(text: &mut String, rows: &[[String; N]], left: &[&str]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let is_left = left.contains(&rows[0][column].as_str());
            line += &if is_left { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}
