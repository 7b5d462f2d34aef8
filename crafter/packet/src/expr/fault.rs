//! Errors with a position in the text.

use std::fmt::Display;

use crate::error::Error;

/// An error at a byte offset of the text; `E` is the error type of functions.
#[derive(Debug)]
pub struct Fault<E = Error> {
    /// Byte offset in the text.
    pub at: usize,
    /// The reason.
    pub reason: Reason<E>,
}

/// Reason of a fault.
#[derive(Debug)]
pub enum Reason<E = Error> {
    /// The text is invalid; the message.
    Invalid(String),
    /// A called function failed.
    Failed(E),
}

impl<E> Fault<E> {
    /// An invalid text at this byte offset.
    pub fn new(at: usize, reason: impl Display) -> Self {
        Self { at, reason: Reason::Invalid(reason.to_string()) }
    }

    /// A failed call at this byte offset.
    pub fn failed(at: usize, error: impl Into<E>) -> Self {
        Self { at, reason: Reason::Failed(error.into()) }
    }
}

impl Fault {
    /// Converts to an error for a text that is a single expression.
    pub(super) fn in_expression(self, text: &str) -> Error {
        match self.reason {
            Reason::Invalid(reason) => {
                let column = text.get(..self.at).map_or(text.len(), |before| before.chars().count()) + 1;
                Error::invalid(format!("expression, column {column}"), reason)
            }
            Reason::Failed(error) => error,
        }
    }
}

/// Line and column of a byte offset, both counted from 1.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    (line, before[begin..].chars().count() + 1)
}
