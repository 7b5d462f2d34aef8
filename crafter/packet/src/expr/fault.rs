//! Errors that know their place.

use std::fmt::Display;

use crate::error::Error;

/// An error at a byte of the text; `E` is what functions of the text fail with.
#[derive(Debug)]
pub struct Fault<E = Error> {
    /// Where in the text, in bytes.
    pub at: usize,
    /// What is wrong.
    pub reason: Reason<E>,
}

/// Why something cannot be done.
#[derive(Debug)]
pub enum Reason<E = Error> {
    /// The text is wrong.
    Invalid(String),
    /// A function that it calls failed.
    Failed(E),
}

impl<E> Fault<E> {
    /// The text is wrong at this byte.
    pub fn new(at: usize, reason: impl Display) -> Self {
        Self { at, reason: Reason::Invalid(reason.to_string()) }
    }

    /// What the text calls for at this byte failed.
    pub fn failed(at: usize, error: impl Into<E>) -> Self {
        Self { at, reason: Reason::Failed(error.into()) }
    }
}

impl Fault {
    /// An error for an expression that is all of the text.
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

/// Line and column of a text with lines, from 1.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    (line, before[begin..].chars().count() + 1)
}
