//! `cargo xtask deny`: licences, sources and known advisories of all dependencies, by cargo-deny.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};

use crate::sh;

/// The version that `.cargo/deny.toml` is written for.
const VERSION: &str = "0.20.2";

/// Installs cargo-deny if it is not there, and has it check everything. Advisories are fetched: that takes a network.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(arg) = args.first() {
        bail!("deny takes no arguments, and `{arg}` is one");
    }
    if !tool().is_file() {
        sh::step("cargo-deny, which checks dependencies (some minutes)");
        let mut cargo = sh::cargo();
        cargo.args(["install", "cargo-deny", "--quiet", "--locked", "--version", VERSION, "--root"]).arg(root());
        sh::run(&mut cargo)?;
    }
    Ok(ExitCode::from(check(&["advisories", "bans", "licenses", "sources"])?))
}

/// What can be checked without a network, where cargo-deny is installed; the exit code.
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
