//! The kernels of the virtual machines: downloaded from Debian, unpacked, and kept in `target/vm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::cpio::Entry;
use super::files::Files;
use crate::sh;

/// Default kernels: those of Debian 12 and of its security updates.
pub const DEFAULT: [&str; 2] = ["6.1", "6.12"];

/// Suites with a series of kernels; the last row is for all other series and for `newest`.
const SUITES: [(&str, &[&str], &str); 3] = [
    ("5.10", &["bullseye", "bullseye-security"], "bullseye"),
    ("6.1 6.12", &["bookworm", "bookworm-security"], "bookworm"),
    ("", &["trixie", "trixie-security", "trixie-backports", "sid"], "newest"),
];

/// The oldest kernel that crafter supports (`OLDEST_KERNEL` in its sources).
const OLDEST: (u32, u32) = (5, 18);

/// Directories of kernel modules that are copied, with their dependencies.
const MODULES: [&str; 5] =
    ["kernel/net/", "kernel/drivers/net/", "kernel/crypto/", "kernel/lib/", "kernel/arch/x86/crypto/"];

/// Subdirectories that are not copied, since virtual machines lack the hardware.
const NO_MODULES: [&str; 5] = [
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/wireless/",
    "kernel/drivers/net/phy/",
    "kernel/drivers/net/usb/",
    "kernel/net/bluetooth/",
];

/// Series that are emulated with two processors. Under QEMU 7.2's multi-threaded TCG, one processor can execute kernel
/// code that the other has only half patched, and kernels patch code whenever a hook is attached or detached. The
/// result is an oops at `int3`: often in 6.16 and later, rarely in 6.12, where the remaining programs are then run on
/// one processor. Single-threaded TCG is no alternative: each processor waits up to 0.1 s for the other.
const OF_TWO_PROCESSORS: [&str; 3] = ["5.10", "6.1", "6.12"];

/// What to do if Debian's kernels are not available.
const LOCAL: &str = "a local one is named by `cargo xtask vm-test --kernel /path/to/bzImage --modules \
    /path/to/lib/modules/VERSION`";

/// One kernel, ready to boot.
pub struct Kernel {
    /// The name on the command line.
    pub name: String,
    /// The compressed image.
    pub image: PathBuf,
    /// The directory with `modules.dep`; `None` if everything is built in.
    modules: Option<PathBuf>,
}

impl Kernel {
    /// Finds or downloads a kernel: `6.1`, `newest`, or the path of an image.
    pub fn find(directory: &Path, wanted: &str, modules: Option<&Path>) -> Result<Self> {
        if wanted.contains('/') {
            let modules = modules.map(|path| fs::canonicalize(path).with_context(|| path.display().to_string()));
            let image = fs::canonicalize(wanted).with_context(|| format!("there is no kernel {wanted}"))?;
            return Ok(Self { name: wanted.to_owned(), image, modules: modules.transpose()? });
        }
        let suites = SUITES.iter().find(|(series, ..)| series.split(' ').any(|one| one == wanted));
        let (_, suites, name) = suites.unwrap_or(&SUITES[SUITES.len() - 1]);
        let kept = directory.join("kernels");
        let package = match Apt::open(directory, name, suites) {
            Ok(apt) => {
                let package = newest(apt.packages("-cloud-amd64")?, wanted)
                    .with_context(|| format!("Debian has no kernel {wanted} for clouds in {}", suites.join(", ")))?;
                if !kept.join(&package).join("complete").is_file() {
                    sh::step(&format!("Kernel {wanted}"));
                    fetch(&apt, &package, &kept)?;
                }
                package
            }
            // Without the mirror, use a kernel that was downloaded before.
            Err(error) => {
                let complete = |name: &String| kept.join(name).join("complete").is_file();
                let there = fs::read_dir(&kept).into_iter().flatten().flatten();
                let there = there.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(complete);
                let Some(package) = newest(there.collect(), wanted).filter(|_| wanted != "newest") else {
                    return Err(error).with_context(|| format!("no kernel {wanted} ({LOCAL})"));
                };
                println!("    continuing with {package}: {error:#}");
                package
            }
        };
        Self::unpacked(wanted, &kept.join(package))
    }

    fn unpacked(name: &str, directory: &Path) -> Result<Self> {
        // Newer packages install modules below /usr.
        let modules = ["lib/modules", "usr/lib/modules"].map(|path| directory.join(path));
        let modules = modules.iter().find(|path| path.is_dir()).context("a kernel package without modules")?;
        let modules = entry(modules, "")?;
        let image = entry(&directory.join("boot"), "vmlinuz-").or_else(|_| entry(&modules, "vmlinuz"))?;
        Ok(Self { name: name.to_owned(), image, modules: Some(modules) })
    }

    /// The number of processors of an emulated machine.
    pub fn processors(&self) -> u32 {
        if OF_TWO_PROCESSORS.contains(&self.name.as_str()) { 2 } else { 1 }
    }

    /// Whether crafter does not support the kernel, by its series.
    pub fn is_too_old(&self) -> bool {
        let mut numbers = self.name.split('.').map_while(|number| number.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(u32::MAX));
        version < OLDEST
    }

    /// Adds its modules to the file system, at the path that `modprobe` reads.
    pub fn add_modules(&self, files: &mut Files) -> Result<()> {
        let Some(modules) = &self.modules else { return Ok(()) };
        let dependencies = fs::read_to_string(modules.join("modules.dep"))
            .with_context(|| format!("{}: no modules.dep", modules.display()))?;
        let release = modules.file_name().context("modules without a release")?;
        let to = fs::canonicalize("/lib")?.join("modules").join(release);
        for path in needed(&dependencies) {
            files.put(&to.join(&path), Entry::Copy(modules.join(&path)));
        }
        for index in fs::read_dir(modules)?.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            let name = index.file_name().unwrap_or_default();
            files.put(&to.join(name), Entry::Copy(index.clone()));
        }
        Ok(())
    }
}

/// The newest package of a series (`6.1`), or of all series (`newest`).
fn newest(packages: Vec<String>, wanted: &str) -> Option<String> {
    let version = |package: &String| -> Vec<u32> {
        let digits = package.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
        digits.map_while(|number| number.parse().ok()).collect()
    };
    let suits = |package: &String| {
        let Some(rest) = package.strip_prefix("linux-image-") else { return false };
        let Some(rest) = rest.strip_suffix("-cloud-amd64") else { return false };
        // Skip meta-packages (6.12) and backports to other suites (6.1.0-0.deb11).
        let numbered = rest.split(['.', '-', '+']).take(3).filter(|part| part.parse::<u32>().is_ok()).count() == 3;
        let same =
            wanted == "newest" || rest.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(['.', '-', '+']));
        numbered && same && !rest.contains("-0.")
    };
    packages.into_iter().filter(suits).max_by_key(version)
}

/// Downloads and unpacks a kernel, and creates its `modules.dep`, as its installation would.
fn fetch(apt: &Apt, package: &str, kept: &Path) -> Result<()> {
    let into = kept.join(package);
    if into.exists() {
        fs::remove_dir_all(&into)?;
    }
    fs::create_dir_all(&into)?;
    let unpack = |package: &str| -> Result<()> {
        let file = apt.download(package, kept)?;
        sh::run_quietly(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&into))?;
        Ok(fs::remove_file(file)?)
    };
    unpack(package)?;
    if !into.join("boot").is_dir() {
        // Since about 7.0 the package is empty and depends on these two.
        let version = package.trim_start_matches("linux-image-");
        unpack(&format!("linux-binary-{version}"))?;
        unpack(&format!("linux-modules-{version}"))?;
    }
    for base in [into.clone(), into.join("usr")] {
        if base.join("lib/modules").is_dir() {
            let release = entry(&base.join("lib/modules"), "")?;
            let release = release.file_name().unwrap_or_default().to_owned();
            let depmod = sh::find("depmod").context("depmod is missing (`cargo xtask setup` installs it)")?;
            sh::run_quietly(Command::new(depmod).arg("-b").arg(&base).arg(release))?;
        }
    }
    fs::write(into.join("complete"), "")?;
    Ok(())
}

/// The entry of a directory whose name begins with `prefix`.
fn entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let found = paths.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    match found {
        Some(path) => Ok(path),
        None => bail!("there is no {prefix}* in {}", directory.display()),
    }
}

/// The modules of `modules.dep` that are in [`MODULES`], with their dependencies.
fn needed(dependencies: &str) -> Vec<String> {
    let wanted = |path: &str| {
        MODULES.iter().any(|folder| path.starts_with(folder))
            && !NO_MODULES.iter().any(|folder| path.starts_with(folder))
    };
    let mut paths: Vec<String> = Vec::new();
    for line in dependencies.lines() {
        // modules.dep lists indirect dependencies, too.
        if let Some((path, others)) = line.split_once(':').filter(|(path, _)| wanted(path)) {
            paths.push(path.to_owned());
            paths.extend(others.split_whitespace().map(str::to_owned));
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_package_of_a_series_is_chosen() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-0.deb11.60-cloud-amd64",
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.118+deb12-cloud-amd64-dbg",
            "linux-image-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
        ];
        let names = || names.map(str::to_owned).to_vec();
        assert_eq!(newest(names(), "6.1").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(names(), "6.12").as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(names(), "newest").as_deref(), Some("linux-image-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(names(), "7"), Some("linux-image-7.3.4+deb13-cloud-amd64".into()));
        assert_eq!(newest(names(), "5.10"), None);
    }

    #[test]
    fn modules_are_copied_with_their_dependencies() {
        let text = "kernel/net/sched/cls_bpf.ko:\nkernel/net/a.ko.xz: kernel/fs/b.ko.xz\nkernel/fs/b.ko.xz:\n\
                    kernel/drivers/net/ethernet/x.ko: kernel/drivers/y.ko\nkernel/sound/z.ko:\n";
        assert_eq!(needed(text), ["kernel/fs/b.ko.xz", "kernel/net/a.ko.xz", "kernel/net/sched/cls_bpf.ko"]);
    }
}
