//! `cargo xtask fuzz [TARGET] [--seconds N]`: runs the fuzz targets for longer than `test` does, with random mutations
//! of known inputs.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Purpose};
use crate::sh;

/// Each target and its module in `tests/tests/namespaces`.
const TARGETS: [(&str, &str); 6] = [
    ("layers", "fuzz"),
    ("text", "fuzz"),
    ("capture_files", "fuzz"),
    ("policy", "fuzz"),
    ("control_socket", "fuzz_service"),
    ("lease_socket", "fuzz_service"),
];

/// Default duration of each target, in seconds.
const SECONDS: u64 = 60;

/// Runs the named targets, or all, one after the other; returns the exit code of the first that fails.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let (mut targets, mut seconds) = (Vec::new(), SECONDS);
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "--seconds" => {
                seconds = args.next().and_then(|number| number.parse().ok()).context("--seconds takes a number")?;
            }
            other => match TARGETS.iter().find(|(target, _)| *target == other) {
                Some(target) => targets.push(*target),
                None => {
                    let names: Vec<&str> = TARGETS.iter().map(|(target, _)| *target).collect();
                    bail!("unknown target `{other}`; known targets are {}", names.join(", "))
                }
            },
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    for missing in setup::begin(&[Purpose::Build])?.finish()? {
        println!("    missing: {missing}");
    }
    setup::ensure_corpora(false);
    let seconds = seconds.to_string();
    for (target, module) in targets {
        sh::step(&format!("Fuzzing {target} for {seconds} s"));
        if module == "fuzz_service" {
            // The target starts crafter's binary.
            let code = sh::exit_code(sh::cargo().args(["build", "--release", "--package", "crafter"]))?;
            if code != 0 {
                return Ok(ExitCode::from(code));
            }
        }
        let mut cargo = sh::cargo();
        cargo.args(["test", "--release", "--package", "crafter-tests", "--test", "namespaces"]);
        cargo.args(["--", "--exact", &format!("{module}::{target}")]).env("CRAFTER_FUZZ_SECONDS", &seconds);
        let code = sh::exit_code(&mut cargo)?;
        if code != 0 {
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}
