//! What was found in a policy's text, and where.

use super::Problem;

/// What was found in a text.
pub(super) struct Reader<'t> {
    pub text: &'t str,
    /// Where lines begin.
    lines: Vec<usize>,
    /// The rule at hand, from 1; 0 outside of rules.
    pub rule: usize,
    /// The key at hand.
    pub key: String,
    /// What makes the text no policy.
    pub problems: Vec<Problem>,
    /// What is legal and hardly meant.
    pub warnings: Vec<Problem>,
}

impl<'t> Reader<'t> {
    /// Nothing found yet.
    pub fn new(text: &'t str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(end, _)| end + 1)).collect();
        Self { text, lines, rule: 0, key: String::new(), problems: Vec::new(), warnings: Vec::new() }
    }

    /// Notes a problem at a byte of the text.
    pub fn problem(&mut self, at: usize, message: impl Into<String>) {
        let problem = self.place(at, message.into());
        self.problems.push(problem);
    }

    /// Notes a warning at a byte of the text.
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

    /// The place of a byte of the text, from 1.
    pub fn line_and_column(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|&begin| begin <= at).max(1);
        let before = self.text.get(self.lines[line - 1]..at).unwrap_or_default();
        (line, before.chars().count() + 1)
    }
}
