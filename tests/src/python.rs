//! Scapy with crafter-scapy, as users have them: from PyPI by `cargo xtask setup`, else Debian's Scapy and the source.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::service::{built, open_directory};

/// The interpreter that the packages are for.
pub const PYTHON: &str = "/usr/bin/python3";

/// The packages, where every user may read them.
pub struct Packages {
    directory: TempDir,
}

impl Packages {
    /// Copies them: what cargo has made may lie in somebody's home.
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
                println!("Debian's Scapy and the source: `cargo xtask setup` has not had Scapy from PyPI");
                copy(&source, directory.path());
            }
        }
        for entry in fs::read_dir(&source).expect("crafter-scapy's source").flatten() {
            let installed = directory.path().join("crafter_scapy").join(entry.file_name());
            let is_python = entry.path().extension().is_some_and(|ending| ending == "py");
            if is_python && fs::read(installed).ok() != fs::read(entry.path()).ok() {
                panic!("an older crafter-scapy is installed: `cargo xtask setup` brings it up to date");
            }
        }
        Self { directory }
    }

    /// Has a command find them.
    pub fn give<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("PYTHONPATH", self.directory.path()).env("PYTHONDONTWRITEBYTECODE", "1")
    }

    /// A file beside them.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("write a script");
        path
    }
}

/// crafter-scapy's folder in the source.
pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crafter/python")
}

/// The packages of the virtual environment that `cargo xtask setup` has made.
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
