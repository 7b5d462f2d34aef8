//! Real captures for the tests: the test data in the source packages of tcpdump and Scapy. They are downloaded by
//! apt-get with private lists and a private cache, so that the host's apt is unchanged.

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

/// Archives with source packages, by the `Origin` in their release files.
const ORIGINS: [&str; 3] = ["Debian", "Ubuntu", "Raspbian"];

/// File name endings of captures.
const ENDINGS: [&str; 6] = [".pcap", ".pcapng", ".cap", ".pcap.gz", ".pcapng.gz", ".cap.gz"];

/// The directory of the captures, with a folder for each package.
pub fn directory() -> Result<PathBuf> {
    Ok(toolchain::data_directory().context("neither HOME nor XDG_DATA_HOME is set")?.join("corpora"))
}

/// Downloads missing captures; packages that failed before only if `again`. For a package that cannot be downloaded, a
/// note with the reason is written, from which the tests are reported as not run.
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
                println!("    continuing without the captures of {package}; their tests will not run: {error}");
                println!("    run `cargo xtask setup` again when the archive can be reached, or put captures into");
                println!("    {}", directory.join(package).display());
                fs::write(note(package), error + "\n")?;
            }
        }
    }
    Ok(fs::remove_dir_all(work)?)
}

/// Packages whose captures could not be downloaded, and the reasons.
pub fn missing() -> Vec<(&'static str, String)> {
    let note = |package: &str| fs::read_to_string(directory().ok()?.join(format!("{package}.missing"))).ok();
    CORPORA.into_iter().filter_map(|package| Some((package, note(package)?.trim().to_owned()))).collect()
}

/// apt-get with up-to-date lists of source packages.
fn apt(work: &Path) -> Result<Apt> {
    if Manager::of_host() != Some(Manager::Apt) {
        bail!("captures are downloaded by apt-get, which is not installed");
    }
    let apt = Apt::new(work)?;
    apt.update()?;
    Ok(apt)
}

/// apt-get with source packages and with private lists and cache.
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
            bail!("apt's sources have no archive of {}", ORIGINS.join(", "));
        }
        fs::File::create(&list)?.write_all(sources.as_bytes())?;
        let mut options = vec![
            format!("Dir::State::lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
        ];
        if sh::is_root() {
            // apt's sandbox user cannot write into root's directories.
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
        println!("    updating private lists of source packages");
        if let Err(error) = sh::run_quietly(self.command().arg("update")) {
            // The other archives may suffice.
            println!("    continuing with the existing lists: {error:#}");
        }
        Ok(())
    }
}

/// `deb-src` lines for the host's archives.
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

/// The keyring in the sources file of an entry `FILE:NUMBER`; `None`: apt's default keyrings.
fn signed_by(entry: &str) -> Option<String> {
    let (file, _) = entry.rsplit_once(':')?;
    let text = fs::read_to_string(file).ok()?;
    let (_, behind) = text.split_once("Signed-By:").or_else(|| text.split_once("signed-by="))?;
    let key = behind.trim_start_matches(' ').split([' ', ']', '\n']).next()?;
    key.starts_with('/').then(|| key.to_owned())
}

/// Downloads one package and unpacks its captures; returns their number.
fn fetch(apt: &Apt, package: &str, work: &Path, directory: &Path) -> Result<usize> {
    let folder = work.join(package);
    fs::create_dir(&folder)?;
    let mut source = apt.command();
    source.args(["source", "--download-only", package]).current_dir(&folder);
    let output = source.output().context("apt-get does not start")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let refused = said.lines().find(|line| line.starts_with("E:")).unwrap_or("no reason");
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

/// Unpacks only the captures of an archive.
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
