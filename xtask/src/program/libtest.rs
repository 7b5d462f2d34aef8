//! What a test program prints, read line by line: how many passed, and the names of those that failed.

/// The result of one test program, as far as it has printed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// By the closing line.
    pub passed: u64,
    /// By the closing line.
    pub failed: u64,
    /// By the closing line: what `#[ignore]` marks.
    pub skipped: u64,
    /// Those that failed, by name.
    pub names: Vec<String>,
    /// Whether the closing line has come.
    pub is_closed: bool,
    is_listing: bool,
}

impl Output {
    /// Takes a line.
    pub fn handle_line(&mut self, line: &str) {
        let name = line.strip_prefix("    ").filter(|name| self.is_listing && !name.starts_with(' '));
        if let Some(name) = name {
            self.names.push(name.trim().to_owned());
        }
        // The second of two such lines begins the list of names; what precedes it is the tests' own output.
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
            // cargo prints one for each crate's documentation examples.
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
    fn names_of_failed_tests() {
        let text = "running 3 tests\ntest a ... ok\ntest b::c ... FAILED\ntest d ... ignored\n\nfailures:\n\n\
                    ---- b::c stdout ----\n    indented\nfailures:\n    not this one\n\n\nfailures:\n    b::c\n\n\
                    test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let mut output = Output::default();
        text.lines().for_each(|line| output.handle_line(line));
        assert_eq!((output.passed, output.failed, output.skipped), (1, 1, 1));
        assert_eq!((output.names.as_slice(), output.is_closed), (&["b::c".to_owned()][..], true));
    }
}
