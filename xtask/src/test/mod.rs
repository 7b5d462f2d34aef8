//! `cargo xtask test [--long] [FILTER]`: builds the tests as the user and runs them as root.

mod crates;
mod summary;

use std::collections::BTreeSet;
use std::env;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::program::{self, Ending, StandIns, Surroundings, TestProgram, lengths, modules, tally};
use crate::progress::Progress;
use crate::setup::{self, Missing, Purpose};
use crate::{cargo, demo, deny, fresh, host, sh, vm};
use summary::Summary;

/// Seconds after which a test program is ended: by default, and with `--long`.
const WATCHDOG: [u64; 2] = [900, 7200];

/// Sets up, checks format and lints (without a filter), then runs every test program. Failed tests are run once more.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let is_long = args.iter().any(|arg| arg == "--long");
    // `test FILTER -- --nocapture` works as with cargo.
    let args: Vec<String> = args.iter().filter(|arg| !["--", "--long"].contains(&arg.as_str())).cloned().collect();
    let args = args.as_slice();
    sh::become_root()?;
    let mut summary = Summary::default();
    let (programs, missing) = prepare(args, &mut summary)?;
    let is_ci = env::var("CI").is_ok_and(|value| value == "true");
    report_missing(&missing, is_ci, &mut summary);
    let surroundings = Surroundings {
        marker: marker(),
        watchdog: WATCHDOG[usize::from(is_long)],
        lengths: lengths(is_long),
        stand_ins: StandIns::make(missing)?,
        logs: sh::release_directory().with_file_name("test-output"),
    };

    let before = host::snapshot(&surroundings.marker)?;
    let mut again = Vec::new();
    let modules = modules(&programs);
    for program in &programs {
        let Some(arguments) = program.arguments(args, &modules) else { continue };
        sh::step(&format!("Tests of {} (as root)", program.title));
        again.extend(first(program, arguments, &surroundings, &mut summary)?);
        // After each program, so that the culprit is known.
        check_host(&program.title, &before, &surroundings.marker, &mut summary)?;
    }
    let failed_examples = examples(args, &surroundings, &mut summary)?;
    for failed in &again {
        second(failed, &surroundings, &mut summary)?;
        check_host(&failed.program.title, &before, &surroundings.marker, &mut summary)?;
    }
    if let Some(first) = &failed_examples {
        let run = |args: &[String], log: &str| run_examples(args, log, &surroundings);
        let titled = |name: &str| format!("{EXAMPLES} {name}");
        let second = Second { title: EXAMPLES, titled: &titled, run: &run, alone: &only_example };
        once_more(&second, first, args, &surroundings, &mut summary)?;
    }

    sh::step("Left behind on this host");
    if check_host("all tests together", &before, &surroundings.marker, &mut summary)? {
        println!("    nothing: no process, namespace, interface, attachment or pin");
    }
    if args.is_empty() {
        setup::missing_data().iter().for_each(|(what, why)| summary.add_not_run(what, why));
        machines(&programs, &surroundings, &mut summary);
    }
    if args.is_empty() && is_long {
        for suite in fresh::SUITES {
            match (fresh::possible(), fresh::one) {
                (Err(why), _) => summary.add_not_run(&format!("a fresh {suite}"), &format!("{why:#}")),
                (Ok(()), one) => {
                    if let Err(error) = one(suite) {
                        summary.fail(format!("a fresh {suite}: {error:#}"));
                    }
                }
            }
        }
    }
    if summary.is_empty() {
        summary.fail(format!("no test was run: none matches `{}`", args.join(" ")));
    }
    Ok(if summary.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets up and builds; returns the test programs, and the peers that could not be installed.
fn prepare(args: &[String], summary: &mut Summary) -> Result<(Vec<TestProgram>, Vec<Missing>)> {
    let setup = {
        let _progress = Progress::start(cargo::RELEASE_TIME);
        setup::begin(&[Purpose::Build, Purpose::Test, Purpose::Machines])?
    };
    setup::ensure_corpora(false);
    setup::ensure_scapy(false);
    if args.is_empty() {
        check_source(summary)?;
    }
    let _progress = Progress::start(cargo::RELEASE_TIME * 3 / 2);
    sh::step("Building the tests for release");
    // Examples are compiled by clippy.
    setup.finish_with(program::build_tests(&["--tests"]))
}

/// Reports missing peers. In CI, a missing peer is a failure; otherwise its tests are reported as not run.
fn report_missing(missing: &[Missing], is_ci: bool, summary: &mut Summary) {
    for missing in missing {
        match is_ci {
            true => summary.fail(format!("missing peer {missing}")),
            false => println!("    missing: {missing}"),
        }
    }
}

fn check_source(summary: &mut Summary) -> Result<()> {
    sh::step("Format and lints");
    let has = |name: &str| sh::output(sh::cargo().args([name, "--version"])).is_ok();
    if !has("fmt") {
        println!("    skipped: this toolchain has no cargo fmt");
    } else if sh::exit_code(sh::cargo().args(["fmt", "--all", "--check"]))? != 0 {
        summary.fail("cargo fmt".to_owned());
    }
    if !has("clippy") {
        println!("    skipped: this toolchain has no cargo clippy");
    } else {
        let _progress = Progress::start(cargo::RELEASE_TIME / 2);
        let mut clippy = sh::cargo();
        // Include the programs `demo` and `bench`.
        clippy.args(["clippy", "--release", "--all-targets", "--features", "crafter/demo,crafter-tests/bench"]);
        clippy.args(["--", "-D", "warnings"]);
        if let Err(error) = cargo::run(&mut clippy) {
            summary.fail(format!("cargo clippy: {error:#}"));
        }
        // Items that only other features use are unused in the demo.
        let mut clippy = sh::cargo();
        clippy.args(["clippy", "--release", "--package", "crafter", "--lib", "--bin", "demo"]);
        clippy.args(demo::FEATURES).args(["--", "-D", "warnings"]);
        if let Err(error) = cargo::run(&mut clippy) {
            summary.fail(format!("cargo clippy of the demo: {error:#}"));
        }
    }
    match crates::check() {
        Ok(faults) => faults.into_iter().for_each(|fault| summary.fail(fault)),
        Err(error) => summary.fail(format!("{error:#}")),
    }
    match deny::check_offline()? {
        None => println!("    skipped: cargo-deny is not installed (`cargo xtask deny` installs it)"),
        Some(0) => {}
        Some(_) => summary.fail("cargo deny".to_owned()),
    }
    Ok(())
}

/// A program with a failure.
struct Failed<'a> {
    program: &'a TestProgram,
    arguments: Vec<String>,
    ending: Ending,
    /// The missing peers that its tests called.
    called: BTreeSet<String>,
}

/// Runs a program; returns it if something failed.
fn first<'a>(
    program: &'a TestProgram,
    arguments: Vec<String>,
    surroundings: &Surroundings,
    summary: &mut Summary,
) -> Result<Option<Failed<'a>>> {
    let ending = program.run(&arguments, &log_name(&program.title, "first"), surroundings)?;
    summary.add(ending.output.passed, ending.output.skipped);
    summary.add_time(&program.title, ending.time);
    let called: BTreeSet<String> =
        surroundings.stand_ins.take_calls().into_iter().map(|missing| missing.command.clone()).collect();
    if ending.is_good() {
        check_calls(&program.title, &called, summary);
        return Ok(None);
    }
    Ok(Some(Failed { program, arguments, ending, called }))
}

/// Runs the failed tests of a program once more.
fn second(failed: &Failed<'_>, surroundings: &Surroundings, summary: &mut Summary) -> Result<()> {
    let Failed { program, arguments, ending, called } = failed;
    let run = |args: &[String], log: &str| program.run(args, log, surroundings);
    let alone = |name: &str| ["--exact", name, "--include-ignored"].map(str::to_owned).to_vec();
    let titled = |name: &str| program.test_title(name);
    let second = Second { title: &program.title, titled: &titled, run: &run, alone: &alone };
    let explained = once_more(&second, ending, arguments, surroundings, summary)?;
    check_calls(&program.title, &(called - &explained), summary);
    Ok(())
}

const EXAMPLES: &str = "documentation examples";

/// Runs the documentation examples; returns the result if one failed.
fn examples(args: &[String], surroundings: &Surroundings, summary: &mut Summary) -> Result<Option<Ending>> {
    sh::step("Documentation examples (as the user)");
    let ending = run_examples(args, &log_name(EXAMPLES, "first"), surroundings)?;
    summary.add(ending.output.passed, ending.output.skipped);
    summary.add_time(EXAMPLES, ending.time);
    Ok((!ending.is_good()).then_some(ending))
}

fn run_examples(args: &[String], log: &str, surroundings: &Surroundings) -> Result<Ending> {
    let mut docs = sh::cargo();
    docs.args(["test", "--release", "--doc", "--quiet", "--"]).args(args);
    tally(&mut docs, EXAMPLES, &surroundings.logs.join(log))
}

/// The argument that selects an example such as `src/lib.rs - item (line 12)` and few others. rustdoc splits arguments
/// at spaces, so the whole name cannot be passed; the line number is the most specific word.
fn only_example(name: &str) -> Vec<String> {
    let words = || name.split_whitespace();
    words().rfind(|word| word.ends_with(')')).or(words().next()).map(str::to_owned).into_iter().collect()
}

/// How a program or the documentation examples are run once more.
struct Second<'a> {
    title: &'a str,
    /// Returns the title of a test.
    titled: &'a dyn Fn(&str) -> String,
    /// Runs it with these arguments, and writes its output to the file of this name.
    run: &'a dyn Fn(&[String], &str) -> Result<Ending>,
    /// Returns the arguments that run one test.
    alone: &'a dyn Fn(&str) -> Vec<String>,
}

/// Runs each failed test once more, alone, or the whole program if it failed without naming a test. Returns the missing
/// peers that these tests called.
fn once_more(
    second: &Second<'_>,
    first: &Ending,
    args: &[String],
    surroundings: &Surroundings,
    summary: &mut Summary,
) -> Result<BTreeSet<String>> {
    let Second { title, titled, run, alone } = *second;
    let mut explained = BTreeSet::new();
    if let Some(fault) = &first.fault {
        sh::step(&format!("Once more: {title} ({fault})"));
        let second = run(args, &log_name(title, "second"))?;
        if second.is_good() && second.output.passed >= first.output.passed {
            summary.add(second.output.passed - first.output.passed, 0);
            summary.add_flaky(&format!("{title}: {fault}"), [&first.log, &second.log]);
        } else {
            summary.fail(format!("{title}: {fault}, and when run once more: {}", names(&second)));
        }
        explained.extend(surroundings.stand_ins.take_calls().into_iter().map(|missing| missing.command.clone()));
        return Ok(explained);
    }
    for name in &first.output.names {
        let what = titled(name);
        sh::step(&format!("Once more, alone: {what}"));
        surroundings.stand_ins.take_calls();
        let second = run(&alone(name), &log_name(&what, "second"))?;
        let called = surroundings.stand_ins.take_calls();
        explained.extend(called.iter().map(|missing| missing.command.clone()));
        if second.has_passed(name) {
            summary.add_flaky(&what, [&first.log, &second.log]);
        } else if let Some(missing) = called.first() {
            summary.add_not_run(&what, &missing.to_string());
        } else {
            summary.fail(what);
        }
    }
    Ok(explained)
}

fn names(ending: &Ending) -> String {
    match &ending.fault {
        Some(fault) => fault.clone(),
        None => ending.output.names.join(", "),
    }
}

/// Fails for each missing peer in `called`, which no failed test called: a test that passes without the peer that it
/// calls would pass whatever the peer does.
fn check_calls(title: &str, called: &BTreeSet<String>, summary: &mut Summary) {
    for command in called {
        summary.fail(format!("{title}: a test passed without {command}, which it calls"));
    }
}

/// Runs the short form of the tests on other kernels.
fn machines(programs: &[TestProgram], surroundings: &Surroundings, summary: &mut Summary) {
    const TITLE: &str = "tests on other kernels";
    // The virtual machines run this host's programs.
    let needed = |missing: &&Missing| vm::PEERS.contains(&missing.command.as_str());
    if let Some(missing) = surroundings.stand_ins.missing().iter().find(needed) {
        summary.add_not_run(TITLE, &missing.to_string());
        return;
    }
    // Optional even in CI, since no test on this host uses QEMU.
    if let Err(error) = vm::ensure_short() {
        summary.add_not_run(TITLE, &format!("{error:#}"));
        return;
    }
    let began = std::time::Instant::now();
    match vm::short(programs) {
        Ok(runs) => runs.iter().for_each(|run| summary.add_kernel(run)),
        Err(error) => summary.fail(format!("{TITLE}: {error:#}")),
    }
    summary.add_time(TITLE, began.elapsed());
}

/// Checks that the tests left nothing on the host. Processes that are left are ended; the rest is reported again at the
/// end.
fn check_host(whose: &str, before: &BTreeSet<String>, marker: &str, summary: &mut Summary) -> Result<bool> {
    let left = host::left_behind(before, marker)?;
    for entry in &left {
        println!("    left behind: {entry}");
    }
    host::end_processes(&left)?;
    if !left.is_empty() {
        summary.fail(format!("{whose}: {} things left behind on this host", left.len()));
    }
    Ok(left.is_empty())
}

/// A unique value that identifies the processes of this run.
fn marker() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    format!("{}-{now}", std::process::id())
}

/// The file name for the output of a program or a test.
fn log_name(title: &str, run: &str) -> String {
    let name: String = title.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).collect();
    format!("{name}.{run}.txt")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::executable;

    /// Runs a program with two tests, one of which calls a missing peer, as `job` does; returns the summary.
    fn run(script: &str, is_ci: bool) -> Summary {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("xtask-missing-peer-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let executable = directory.join("program");
        executable::script(&format!("#!/bin/sh\n{script}\n"), &executable).unwrap();
        let program = TestProgram {
            title: "package: test program".into(),
            executable,
            package: PathBuf::from("/"),
            module: None,
        };
        let missing = vec![Missing { command: "no-such-peer".into(), sentence: "not in this suite".into() }];
        let mut summary = Summary::default();
        report_missing(&missing, is_ci, &mut summary);
        let surroundings = Surroundings {
            marker: "none".into(),
            watchdog: 60,
            lengths: Vec::new(),
            stand_ins: StandIns::make(missing).unwrap(),
            logs: directory.join("logs"),
        };
        if let Some(failed) = first(&program, vec![], &surroundings, &mut summary).unwrap() {
            second(&failed, &surroundings, &mut summary).unwrap();
        }
        fs::remove_dir_all(&directory).unwrap();
        summary
    }

    /// With --exact, the test that needs the peer; otherwise both tests.
    const NEEDS_IT: &str = "passed=1; [ \"$1\" = --exact ] && passed=0
        if no-such-peer --version >/dev/null 2>&1; then
            echo \"test result: ok. $((passed + 1)) passed; 0 failed\"
        else
            printf 'failures:\\n\\nfailures:\\n    needs_it\\n\\n'
            echo \"test result: FAILED. $passed passed; 1 failed\"
            exit 101
        fi";

    #[test]
    fn test_with_missing_peer_is_reported_as_not_run() {
        if !sh::is_root() {
            println!("not run: this test needs root");
            return;
        }
        let mut summary = run(NEEDS_IT, false);
        let lines = summary.lines();
        let expected = "package: test program needs_it: not run: no-such-peer: not in this suite";
        assert!(lines.contains(&expected.to_owned()), "{lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("1 passed, 0 failed, 1 skipped"));
        assert!(summary.close());
        // In CI the missing peer itself is a failure.
        let mut summary = run(NEEDS_IT, true);
        let lines = summary.lines();
        assert!(lines.contains(&"FAILED: missing peer no-such-peer: not in this suite".to_owned()), "{lines:?}");
        assert!(lines.contains(&expected.to_owned()) && !summary.close(), "{lines:?}");
        // A test that passes without its peer is an error.
        let mut summary = run("no-such-peer 2>/dev/null; echo 'test result: ok. 2 passed; 0 failed'", false);
        let lines = summary.lines();
        assert!(lines.iter().any(|line| line.contains("a test passed without no-such-peer")), "{lines:?}");
        assert!(!summary.close());
        // A test that fails without calling a missing peer fails.
        let other = "printf 'failures:\\n\\nfailures:\\n    other\\n\\n'; echo 'test result: FAILED. 0 passed; 1 failed'; exit 101";
        let mut summary = run(other, false);
        let lines = summary.lines();
        assert!(lines.contains(&"FAILED: package: test program other".to_owned()) && !summary.close(), "{lines:?}");
    }

    #[test]
    fn examples_are_selected_by_line_number() {
        for (name, word) in [
            ("crafter/src/lib.rs - session::Session::sr (line 12)", "12)"),
            ("crafter/src/lib.rs - (line 7) - compile fail", "7)"),
            ("crafter/src/a.rs - a::f<T> (line 130) - should panic", "130)"),
            ("unnamed", "unnamed"),
        ] {
            assert_eq!(only_example(name), [word], "{name}");
            assert!(name.contains(word));
        }
    }
}
