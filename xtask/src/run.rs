//! `cargo xtask run -- ARGS`: crafter itself, as root.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, sh};

/// Builds, then becomes `crafter ARGS`: its exit code is this job's.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let args = match args.split_first() {
        Some((first, rest)) if first == "--" => rest,
        _ => args,
    };
    build::release(&["--package", "crafter", "--bin", "crafter"])?;
    let crafter = sh::release_directory().join("crafter");
    let code = sh::exit_code(sh::root(crafter, [])?.args(args))?;
    Ok(ExitCode::from(code))
}
