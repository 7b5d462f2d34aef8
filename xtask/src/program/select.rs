//! The tests of an executable by module, and the tests that a command line selects.
//!
//! Each crate has one executable of integration tests, since each executable links crafter and its dependencies again.
//! Each module runs in its own process and is given the exact names of its tests, because libtest's filter matches a
//! module's name anywhere in the name of a test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;

/// libtest's options whose value is a separate argument.
const WITH_VALUE: [&str; 6] = ["--color", "--format", "--logfile", "--shuffle-seed", "--test-threads", "-Z"];

/// The names of all tests of an executable, including ignored ones.
///
/// # Errors
/// If it does not start, or prints something other than libtest does.
pub fn names(executable: &Path) -> Result<Vec<String>> {
    let list = sh::output(Command::new(executable).args(["--list", "--format", "terse"]));
    let list = list.with_context(|| format!("the tests of {} cannot be listed", executable.display()))?;
    list.lines().filter(|line| !line.ends_with(": benchmark")).map(name).collect()
}

fn name(line: &str) -> Result<String> {
    match line.strip_suffix(": test") {
        Some(name) => Ok(name.to_owned()),
        None => bail!("a list of tests has the line `{line}`"),
    }
}

/// Tests by the first segment of their path, or `root` for tests outside of a module.
pub fn by_module(names: Vec<String>, root: &str) -> BTreeMap<String, Vec<String>> {
    let mut modules = BTreeMap::<String, Vec<String>>::new();
    for name in names {
        let module = name.split_once("::").map_or(root, |(module, _)| module).to_owned();
        modules.entry(module).or_default().push(name);
    }
    modules
}

/// The tests that a command line selects, and the other options for libtest.
#[derive(Debug, Default)]
pub struct Selection {
    filters: Vec<String>,
    skips: Vec<String>,
    is_exact: bool,
    options: Vec<String>,
}

impl Selection {
    /// Parses arguments as libtest does.
    pub fn read(args: &[String]) -> Self {
        let mut selection = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => selection.is_exact = true,
                "--skip" => selection.skips.extend(args.next().cloned()),
                option if option.starts_with('-') => {
                    if let Some(skip) = option.strip_prefix("--skip=") {
                        selection.skips.push(skip.to_owned());
                        continue;
                    }
                    selection.options.push(arg.clone());
                    if WITH_VALUE.contains(&option) {
                        selection.options.extend(args.next().cloned());
                    }
                }
                filter => selection.filters.push(filter.to_owned()),
            }
        }
        selection
    }

    /// The arguments for libtest that run the selected tests of a module; `None` if none is selected. A filter that
    /// equals a name in `modules` selects all tests of that module and no others.
    pub fn of_module(&self, module: &str, tests: &[String], modules: &BTreeSet<String>) -> Option<Vec<String>> {
        let is_match = |filter: &String, test: &String| {
            if modules.contains(filter) {
                return filter == module;
            }
            if self.is_exact { test == filter } else { test.contains(filter.as_str()) }
        };
        let is_wanted = |test: &&String| {
            let is_selected = self.filters.is_empty() || self.filters.iter().any(|filter| is_match(filter, test));
            is_selected && !self.skips.iter().any(|skip| is_match(skip, test))
        };
        let mut arguments = vec!["--exact".to_owned()];
        arguments.extend(tests.iter().filter(is_wanted).cloned());
        if arguments.len() == 1 {
            return None;
        }
        arguments.extend(self.options.iter().cloned());
        Some(arguments)
    }
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::super::libtest::Output;
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// The arguments that are selected from two modules with overlapping test names.
    fn selected(args: &[&str]) -> Vec<String> {
        let names = strings(&["clock::exchange::a", "clock::b", "exchange::a", "exchange::c"]);
        let modules = by_module(names, "root");
        let known = modules.keys().cloned().collect();
        let selection = Selection::read(&strings(args));
        let arguments = modules.iter().filter_map(|(module, tests)| selection.of_module(module, tests, &known));
        arguments.map(|arguments| arguments.join(" ")).collect()
    }

    #[test]
    fn tests_by_module() {
        let modules = by_module(strings(&["b::c::d", "a::x", "alone", "b::e"]), "root");
        let of = |module: &str| modules[module].join(" ");
        assert_eq!((of("a"), of("b"), of("root")), ("a::x".into(), "b::c::d b::e".into(), "alone".into()));
        assert_eq!(modules.len(), 3);
        assert!(name("a::x: test").is_ok() && name("a::x: tset").is_err());
    }

    #[test]
    fn module_name_selects_only_that_module() {
        let all = ["--exact clock::exchange::a clock::b", "--exact exchange::a exchange::c"];
        assert_eq!(selected(&[]), all);
        assert_eq!(selected(&["exchange"]), all[1..]);
        assert_eq!(selected(&["clock", "exchange::c"]), [all[0], "--exact exchange::c"]);
        assert_eq!(selected(&["--skip", "exchange"]), all[..1]);
    }

    #[test]
    fn filters_and_options_match_libtest() {
        assert_eq!(selected(&["exchange::"]), ["--exact clock::exchange::a", "--exact exchange::a exchange::c"]);
        assert_eq!(selected(&["::a", "--skip=k::e"]), ["--exact exchange::a"]);
        assert_eq!(selected(&["--exact", "exchange::a"]), ["--exact exchange::a"]);
        assert_eq!(
            selected(&["--test-threads", "1", "::b", "--nocapture"]),
            ["--exact clock::b --test-threads 1 --nocapture"]
        );
        assert_eq!(selected(&["nothing"]), Vec::<String>::new());
    }

    /// Passes the arguments to the real libtest in this test executable.
    #[test]
    fn libtest_runs_only_selected_tests() {
        const PART: &str = "program::select::tests::tests_by";
        let executable = env::current_exe().unwrap();
        let names = names(&executable).unwrap();
        let modules = by_module(names, "xtask");
        let known = modules.keys().cloned().collect();
        let arguments = Selection::read(&strings(&[PART])).of_module("program", &modules["program"], &known).unwrap();
        assert_eq!(arguments, ["--exact".to_owned(), format!("{PART}_module")]);
        let mut output = Output::default();
        sh::output(Command::new(executable).args(arguments)).unwrap().lines().for_each(|line| output.handle_line(line));
        assert_eq!((output.passed, output.failed, output.is_closed), (1, 0, true));
    }
}
