//! Scapy with crafter-scapy: from PyPI if `cargo xtask setup` installed it, else Debian's Scapy with the source.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::service::{built, open_directory};

/// The interpreter for which the packages are installed.
pub const PYTHON: &str = "/usr/bin/python3";

/// A copy of the packages that every user may read.
pub struct Packages {
    directory: TempDir,
}

impl Packages {
    /// Copies the packages; the originals may be in a home directory that others cannot read.
    pub fn copy() -> Self {
        let directory = open_directory("crafter-python-");
        let source = source().join("crafter_scapy");
        match installed() {
            Some(packages) => {
                for name in ["scapy", "crafter_scapy"] {
                    copy(&packages.join(name), directory.path());
                }
            }
            None => {
                println!(
                    "using Debian's Scapy and the source, because `cargo xtask setup` did not install Scapy from PyPI"
                );
                copy(&source, directory.path());
            }
        }
        for entry in fs::read_dir(&source).expect("crafter-scapy's source").flatten() {
            let installed = directory.path().join("crafter_scapy").join(entry.file_name());
            let is_python = entry.path().extension().is_some_and(|ending| ending == "py");
            if is_python && fs::read(installed).ok() != fs::read(entry.path()).ok() {
                panic!("the installed crafter-scapy is outdated; run `cargo xtask setup`");
            }
        }
        Self { directory }
    }

    /// Sets the environment of `command` so that Python finds the packages.
    pub fn configure<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("PYTHONPATH", self.directory.path()).env("PYTHONDONTWRITEBYTECODE", "1")
    }

    /// Writes a file next to the packages.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("write a script");
        path
    }
}

/// The source directory of crafter-scapy.
pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crafter/python")
}

/// The packages of the virtual environment made by `cargo xtask setup`.
fn installed() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CRAFTER_SCAPY") {
        return Some(PathBuf::from(named)).filter(|path| path.join("scapy").is_dir());
    }
    let versions = fs::read_dir(built().parent()?.with_file_name("scapy").join("lib")).ok()?;
    let packages = versions.flatten().map(|entry| entry.path().join("site-packages"));
    packages.into_iter().find(|path| path.join("crafter_scapy").is_dir())
}

fn copy(folder: &Path, into: &Path) {
    let status = Command::new("cp").arg("-r").arg(folder).arg(into).status().expect("cp");
    assert!(status.success(), "copy {}", folder.display());
    let target = into.join(folder.file_name().expect("a name"));
    let status = Command::new("chmod").args(["-R", "a+rX"]).arg(target).status().expect("chmod");
    assert!(status.success());
}
