//! `cargo xtask bench [NAME]`: measures crafter and comparable tools in one run.

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Purpose};
use crate::{build, sh};

/// Sets up, builds, and runs the program `bench` of crate crafter-tests as root with these arguments.
pub fn job(args: &[String]) -> Result<ExitCode> {
    sh::become_root()?;
    for missing in setup::begin(&[Purpose::Test, Purpose::Bench])?.finish()? {
        println!("    missing: {missing}");
    }
    let programs = ["--package", "crafter", "--bin", "crafter", "--package", "crafter-tests", "--bin", "bench"];
    build::release(&[&programs[..], &["--features", "crafter-tests/bench"]].concat())?;
    sh::step("Measuring");
    let mut bench = sh::root(sh::release_directory().join("bench"), [])?;
    Ok(ExitCode::from(sh::exit_code(bench.args(args))?))
}
