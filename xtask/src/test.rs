//! `cargo xtask test [FILTER]`: builds as the user, runs as root.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{deny, host, setup, sh, vm};

/// Seconds until a test program, with everything in its process group, is ended.
const WATCHDOG_SECONDS: &str = "900";

/// What `timeout` of coreutils answers then.
const TIMED_OUT: [u8; 2] = [124, 137];

/// Sets up, checks format and lints (only without a filter), then runs every
/// test program to its end, whatever failed before.
pub fn job(args: &[String]) -> Result<ExitCode> {
    // `test FILTER -- --nocapture`, as cargo has it; libtest gets both alike.
    let args: Vec<String> = args.iter().filter(|arg| *arg != "--").cloned().collect();
    let args = args.as_slice();
    setup::ensure()?;
    setup::ensure_corpora(false);
    setup::ensure_scapy(false);
    let mut sum = Sum::default();
    if args.is_empty() {
        check_source(&mut sum)?;
    }

    sh::step("Building the tests for release");
    // First, because the tests run crafter's own executable.
    sh::run(sh::cargo().args(["build", "--release", "--bins"]))?;
    let programs = build_tests(&[])?;

    let marker = marker();
    let before = host::snapshot(&marker)?;
    for program in &programs {
        run_tests(program, args, &marker, &mut sum)?;
        // After each, so that it is known whose it is.
        check_host(&program.title, &before, &marker, &mut sum)?;
    }
    sh::step("Documentation examples (as the user)");
    let mut docs = sh::cargo();
    docs.args(["test", "--release", "--doc", "--quiet", "--"]).args(args);
    tally(&mut docs, "documentation examples", &mut sum)?;

    sh::step("Left behind on this host");
    if check_host("all tests together", &before, &marker, &mut sum)? {
        println!("    nothing: no process, namespace, interface, attachment or pin");
    }
    if args.is_empty() {
        match vm::short(&programs) {
            Ok(runs) => runs.iter().for_each(|run| sum.add_kernel(run)),
            Err(error) => sum.fail(format!("tests on other kernels: {error:#}")),
        }
    }
    if sum.passed + sum.failed == 0 {
        sum.fail(format!("no test was run: none matches `{}`", args.join(" ")));
    }
    sum.print();
    Ok(if sum.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How long a silent test program is waited for before looking whether it ended.
const POLL: Duration = Duration::from_millis(300);

/// One executable full of tests, as cargo names it.
pub struct TestProgram {
    /// `package: test name`.
    pub title: String,
    /// The executable.
    pub executable: PathBuf,
    /// Where cargo runs it.
    pub package: PathBuf,
}

#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// What failed, by name: test programs, checks.
    failures: Vec<String>,
}

impl Sum {
    /// A check or a program as a whole, of which libtest counts nothing.
    fn fail(&mut self, what: String) {
        println!("FAILED: {what}");
        self.failed += 1;
        self.failures.push(what);
    }

    /// Adds libtest's closing line, if this is one.
    fn add(&mut self, line: &str) -> bool {
        let Some(result) = line.strip_prefix("test result: ") else {
            return false;
        };
        let count = |what: &str| {
            let mut fields = result.split(['.', ';']).map(str::trim);
            let number = fields.find_map(|field| field.strip_suffix(what))?;
            number.trim().parse::<u64>().ok()
        };
        self.passed += count(" passed").unwrap_or(0);
        self.failed += count(" failed").unwrap_or(0);
        self.skipped += count(" ignored").unwrap_or(0);
        true
    }

    /// Adds the tests in a virtual machine.
    fn add_kernel(&mut self, run: &vm::Run) {
        for program in &run.programs {
            self.passed += program.passed;
            self.failed += program.failed;
            self.skipped += program.skipped;
            self.failures.extend(program.failure().map(|failure| format!("Linux {}: {failure}", run.name())));
        }
        for failure in &run.failures {
            self.fail(format!("Linux {}: {failure}", run.name()));
        }
    }

    fn print(&self) {
        sh::step("Summary");
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        let Self { passed, failed, skipped, .. } = self;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
}

fn check_source(sum: &mut Sum) -> Result<()> {
    sh::step("Format and lints");
    let checks: [(&str, &[&str]); 2] =
        [("fmt", &["--all", "--check"]), ("clippy", &["--release", "--all-targets", "--", "-D", "warnings"])];
    for (name, args) in checks {
        let present = sh::output(sh::cargo().args([name, "--version"])).is_ok();
        if !present {
            println!("    skipped: this toolchain has no cargo {name}");
        } else if sh::exit_code(sh::cargo().arg(name).args(args))? != 0 {
            sum.fail(format!("cargo {name}"));
        }
    }
    match deny::check_offline()? {
        None => println!("    skipped: cargo-deny is not installed (`cargo xtask deny` does that)"),
        Some(0) => {}
        Some(_) => sum.fail("cargo deny".to_owned()),
    }
    Ok(())
}

/// Builds all test programs, or those that these arguments of cargo's select.
pub fn build_tests(selection: &[String]) -> Result<Vec<TestProgram>> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--release", "--no-run"]).args(selection);
    cargo.arg("--message-format=json-render-diagnostics");
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cargo test does not start")?;
    if !output.status.success() {
        bail!("the tests do not compile");
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    let mut programs = Vec::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message)
            .with_context(|| format!("cargo said something other than JSON: {message}"))?;
        programs.extend(test_program(&message));
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
        executable: PathBuf::from(message["executable"].as_str()?),
        package,
    })
}

fn run_tests(program: &TestProgram, args: &[String], marker: &str, sum: &mut Sum) -> Result<()> {
    sh::step(&format!("Tests of {} (as root)", program.title));
    let package = program.package.to_string_lossy();
    let crafter = sh::release_directory().join("crafter");
    // This user's, not root's.
    let corpora = setup::corpora()?;
    let scapy = setup::scapy_packages().unwrap_or_default();
    let variables = [
        (host::MARKER, marker),
        // As cargo test has it.
        ("CARGO_MANIFEST_DIR", package.as_ref()),
        ("CRAFTER_CORPORA", &corpora.to_string_lossy()),
        ("CRAFTER_SCAPY", &scapy.to_string_lossy()),
        ("CRAFTER_BIN", &crafter.to_string_lossy()),
        ("RUST_BACKTRACE", "1"),
    ];
    // `timeout` makes a process group of the program and its children, and ends
    // all of it; setpriv ends `timeout` when xtask or sudo is gone.
    let mut command = sh::root("setpriv", variables)?;
    command
        .args(["--pdeathsig", "TERM", "timeout", "--kill-after=10"])
        .arg(WATCHDOG_SECONDS)
        .arg(&program.executable)
        .args(args)
        .current_dir(&program.package);
    tally(&mut command, &program.title, sum)
}

/// Runs something that speaks as libtest does: shows its lines and counts.
fn tally(command: &mut Command, title: &str, sum: &mut Sum) -> Result<()> {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("the test program does not start: {title}"))?;
    let mut closed = false;
    let failed_before = sum.failed;
    let lines = child.stdout.take().map(lines_of);
    let mut show = |line: String| {
        println!("{line}");
        let _ = io::stdout().flush();
        closed |= sum.add(&line);
    };
    // Not until the end of the pipe: a process that a test forgot holds it open.
    let status = loop {
        match lines.as_ref().map(|lines| lines.recv_timeout(POLL)) {
            Some(Ok(line)) => show(line),
            Some(Err(RecvTimeoutError::Timeout)) => {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
            }
            Some(Err(RecvTimeoutError::Disconnected)) | None => break child.wait()?,
        }
    };
    let code = sh::code_of(status);
    let counted = sum.failed - failed_before;
    if TIMED_OUT.contains(&code) {
        let seconds = began.elapsed().as_secs();
        sum.fail(format!("{title}: ended by the watchdog after {seconds} s"));
    } else if code != 0 && counted == 0 {
        sum.fail(format!("{title}: exit code {code}"));
    } else if !closed && code == 0 {
        sum.fail(format!("{title}: ended without a test result"));
    } else if counted > 0 {
        sum.failures.push(format!("{title}: {counted} tests"));
    }
    Ok(())
}

fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(|line| line.ok()) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Whether the host is as it was. Processes that are left are ended; all else is told once more at the end.
fn check_host(whose: &str, before: &BTreeSet<String>, marker: &str, sum: &mut Sum) -> Result<bool> {
    let left = host::left_behind(before, marker)?;
    for entry in &left {
        println!("    left behind: {entry}");
    }
    host::end_processes(&left)?;
    if !left.is_empty() {
        sum.fail(format!("{whose}: {} things left behind on this host", left.len()));
    }
    Ok(left.is_empty())
}

/// Tells this run's processes from those of another one.
fn marker() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    format!("{}-{now}", std::process::id())
}
