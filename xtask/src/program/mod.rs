//! Test programs: building them with cargo, and running one of them.

mod libtest;
mod select;
mod stand_in;

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo, host, setup, sh};
pub use libtest::Output;
use select::Selection;
pub use stand_in::StandIns;

/// Exit codes of coreutils' `timeout` after a time-out.
const TIMED_OUT: [u8; 2] = [124, 137];

/// How often a test program that prints nothing is checked for its end.
const POLL: Duration = Duration::from_millis(300);

/// Tests that run in one process: a module of the integration tests, or all unit tests of an executable.
#[derive(Clone, Debug)]
pub struct TestProgram {
    /// `package: module`, or `package: kind name` of an executable.
    pub title: String,
    /// The module with these tests; `None`: all tests of the executable.
    pub module: Option<Module>,
    /// The executable.
    pub executable: PathBuf,
    /// The package's directory, in which it runs.
    pub package: PathBuf,
}

/// A top-level module of a test executable.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// The full names of its tests, beginning with the module's.
    pub tests: Vec<String>,
}

/// The environment of test programs.
pub struct Surroundings {
    /// Value of the variable that identifies all processes of this run.
    pub marker: String,
    /// Seconds after which a test program's process group is ended.
    pub watchdog: u64,
    /// Variables that set the length of tests.
    pub lengths: Vec<(String, String)>,
    /// Replacements for peers that could not be installed.
    pub stand_ins: StandIns,
    /// Directory for the output of each program.
    pub logs: PathBuf,
}

/// How a test program ended.
pub struct Ending {
    /// The results of its tests.
    pub output: Output,
    /// An error of the whole program: the watchdog, a crash, no result.
    pub fault: Option<String>,
    /// How long it took.
    pub time: Duration,
    /// The file with its output.
    pub log: PathBuf,
}

impl Ending {
    /// Whether no test and no program failed.
    pub fn is_good(&self) -> bool {
        self.fault.is_none() && self.output.failed == 0
    }

    /// Whether this test passed in a run that selected it.
    pub fn has_passed(&self, name: &str) -> bool {
        let Output { passed, names, .. } = &self.output;
        self.fault.is_none() && *passed > 0 && !names.iter().any(|failed| failed == name)
    }
}

/// Builds the test programs that these arguments of cargo select, and the binaries of their packages, which cargo
/// builds along with integration tests. Building the binaries separately would select other features and compile
/// crafter twice.
pub fn build_tests(selection: &[&str]) -> Result<Vec<TestProgram>> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--release", "--no-run"]).args(selection);
    cargo.arg("--message-format=json-render-diagnostics");
    let messages = cargo::run(&mut cargo).context("the tests do not compile")?;
    let mut programs = Vec::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message)
            .with_context(|| format!("cargo printed something other than JSON: {message}"))?;
        if let Some(program) = test_program(&message) {
            programs.extend(program.by_module(&message["target"])?);
        }
    }
    if programs.is_empty() {
        bail!("cargo built no test program");
    }
    // Cargo lists them in the order in which they were built.
    programs.sort_by(|one, other| one.title.cmp(&other.title));
    Ok(programs)
}

fn test_program(message: &Value) -> Option<TestProgram> {
    // Examples are built, too, and are not tests.
    if message["profile"]["test"] != true {
        return None;
    }
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let package = manifest.parent()?.to_owned();
    let target = &message["target"];
    Some(TestProgram {
        title: format!(
            "{}: {} {}",
            package.file_name()?.to_string_lossy(),
            target["kind"][0].as_str()?,
            target["name"].as_str()?,
        ),
        module: None,
        executable: PathBuf::from(message["executable"].as_str()?),
        package,
    })
}

/// The names of all modules of the integration tests.
pub fn modules(programs: &[TestProgram]) -> BTreeSet<String> {
    programs.iter().filter_map(|program| Some(program.module.as_ref()?.name.clone())).collect()
}

impl TestProgram {
    /// Splits an executable of integration tests into a program per module; any other executable is one program.
    fn by_module(self, target: &Value) -> Result<Vec<Self>> {
        let (Some("test"), Some(name)) = (target["kind"][0].as_str(), target["name"].as_str()) else {
            return Ok(vec![self]);
        };
        let modules = select::by_module(select::names(&self.executable)?, name);
        let program = |(name, tests): (String, Vec<String>)| Self {
            title: format!("{}: {name}", self.package_name()),
            module: Some(Module { name, tests }),
            ..self.clone()
        };
        Ok(modules.into_iter().map(program).collect())
    }

    /// The name of its package's directory.
    pub fn package_name(&self) -> String {
        self.package.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The title of one of its tests in the summary. The name of a module's test includes the module.
    pub fn test_title(&self, test: &str) -> String {
        match self.module {
            Some(_) => format!("{}: {test}", self.package_name()),
            None => format!("{} {test}", self.title),
        }
    }

    /// The arguments for libtest that run the tests selected by `args`; `None` if none is selected. A filter that
    /// equals a name in `modules` selects that module.
    pub fn arguments(&self, args: &[String], modules: &BTreeSet<String>) -> Option<Vec<String>> {
        match &self.module {
            Some(module) => Selection::read(args).of_module(&module.name, &module.tests, modules),
            None => Some(args.to_vec()),
        }
    }

    /// Runs it as root with these arguments for libtest; `log` is the name of the file for its output.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, args: &[String], log: &str, surroundings: &Surroundings) -> Result<Ending> {
        let package = self.package.to_string_lossy();
        let crafter = sh::release_directory().join("crafter");
        // The user's data directory, not root's.
        let corpora = setup::corpora()?;
        let scapy = setup::scapy_packages().unwrap_or_default();
        let (crafter, corpora, scapy) = (crafter.to_string_lossy(), corpora.to_string_lossy(), scapy.to_string_lossy());
        let mut variables = vec![
            (host::MARKER, surroundings.marker.as_str()),
            // As `cargo test` sets it.
            ("CARGO_MANIFEST_DIR", package.as_ref()),
            ("CRAFTER_CORPORA", corpora.as_ref()),
            ("CRAFTER_SCAPY", scapy.as_ref()),
            ("CRAFTER_BIN", crafter.as_ref()),
            ("RUST_BACKTRACE", "1"),
        ];
        variables.extend(surroundings.lengths.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let of_stand_ins = surroundings.stand_ins.variables();
        variables.extend(of_stand_ins.iter().map(|(name, value)| (*name, value.as_str())));
        // `timeout` ends the process group of the program and its children; setpriv ends `timeout` when xtask or sudo
        // ends.
        let mut command = sh::root("setpriv", variables)?;
        command
            .args(["--pdeathsig", "TERM", "timeout", "--kill-after=10"])
            .arg(surroundings.watchdog.to_string())
            .arg(&self.executable)
            .args(args)
            .current_dir(&self.package);
        tally(&mut command, &self.title, &surroundings.logs.join(log))
    }
}

/// A line of a program.
enum Line {
    Stdout(String),
    Stderr(String),
}

/// Runs a command whose output has libtest's format: shows its lines, writes them to a file, and counts the results.
/// Lines of stdout and stderr are kept in order as far as two pipes allow; results are counted from stdout only.
pub fn tally(command: &mut Command, title: &str, log: &Path) -> Result<Ending> {
    let began = Instant::now();
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut kept = File::create(log).with_context(|| format!("cannot write to {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("the test program does not start: {title}"))?;
    let mut output = Output::default();
    let (sender, lines) = mpsc::channel();
    read_lines(child.stdout.take(), sender.clone(), Line::Stdout);
    read_lines(child.stderr.take(), sender, Line::Stderr);
    let mut show = |line: Line| {
        // If the disk is full, the tests continue and their lines are still shown.
        match line {
            Line::Stdout(line) => {
                println!("{line}");
                let _ = io::stdout().flush();
                let _ = writeln!(kept, "{line}");
                output.handle_line(&line);
            }
            Line::Stderr(line) => {
                eprintln!("{line}");
                let _ = writeln!(kept, "{line}");
            }
        }
    };
    // Do not wait for EOF: a process that a test left behind may hold the pipes open.
    let status = loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => show(line),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = child.try_wait()? {
                    // Read the rest of its output.
                    while let Ok(line) = lines.recv_timeout(POLL) {
                        show(line);
                    }
                    break status;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break child.wait()?,
        }
    };
    let code = sh::code_of(status);
    let time = began.elapsed();
    let fault = if TIMED_OUT.contains(&code) {
        Some(format!("ended by the watchdog after {} s", time.as_secs()))
    } else if code != 0 && output.failed == 0 {
        Some(format!("exit code {code}"))
    } else if output.failed != output.names.len() as u64 {
        Some(format!("{} tests failed, and {} are named", output.failed, output.names.len()))
    } else if code == 0 && !output.is_closed {
        Some("ended without a test result".to_owned())
    } else {
        None
    };
    Ok(Ending { output, fault, time, log: log.to_owned() })
}

/// Sends the lines of a pipe from a thread, which ends at EOF or when the receiver is dropped.
fn read_lines(pipe: Option<impl Read + Send + 'static>, sender: Sender<Line>, wrap: fn(String) -> Line) {
    let Some(pipe) = pipe else { return };
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(|line| line.ok()) {
            if sender.send(wrap(String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
        }
    });
}

/// Variables that set the length of tests, with the values of `--long`.
const LONG: [(&str, &str); 7] = [
    ("CRAFTER_FUZZ_SECONDS", "60"),
    ("CRAFTER_TEST_HANDSHAKES", "1000000"),
    ("CRAFTER_TEST_KILLS", "100"),
    ("CRAFTER_TEST_PACKETS", "10000000"),
    ("CRAFTER_TEST_POINTS", "0"),
    ("CRAFTER_TEST_RUNS", "6000"),
    ("CRAFTER_TEST_SECONDS", "60"),
];

/// The variables that set the length of tests: those in the environment, and with `--long` all others.
pub fn lengths(is_long: bool) -> Vec<(String, String)> {
    // Passed explicitly, since sudo drops variables of the environment.
    let is_length = |name: &str| {
        (name.starts_with("CRAFTER_TEST_") && name != host::MARKER) || LONG.iter().any(|(long, _)| *long == name)
    };
    let set = |name: &str| env::var(name).ok();
    let mut lengths: Vec<(String, String)> = env::vars().filter(|(name, _)| is_length(name)).collect();
    let missing = LONG.iter().filter(|(name, _)| is_long && set(name).is_none());
    lengths.extend(missing.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(script: &str) -> (Ending, String) {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = env::temp_dir().join(format!("xtask-tally-{}-{number}", std::process::id()));
        let ending = tally(Command::new("sh").args(["-c", script]), "a script", &log).unwrap();
        let kept = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        (ending, kept)
    }

    #[test]
    fn both_outputs_are_kept_in_order() {
        // A result line on stderr is not counted.
        let (ending, kept) =
            of("echo one; sleep 0.1; echo two >&2; echo 'test result: FAILED. 0 passed; 7 failed' >&2; \
                                 sleep 0.1; echo 'test result: ok. 3 passed; 0 failed; 1 ignored'; sleep 0.1; \
                                 printf last >&2");
        assert!(ending.is_good(), "{:?}", ending.fault);
        assert_eq!((ending.output.passed, ending.output.failed, ending.output.skipped), (3, 0, 1));
        let lines = [
            "one",
            "two",
            "test result: FAILED. 0 passed; 7 failed",
            "test result: ok. 3 passed; 0 failed; 1 ignored",
            "last",
        ];
        assert_eq!(kept.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn end_of_program_is_seen_while_a_child_holds_its_pipes_open() {
        let began = Instant::now();
        let (ending, kept) = of("sleep 20 & echo $! >&2; echo 'test result: ok. 1 passed; 0 failed'");
        assert!(ending.is_good() && began.elapsed() < Duration::from_secs(10), "{:?}", ending.fault);
        let pid = kept.lines().find_map(|line| line.parse().ok()).unwrap();
        sh::kill("TERM", pid).unwrap();
    }

    #[test]
    fn missing_result_is_a_fault() {
        let fault = |script| of(script).0.fault.unwrap_or_default();
        assert_eq!(fault("echo crashed >&2; exit 3"), "exit code 3");
        assert_eq!(fault("true"), "ended without a test result");
        assert!(fault("exit 124").starts_with("ended by the watchdog"));
    }
}
