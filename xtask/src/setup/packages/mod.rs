//! The distribution's packages: by apt or dnf. A package that the package manager refuses does not stop the others.

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

/// Where os-release(5) is; the first that is there counts.
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

impl Manager {
    /// The one of this host, if set-up knows it.
    pub fn of_host() -> Option<Self> {
        let os_release = OS_RELEASE.iter().find_map(|path| fs::read_to_string(path).ok());
        distribution::manager(&os_release.unwrap_or_default(), &|program| sh::find(program).is_some())
    }

    /// The name of a tool's package here.
    pub fn package(self, tool: &Tool) -> &'static str {
        match self {
            Self::Apt => tool.debian,
            Self::Dnf => tool.fedora,
        }
    }

    /// Installs all that can be installed of `packages`, removing nothing; returns what was refused.
    ///
    /// # Errors
    /// If nothing at all can be installed: no root, no network, no room.
    pub fn install(self, packages: &[&str]) -> Result<Vec<Refusal>> {
        match self {
            Self::Apt => apt::install(packages),
            Self::Dnf => dnf::install(packages),
        }
    }

    /// Installs all of `packages`, or fails with the first refusal.
    ///
    /// # Errors
    /// As [`Manager::install`], and for a refusal.
    pub fn require(self, packages: &[&str]) -> Result<()> {
        match self.install(packages)?.into_iter().next() {
            None => Ok(()),
            Some(Refusal { package, why, help }) => anyhow::bail!("package {package}: {why}; {help}"),
        }
    }
}
