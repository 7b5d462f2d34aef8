//! `cargo xtask fuzz [TARGET] [--seconds N] [--guided]`: the fuzz targets, for longer than in `test`.
//!
//! Random damage to known inputs needs nothing more. `--guided` is libFuzzer's way, by coverage, and works with
//! the stable toolchain too: bolero builds the targets anew with what counts the code reached (and no address
//! sanitizer, which only nightly has). What it finds and its corpus are kept in `tests/tests/__fuzz__/`, and are
//! run again by every test run.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{setup, sh};

/// As in `tests/tests/fuzz.rs`.
const TARGETS: [&str; 3] = ["layers", "text", "capture_files"];

/// For each target.
const SECONDS: u64 = 60;

/// Runs one target, or all, each for its time; the exit code is that of what failed.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let (mut targets, mut seconds, mut guided) = (Vec::new(), SECONDS, false);
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "--guided" => guided = true,
            "--seconds" => {
                seconds = args.next().and_then(|number| number.parse().ok()).context("--seconds takes a number")?;
            }
            target if TARGETS.contains(&target) => targets.push(target),
            other => bail!("there is no target `{other}`; there are {}", TARGETS.join(", ")),
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    if guided && sh::find("cargo-bolero").is_none() && sh::output(sh::cargo().args(["bolero", "--version"])).is_err() {
        bail!("--guided needs cargo-bolero: `cargo install cargo-bolero --locked`");
    }
    setup::ensure_corpora(false);
    let seconds = seconds.to_string();
    for target in targets {
        sh::step(&format!("Fuzzing {target} for {seconds} s"));
        let mut cargo = sh::cargo();
        if guided {
            cargo.args(["bolero", "test", target, "--package", "crafter-tests", "--sanitizer", "NONE", "--release"]);
            cargo.args(["--total-time", &format!("{seconds}s"), "--", "--test", "fuzz"]);
        } else {
            cargo.args(["test", "--release", "--package", "crafter-tests", "--test", "fuzz"]);
            cargo.args(["--", "--exact", target]).env("CRAFTER_FUZZ_SECONDS", &seconds);
        }
        let code = sh::exit_code(&mut cargo)?;
        if code != 0 {
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}
