//! Errors with a position in the text.

use std::fmt::Display;

use crate::error::{Error, Excerpt};

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
                let excerpt = Excerpt::new(text, self.at);
                let column = excerpt.column();
                let place = match text.contains('\n') {
                    true => format!("expression, line {}, column {column}", excerpt.number),
                    false => format!("expression, column {column}"),
                };
                Error::Text { place, reason, excerpt: Box::new(excerpt) }
            }
            Reason::Failed(error) => error,
        }
    }
}
