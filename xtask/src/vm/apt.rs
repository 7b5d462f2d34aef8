//! Downloads Debian's packages of kernels and QEMU by apt with private lists and cache: the host's apt is unchanged,
//! nothing is installed, and suites other than the host's are available. The mirror is the host's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::sh;

/// The keyring of Debian's archive (package `debian-archive-keyring`).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists older than this are updated.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// What to do if a download fails.
const ADVICE: &str = "kernels and QEMU for virtual machines are downloaded from Debian's mirror, by apt: check that \
    `apt-get update` works";

/// A package to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name, without the version.
    pub name: String,
    /// The name of its file.
    pub file: String,
    /// The size of its file.
    pub bytes: u64,
}

/// Whether lists updated at `then` are still current. A time in the future means that the clock was wrong.
fn is_fresh(then: SystemTime, now: SystemTime) -> bool {
    now.duration_since(then).is_ok_and(|age| age < LISTS_AGE)
}

/// A private configuration of apt.
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Creates a configuration with these suites in a folder below `directory`. Suites that end with `-security` are
    /// on the mirror of security updates.
    pub fn open(directory: &Path, name: &str, suites: &[&str]) -> Result<Self> {
        let directory = directory.join("apt").join(name);
        for folder in ["state/lists/partial", "cache/archives/partial", "none"] {
            fs::create_dir_all(directory.join(folder)).with_context(|| format!("make {}", directory.display()))?;
        }
        let apt = Self { directory };
        let (main, security) = mirrors()?;
        let mut sources = String::new();
        for suite in suites {
            let mirror = if suite.ends_with("-security") { &security } else { &main };
            sources += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        }
        let path = apt.directory.join("sources.list");
        let same = fs::read_to_string(&path).is_ok_and(|text| text == sources);
        fs::write(&path, &sources)?;
        fs::write(apt.directory.join("status"), "")?;
        if !same || !apt.is_fresh() {
            sh::step(&format!("Package lists of {}", suites.join(", ")));
            // If the update fails, the next run must not mistake old lists for current ones.
            let _ = fs::remove_file(apt.stamp());
            sh::run_quietly(apt.command("apt-get").args(["-qq", "update"])).context(ADVICE)?;
            fs::write(apt.stamp(), "")?;
        }
        Ok(apt)
    }

    /// Names of kernel packages that contain `part`.
    pub fn packages(&self, part: &str) -> Result<Vec<String>> {
        let names = self.ask("apt-cache", &["pkgnames", "linux-image-"])?;
        Ok(names.lines().filter(|name| name.contains(part)).map(str::to_owned).collect())
    }

    /// Downloads and verifies a package; returns its path in `into`.
    pub fn download(&self, package: &str, into: &Path) -> Result<PathBuf> {
        println!("    downloading {package}");
        fs::create_dir_all(into)?;
        sh::run_quietly(self.command("apt-get").args(["-qq", "download", package]).current_dir(into))
            .context(ADVICE)?;
        let prefix = format!("{package}_");
        let mut found = fs::read_dir(into)?.flatten().map(|entry| entry.path());
        let mut is_it =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        found.find(&mut is_it).with_context(|| format!("apt-get did not download {package}"))
    }

    /// A package with all its dependencies down to libc, as if nothing were installed.
    pub fn closure(&self, package: &str) -> Result<Vec<Package>> {
        let install = ["install", "-qq", "--print-uris", "--yes", "--no-install-recommends", package];
        let text = self.ask("apt-get", &install)?;
        let packages: Vec<Package> = text.lines().filter_map(package_of).collect();
        if packages.is_empty() {
            bail!("apt-get lists no packages for {package}: `{}`; {ADVICE}", text.trim());
        }
        Ok(packages)
    }

    /// Bytes that these packages take when unpacked.
    pub fn unpacked_bytes(&self, packages: &[Package]) -> Result<u64> {
        let mut show = vec!["show", "--no-all-versions"];
        show.extend(packages.iter().map(|package| package.name.as_str()));
        let text = self.ask("apt-cache", &show)?;
        let sizes = text.lines().filter_map(|line| line.strip_prefix("Installed-Size: ")?.trim().parse::<u64>().ok());
        // The field is in KiB (Debian Policy, section 5.6.20).
        Ok(sizes.sum::<u64>() * 1024)
    }

    /// Downloads and verifies packages into `into`. Existing files are not downloaded again.
    pub fn download_all(&self, packages: &[Package], into: &Path) -> Result<()> {
        fs::create_dir_all(into)?;
        let mut download = self.command("apt-get");
        download.args(["-qq", "download"]).args(packages.iter().map(|package| &package.name));
        sh::run_quietly(download.current_dir(into)).context(ADVICE)?;
        match packages.iter().find(|package| !into.join(&package.file).is_file()) {
            Some(missing) => bail!("apt-get did not download {}", missing.file),
            None => Ok(()),
        }
    }

    /// Returns the output of one of apt's programs. Errors omit the options of the private configuration.
    fn ask(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program).args(args).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("{program} does not start"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {} failed: {}; {ADVICE}", args.first().unwrap_or(&""), why.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn stamp(&self) -> PathBuf {
        self.directory.join("updated")
    }

    fn is_fresh(&self) -> bool {
        let then = fs::metadata(self.stamp()).and_then(|stamp| stamp.modified());
        then.is_ok_and(|then| is_fresh(then, SystemTime::now()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, path) in [
            ("Dir::State", "state"),
            // Subdirectories, too, since the host's configuration may set them.
            ("Dir::State::lists", "state/lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Cache::archives", "cache/archives"),
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "none"),
            // The host's preferences do not apply.
            ("Dir::Etc::preferences", "none/preferences"),
            ("Dir::Etc::preferencesparts", "none"),
        ] {
            command.arg("-o").arg(format!("{name}={}", self.directory.join(path).display()));
        }
        for option in [
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            // Otherwise a failed download of lists is only a warning, and the lists would count as updated.
            "APT::Update::Error-Mode=any",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false",
            // As root, apt would otherwise download as a user without access to this directory.
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
        ] {
            command.args(["-o", option]);
        }
        command.env("LC_ALL", "C");
        command
    }
}

/// Parses a line of `--print-uris`: `'URI' FILE BYTES HASH`.
fn package_of(line: &str) -> Option<Package> {
    let mut fields = line.strip_prefix('\'')?.split_once("' ")?.1.split(' ');
    let (file, bytes) = (fields.next()?, fields.next()?.parse().ok()?);
    let name = file.split_once('_')?.0;
    Some(Package { name: name.to_owned(), file: file.to_owned(), bytes })
}

/// The host's mirrors of Debian and of its security updates.
pub fn mirrors() -> Result<(String, String)> {
    if sh::find("apt-get").is_none() {
        bail!("apt-get is missing; {ADVICE}");
    }
    if !Path::new(KEYRING).is_file() {
        bail!("{KEYRING} is missing: install Debian's package debian-archive-keyring; {ADVICE}");
    }
    let targets = |options: &[&str]| {
        let format = ["--format", "$(REPO_URI) $(RELEASE) $(COMPONENT) $(LABEL)", "Created-By: Packages"];
        sh::output(Command::new("apt-get").arg("indextargets").args(options).args(format))
    };
    let found = match labelled(&targets(&[])?) {
        Some(found) => found,
        // `apt-get update` was never run, or the lists were removed, as in many containers.
        None => named(&targets(&["--no-release-info"])?)
            .with_context(|| format!("this host's apt has no source of Debian; {ADVICE}"))?,
    };
    let (main, security) = found;
    // Without a source of security updates: the usual path next to the main mirror.
    let security = security.unwrap_or_else(|| format!("{}-security/", main.trim_end_matches('/')));
    Ok((main, security))
}

/// Finds Debian's mirrors by the labels of their lists: `URI RELEASE COMPONENT LABEL`.
fn labelled(targets: &str) -> Option<(String, Option<String>)> {
    let of = |label: &str| {
        let mut lines = targets.lines().map(|line| line.splitn(4, ' ').collect::<Vec<_>>());
        lines.find_map(|fields| (fields.len() == 4 && fields[3].trim() == label).then(|| fields[0].to_owned()))
    };
    Some((of("Debian")?, of("Debian-Security")))
}

/// Finds Debian's mirrors by their addresses if there are no lists yet. A wrong guess fails the check of the signature.
fn named(targets: &str) -> Option<(String, Option<String>)> {
    let of = |security: bool| {
        let mut lines = targets.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.find_map(|fields| {
            let (uri, release, component) = (*fields.first()?, *fields.get(1)?, *fields.get(2)?);
            let address = uri.trim_end_matches('/');
            let debians = address.ends_with("/debian") || address.ends_with("/debian-security");
            // Debian's cloud images use mirror+file:/etc/apt/mirrors/debian.list.
            let debians = debians || (uri.starts_with("mirror+file:") && address.contains("/debian"));
            let secure = release.ends_with("-security") || release.ends_with("/updates");
            (debians && secure == security && component.ends_with("main")).then(|| uri.to_owned())
        })
    };
    Some((of(false)?, of(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_future_lists_are_updated() {
        let now = SystemTime::now();
        assert!(is_fresh(now, now) && is_fresh(now - LISTS_AGE / 2, now));
        assert!(!is_fresh(now - LISTS_AGE, now) && !is_fresh(now + LISTS_AGE / 2, now));
    }

    #[test]
    fn mirrors_are_found_with_and_without_lists() {
        let debian = "http://mirror.test/debian/".to_owned();
        let security = "http://mirror.test/debian-security/".to_owned();
        let with = "https://packages.test/apt/ stable main Somebody\nhttp://mirror.test/debian/ trixie main Debian\n\
                    http://mirror.test/debian/ trixie-backports main Debian Backports\n\
                    http://mirror.test/debian-security/ trixie-security main Debian-Security\n";
        assert_eq!(labelled(with), Some((debian.clone(), Some(security.clone()))));
        assert_eq!(labelled(""), None);
        let without = "https://docker.test/linux/debian/ trixie stable $(LABEL)\n\
                       https://packages.test/debian/13/prod/ trixie main $(LABEL)\n\
                       http://mirror.test/debian-security/ trixie-security main $(LABEL)\n\
                       http://mirror.test/debian/ trixie main $(LABEL)\n";
        assert_eq!(labelled(without), None);
        assert_eq!(named(without), Some((debian, Some(security))));
        let cloud = "mirror+file:/etc/apt/mirrors/debian.list/ trixie main $(LABEL)\n\
                     mirror+file:/etc/apt/mirrors/debian-security.list/ trixie-security main $(LABEL)\n";
        let list = |name: &str| format!("mirror+file:/etc/apt/mirrors/{name}.list/");
        assert_eq!(named(cloud), Some((list("debian"), Some(list("debian-security")))));
        assert_eq!(named("http://archive.test/ubuntu/ noble main $(LABEL)\n"), None);
    }

    #[test]
    fn output_of_print_uris_is_parsed() {
        let line = "'http://mirror.test/debian/pool/main/q/qemu/qemu-system-x86_7.2%2bdfsg-7_amd64.deb' \
                    qemu-system-x86_1%3a7.2+dfsg-7_amd64.deb 9281168 MD5Sum:0";
        let package = package_of(line).expect("a package");
        assert_eq!((package.name.as_str(), package.bytes), ("qemu-system-x86", 9_281_168));
        assert_eq!(package.file, "qemu-system-x86_1%3a7.2+dfsg-7_amd64.deb");
        assert_eq!(package_of("Reading package lists..."), None);
    }
}
