//! `cargo xtask demo`: the conversation, from the tutorial's failure to the last
//! byte of a long download, told in a throw-away network.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{build, setup, sh};

/// Sets up, builds, and runs the example `demo` of crate crafter in crafter's lab.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = args.first() {
        bail!("demo takes no arguments, `{unknown}` is one too many");
    }
    setup::ensure()?;
    build::release(&["--package", "crafter", "--bin", "crafter", "--example", "demo"])?;
    sh::step("The conversation, in a throw-away network");
    let release = sh::release_directory();
    let mut lab = sh::root(release.join("crafter"), [])?;
    lab.args(["lab", "run", "--"]).arg(release.join("examples/demo"));
    Ok(ExitCode::from(sh::exit_code(&mut lab)?))
}
