//! The distribution's packages, installed by apt or dnf. A package that cannot be installed does not affect the others.

mod apt;
mod distribution;
mod dnf;
mod refusal;

use std::fs;

use anyhow::Result;

use super::tools::Tool;
use crate::sh;

pub use apt::{exists, update};
pub use distribution::Manager;
pub use refusal::Refusal;

/// Paths of os-release(5); the first existing file is used.
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

impl Manager {
    /// This host's package manager, if set-up supports it.
    pub fn of_host() -> Option<Self> {
        let os_release = OS_RELEASE.iter().find_map(|path| fs::read_to_string(path).ok());
        distribution::manager(&os_release.unwrap_or_default(), &|program| sh::find(program).is_some())
    }

    /// The name of a tool's package for this package manager.
    pub fn package(self, tool: &Tool) -> &'static str {
        match self {
            Self::Apt => tool.debian,
            Self::Dnf => tool.fedora,
        }
    }

    /// Installs as many of `packages` as possible and removes none; returns those that were refused.
    ///
    /// # Errors
    /// If no package can be installed: no root, no network, no disk space.
    pub fn install(self, packages: &[&str]) -> Result<Vec<Refusal>> {
        match self {
            Self::Apt => apt::install(packages),
            Self::Dnf => dnf::install(packages),
        }
    }

    /// Installs all of `packages`, or fails with the first refusal.
    ///
    /// # Errors
    /// Like [`Manager::install`], and if a package is refused.
    pub fn require(self, packages: &[&str]) -> Result<()> {
        match self.install(packages)?.into_iter().next() {
            None => Ok(()),
            Some(Refusal { package, why, help }) => anyhow::bail!("package {package}: {why}; {help}"),
        }
    }
}
