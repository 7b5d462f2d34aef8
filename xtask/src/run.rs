//! `cargo xtask run -- ARGS`: builds crafter and runs it as root.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, sh};

/// Builds, then runs `crafter ARGS` and returns its exit code.
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
