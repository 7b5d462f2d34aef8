//! Real captures for the tests: those in the source packages of tcpdump and Scapy, which carry them for tests of
//! their own. Fetched by apt-get with lists and a cache of its own, so that the host's stay as they are.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::lock::Lock;
use super::packages::{self, Manager};
use crate::{sh, toolchain};

/// Source packages with captures.
const CORPORA: [&str; 2] = ["tcpdump", "scapy"];

/// Whose archives have source packages, by the name in their release files.
const ORIGINS: [&str; 3] = ["Debian", "Ubuntu", "Raspbian"];

/// How the names of captures end.
const ENDINGS: [&str; 6] = [".pcap", ".pcapng", ".cap", ".pcap.gz", ".pcapng.gz", ".cap.gz"];

/// Where they are: a folder for each package.
pub fn directory() -> Result<PathBuf> {
    Ok(toolchain::data_directory().context("neither HOME nor XDG_DATA_HOME is set")?.join("corpora"))
}

/// Fetches what is not there; what could not be had before only if `again`. Of what cannot be had now, a note is left
/// that says why, by which the tests know that they cannot run on it.
pub fn ensure(again: bool) -> Result<()> {
    let directory = directory()?;
    let note = |package: &str| directory.join(format!("{package}.missing"));
    let missing: Vec<&str> = CORPORA
        .into_iter()
        .filter(|package| !directory.join(package).is_dir() && (again || !note(package).exists()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let _lock = Lock::of_data()?;
    sh::step(&format!("Captures for the tests, from the source packages of {}", missing.join(" and ")));
    let work = directory.join("work");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(work.join("lists/partial"))?;
    fs::create_dir_all(work.join("cache/archives/partial"))?;
    let apt = apt(&work).map_err(|error| format!("{error:#}"));
    for package in missing {
        let fetched = match &apt {
            Ok(apt) => fetch(apt, package, &work, &directory).map_err(|error| format!("{error:#}")),
            Err(error) => Err(error.clone()),
        };
        match fetched {
            Ok(count) => {
                println!("    {package}: {count} captures in {}", directory.join(package).display());
                if note(package).exists() {
                    fs::remove_file(note(package))?;
                }
            }
            Err(error) => {
                println!("    going on without {package}'s, on which the tests will not run: {error}");
                println!("    when the package archive is in reach, `cargo xtask setup` tries again; or put captures");
                println!("    into {}", directory.join(package).display());
                fs::write(note(package), error + "\n")?;
            }
        }
    }
    Ok(fs::remove_dir_all(work)?)
}

/// Packages whose captures could not be had, and why.
pub fn missing() -> Vec<(&'static str, String)> {
    let note = |package: &str| fs::read_to_string(directory().ok()?.join(format!("{package}.missing"))).ok();
    CORPORA.into_iter().filter_map(|package| Some((package, note(package)?.trim().to_owned()))).collect()
}

/// apt-get with up-to-date lists of source packages.
fn apt(work: &Path) -> Result<Apt> {
    if Manager::of_host() != Some(Manager::Apt) {
        bail!("they come by apt-get, which this host does not have");
    }
    let apt = Apt::new(work)?;
    apt.update()?;
    Ok(apt)
}

/// apt-get with source packages, lists and cache of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(work: &Path) -> Result<Self> {
        let list = work.join("sources.list");
        let sources = match sources()? {
            sources if sources.is_empty() => {
                packages::update()?;
                self::sources()?
            }
            sources => sources,
        };
        if sources.is_empty() {
            bail!("apt knows no archive of {}", ORIGINS.join(", "));
        }
        fs::File::create(&list)?.write_all(sources.as_bytes())?;
        let mut options = vec![
            format!("Dir::State::lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
        ];
        if sh::is_root() {
            // Its own user may not write into root's directories.
            options.push("APT::Sandbox::User=root".to_owned());
        }
        Ok(Self { options })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").arg("-qq");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    fn update(&self) -> Result<()> {
        println!("    bringing lists of source packages up to date, beside the host's");
        if let Err(error) = sh::run_quietly(self.command().arg("update")) {
            // One archive out of reach is no reason to stop.
            println!("    going on with what is there: {error:#}");
        }
        Ok(())
    }
}

/// The host's archives as sources of source packages.
fn sources() -> Result<String> {
    let format = "$(ORIGIN)|$(COMPONENT)|$(REPO_URI)|$(RELEASE)|$(SOURCESENTRY)";
    let mut query = Command::new("apt-get");
    query.args(["indextargets", "--format", format, "Created-By: Packages"]).env("LC_ALL", "C");
    let mut sources = String::new();
    for line in sh::output(&mut query)?.lines() {
        let [origin, component, uri, release, entry] = line.split('|').collect::<Vec<_>>()[..] else { continue };
        if !ORIGINS.contains(&origin) || !["main", "universe"].contains(&component) {
            continue;
        }
        let signed = signed_by(entry).map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        let source = format!("deb-src {signed}{uri} {release} {component}\n");
        if !sources.contains(&source) {
            sources += &source;
        }
    }
    Ok(sources)
}

/// The keyring that a file of sources names, given as `FILE:NUMBER`; without one, apt has its own.
fn signed_by(entry: &str) -> Option<String> {
    let (file, _) = entry.rsplit_once(':')?;
    let text = fs::read_to_string(file).ok()?;
    let (_, behind) = text.split_once("Signed-By:").or_else(|| text.split_once("signed-by="))?;
    let key = behind.trim_start_matches(' ').split([' ', ']', '\n']).next()?;
    key.starts_with('/').then(|| key.to_owned())
}

/// Fetches one package and unpacks its captures; how many there are.
fn fetch(apt: &Apt, package: &str, work: &Path, directory: &Path) -> Result<usize> {
    let folder = work.join(package);
    fs::create_dir(&folder)?;
    let mut source = apt.command();
    source.args(["source", "--download-only", package]).current_dir(&folder);
    let output = source.output().context("apt-get does not start")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let refused = said.lines().find(|line| line.starts_with("E:")).unwrap_or("it says nothing");
        bail!("the source package {package} cannot be fetched: {}", refused.trim_start_matches("E: "));
    }
    let partial = work.join(format!("{package}.partial"));
    fs::create_dir(&partial)?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.to_string_lossy();
        if name.contains(".tar.") && !name.contains(".debian.tar.") && !name.ends_with(".asc") {
            unpack(&path, &partial)?;
        }
    }
    let count = captures(&partial)?;
    if count == 0 {
        bail!("the source package {package} has no captures");
    }
    fs::rename(partial, directory.join(package))?;
    Ok(count)
}

/// Unpacks the captures of an archive, and nothing else.
fn unpack(archive: &Path, into: &Path) -> Result<()> {
    let list = sh::output(Command::new("tar").arg("-tf").arg(archive))?;
    let wanted: Vec<&str> = list.lines().filter(|name| ENDINGS.iter().any(|ending| name.ends_with(ending))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let names = into.with_extension("names");
    fs::write(&names, wanted.join("\n") + "\n")?;
    sh::output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into).arg("-T").arg(&names))?;
    Ok(())
}

fn captures(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { captures(&entry.path())? } else { 1 };
    }
    Ok(count)
}
