//! The result of a test run, and its closing lines.

use std::path::PathBuf;
use std::time::Duration;

use crate::{sh, vm};

/// Number of flaky tests that fails the run.
const FLAKY_LIMIT: usize = 3;

/// Number of slow programs that are listed.
const SLOWEST: usize = 10;

/// Counts of test results, and names of tests that did not pass.
#[derive(Default)]
pub struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
    flaky: Vec<String>,
    not_run: Vec<String>,
    times: Vec<(Duration, String)>,
}

impl Summary {
    /// Adds passed and ignored tests.
    pub fn add(&mut self, passed: u64, skipped: u64) {
        self.passed += passed;
        self.skipped += skipped;
    }

    /// Adds the duration of a program.
    pub fn add_time(&mut self, title: &str, time: Duration) {
        self.times.push((time, title.to_owned()));
    }

    /// Adds a failed test or check.
    pub fn fail(&mut self, what: String) {
        println!("FAILED: {what}");
        self.failed += 1;
        self.failures.push(what);
    }

    /// Adds a test that failed, and passed when it was run once more, alone.
    pub fn add_flaky(&mut self, what: &str, outputs: [&PathBuf; 2]) {
        self.passed += 1;
        let [first, second] = outputs.map(|path| path.display());
        self.flaky.push(format!("{what} (outputs: {first}, {second})"));
    }

    /// Adds tests that could not run, and the reason.
    pub fn add_not_run(&mut self, what: &str, why: &str) {
        self.skipped += 1;
        self.not_run.push(format!("{what}: not run: {why}"));
    }

    /// Adds the results of a virtual machine.
    pub fn add_kernel(&mut self, run: &vm::Run) {
        for program in &run.programs {
            self.passed += program.output.passed;
            self.failed += program.output.failed;
            self.skipped += program.output.skipped;
            self.failures.extend(program.failure().map(|failure| format!("Linux {}: {failure}", run.name())));
        }
        let flaky = run.flaky.iter().map(|flaky| format!("Linux {}: {flaky} ({})", run.name(), run.log.display()));
        self.flaky.extend(flaky);
        for failure in &run.failures {
            self.fail(format!("Linux {}: {failure}", run.name()));
        }
    }

    /// Whether any test ran.
    pub fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }

    /// Prints the tables and the closing line; returns whether the run passed.
    pub fn close(mut self) -> bool {
        if self.flaky.len() >= FLAKY_LIMIT {
            self.fail(format!("{} flaky tests in one run; {} are allowed", self.flaky.len(), FLAKY_LIMIT - 1));
        }
        for line in self.lines() {
            println!("{line}");
        }
        self.failures.is_empty()
    }

    /// The tables and the closing line.
    pub fn lines(&mut self) -> Vec<String> {
        sh::step("Slowest programs");
        self.times.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        let slowest = self.times.iter().take(SLOWEST);
        let mut lines: Vec<String> =
            slowest.map(|(time, title)| format!("{:>7.1} s  {title}", time.as_secs_f32())).collect();
        lines.push("==> Summary".to_owned());
        lines.extend(self.flaky.iter().map(|flaky| format!("flaky: {flaky}")));
        lines.extend(self.not_run.iter().cloned());
        lines.extend(self.failures.iter().map(|failure| format!("FAILED: {failure}")));
        let Self { passed, failed, skipped, .. } = self;
        lines.push(format!("{passed} passed, {failed} failed, {skipped} skipped"));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(flaky: usize) -> Summary {
        let mut summary = Summary::default();
        summary.add(5, 1);
        let path = PathBuf::from("log");
        (0..flaky).for_each(|number| summary.add_flaky(&format!("test {number}"), [&path, &path]));
        summary
    }

    #[test]
    fn three_flaky_tests_fail_the_run() {
        assert!(summary(0).close() && summary(2).close());
        assert!(!summary(3).close());
    }

    #[test]
    fn tests_not_run_are_counted_and_named() {
        let mut summary = summary(1);
        summary.add_not_run("tests: test exchange a::b", "nginx is missing");
        let lines = summary.lines();
        assert_eq!(lines.last().map(String::as_str), Some("6 passed, 0 failed, 2 skipped"));
        assert!(lines.contains(&"tests: test exchange a::b: not run: nginx is missing".to_owned()), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("flaky: test 0 (outputs: ")), "{lines:?}");
    }
}
