//! Where the body goes: a thread that writes, so that a slow file or pipe closes the window
//! instead of stopping the acknowledgments.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crafter::{Error, Result};
use hyper::body::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::{mpsc, oneshot};

/// Pieces that may wait for the thread, some 400 KiB each at most.
const WAITING: usize = 4;
/// From this length on there is a progress bar, in bytes.
const LONG: u64 = 4 << 20;

/// Takes the body.
pub struct Sink {
    path: Option<PathBuf>,
    quiet: bool,
    bar: ProgressBar,
    received: u64,
    writer: Option<Writer>,
}

struct Writer {
    pieces: mpsc::Sender<Bytes>,
    ended: oneshot::Receiver<io::Result<()>>,
    written: Arc<AtomicU64>,
}

/// What became of the body.
pub struct Finished {
    /// Bytes written.
    pub bytes: u64,
    /// Why not all that came.
    pub error: Option<Error>,
}

impl Sink {
    /// To a file, or to stdout for `None` and `-`; nothing is touched yet.
    pub fn new(path: Option<&Path>, quiet: bool) -> Self {
        let path = path.filter(|path| *path != Path::new("-")).map(Path::to_owned);
        Self { path, quiet, bar: ProgressBar::hidden(), received: 0, writer: None }
    }

    /// The answer begins: opens the file.
    pub fn start(&mut self, length: Option<u64>) {
        let (pieces, queue) = mpsc::channel(WAITING);
        let (report, ended) = oneshot::channel();
        let written = Arc::new(AtomicU64::new(0));
        let (path, count) = (self.path.clone(), written.clone());
        // It ends when the queue does, or with the process where a pipe is stuck.
        let spawned = thread::Builder::new().name("body".to_owned()).spawn(move || {
            // Nobody listens any more after a signal.
            let _ = report.send(write_all(path.as_deref(), queue, &count));
        });
        if let Err(error) = spawned {
            log::error!("cannot start a thread: {error}");
        }
        self.writer = Some(Writer { pieces, ended, written });
        let shown = !self.quiet && io::stderr().is_terminal() && length.is_none_or(|length| length >= LONG);
        if shown && (self.path.is_some() || !io::stdout().is_terminal()) {
            self.bar = bar(length);
        }
    }

    /// Takes a piece; waits while too many others wait.
    ///
    /// # Errors
    /// [`Error::Io`] when the thread has given up; [`Sink::finish`] knows why.
    pub async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.received += piece.len() as u64;
        self.bar.set_position(self.received);
        let sent = match &self.writer {
            Some(writer) => writer.pieces.send(piece).await.is_ok(),
            None => false,
        };
        match sent {
            true => Ok(()),
            false => Err(self.failed(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Waits until all that came is written.
    pub async fn finish(&mut self) -> Finished {
        self.bar.finish_and_clear();
        let Some(Writer { pieces, ended, written }) = self.writer.take() else {
            return Finished { bytes: 0, error: None };
        };
        // The queue ends with its only sender.
        drop(pieces);
        let result = ended.await.unwrap_or_else(|_| Err(io::Error::other("the writing thread died")));
        let error = result.err().map(|source| self.failed(source));
        Finished { bytes: written.load(Ordering::Relaxed), error }
    }

    /// Gives up what waits still; returns how many bytes are written.
    pub fn abandon(&mut self) -> u64 {
        self.bar.finish_and_clear();
        self.writer.take().map_or(0, |writer| writer.written.load(Ordering::Relaxed))
    }

    fn failed(&self, source: io::Error) -> Error {
        let to = self.path.as_ref().map_or_else(|| "stdout".to_owned(), |path| path.display().to_string());
        // Not Error::io: no capability would help.
        Error::Io { action: format!("write the body to {to}"), source }
    }
}

/// Writes pieces until there are no more. Opening is done here too: that of a FIFO waits for its reader.
fn write_all(path: Option<&Path>, mut queue: mpsc::Receiver<Bytes>, written: &AtomicU64) -> io::Result<()> {
    let mut file = match path {
        Some(path) => File::create(path)?,
        // Not `Stdout`, which looks for line ends.
        None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
    };
    while let Some(piece) = queue.blocking_recv() {
        let mut rest = &piece[..];
        while !rest.is_empty() {
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
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
