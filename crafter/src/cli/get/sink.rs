//! Writes the body in a thread, so that a slow file or pipe closes the TCP window instead of delaying acknowledgments.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crafter::{Error, Result};
use hyper::body::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::{mpsc, oneshot};

/// Length of the queue to the thread, in pieces of at most about 400 KiB.
const QUEUE_LENGTH: usize = 4;
/// Length of a body, in bytes, from which on a progress bar is shown.
const PROGRESS_BAR_LENGTH: u64 = 4 << 20;

/// How long a write that runs may take after an interruption.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_millis(100);

/// Writes the body to a file or to stdout.
pub struct Sink {
    path: Option<PathBuf>,
    quiet: bool,
    bar: ProgressBar,
    received: u64,
    /// Bytes before the body.
    head_length: u64,
    writer: Option<Writer>,
}

struct Writer {
    pieces: mpsc::Sender<Bytes>,
    ended: oneshot::Receiver<io::Result<()>>,
    written: Arc<AtomicU64>,
    is_abandoned: Arc<AtomicBool>,
}

/// How writing ended.
pub struct Finished {
    /// Bytes of the body written.
    pub bytes: u64,
    /// Why writing stopped before the end.
    pub error: Option<Error>,
}

impl Sink {
    /// Writes to a file, or to stdout for `None` and `-`. Opens nothing yet.
    pub fn new(path: Option<&Path>, quiet: bool) -> Self {
        let path = path.filter(|path| *path != Path::new("-")).map(Path::to_owned);
        Self { path, quiet, bar: ProgressBar::hidden(), received: 0, head_length: 0, writer: None }
    }

    /// Whether the body goes to stdout.
    pub fn is_stdout(&self) -> bool {
        self.path.is_none()
    }

    /// Starts the thread, which opens the file, unless it runs; called when a head has arrived.
    pub fn start(&mut self) {
        if self.writer.is_some() {
            return;
        }
        let (pieces, queue) = mpsc::channel(QUEUE_LENGTH);
        let (report, ended) = oneshot::channel();
        let (written, is_abandoned) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (path, count, is_over) = (self.path.clone(), written.clone(), is_abandoned.clone());
        // Ends with the queue, or with the process if a pipe blocks.
        let spawned = thread::Builder::new().name("body".to_owned()).spawn(move || {
            // The receiver is dropped after a signal.
            let _ = report.send(write_all(path.as_deref(), queue, &count, &is_over));
        });
        if let Err(error) = spawned {
            log::error!("cannot start the thread that writes the body: {error}");
        }
        self.writer = Some(Writer { pieces, ended, written, is_abandoned });
    }

    /// Shows a progress bar if the body is long, or of unknown length.
    pub fn expect_body(&mut self, length: Option<u64>) {
        let shown =
            !self.quiet && io::stderr().is_terminal() && length.is_none_or(|length| length >= PROGRESS_BAR_LENGTH);
        if shown && (self.path.is_some() || !io::stdout().is_terminal()) {
            self.bar = bar(length);
        }
    }

    /// Queues a piece of the body; waits while the queue is full.
    ///
    /// # Errors
    /// [`Error::Io`] if the thread has ended; [`Sink::finish`] returns the cause.
    pub async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.received += piece.len() as u64;
        self.bar.set_position(self.received);
        self.queue(piece).await
    }

    /// Queues bytes that precede the body.
    ///
    /// # Errors
    /// As [`Sink::write`].
    pub async fn write_head(&mut self, piece: Bytes) -> Result<()> {
        self.head_length += piece.len() as u64;
        self.queue(piece).await
    }

    async fn queue(&mut self, piece: Bytes) -> Result<()> {
        let sent = match &self.writer {
            Some(writer) => writer.pieces.send(piece).await.is_ok(),
            None => false,
        };
        match sent {
            true => Ok(()),
            false => Err(self.failed(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Waits until all queued pieces are written.
    pub async fn finish(&mut self) -> Finished {
        self.bar.finish_and_clear();
        let Some(Writer { pieces, ended, written, .. }) = self.writer.take() else {
            return Finished { bytes: 0, error: None };
        };
        // Dropping the only sender ends the queue.
        drop(pieces);
        let result = ended.await.unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")));
        let error = result.err().map(|source| self.failed(source));
        Finished { bytes: self.body(&written), error }
    }

    /// Drops queued pieces; returns the number of bytes of the body written.
    pub async fn abandon(&mut self) -> u64 {
        self.bar.finish_and_clear();
        let Some(Writer { pieces, ended, written, is_abandoned }) = self.writer.take() else { return 0 };
        is_abandoned.store(true, Ordering::Relaxed);
        drop(pieces);
        // A write that runs is counted too, unless a full pipe blocks it.
        let _ = tokio::time::timeout(LAST_WRITE_TIMEOUT, ended).await;
        self.body(&written)
    }

    fn body(&self, written: &AtomicU64) -> u64 {
        written.load(Ordering::Relaxed).saturating_sub(self.head_length)
    }

    fn failed(&self, source: io::Error) -> Error {
        let to = self.path.as_ref().map_or_else(|| "stdout".to_owned(), |path| path.display().to_string());
        // Not `Error::io`: no capability solves a permission error of a file.
        Error::Io { action: format!("write the body to {to}"), source }
    }
}

/// Opens the file and writes pieces until the queue ends or `is_over`. Opening a FIFO blocks until it has a reader.
fn write_all(
    path: Option<&Path>,
    mut queue: mpsc::Receiver<Bytes>,
    written: &AtomicU64,
    is_over: &AtomicBool,
) -> io::Result<()> {
    let mut file = match path {
        Some(path) => File::create(path)?,
        // Not `Stdout`, which buffers lines.
        None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
    };
    while let Some(piece) = queue.blocking_recv() {
        let mut rest = &piece[..];
        while !rest.is_empty() && !is_over.load(Ordering::Relaxed) {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    written.fetch_add(count as u64, Ordering::Relaxed);
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn bar(length: Option<u64>) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(10);
    let (template, bar) = match length {
        Some(length) => (
            "{bar:40} {percent:>3}% {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
            ProgressBar::with_draw_target(Some(length), target),
        ),
        None => ("{decimal_bytes}, {decimal_bytes_per_sec}", ProgressBar::with_draw_target(None, target)),
    };
    match ProgressStyle::with_template(template) {
        // ASCII, for every terminal and font.
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
