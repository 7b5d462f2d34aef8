//! `cargo xtask build`: everything for release, the kernel half included.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::sh;

/// Needs the set-up done; crafter's build script says so if it is not.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = args.first() {
        bail!("build takes no arguments, `{unknown}` is one too many");
    }
    release(&["--lib", "--bins", "--examples"])?;
    println!("crafter is {}", sh::release_directory().join("crafter").display());
    Ok(ExitCode::SUCCESS)
}

/// `cargo build --release` with these arguments, as the user.
pub fn release(args: &[&str]) -> Result<()> {
    sh::step("Building for release");
    sh::run(sh::cargo().args(["build", "--release"]).args(args))
}
