//! `cargo xtask build`: everything for release, the kernel half included.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::setup::{self, Purpose};
use crate::{cargo, sh};

/// Sets up the build tools and builds.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = args.first() {
        bail!("build takes no arguments, but got `{unknown}`");
    }
    release(&["--lib", "--bins", "--examples"])?;
    println!("crafter is {}", sh::release_directory().join("crafter").display());
    Ok(ExitCode::SUCCESS)
}

/// Sets up the build tools, then runs `cargo build --release` with these arguments as the user.
pub fn release(args: &[&str]) -> Result<()> {
    let _progress = Progress::start(cargo::RELEASE_TIME);
    let setup = setup::begin(&[Purpose::Build])?;
    sh::step("Building for release");
    let built = cargo::run(sh::cargo().args(["build", "--release"]).args(args));
    setup.finish_with(built).map(drop)
}
