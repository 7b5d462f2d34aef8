//! Real captures for the tests, and Scapy's test files, whose expressions crafter must build: the test data in the source
//! packages of tcpdump and Scapy. They are downloaded by apt-get with private lists and a private cache, so that the
//! host's apt is unchanged. Of each package the newest version is taken that an archive still has.

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

/// File name ending of Scapy's test files.
const EXPRESSIONS: &str = ".uts";

/// Debian's releases that have newer packages than the host's, the newest first.
const NEWER: [&str; 2] = ["sid", "trixie"];

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
        .filter(|package| !is_complete(&directory, package) && (again || !note(package).exists()))
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

/// Whether a package was downloaded; an earlier set-up took only the captures of Scapy.
fn is_complete(directory: &Path, package: &str) -> bool {
    let folder = directory.join(package);
    folder.is_dir() && (package != "scapy" || count(&folder, &|name| name.ends_with(EXPRESSIONS)).is_ok_and(|n| n > 0))
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
        let newer = NEWER.into_iter().filter(|_| origin == "Debian" && component == "main");
        for release in newer.chain([release]) {
            // The archive of security updates has no newer releases.
            let source = format!("deb-src {signed}{uri} {release} {component}\n");
            if !sources.contains(&source) && (!uri.contains("security") || release.contains("security")) {
                sources += &source;
            }
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
    let mut refused = "no archive has it".to_owned();
    for version in versions(apt, package)? {
        let mut source = apt.command();
        source.args(["source", "--download-only", &format!("{package}={version}")]).current_dir(&folder);
        let output = source.output().context("apt-get does not start")?;
        if output.status.success() {
            refused.clear();
            println!("    {package} {version}");
            break;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = said.lines().find(|line| line.starts_with("E:")).unwrap_or("no reason");
        refused = reason.trim_start_matches("E: ").to_owned();
        // What was downloaded of it.
        fs::remove_dir_all(&folder)?;
        fs::create_dir(&folder)?;
    }
    if !refused.is_empty() {
        bail!("the source package {package} cannot be fetched: {refused}");
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
    let captures = count(&partial, &|name| !name.ends_with(EXPRESSIONS))?;
    if captures == 0 {
        bail!("the source package {package} has no captures");
    }
    if directory.join(package).exists() {
        fs::remove_dir_all(directory.join(package))?;
    }
    fs::rename(partial, directory.join(package))?;
    Ok(captures)
}

/// The versions of a source package, the newest first.
fn versions(apt: &Apt, package: &str) -> Result<Vec<String>> {
    let mut query = Command::new("apt-cache");
    query.env("LC_ALL", "C");
    for option in &apt.options {
        query.args(["-o", option]);
    }
    let shown = sh::output(query.args(["showsrc", "--only-source", package]))?;
    let mut versions: Vec<String> =
        shown.lines().filter_map(|line| line.strip_prefix("Version: ")).map(str::to_owned).collect();
    let is_newer = |a: &str, b: &str| {
        let compared = Command::new("dpkg").args(["--compare-versions", a, "gt", b]).status();
        compared.is_ok_and(|status| status.success())
    };
    versions.sort_by(|a, b| is_newer(b, a).cmp(&is_newer(a, b)));
    versions.dedup();
    Ok(versions)
}

/// Unpacks only the captures and test files of an archive.
fn unpack(archive: &Path, into: &Path) -> Result<()> {
    let list = sh::output(Command::new("tar").arg("-tf").arg(archive))?;
    let wanted: Vec<&str> =
        list.lines().filter(|name| ENDINGS.iter().chain([&EXPRESSIONS]).any(|ending| name.ends_with(ending))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let names = into.with_extension("names");
    fs::write(&names, wanted.join("\n") + "\n")?;
    sh::output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into).arg("-T").arg(&names))?;
    Ok(())
}

/// The number of files in a folder with these names.
fn count(folder: &Path, is_counted: &dyn Fn(&str) -> bool) -> Result<usize> {
    let mut counted = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        counted += if entry.file_type()?.is_dir() {
            count(&entry.path(), is_counted)?
        } else {
            usize::from(is_counted(&entry.file_name().to_string_lossy()))
        };
    }
    Ok(counted)
}
