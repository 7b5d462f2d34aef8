//! The QEMU for the virtual machines: the system's, or Debian's packages unpacked into a private directory, for hosts
//! where apt refuses the package (a newer `qemu-utils` conflicts with it) or where nothing can be installed. The
//! unpacked QEMU runs with its own libraries and dynamic loader, independent of the host's libc, and replaces nothing
//! on the host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use crate::{sh, toolchain};

/// The program's name.
const COMMAND: &str = "qemu-system-x86_64";

/// Its Debian package.
const PACKAGE: &str = "qemu-system-x86";

/// Prefixes of packages that are needed only to install the others. All other dependencies are unpacked: an unneeded
/// library takes space, a missing one prevents the start.
const LEFT_OUT: [&str; 9] =
    ["adduser", "base-passwd", "debconf", "gcc-", "iso-codes", "libcap2-bin", "libpam-", "login.defs", "passwd"];

/// Library directories in packages from before and after the merge of / and /usr.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// Firmware directories: QEMU's own, the BIOS, and the boot code of network cards.
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// The file name of the dynamic loader.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Separates the name of an incomplete folder from the id of the process that fills it.
const PARTIAL: &str = ".partial-";

/// The last part of an error message: what to do.
const ADVICE: &str = "install Debian's qemu-system-x86, or another package with qemu-system-x86_64 in PATH";

/// A QEMU and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// Installed on the host.
    Installed(PathBuf),
    /// Unpacked into a private folder.
    Unpacked(Unpacked),
}

/// Packages unpacked below one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    root: PathBuf,
    loader: PathBuf,
}

/// The available QEMUs.
struct Offers {
    /// The installed program.
    installed: Option<PathBuf>,
    /// One unpacked by an earlier run.
    unpacked: Option<Unpacked>,
    /// The Debian release whose packages can be unpacked, or why that is not possible.
    release: Result<String, String>,
}

/// The QEMU to use.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Take(Emulator),
    /// Download and unpack the packages of this Debian release.
    Download(String),
    /// None, for this reason.
    Nothing(String),
}

/// Whether a QEMU is installed or unpacked.
pub fn is_present() -> bool {
    matches!(choose(Offers::look()), Choice::Take(_))
}

/// Returns the QEMU to use, and downloads one if there is none. `directory` contains apt's private lists.
///
/// # Errors
/// If no QEMU can be downloaded, or the unpacked one does not start.
pub fn ensure(directory: &Path) -> Result<Emulator> {
    match choose(Offers::look()) {
        Choice::Take(emulator) => {
            if let Emulator::Unpacked(unpacked) = &emulator {
                emulator.check().with_context(|| {
                    let root = unpacked.root.display();
                    format!(
                        "the QEMU in {root} does not start; remove that folder, and the next run downloads it again"
                    )
                })?;
            }
            Ok(emulator)
        }
        Choice::Download(release) => fetch(directory, &release, &cache()?)
            .context("no QEMU for the virtual machines: it is not installed, and Debian's packages cannot be unpacked"),
        Choice::Nothing(why) => bail!("no QEMU for the virtual machines: {why}; {ADVICE}"),
    }
}

impl Offers {
    fn look() -> Self {
        let release = release_of(&fs::read_to_string("/etc/os-release").unwrap_or_default(), std::env::consts::ARCH);
        let kept = release.as_ref().ok().and_then(|release| Some(cache().ok()?.join(release)));
        Self { installed: sh::find(COMMAND), unpacked: kept.and_then(|root| Unpacked::open(&root)), release }
    }
}

/// Chooses the installed QEMU, otherwise an unpacked one, otherwise a download.
fn choose(offers: Offers) -> Choice {
    match offers {
        Offers { installed: Some(program), .. } => Choice::Take(Emulator::Installed(program)),
        Offers { unpacked: Some(unpacked), .. } => Choice::Take(Emulator::Unpacked(unpacked)),
        Offers { release: Ok(release), .. } => Choice::Download(release),
        Offers { release: Err(why), .. } => Choice::Nothing(why),
    }
}

/// The Debian release of this host, from os-release(5).
fn release_of(os_release: &str, architecture: &str) -> Result<String, String> {
    if architecture != "x86_64" {
        return Err(format!(
            "{COMMAND} is not in PATH, and Debian's is unpacked on x86_64 only, not on {architecture}"
        ));
    }
    let field = |name: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(release)) if !release.is_empty() && !release.contains('/') => Ok(release),
        (id, _) => {
            let host = field("PRETTY_NAME").or(id.map(str::to_owned)).unwrap_or_else(|| "an unknown system".to_owned());
            Err(format!("{COMMAND} is not in PATH, and it can be unpacked only on Debian; this host is {host}"))
        }
    }
}

/// Where unpacked QEMUs are kept: in the user's data directory, so that they survive `cargo clean` and are shared by
/// clones.
fn cache() -> Result<PathBuf> {
    Ok(toolchain::data_directory().context("neither HOME nor XDG_DATA_HOME is set")?.join("qemu"))
}

impl Emulator {
    /// A description for output.
    pub fn describe(&self) -> String {
        match self {
            Self::Installed(program) => program.display().to_string(),
            Self::Unpacked(unpacked) => format!("Debian's packages, unpacked in {}", unpacked.root.display()),
        }
    }

    /// Adds the program to a command line, with the options for its libraries and firmware. Its arguments follow.
    pub fn add_to(&self, command: &mut Command) {
        match self {
            Self::Installed(program) => {
                command.arg(program);
            }
            Self::Unpacked(unpacked) => unpacked.add_to(command),
        }
    }

    /// Starts QEMU without running a machine, which fails if libraries, the TCG module or the BIOS are missing.
    fn check(&self) -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo quit | timeout 60 \"$@\"", "sh"]);
        self.add_to(&mut command);
        command.args(["-machine", "pc", "-accel", "tcg", "-S", "-nodefaults", "-no-user-config", "-nic", "none"]);
        sh::output(command.args(["-display", "none", "-monitor", "stdio"])).map(drop)
    }
}

impl Unpacked {
    /// Opens the QEMU in this folder, if there is one. A folder gets its final name only when it is complete.
    fn open(root: &Path) -> Option<Self> {
        let loader = LIBRARIES.iter().map(|folder| root.join(folder).join(LOADER)).find(|path| path.is_file())?;
        root.join("usr/bin").join(COMMAND).is_file().then(|| Self { root: root.to_owned(), loader })
    }

    fn add_to(&self, command: &mut Command) {
        let libraries = LIBRARIES.map(|folder| self.root.join(folder).display().to_string()).join(":");
        command.arg(&self.loader).args(["--library-path", &libraries]).arg(self.root.join("usr/bin").join(COMMAND));
        for folder in FIRMWARE {
            command.arg("-L").arg(self.root.join(folder));
        }
        // By default, QEMU looks for modules next to /proc/self/exe, which is the loader here.
        command.env("QEMU_MODULE_DIR", self.root.join(LIBRARIES[1]).join("qemu"));
    }
}

/// Downloads and unpacks QEMU's packages of a release, with all libraries.
fn fetch(directory: &Path, release: &str, cache: &Path) -> Result<Emulator> {
    sh::step("QEMU for the virtual machines: Debian's packages, unpacked without installing them");
    fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
    sweep(cache)?;
    let apt = Apt::open(directory, release, &[release, &format!("{release}-security")])?;
    let mut packages = apt.closure(PACKAGE)?;
    packages.retain(|package| !LEFT_OUT.iter().any(|prefix| package.name.starts_with(prefix)));
    let download: u64 = packages.iter().map(|package| package.bytes).sum();
    let unpacked = apt.unpacked_bytes(&packages)?;
    let into = cache.join(release);
    println!(
        "    {} packages: {} MB to download, {} MB unpacked in {}",
        packages.len(),
        megabytes(download),
        megabytes(unpacked),
        into.display()
    );
    if fs::metadata(directory)?.dev() == fs::metadata(cache)?.dev() {
        has_room(cache, download + unpacked)?;
    } else {
        has_room(directory, download)?;
        has_room(cache, unpacked)?;
    }

    let archives = directory.join("apt").join(release).join("qemu");
    apt.download_all(&packages, &archives)?;
    let partial = Partial(cache.join(format!("{release}{PARTIAL}{}", std::process::id())));
    fs::create_dir_all(&partial.0)?;
    for package in &packages {
        sh::run_quietly(Command::new("dpkg-deb").arg("-x").arg(archives.join(&package.file)).arg(&partial.0))
            .with_context(|| format!("unpack {}", package.file))?;
    }
    let trial = Unpacked::open(&partial.0).context("Debian's packages have no QEMU or no loader where they used to")?;
    Emulator::Unpacked(trial).check().context("the unpacked QEMU does not start")?;
    let emulator = publish(&partial, &into)?;
    fs::remove_dir_all(&archives)?;
    Ok(Emulator::Unpacked(emulator))
}

/// Gives a complete folder its final name.
fn publish(partial: &Partial, into: &Path) -> Result<Unpacked> {
    // Another run may have finished first; its result is equivalent.
    if let Some(there) = Unpacked::open(into) {
        return Ok(there);
    }
    if into.exists() {
        fs::remove_dir_all(into)?;
    }
    fs::rename(&partial.0, into).with_context(|| format!("rename {} to {}", partial.0.display(), into.display()))?;
    Unpacked::open(into).with_context(|| format!("{} is incomplete", into.display()))
}

/// A folder that is removed when dropped, unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes folders of runs that were killed while unpacking.
fn sweep(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.split_once(PARTIAL).map(|(_, process)| Path::new("/proc").join(process));
        if process.is_some_and(|process| !process.exists()) {
            // A dpkg-deb of that run may still write there; the next run removes the rest.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// Fails if the file system of `directory` has fewer free bytes.
fn has_room(directory: &Path, bytes: u64) -> Result<()> {
    let text = sh::output(Command::new("df").args(["-B1", "--output=avail"]).arg(directory))?;
    let free: u64 = text.lines().last().unwrap_or_default().trim().parse().context("cannot parse the output of df")?;
    if free < bytes {
        let (needed, there) = (megabytes(bytes), megabytes(free));
        bail!(
            "QEMU and its libraries take {needed} MB in {}, and {there} MB are free; free disk space there",
            directory.display()
        );
    }
    Ok(())
}

/// Rounded up.
fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_CODENAME=bookworm\n";
    const UBUNTU: &str = "PRETTY_NAME=\"Ubuntu 24.04 LTS\"\nID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";

    fn unpacked() -> Unpacked {
        Unpacked { root: "/cache/bookworm".into(), loader: "/cache/bookworm/lib/x86_64-linux-gnu".into() }
    }

    fn offers(installed: bool, kept: bool, release: Result<String, String>) -> Offers {
        Offers {
            installed: installed.then(|| "/usr/bin/qemu-system-x86_64".into()),
            unpacked: kept.then(unpacked),
            release,
        }
    }

    #[test]
    fn installed_qemu_precedes_the_unpacked_and_the_download() {
        let debian = || release_of(DEBIAN, "x86_64");
        let ubuntu = || release_of(UBUNTU, "x86_64");
        let system = || Choice::Take(Emulator::Installed("/usr/bin/qemu-system-x86_64".into()));
        assert_eq!(choose(offers(true, true, debian())), system());
        assert_eq!(choose(offers(true, false, ubuntu())), system());
        assert_eq!(choose(offers(false, true, debian())), Choice::Take(Emulator::Unpacked(unpacked())));
        assert_eq!(choose(offers(false, false, debian())), Choice::Download("bookworm".into()));
        let Choice::Nothing(why) = choose(offers(false, false, ubuntu())) else { panic!("Ubuntu has no Debian's") };
        assert!(why.contains("this host is Ubuntu 24.04 LTS"), "{why}");
        let Choice::Nothing(why) = choose(offers(false, false, release_of(DEBIAN, "aarch64"))) else {
            panic!("its loader does not run on another processor")
        };
        assert!(why.contains("not on aarch64"), "{why}");
        let Choice::Nothing(why) = choose(offers(false, false, release_of("", "x86_64"))) else { panic!("no release") };
        assert!(why.contains("an unknown system"), "{why}");
    }

    #[test]
    fn incomplete_unpacked_qemu_is_not_used() {
        let cache = std::env::temp_dir().join(format!("xtask-emulator-{}", std::process::id()));
        let fill = |root: &Path, paths: &[&str]| {
            for path in paths {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("below a folder")).expect("a folder");
                fs::write(path, "").expect("a file");
            }
        };
        let program = "usr/bin/qemu-system-x86_64";
        let whole = [program, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"];
        let root = cache.join("bookworm");
        // The folder of a killed run is complete but not renamed; a later run removes it.
        let killed = Partial(cache.join("bookworm.partial-none"));
        fill(&killed.0, &whole);
        assert_eq!(Unpacked::open(&root), None);
        // The folder of a running process is kept.
        let at_it = Partial(cache.join(format!("bookworm.partial-{}", std::process::id())));
        fill(&at_it.0, &whole);
        sweep(&cache).expect("swept");
        assert!(!killed.0.exists() && at_it.0.exists());
        // A folder with a missing file.
        fill(&root, &[program]);
        assert_eq!(Unpacked::open(&root), None);
        // Positive control: a complete folder replaces it.
        let published = publish(&at_it, &root).expect("whole");
        assert_eq!(Unpacked::open(&root), Some(published.clone()));
        assert_eq!(published.loader, root.join(whole[1]));
        assert!(!at_it.0.exists());
        fs::remove_dir_all(&cache).expect("removed");
    }

    #[test]
    fn unpacked_qemu_starts_with_its_own_loader_libraries_and_firmware() {
        let mut command = Command::new("timeout");
        Emulator::Unpacked(unpacked()).add_to(&mut command);
        let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(
            words[1..3],
            ["--library-path", "/cache/bookworm/lib/x86_64-linux-gnu:/cache/bookworm/usr/lib/x86_64-linux-gnu"]
        );
        assert_eq!(words[3], "/cache/bookworm/usr/bin/qemu-system-x86_64");
        assert_eq!(words[6..8], ["-L", "/cache/bookworm/usr/share/seabios"]);
        let variables: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(variables, ["QEMU_MODULE_DIR"], "none that setpriv and timeout would take for theirs");
    }

    #[test]
    fn missing_disk_space_is_reported_before_the_download() {
        let there = std::env::temp_dir();
        has_room(&there, 1).expect("a byte is free");
        let error = has_room(&there, u64::MAX).expect_err("nobody has so much").to_string();
        assert!(error.contains("MB are free; free disk space there"), "{error}");
    }
}
