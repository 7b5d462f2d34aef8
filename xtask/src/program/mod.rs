//! Test programs: what cargo builds, and how one of them runs.

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

/// What `timeout` of coreutils answers when the time is up.
const TIMED_OUT: [u8; 2] = [124, 137];

/// How long a silent test program is waited for before looking whether it ended.
const POLL: Duration = Duration::from_millis(300);

/// Tests that run in a process of their own: one module of the integration tests, or an executable with all of its unit
/// tests.
#[derive(Clone, Debug)]
pub struct TestProgram {
    /// `package: module`, or `package: kind name` of an executable.
    pub title: String,
    /// The module of the executable that these tests are in; `None`: all tests of the executable.
    pub module: Option<Module>,
    /// The executable.
    pub executable: PathBuf,
    /// Where cargo runs it.
    pub package: PathBuf,
}

/// A module at the top of an executable with tests.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// The names of its tests, with the module's.
    pub tests: Vec<String>,
}

/// What test programs run with.
pub struct Surroundings {
    /// Marks all processes of this run.
    pub marker: String,
    /// Seconds until a test program, with everything in its process group, is ended.
    pub watchdog: u64,
    /// Variables that lengthen the tests.
    pub lengths: Vec<(String, String)>,
    /// In place of peers that this host cannot have.
    pub stand_ins: StandIns,
    /// Where the outputs are kept.
    pub logs: PathBuf,
}

/// How a test program ended.
pub struct Ending {
    /// What it printed of its tests.
    pub output: Output,
    /// What is wrong with it as a whole: the watchdog, a crash, no result.
    pub fault: Option<String>,
    /// How long it took.
    pub time: Duration,
    /// Where its output is kept.
    pub log: PathBuf,
}

impl Ending {
    /// Whether all went well.
    pub fn is_good(&self) -> bool {
        self.fault.is_none() && self.output.failed == 0
    }

    /// Whether this test passed, of a run that selected it and few others.
    pub fn has_passed(&self, name: &str) -> bool {
        let Output { passed, names, .. } = &self.output;
        self.fault.is_none() && *passed > 0 && !names.iter().any(|failed| failed == name)
    }
}

/// Builds the test programs that these arguments of cargo's select, and the programs that they run: cargo builds those of a
/// package along with its integration tests. A build of these programs alone before would have other features, those
/// without the tests' dependencies, and build crafter twice.
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
    // Cargo names them in the order in which they were ready.
    programs.sort_by(|one, other| one.title.cmp(&other.title));
    Ok(programs)
}

fn test_program(message: &Value) -> Option<TestProgram> {
    // Examples are built along, and are no tests.
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
    /// Of an executable of integration tests one program for each module; any other stays one.
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

    /// The folder of its package, which is the name that people call it by.
    pub fn package_name(&self) -> String {
        self.package.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// How one of its tests is called in a summary: the name of a module's test has the module in it.
    pub fn test_title(&self, test: &str) -> String {
        match self.module {
            Some(_) => format!("{}: {test}", self.package_name()),
            None => format!("{} {test}", self.title),
        }
    }

    /// What libtest is to get for what `args` select of its tests; `None`: nothing of it is selected. A filter that is one
    /// of the names of `modules` selects that module.
    pub fn arguments(&self, args: &[String], modules: &BTreeSet<String>) -> Option<Vec<String>> {
        match &self.module {
            Some(module) => Selection::read(args).of_module(&module.name, &module.tests, modules),
            None => Some(args.to_vec()),
        }
    }

    /// Runs it as root, with these arguments of libtest's; `log` names the file that keeps its output.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, args: &[String], log: &str, surroundings: &Surroundings) -> Result<Ending> {
        let package = self.package.to_string_lossy();
        let crafter = sh::release_directory().join("crafter");
        // This user's, not root's.
        let corpora = setup::corpora()?;
        let scapy = setup::scapy_packages().unwrap_or_default();
        let (crafter, corpora, scapy) = (crafter.to_string_lossy(), corpora.to_string_lossy(), scapy.to_string_lossy());
        let mut variables = vec![
            (host::MARKER, surroundings.marker.as_str()),
            // As cargo test has it.
            ("CARGO_MANIFEST_DIR", package.as_ref()),
            ("CRAFTER_CORPORA", corpora.as_ref()),
            ("CRAFTER_SCAPY", scapy.as_ref()),
            ("CRAFTER_BIN", crafter.as_ref()),
            ("RUST_BACKTRACE", "1"),
        ];
        variables.extend(surroundings.lengths.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let of_stand_ins = surroundings.stand_ins.variables();
        variables.extend(of_stand_ins.iter().map(|(name, value)| (*name, value.as_str())));
        // `timeout` makes a process group of the program and its children, and ends
        // all of it; setpriv ends `timeout` when xtask or sudo is gone.
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

/// Runs something that prints as libtest does: shows its lines, keeps them in a file, and counts. Lines of stdout and of
/// stderr are kept in the order in which they came, as far as two pipes tell it; only stdout is counted by.
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
        // A full disk must not end the tests; their lines are shown all the same.
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
    // Not until the end of the pipes: a process that a test forgot holds them open.
    let status = loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => show(line),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = child.try_wait()? {
                    // What it printed last.
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

/// Sends the lines of a pipe, in a thread that ends with the pipe or with who receives them.
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

/// Each variable that lengthens a test, and the value of the long form.
const LONG: [(&str, &str); 7] = [
    ("CRAFTER_FUZZ_SECONDS", "60"),
    ("CRAFTER_TEST_HANDSHAKES", "1000000"),
    ("CRAFTER_TEST_KILLS", "100"),
    ("CRAFTER_TEST_PACKETS", "10000000"),
    ("CRAFTER_TEST_POINTS", "0"),
    ("CRAFTER_TEST_RUNS", "6000"),
    ("CRAFTER_TEST_SECONDS", "60"),
];

/// The variables that lengthen tests: those that are set, and in the long form all the others.
pub fn lengths(is_long: bool) -> Vec<(String, String)> {
    // sudo would drop those that are set.
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
        // A line on stderr that looks like libtest's counts nothing.
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
    fn a_process_that_holds_the_pipes_open_is_not_waited_for() {
        let began = Instant::now();
        let (ending, kept) = of("sleep 20 & echo $! >&2; echo 'test result: ok. 1 passed; 0 failed'");
        assert!(ending.is_good() && began.elapsed() < Duration::from_secs(10), "{:?}", ending.fault);
        let pid = kept.lines().find(|line| line.parse::<u32>().is_ok()).unwrap();
        sh::output(Command::new("kill").arg(pid)).unwrap();
    }

    #[test]
    fn what_is_no_result_is_a_fault() {
        let fault = |script| of(script).0.fault.unwrap_or_default();
        assert_eq!(fault("echo gone >&2; exit 3"), "exit code 3");
        assert_eq!(fault("true"), "ended without a test result");
        assert!(fault("exit 124").starts_with("ended by the watchdog"));
    }
}
