//! Input of the shell, from a terminal or a pipe.

use std::io::{self, BufRead as _};

use tokio::sync::mpsc::{Receiver, channel};

/// Input at the prompt.
#[derive(Debug)]
pub enum Input {
    /// Statements.
    Text(String),
    /// Ctrl-C: the line is discarded.
    Cancelled,
    /// Ctrl-D.
    End,
    /// The terminal cannot be read.
    Failed(String),
}

/// Statements from a pipe, and the number of lines before them.
#[derive(Debug)]
pub struct Text {
    pub text: String,
    pub line: usize,
}

/// Input from a pipe. Lines within open brackets form one piece.
pub struct Piped(Receiver<io::Result<Text>>);

impl Piped {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<io::Result<Text>> {
        self.0.recv().await
    }
}

/// Reads stdin in a thread, which ends with the pipe or the process.
///
/// # Errors
/// EAGAIN if the process may have no more threads.
pub fn piped() -> io::Result<Piped> {
    let (sender, receiver) = channel(1);
    std::thread::Builder::new().spawn(move || {
        let mut stdin = io::stdin().lock();
        let (mut text, mut line, mut read) = (String::new(), 0, 0);
        loop {
            let more = stdin.read_line(&mut text);
            read += 1;
            let piece = match more {
                Err(error) => Err(error),
                Ok(0) if text.is_empty() => return,
                Ok(1..) if crafter::shell::is_open(&text) => continue,
                Ok(_) => Ok(Text { text: std::mem::take(&mut text), line }),
            };
            line = read;
            let is_over = piece.is_err();
            if sender.blocking_send(piece).is_err() || is_over {
                return;
            }
        }
    })?;
    Ok(Piped(receiver))
}
