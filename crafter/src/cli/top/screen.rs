//! The terminal: taken over, and given back however this ends.

use std::io;

use crafter::{Error, Result};
use ratatui::DefaultTerminal;

use super::{draw, model::Model};

/// A terminal in raw mode, on its other screen, until this is dropped. A panic gives it back before it is told.
pub struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// [`Error::Io`] if it is none.
    pub fn open() -> Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(source) => {
                // Half of it may have happened.
                let _ = ratatui::try_restore();
                Err(failed(source))
            }
        }
    }

    /// Draws.
    ///
    /// # Errors
    /// [`Error::Io`] if the terminal is gone.
    pub fn draw(&mut self, model: &mut Model) -> Result<()> {
        self.0.draw(|frame| draw::draw(frame, model)).map(drop).map_err(failed)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing is left to complain to when the terminal is gone.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

fn failed(source: io::Error) -> Error {
    Error::Io { action: "use the terminal".to_owned(), source }
}
