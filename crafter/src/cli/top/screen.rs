//! The terminal, which is restored when the program ends or panics.

use std::{io, mem::ManuallyDrop};

use crafter::{Error, Result};
use ratatui::DefaultTerminal;

use super::{draw, model::Model};

/// A terminal in raw mode, on the alternate screen. Dropping this restores it; a panic restores it before its message
/// is printed.
pub struct Screen(ManuallyDrop<DefaultTerminal>);

impl Screen {
    /// Switches the terminal to raw mode and the alternate screen.
    ///
    /// # Errors
    /// [`Error::Io`] if stdout is not a terminal.
    pub fn open() -> Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(ManuallyDrop::new(terminal))),
            Err(source) => {
                // Undo a partial switch.
                let _ = ratatui::try_restore();
                Err(failed(source))
            }
        }
    }

    /// Draws the model.
    ///
    /// # Errors
    /// [`Error::Io`] if the terminal is closed.
    pub fn draw(&mut self, model: &mut Model) -> Result<()> {
        self.0.draw(|frame| draw::draw(frame, model)).map(drop).map_err(failed)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Errors are ignored: a closed terminal needs no restoring. The terminal is not dropped: it would print the
        // error, and panic because that fails, too.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

fn failed(source: io::Error) -> Error {
    Error::Io { action: "use the terminal".to_owned(), source }
}
