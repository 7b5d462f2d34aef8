//! Problems and warnings in a policy's text, with their places.

use super::Problem;

/// Collects problems and warnings of a text.
pub(super) struct Reader<'t> {
    pub text: &'t str,
    /// The offsets of the lines.
    lines: Vec<usize>,
    /// The current rule, from 1; 0 outside of rules.
    pub rule: usize,
    /// The current key.
    pub key: String,
    /// Problems that make the text invalid.
    pub problems: Vec<Problem>,
    /// Settings that are valid but probably not intended.
    pub warnings: Vec<Problem>,
}

impl<'t> Reader<'t> {
    /// Makes a reader of `text`.
    pub fn new(text: &'t str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(end, _)| end + 1)).collect();
        Self { text, lines, rule: 0, key: String::new(), problems: Vec::new(), warnings: Vec::new() }
    }

    /// Adds a problem at a byte offset.
    pub fn problem(&mut self, at: usize, message: impl Into<String>) {
        let problem = self.place(at, message.into());
        self.problems.push(problem);
    }

    /// Adds a warning at a byte offset.
    pub fn warning(&mut self, at: usize, message: impl Into<String>) {
        let problem = self.place(at, message.into());
        self.warnings.push(problem);
    }

    fn place(&self, at: usize, message: String) -> Problem {
        let (line, column) = self.line_and_column(at);
        let key = match (self.rule, self.key.as_str()) {
            (0, key) => key.to_owned(),
            (rule, "") => format!("rule {rule}"),
            (rule, key) => format!("rule {rule}, {key}"),
        };
        Problem { line, column, key, message }
    }

    /// Line and column of a byte offset, from 1.
    pub fn line_and_column(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|&begin| begin <= at).max(1);
        let before = self.text.get(self.lines[line - 1]..at).unwrap_or_default();
        (line, before.chars().count() + 1)
    }
}
