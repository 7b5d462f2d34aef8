//! Results that are printed as they arrive, the progress line, and signals that end a command with its results so far.

use std::{
    cell::RefCell,
    fmt::Write as _,
    future::poll_fn,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::{Duration, Instant},
};

use crafter::session::Stop;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    exit, print,
    signals::{Interruption, Signals},
    style::Paint,
};

/// Time between two updates of the progress line.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What the progress line shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Packets to send; `None` if unknown or unlimited.
    pub total: Option<u64>,
    /// Packets sent, without retransmissions.
    pub sent: u64,
    /// Of these, answered so far; `None` for commands that do not wait for answers.
    pub answered: Option<u64>,
    /// How long to wait after the last packet.
    pub wait: Duration,
}

impl Counts {
    /// One line: `1200 of 65535 sent, 1180 answered, 20 unanswered, 9800 packets/s, 0:07 left`. `begun` and `latest`
    /// are the times of the first and the latest packet.
    fn line(&self, begun: Instant, latest: Instant, now: Instant) -> String {
        let Self { total, sent, answered, wait } = *self;
        let mut line = match total {
            Some(total) => format!("{sent} of {total} sent"),
            None => format!("{sent} sent"),
        };
        if let Some(answered) = answered {
            // Writing to a String cannot fail, here and below.
            let _ = write!(line, ", {answered} answered, {} unanswered", sent.saturating_sub(answered));
        }
        let seconds = latest.saturating_duration_since(begun).as_secs_f64();
        // The first packet begins the time.
        let rate = (sent > 1 && seconds > 0.0).then(|| (sent - 1) as f64 / seconds);
        if let Some(rate) = rate {
            let _ = write!(line, ", {rate:.*} packets/s", if rate < 10.0 { 1 } else { 0 });
        }
        let left = match (total, rate) {
            (Some(total), _) if sent >= total => (latest + wait).saturating_duration_since(now).as_secs_f64(),
            (Some(total), Some(rate)) => (total - sent) as f64 / rate + wait.as_secs_f64(),
            _ => return line,
        };
        let left = left.ceil() as u64;
        let _ = write!(line, ", {}:{:02} left", left / 60, left % 60);
        line
    }
}

/// As many parts of a line, which commas separate, as fit into `width` columns; all of them if the width is 0, unknown.
fn fit(line: &str, width: usize) -> String {
    let mut line = line;
    while width > 0
        && line.chars().count() > width
        && let Some((shorter, _)) = line.rsplit_once(", ")
    {
        line = shorter;
    }
    line.to_owned()
}

/// Prints results while a command runs, above a progress line if stderr is a terminal.
pub struct Live {
    to_stderr: bool,
    paint: Paint,
    /// Printed, not yet written.
    buffer: Vec<u8>,
    fault: Option<io::Error>,
    bar: Option<ProgressBar>,
    counts: Counts,
    begun: Option<Instant>,
    latest: Option<Instant>,
    drawn: Option<Instant>,
}

impl Live {
    /// Prints to stdout, or to stderr if a capture is written to stdout.
    pub fn new(to_stderr: bool, counts: Counts) -> Self {
        let bar = (!print::is_quiet() && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(20));
            match ProgressStyle::with_template("{wide_msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        let (buffer, fault, begun, latest, drawn) = (Vec::new(), None, None, None, None);
        let paint = if to_stderr { Paint::stderr() } else { Paint::stdout() };
        Self { to_stderr, paint, buffer, fault, bar, counts, begun, latest, drawn }
    }

    /// Styles for the stream that it prints to.
    pub fn paint(&self) -> Paint {
        self.paint
    }

    /// Prints text; [`Live::flush`] writes it.
    pub fn print(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    /// Updates the counts of the progress line.
    pub fn count(&mut self, update: impl FnOnce(&mut Counts)) {
        let before = self.counts.sent;
        update(&mut self.counts);
        if self.bar.is_some() && self.counts.sent != before {
            let now = Instant::now();
            self.begun.get_or_insert(now);
            self.latest = Some(now);
        }
    }

    /// Writes what was printed; keeps the first error. Erases the progress line before that.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let (buffer, to_stderr) = (&self.buffer, self.to_stderr);
        let write = || match to_stderr {
            true => {
                // No other stream is left to report a failure on.
                let _ = io::stderr().lock().write_all(buffer);
                Ok(())
            }
            false => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(buffer).and_then(|()| stdout.flush())
            }
        };
        if self.fault.is_none() {
            let written = match self.bar.as_ref().filter(|_| self.drawn.is_some()) {
                Some(bar) => bar.suspend(write),
                None => write(),
            };
            self.fault = written.err();
        }
        self.buffer.clear();
    }

    /// Draws the progress line, at most once per [`PROGRESS_INTERVAL`].
    fn draw(&mut self) {
        let (Some(bar), Some(begun), Some(latest)) = (&self.bar, self.begun, self.latest) else { return };
        let now = Instant::now();
        // Nothing is drawn for a command that ends at once.
        if now.saturating_duration_since(self.drawn.unwrap_or(begun)) >= PROGRESS_INTERVAL {
            self.drawn = Some(now);
            let width = crossterm::terminal::window_size().map_or(0, |size| size.columns.into());
            bar.set_message(fit(&self.counts.line(begun, latest, now), width));
        }
    }

    /// Erases the progress line; it is not drawn again.
    pub fn end_progress(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.flush();
    }

    /// Whether writing has failed, so that further results are lost: the reader has closed the pipe, or the disk is
    /// full.
    pub fn has_failed(&self) -> bool {
        self.fault.is_some()
    }

    /// Ends the output. Returns the exit code: `code`, or success if the reader has closed the pipe
    /// (`crafter ... | head`).
    ///
    /// # Errors
    /// The first error of writing, except that of a closed pipe.
    pub fn finish(&mut self, code: u8) -> anyhow::Result<u8> {
        self.end_progress();
        match self.fault.take() {
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(exit::SUCCESS),
            Some(error) => Err(print::failed(error)),
            None => Ok(code),
        }
    }
}

/// Runs `work` and writes what it prints each time that it waits. The first interruption, or a failure of the output,
/// stops it through `stop`, so that it ends early with its results; returns the interruption.
///
/// # Errors
/// The second interruption, which drops `work`: a second signal, or a time limit after which `work` does not end.
pub async fn drive<T>(
    work: impl Future<Output = T>,
    live: &RefCell<Live>,
    signals: &mut Signals,
    stop: &Stop,
) -> Result<(T, Option<Interruption>), Interruption> {
    let mut work = pin!(work);
    let mut flushed = pin!(poll_fn(|context| {
        let polled = work.as_mut().poll(context);
        let mut live = live.borrow_mut();
        live.flush();
        live.draw();
        if live.has_failed() {
            stop.stop();
        }
        polled
    }));
    let mut redraw = tokio::time::interval(PROGRESS_INTERVAL);
    let has_progress = live.borrow().bar.is_some();
    let mut first = None;
    let last = loop {
        tokio::select! {
            biased;
            result = &mut flushed => return Ok((result, first)),
            interruption = signals.next() => match first {
                None => {
                    first = Some(interruption);
                    stop.stop();
                }
                // The limit passes while the command ends after a signal.
                Some(Interruption::Signal(_)) if interruption.is_timeout() => {}
                Some(_) => break interruption,
            },
            _ = redraw.tick(), if has_progress => {}
        }
    };
    live.borrow_mut().end_progress();
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_shows_rate_and_remaining_time() {
        let counts = Counts { total: Some(1001), sent: 501, answered: Some(480), wait: Duration::from_secs(2) };
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let line = counts.line(begun, at(5), at(5));
        assert_eq!(line, "501 of 1001 sent, 480 answered, 21 unanswered, 100 packets/s, 0:07 left");
        let line = Counts { sent: 1001, ..counts }.line(begun, at(10), at(11));
        assert_eq!(line, "1001 of 1001 sent, 480 answered, 521 unanswered, 100 packets/s, 0:01 left");
        let line = Counts { total: None, sent: 1, answered: None, ..counts }.line(begun, begun, at(1));
        assert_eq!(line, "1 sent");
    }

    #[test]
    fn narrow_terminal_shows_whole_parts_of_the_progress() {
        let line = "83 of 200 sent, 83 answered, 0 lost, 265 packets/s, 0:02 left";
        assert_eq!(fit(line, 40), "83 of 200 sent, 83 answered, 0 lost");
        assert_eq!(fit(line, 14), "83 of 200 sent");
        assert_eq!(fit(line, 5), "83 of 200 sent", "the first part remains, and is cut by the terminal's width");
        for width in [0, 61, 200] {
            assert_eq!(fit(line, width), line);
        }
    }
}
