//! Tools that could not be installed, with the reason. They are recorded for a day, so that the second run is quick.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::packages::Refusal;
use super::tools::Tool;
use crate::toolchain;

/// How long a recorded refusal is valid.
const AGE: Duration = Duration::from_secs(24 * 3600);

/// A tool that is missing and could not be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The program, or `python3-NAME` for a module.
    pub command: String,
    /// The package, the reason, what does not run without it, and what to do.
    pub sentence: String,
}

impl Missing {
    /// A tool whose package the package manager refuses.
    pub fn refused(tool: &Tool, refusal: &Refusal) -> Self {
        let Refusal { package, why, help } = refusal;
        let sentence = format!("package {package}: {why}; what does not run: {}; {help}", tool.without);
        Self { command: tool.command.to_owned(), sentence }
    }

    /// A tool whose installation failed.
    pub fn failed(tool: &Tool, package: &str, error: &anyhow::Error) -> Self {
        let sentence = format!("package {package}: {error:#}; what does not run: {}", tool.without);
        Self { command: tool.command.to_owned(), sentence }
    }

    /// A tool whose package is installed, but whose program or module was removed or hidden.
    pub fn incomplete(tool: &Tool, package: &str) -> Self {
        let why = format!("it is installed, but {} is not found", tool.command);
        let help = "reinstall the package, or add the program's directory to PATH".to_owned();
        Self::refused(tool, &Refusal { package: package.to_owned(), why, help })
    }

    /// A tool on a host whose package manager set-up does not support.
    pub fn unknown_host(tool: &Tool) -> Self {
        let sentence = format!("set-up does not support this host's packages; what does not run: {}", tool.without);
        Self { command: tool.command.to_owned(), sentence }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.command, self.sentence)
    }
}

fn directory() -> Option<PathBuf> {
    Some(toolchain::data_directory()?.join("refused"))
}

/// Reads the record of a tool, if there is a valid one.
pub fn read(tool: &Tool) -> Option<Missing> {
    let path = directory()?.join(tool.command);
    let age = SystemTime::now().duration_since(fs::metadata(&path).ok()?.modified().ok()?).ok()?;
    let sentence = fs::read_to_string(&path).ok().filter(|_| age < AGE)?;
    Some(Missing { command: tool.command.to_owned(), sentence })
}

/// Records a missing tool.
pub fn write(missing: &Missing) -> Result<()> {
    let directory = directory().context("neither HOME nor XDG_DATA_HOME is set: set HOME")?;
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(&missing.command), &missing.sentence)
        .with_context(|| format!("cannot write to {}", directory.display()))
}

/// Removes all records, so that every tool is tried again.
pub fn forget() {
    if let Some(directory) = directory() {
        // There may be none.
        let _ = fs::remove_dir_all(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::tools::Purpose;

    #[test]
    fn a_removed_program_of_an_installed_package_has_a_cause_and_a_remedy() {
        let tool =
            Tool { command: "x", debian: "x-package", fedora: "x", purpose: Purpose::Test, without: "its tests" };
        assert_eq!(
            Missing::incomplete(&tool, tool.debian).to_string(),
            "x: package x-package: it is installed, but x is not found; what does not run: its tests; reinstall the \
             package, or add the program's directory to PATH"
        );
    }
}
