//! `cargo xtask deny`: checks licences, sources and advisories of all dependencies with cargo-deny.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};

use crate::sh;

/// The version of cargo-deny that `.cargo/deny.toml` is written for.
const VERSION: &str = "0.20.2";

/// Installs cargo-deny if it is missing, and runs all checks. Fetching advisories needs a network.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(arg) = args.first() {
        bail!("deny takes no arguments, but got `{arg}`");
    }
    if !tool().is_file() {
        sh::step("cargo-deny, which checks dependencies (some minutes)");
        let mut cargo = sh::cargo();
        cargo.args(["install", "cargo-deny", "--quiet", "--locked", "--version", VERSION, "--root"]).arg(root());
        sh::run(&mut cargo)?;
    }
    Ok(ExitCode::from(check(&["advisories", "bans", "licenses", "sources"])?))
}

/// Runs the checks that need no network; returns the exit code, or `None` if cargo-deny is not installed.
pub fn check_offline() -> Result<Option<u8>> {
    if !tool().is_file() {
        return Ok(None);
    }
    check(&["bans", "licenses", "sources"]).map(Some)
}

fn check(what: &[&str]) -> Result<u8> {
    let mut command = std::process::Command::new(tool());
    command.current_dir(sh::workspace()).args(["--log-level", "error", "--config", ".cargo/deny.toml", "check"]);
    sh::exit_code(command.args(what))
}

fn root() -> PathBuf {
    sh::workspace().join("target/tools")
}

fn tool() -> PathBuf {
    root().join("bin/cargo-deny")
}
