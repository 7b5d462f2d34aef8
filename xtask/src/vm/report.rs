//! What the machines told, as it comes and as a table at the end.

use std::time::Instant;

use serde_json::Value;

use super::qemu::Accelerator;

/// All about one kernel.
pub struct Run {
    /// As it was asked for.
    kernel: String,
    /// As the kernel calls itself.
    release: Option<String>,
    accelerator: Accelerator,
    began: Instant,
    seconds: f32,
    probe: Value,
    /// In the order of the plan.
    pub programs: Vec<Program>,
    /// Those that the machine of now has, in its order.
    running: Vec<usize>,
    /// What else is to be known of how they ran.
    notes: Vec<String>,
    /// Failures that are no test's.
    pub failures: Vec<String>,
}

/// What became of one test program.
pub struct Program {
    title: String,
    /// By libtest's closing line.
    pub passed: u64,
    /// See `passed`.
    pub failed: u64,
    /// See `passed`.
    pub skipped: u64,
    names: Vec<String>,
    listing: bool,
    ended: Option<(i64, f64, bool)>,
    last: String,
}

impl Run {
    /// Nothing known yet.
    pub fn new(kernel: &str, accelerator: Accelerator, titles: &[&str]) -> Self {
        let program = |title: &&str| Program {
            title: (*title).to_owned(),
            passed: 0,
            failed: 0,
            skipped: 0,
            names: Vec::new(),
            listing: false,
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
        }
    }

    /// The places of the programs that have not ended, for a machine to run them from their beginning.
    pub fn begin(&mut self) -> &[usize] {
        let left = self.programs.iter_mut().enumerate().filter(|(_, program)| program.ended.is_none());
        self.running = left
            .map(|(place, program)| {
                (program.passed, program.failed, program.skipped) = (0, 0, 0);
                (program.listing, program.last) = (false, String::new());
                program.names.clear();
                place
            })
            .collect();
        &self.running
    }

    /// Says how the programs that follow run, here and in the table.
    pub fn note(&mut self, what: &str) {
        let next = self.programs.iter().find(|program| program.ended.is_none());
        let from = next.map(|program| format!(", from {} on", program.title)).unwrap_or_default();
        println!("    {what}{from}");
        self.notes.push(format!("{what}{from}"));
    }

    /// The kernel's release, or what was asked for if it never came up.
    pub fn name(&self) -> &str {
        self.release.as_deref().unwrap_or(&self.kernel)
    }

    /// Takes one thing that the machine said, and shows it.
    pub fn hear(&mut self, event: &Value) {
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
            ("line", Some(program)) => program.hear(text, self.release.as_deref().unwrap_or(&self.kernel)),
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

    /// The machine is off, or was turned off.
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
                Some((code, ..)) if code != 0 && program.failed == 0 => Some(format!("exit code {code}")),
                Some(_) if program.passed + program.failed == 0 => Some("ran no test".into()),
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
        self.failures.is_empty() && self.programs.iter().all(|program| program.failed == 0)
    }

    fn show_probe(&self) {
        for line in self.probe["doctor"].as_str().unwrap_or_default().lines().take_while(|line| !line.is_empty()) {
            println!("    doctor: {line}");
        }
        if let Some(refused) = self.probe["refused"].as_str() {
            println!("    refused: {refused}");
        }
    }

    /// Which hook each choice got, and by what it is held.
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
    /// One line of libtest's, or of a test.
    fn hear(&mut self, line: &str, release: &str) {
        if !line.trim().is_empty() {
            self.last = line.to_owned();
            println!("    [{release}] {line}");
        }
        let name = line.strip_prefix("    ").filter(|name| self.listing && !name.starts_with(' '));
        if let Some(name) = name {
            self.names.push(name.trim().to_owned());
        }
        // The second of two such lines begins the list of names; what is before it is the tests' own words.
        if line == "failures:" {
            self.names.clear();
            self.listing = true;
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.listing = false;
            let count = |what: &str| {
                let mut fields = result.split(['.', ';']).map(str::trim);
                fields.find_map(|field| field.strip_suffix(what)?.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            (self.passed, self.failed, self.skipped) = (count(" passed"), count(" failed"), count(" ignored"));
        }
    }

    /// Those that failed, by name.
    pub fn failure(&self) -> Option<String> {
        (self.failed > 0).then(|| format!("{}: {}", self.title, self.names.join(", ")))
    }

    /// `7 passed`, with those that failed by name.
    fn cell(&self) -> String {
        let Some((_, seconds, _)) = self.ended else { return "did not end".into() };
        if self.failed == 0 {
            return format!("{} passed, {seconds:.0} s", self.passed);
        }
        format!("{} passed, {} FAILED ({}), {seconds:.0} s", self.passed, self.failed, self.names.join(", "))
    }
}

/// All runs, side by side as text.
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
