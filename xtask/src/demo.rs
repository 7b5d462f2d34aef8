//! `cargo xtask demo`: the conversation that crafter is for, from the tutorial's failure to the last
//! byte of a long download, in a throw-away network.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::setup::{self, Purpose};
use crate::{cargo, sh};

/// Cargo's profile for it: built in half the time of a release, see `Cargo.toml`.
const PROFILE: &str = "demo";

/// From nothing on two processors.
const TYPICAL: Duration = Duration::from_secs(240);

/// Sets up, builds, and runs the program `demo` of crate crafter, which makes a lab of its own.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = args.first() {
        bail!("demo takes no arguments, `{unknown}` is one too many");
    }
    sh::become_root()?;
    build()?;
    sh::step("The conversation, in a throw-away network");
    let programs = sh::release_directory().with_file_name(PROFILE);
    let code = sh::exit_code(&mut sh::root(programs.join("demo"), [])?)?;
    if code == 0 {
        println!("The demo is built without optimisation; `cargo xtask build` makes a release, several times as fast.");
    }
    Ok(ExitCode::from(code))
}

fn build() -> Result<()> {
    let _progress = Progress::start(TYPICAL);
    let setup = setup::begin(&[Purpose::Build])?;
    sh::step("Building for the demo: quickly, so that crafter itself is slower than in a release");
    let mut cargo = sh::cargo();
    // Neither the command line nor the service.
    cargo.args(["build", "--profile", PROFILE, "--package", "crafter", "--bin", "demo"]);
    cargo.args(["--no-default-features", "--features", "demo"]);
    let built = cargo::run(&mut cargo);
    setup.finish_with(built).map(drop)
}
