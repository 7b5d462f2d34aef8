//! `cargo xtask demo`: a crafted connection in a temporary network, from the kernel's RST without crafter to the last
//! byte of a long download with it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::setup::{self, Purpose};
use crate::{cargo, sh};

/// Cargo's profile for the demo, which builds in half the time of a release (`Cargo.toml`).
const PROFILE: &str = "demo";

/// The features that the demo is built with: without the command line and the service.
pub const FEATURES: [&str; 3] = ["--no-default-features", "--features", "demo"];

/// How long the job takes from an empty target directory on two processors.
const TYPICAL: Duration = Duration::from_secs(240);

/// Sets up, builds, and runs the program `demo` of crate crafter, which creates its own lab.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = args.first() {
        bail!("demo takes no arguments, but got `{unknown}`");
    }
    sh::become_root()?;
    build()?;
    sh::step("The conversation, in a temporary network");
    let programs = sh::release_directory().with_file_name(PROFILE);
    let code = sh::exit_code(&mut sh::root(programs.join("demo"), [])?)?;
    if code == 0 {
        println!(
            "The demo is built without optimisation; `cargo xtask build` makes a release, which is several times faster."
        );
    }
    Ok(ExitCode::from(code))
}

fn build() -> Result<()> {
    let _progress = Progress::start(TYPICAL);
    let setup = setup::begin(&[Purpose::Build])?;
    sh::step("Building the demo with little optimisation");
    let mut cargo = sh::cargo();
    cargo.args(["build", "--profile", PROFILE, "--package", "crafter", "--bin", "demo"]).args(FEATURES);
    let built = cargo::run(&mut cargo);
    setup.finish_with(built).map(drop)
}
