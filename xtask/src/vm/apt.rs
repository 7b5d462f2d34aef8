//! Kernels from Debian's packages by apt, with lists and a cache of its own: nothing of the host's changes, nothing is
//! installed, and suites other than the host's can be read. The mirror is the one that the host uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::sh;

/// What Debian's archive is signed with (package `debian-archive-keyring`).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists older than that are brought up to date.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// What to do if it cannot be had.
const ADVICE: &str = "kernels for virtual machines come from Debian's mirror, by apt: see that `apt-get update` works \
    here, or name a local one by `cargo xtask vm-test --kernel /path/to/bzImage --modules /path/to/lib/modules/VERSION`";

/// One private configuration of apt.
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// With these suites, in a folder below `directory`; a suite that ends with `-security` is Debian's of that kind.
    pub fn open(directory: &Path, name: &str, suites: &[&str]) -> Result<Self> {
        let directory = directory.join("apt").join(name);
        for folder in ["state/lists/partial", "cache/archives/partial"] {
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
            sh::run_quietly(apt.command("apt-get").args(["-qq", "update"])).context(ADVICE)?;
            fs::write(apt.stamp(), "")?;
        }
        Ok(apt)
    }

    /// Names of packages that have `part` in them.
    pub fn packages(&self, part: &str) -> Result<Vec<String>> {
        let names = sh::output(self.command("apt-cache").arg("pkgnames").arg("linux-image-"))?;
        Ok(names.lines().filter(|name| name.contains(part)).map(str::to_owned).collect())
    }

    /// Downloads a package, verified, into `into`; where it is.
    pub fn download(&self, package: &str, into: &Path) -> Result<PathBuf> {
        println!("    downloading {package}");
        fs::create_dir_all(into)?;
        sh::run_quietly(self.command("apt-get").args(["-qq", "download", package]).current_dir(into))
            .context(ADVICE)?;
        let prefix = format!("{package}_");
        let mut found = fs::read_dir(into)?.flatten().map(|entry| entry.path());
        let mut is_it =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        found.find(&mut is_it).with_context(|| format!("apt-get has downloaded no {package}"))
    }

    fn stamp(&self) -> PathBuf {
        self.directory.join("updated")
    }

    fn is_fresh(&self) -> bool {
        let age = fs::metadata(self.stamp())
            .and_then(|stamp| stamp.modified())
            .map(|then| SystemTime::now().duration_since(then).unwrap_or_default());
        age.is_ok_and(|age| age < LISTS_AGE)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, path) in [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "none"),
        ] {
            command.arg("-o").arg(format!("{name}={}", self.directory.join(path).display()));
        }
        for option in [
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false",
            // Root's apt would download as a user who may not look into here.
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

/// The mirrors of Debian and of its security updates that this host uses.
fn mirrors() -> Result<(String, String)> {
    if sh::find("apt-get").is_none() || !Path::new(KEYRING).is_file() {
        bail!("{ADVICE}");
    }
    let targets = ["indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"];
    let text = sh::output(Command::new("apt-get").args(targets))?;
    let of = |label: &str| text.lines().find_map(|line| Some(line.strip_suffix(label)?.trim().to_owned()));
    let main = of(" Debian").with_context(|| format!("this host's apt has no source of Debian's; {ADVICE}"))?;
    let security = of(" Debian-Security");
    // Where the host does without them: beside the other.
    let security = security.unwrap_or_else(|| format!("{}-security/", main.trim_end_matches('/')));
    Ok((main, security))
}
