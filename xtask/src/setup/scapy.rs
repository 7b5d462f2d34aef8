//! Scapy from PyPI with crafter-scapy, in a virtual environment in the target directory, as users install it. If PyPI
//! cannot be reached, the tests use Debian's Scapy, and a note says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::lock::Lock;
use crate::sh;

/// The version of Scapy that the tests use.
const VERSION: &str = "2.8.0";

/// Number of attempts of a pip command.
const TRIES: u32 = 3;

/// The system's Python, so that other users can run it, too.
const PYTHON: &str = "/usr/bin/python3";

/// The virtual environment.
pub fn directory() -> PathBuf {
    sh::release_directory().with_file_name("scapy")
}

/// The environment's `site-packages`, for other users' `PYTHONPATH`; `None` if it is not installed.
pub fn packages() -> Option<PathBuf> {
    let library = directory().join("lib");
    let versions = fs::read_dir(library).ok()?.flatten().map(|entry| entry.path().join("site-packages"));
    versions.into_iter().find(|packages| packages.join("crafter_scapy").is_dir())
}

/// Why it could not be installed.
pub fn missing() -> Option<String> {
    Some(fs::read_to_string(directory().with_extension("missing")).ok()?.trim().to_owned())
}

/// Creates or updates the environment; after a failure only if `again`.
pub fn ensure(again: bool) -> Result<()> {
    let note = directory().with_extension("missing");
    if is_current() || (note.exists() && !again) {
        return Ok(());
    }
    let _lock = Lock::of_data()?;
    sh::step(&format!("Scapy {VERSION} from PyPI, with crafter-scapy"));
    match install() {
        Ok(()) if note.exists() => Ok(fs::remove_file(note)?),
        Ok(()) => Ok(()),
        Err(error) => {
            println!("    continuing with Debian's Scapy for the tests of crafter-scapy: {error:#}");
            println!("    run `cargo xtask setup` again when PyPI can be reached");
            fs::create_dir_all(note.parent().context("a directory for the note")?)?;
            Ok(fs::write(note, format!("{error:#}\n"))?)
        }
    }
}

/// Whether this version of Scapy is installed, and crafter-scapy as it is in the source tree.
fn is_current() -> bool {
    let Some(packages) = packages() else { return false };
    packages.join(format!("scapy-{VERSION}.dist-info")).is_dir()
        && files(&source().join("crafter_scapy")).is_ok_and(|files| {
            files.iter().all(|file| {
                let installed = file.file_name().map(|name| packages.join("crafter_scapy").join(name));
                installed.is_some_and(|installed| fs::read(installed).ok() == fs::read(file).ok())
            })
        })
}

fn source() -> PathBuf {
    sh::workspace().join("crafter/python")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|ending| ending == "py")).collect())
}

fn install() -> Result<()> {
    if packages().is_none() {
        sh::run_quietly(Command::new(PYTHON).args(["-m", "venv", "--clear"]).arg(directory()))
            .context("cannot create a virtual environment (on Debian, install python3-venv)")?;
    }
    let scapy = format!("scapy=={VERSION}");
    pip(&[&scapy])?;
    // The installed crafter-scapy may have the same version number and be older.
    pip(&["--force-reinstall", "--no-deps", &source().to_string_lossy()])?;
    if !is_current() {
        bail!("pip installed files that differ from those in {}", source().display());
    }
    Ok(())
}

fn pip(args: &[&str]) -> Result<()> {
    let mut tried = 1;
    loop {
        println!("    pip install {}", args.join(" "));
        let mut pip = Command::new(directory().join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--no-input"]).args(args);
        match sh::run_quietly(&mut pip) {
            Ok(()) => return Ok(()),
            Err(error) if tried == TRIES => return Err(error.context(format!("pip install {}", args.join(" ")))),
            Err(_) => std::thread::sleep(Duration::from_secs(2 * u64::from(tried))),
        }
        tried += 1;
    }
}
