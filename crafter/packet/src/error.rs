//! The error of this crate.

use std::{fmt, io};

/// Why a packet, its text form or a capture file is rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value, a text or received bytes are malformed or do not fit.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field or object, e.g. `IP packet` or `capture`.
        what: String,
        /// What is wrong, and what is valid.
        reason: String,
    },
    /// A text of the user has an error at one place.
    #[error("{place}: {reason}")]
    Text {
        /// The text and the place in it, e.g. `expression, column 10`.
        place: String,
        /// What is wrong, and what is valid.
        reason: String,
        /// The line with the place.
        excerpt: Box<Excerpt>,
    },
    /// A file cannot be opened, read or written.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted, as a verb phrase.
        action: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }
}

/// A line of a text, and a place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The number of the line, from 1.
    pub number: usize,
    /// The line, without its end.
    pub line: String,
    /// Byte offset of the place in the line; a character begins there, or the line ends.
    pub at: usize,
}

impl Excerpt {
    /// The line of `text` with the byte offset `at`.
    pub fn new(text: &str, at: usize) -> Self {
        let mut at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let (before, after) = text.split_at(at);
        let begin = before.rfind('\n').map_or(0, |end| end + 1);
        let end = after.find('\n').map_or(text.len(), |end| at + end);
        let line = text[begin..end].trim_end_matches('\r');
        let number = before.matches('\n').count() + 1;
        Self { number, line: line.to_owned(), at: (at - begin).min(line.len()) }
    }

    /// The place at a line and a column in characters, both from 1.
    pub fn at_column(text: &str, number: usize, column: usize) -> Self {
        let line = text.split('\n').nth(number.saturating_sub(1)).unwrap_or_default().trim_end_matches('\r');
        let at = line.char_indices().nth(column.saturating_sub(1)).map_or(line.len(), |(at, _)| at);
        Self { number, line: line.to_owned(), at }
    }

    /// Column in characters, from 1.
    pub fn column(&self) -> usize {
        self.line.get(..self.at).unwrap_or(&self.line).chars().count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpt_is_the_line_of_an_offset() {
        let text = "eins\r\nzw\u{f6}lf\n";
        let excerpt = |number, line: &str, at| Excerpt { number, line: line.to_owned(), at };
        for (at, expected) in [
            (0, excerpt(1, "eins", 0)),
            (4, excerpt(1, "eins", 4)),
            (5, excerpt(1, "eins", 4)),
            (6, excerpt(2, "zw\u{f6}lf", 0)),
            // Within a character: its beginning.
            (9, excerpt(2, "zw\u{f6}lf", 2)),
            (10, excerpt(2, "zw\u{f6}lf", 4)),
            (13, excerpt(3, "", 0)),
            (99, excerpt(3, "", 0)),
        ] {
            assert_eq!(Excerpt::new(text, at), expected, "{at}");
        }
        assert_eq!(Excerpt::new(text, 10).column(), 4);
        assert_eq!(Excerpt::at_column(text, 2, 4), Excerpt::new(text, 10));
        assert_eq!(Excerpt::at_column(text, 9, 9), excerpt(9, "", 0));
        assert_eq!(Excerpt::new("", 0).column(), 1);
    }
}
