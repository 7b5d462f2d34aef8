//! Errors that know their place.

use std::fmt::Display;

use crate::error::Error;

/// An error at a byte of the text.
#[derive(Debug)]
pub(crate) struct Fault {
    pub at: usize,
    pub reason: Reason,
}

/// Why something cannot be done.
#[derive(Debug)]
pub(crate) enum Reason {
    /// The text is wrong.
    Said(String),
    /// What it asked for failed.
    Failed(Error),
}

impl Fault {
    pub fn new(at: usize, reason: impl Display) -> Self {
        Self { at, reason: Reason::Said(reason.to_string()) }
    }

    pub fn failed(at: usize, error: Error) -> Self {
        Self { at, reason: Reason::Failed(error) }
    }

    /// An error for an expression that is all of the text.
    pub fn in_expression(self, text: &str) -> Error {
        match self.reason {
            Reason::Said(reason) => {
                let column = text.get(..self.at).map_or(text.len(), |before| before.chars().count()) + 1;
                Error::invalid(format!("expression, column {column}"), reason)
            }
            Reason::Failed(error) => error,
        }
    }
}

/// Line and column of a text with lines, from 1.
pub(crate) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    (line, before[begin..].chars().count() + 1)
}
