//! The output of the virtual machines: live, and as a table at the end.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use super::qemu::Accelerator;
use crate::program::Output;

/// The results on one kernel.
pub struct Run {
    /// The name on the command line.
    kernel: String,
    /// The release that the kernel reports.
    release: Option<String>,
    accelerator: Accelerator,
    began: Instant,
    seconds: f32,
    probe: Value,
    /// In the order of the plan.
    pub programs: Vec<Program>,
    /// Indices of the programs in the current machine, in its order.
    running: Vec<usize>,
    /// Notes on how they ran.
    notes: Vec<String>,
    /// Failures outside of tests.
    pub failures: Vec<String>,
    /// Tests that failed, and passed when they were run once more in another machine.
    pub flaky: Vec<String>,
    /// The file with the machine's output.
    pub log: PathBuf,
}

/// The result of one test program.
pub struct Program {
    title: String,
    /// The results of its tests.
    pub output: Output,
    ended: Option<(i64, f64, bool)>,
    last: String,
}

impl Run {
    /// An empty result.
    pub fn new(kernel: &str, accelerator: Accelerator, titles: &[&str], log: PathBuf) -> Self {
        let program = |title: &&str| Program {
            title: (*title).to_owned(),
            output: Output::default(),
            ended: None,
            last: String::new(),
        };
        Self {
            kernel: kernel.to_owned(),
            release: None,
            accelerator,
            began: Instant::now(),
            seconds: 0.0,
            probe: Value::Null,
            programs: titles.iter().map(program).collect(),
            running: Vec::new(),
            notes: Vec::new(),
            failures: Vec::new(),
            flaky: Vec::new(),
            log,
        }
    }

    /// Programs with failed tests, and the names of these tests.
    pub fn failed(&self) -> Vec<(String, Vec<String>)> {
        let failed = self.programs.iter().filter(|program| program.output.failed > 0);
        failed.map(|program| (program.title.clone(), program.output.names.clone())).collect()
    }

    /// Merges the result of a second run of the failed tests: those that passed are flaky.
    pub fn settle(&mut self, second: &Self) {
        self.failures.extend(second.failures.iter().map(|failure| format!("run once more: {failure}")));
        for program in &mut self.programs {
            let Some(again) = second.programs.iter().find(|again| again.title == program.title) else { continue };
            // Only a program that ended says which tests passed.
            if !again.output.is_closed || again.output.passed + again.output.failed == 0 {
                continue;
            }
            let passed: Vec<String> =
                program.output.names.iter().filter(|name| !again.output.names.contains(name)).cloned().collect();
            program.output.names.retain(|name| again.output.names.contains(name));
            program.output.failed = program.output.failed.saturating_sub(passed.len() as u64);
            program.output.passed += passed.len() as u64;
            self.flaky.extend(passed.iter().map(|name| format!("{} {name}", program.title)));
        }
    }

    /// The indices of the programs that have not ended, to be run from their beginning by the next machine.
    pub fn begin(&mut self) -> &[usize] {
        let left = self.programs.iter_mut().enumerate().filter(|(_, program)| program.ended.is_none());
        self.running = left
            .map(|(place, program)| {
                (program.output, program.last) = (Output::default(), String::new());
                place
            })
            .collect();
        &self.running
    }

    /// Prints a note on how the next programs run, and adds it to the table.
    pub fn note(&mut self, what: &str) {
        let next = self.programs.iter().find(|program| program.ended.is_none());
        let from = next.map(|program| format!(", from {} on", program.title)).unwrap_or_default();
        println!("    {what}{from}");
        self.notes.push(format!("{what}{from}"));
    }

    /// The kernel's release, or the name on the command line if it did not boot.
    pub fn name(&self) -> &str {
        self.release.as_deref().unwrap_or(&self.kernel)
    }

    /// Processes an event of the machine, and shows it.
    pub fn handle_event(&mut self, event: &Value) {
        let text = event["text"].as_str().unwrap_or_default();
        let number = event["program"].as_u64().map(|number| number as usize);
        let place = number.and_then(|number| self.running.get(number));
        let program = place.and_then(|place| self.programs.get_mut(*place));
        match (event["event"].as_str().unwrap_or_default(), program) {
            ("up", _) => {
                self.release = event["release"].as_str().map(str::to_owned);
                println!("    Linux {} is up after {:.1} s", self.name(), self.began.elapsed().as_secs_f32());
            }
            ("probe", _) => {
                self.probe = event["report"].clone();
                self.show_probe();
            }
            ("line", Some(program)) => program.handle_line(text, self.release.as_deref().unwrap_or(&self.kernel)),
            ("end", Some(program)) => {
                let code = event["code"].as_i64().unwrap_or(-1);
                let seconds = event["seconds"].as_f64().unwrap_or(0.0);
                program.ended = Some((code, seconds, event["timed_out"] == true));
            }
            ("left", _) => {
                let left = event["what"].as_array().map(Vec::as_slice).unwrap_or_default();
                for what in left.iter().filter_map(Value::as_str) {
                    self.failures.push(format!("left behind: {what}"));
                }
                if left.is_empty() {
                    println!("    left behind in the machine: nothing, no process, program, map or link");
                }
            }
            ("error", _) => self.failures.push(text.to_owned()),
            _ => {}
        }
    }

    /// Processes the end of the machine.
    pub fn end(&mut self, ended: anyhow::Result<()>) {
        self.seconds = self.began.elapsed().as_secs_f32();
        if let Err(error) = ended {
            self.failures.push(format!("{error:#}"));
        }
        for program in &mut self.programs {
            let why = match program.ended {
                None => Some(format!("did not end; its last line: {}", program.last)),
                Some((_, seconds, true)) => {
                    Some(format!("ended after {seconds:.0} s; its last line: {}", program.last))
                }
                Some((code, ..)) if code != 0 && program.output.failed == 0 => Some(format!("exit code {code}")),
                Some(_) if program.output.passed + program.output.failed == 0 => Some("ran no test".into()),
                Some(_) => None,
            };
            self.failures.extend(why.map(|why| format!("{}: {why}", program.title)));
        }
        for failure in &self.failures {
            println!("    FAILED: {failure}");
        }
    }

    /// Whether nothing failed.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty() && self.programs.iter().all(|program| program.output.failed == 0)
    }

    fn show_probe(&self) {
        for line in self.probe["doctor"].as_str().unwrap_or_default().lines().take_while(|line| !line.is_empty()) {
            println!("    doctor: {line}");
        }
        if let Some(refused) = self.probe["refused"].as_str() {
            println!("    refused: {refused}");
        }
    }

    /// The hook and the kind of attachment that each `--attach` choice resulted in.
    fn mechanisms(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let rows = self.probe["attached"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.iter()
            .map(|row| {
                let asked = text(&row["asked"]);
                match row["refused"].as_str() {
                    Some(refused) => format!("{asked}: refused, {refused}"),
                    None => {
                        let links = row["links"].as_array().map(Vec::as_slice).unwrap_or_default();
                        let links: Vec<String> = links.iter().map(text).collect();
                        let by =
                            if links.is_empty() { "netlink".into() } else { format!("bpf_link {}", links.join("+")) };
                        format!("{asked}: {} by {by}", text(&row["got"]))
                    }
                }
            })
            .collect()
    }
}

impl Program {
    /// Processes a line of output.
    fn handle_line(&mut self, line: &str, release: &str) {
        if !line.trim().is_empty() {
            self.last = line.to_owned();
            println!("    [{release}] {line}");
        }
        self.output.handle_line(line);
    }

    /// Its failed tests, by name.
    pub fn failure(&self) -> Option<String> {
        (self.output.failed > 0).then(|| format!("{}: {}", self.title, self.output.names.join(", ")))
    }

    /// The cell of the table: `7 passed`, with the names of failed tests.
    fn cell(&self) -> String {
        let Some((_, seconds, _)) = self.ended else { return "did not end".into() };
        let Output { passed, failed, names, .. } = &self.output;
        if *failed == 0 {
            return format!("{passed} passed, {seconds:.0} s");
        }
        format!("{passed} passed, {failed} FAILED ({}), {seconds:.0} s", names.join(", "))
    }
}

/// The table of all runs.
pub fn table(runs: &[Run]) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 3]| {
        text += &format!("    {:<34}  {:<26}  {}\n", cells[0], cells[1], cells[2]);
    };
    line(["KERNEL", "WHAT", "RESULT"]);
    for run in runs {
        let kernel = format!("{} ({})", run.name(), run.accelerator.name());
        for program in &run.programs {
            line([&kernel, &program.title, &program.cell()]);
        }
        for program in run.probe["programs"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let number = |name: &str| program[name].as_u64().map_or("?".into(), |number| number.to_string());
            let milliseconds = program["milliseconds"].as_f64().unwrap_or(0.0);
            let what = format!(
                "{} instructions verified, loaded in {milliseconds:.0} ms, {} bytes of machine code",
                number("verified"),
                number("jitted_bytes")
            );
            line([&kernel, program["name"].as_str().unwrap_or("?"), &what]);
        }
        for mechanism in run.mechanisms() {
            line([&kernel, "attached", &mechanism]);
        }
        if let Some(refused) = run.probe["refused"].as_str() {
            line([&kernel, "refused", refused]);
        }
        for flaky in &run.flaky {
            line([&kernel, "flaky", flaky]);
        }
        for note in &run.notes {
            line([&kernel, "note", note]);
        }
        for failure in &run.failures {
            line([&kernel, "FAILED", failure]);
        }
        line([&kernel, "seconds", &format!("{:.0}", run.seconds)]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &[&str]) -> Run {
        let mut run = Run::new("6.1", Accelerator::Tcg, &["tests: test one"], PathBuf::from("log"));
        lines.iter().for_each(|line| run.programs[0].handle_line(line, "6.1"));
        run
    }

    #[test]
    fn test_that_passes_once_more_is_flaky() {
        const CLOSED: &str = "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        let first = ["failures:", "    a", "    b", "", CLOSED];
        let mut settled = run(&first);
        assert_eq!(settled.failed(), [("tests: test one".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
        settled.settle(&run(&["failures:", "    b", "", "test result: FAILED. 1 passed; 1 failed; 0 ignored"]));
        assert_eq!(settled.flaky, ["tests: test one a"]);
        assert_eq!(settled.failed(), [("tests: test one".to_owned(), vec!["b".to_owned()])]);
        assert_eq!(settled.programs[0].output.passed, 6);
        // A machine that ended before its tests changes nothing.
        let mut unsettled = run(&first);
        unsettled.settle(&run(&["running 2 tests"]));
        assert!(unsettled.flaky.is_empty() && !unsettled.is_good());
    }
}
