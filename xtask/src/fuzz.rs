//! `cargo xtask fuzz [TARGET] [--seconds N]`: the fuzz targets, for longer than in `test`, by random damage to known
//! inputs.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{setup, sh};

/// As in `tests/tests/fuzz.rs`.
const TARGETS: [&str; 4] = ["layers", "text", "capture_files", "policy"];

/// For each target.
const SECONDS: u64 = 60;

/// Runs one target, or all, each for its time; the exit code is that of what failed.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let (mut targets, mut seconds) = (Vec::new(), SECONDS);
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
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
    setup::ensure_corpora(false);
    let seconds = seconds.to_string();
    for target in targets {
        sh::step(&format!("Fuzzing {target} for {seconds} s"));
        let mut cargo = sh::cargo();
        cargo.args(["test", "--release", "--package", "crafter-tests", "--test", "fuzz"]);
        cargo.args(["--", "--exact", target]).env("CRAFTER_FUZZ_SECONDS", &seconds);
        let code = sh::exit_code(&mut cargo)?;
        if code != 0 {
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}
