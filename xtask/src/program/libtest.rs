//! Parses the output of a test program: the number of tests that passed, and the names of those that failed.

/// The result of one test program so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Number of passed tests, from the closing line.
    pub passed: u64,
    /// Number of failed tests, from the closing line.
    pub failed: u64,
    /// Number of tests with `#[ignore]`, from the closing line.
    pub skipped: u64,
    /// Names of the failed tests.
    pub names: Vec<String>,
    /// Whether the closing line has been read.
    pub is_closed: bool,
    is_listing: bool,
}

impl Output {
    /// Processes a line of output.
    pub fn handle_line(&mut self, line: &str) {
        let name = line.strip_prefix("    ").filter(|name| self.is_listing && !name.starts_with(' '));
        if let Some(name) = name {
            self.names.push(name.trim().to_owned());
        }
        // libtest prints this line twice: before the output of failed tests, and before the list of their names.
        if line == "failures:" {
            self.names.clear();
            self.is_listing = true;
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.is_listing = false;
            self.is_closed = true;
            let count = |what: &str| {
                let mut fields = result.split(['.', ';']).map(str::trim);
                fields.find_map(|field| field.strip_suffix(what)?.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            // For documentation examples, cargo prints one closing line per crate.
            self.passed += count(" passed");
            self.failed += count(" failed");
            self.skipped += count(" ignored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_failed_tests_are_collected() {
        let text = "running 3 tests\ntest a ... ok\ntest b::c ... FAILED\ntest d ... ignored\n\nfailures:\n\n\
                    ---- b::c stdout ----\n    indented\nfailures:\n    not this one\n\n\nfailures:\n    b::c\n\n\
                    test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let mut output = Output::default();
        text.lines().for_each(|line| output.handle_line(line));
        assert_eq!((output.passed, output.failed, output.skipped), (1, 1, 1));
        assert_eq!((output.names.as_slice(), output.is_closed), (&["b::c".to_owned()][..], true));
    }
}
