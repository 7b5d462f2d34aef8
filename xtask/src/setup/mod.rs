//! `cargo xtask setup`, and the set-up that each job runs first. It installs only what the job uses, from the
//! distribution's packages where possible. Everything that is present is skipped, so a second run is quick, and an
//! interrupted run is continued. An optional package that cannot be installed is reported, and the job continues.

mod corpora;
mod disk_space;
mod ebpf;
mod lock;
mod packages;
mod refused;

mod scapy;
mod tools;

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::progress::{self, Progress};
use crate::{cargo, sh, toolchain};
use lock::Lock;
use packages::Manager;
pub use refused::Missing;
pub use tools::Purpose;
use tools::Tool;

/// Installs what all jobs need.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = args.first() {
        bail!("setup takes no arguments, but got `{unknown}`");
    }
    let began = Instant::now();
    let missing = {
        let _progress = Progress::start(cargo::RELEASE_TIME / 4);
        refused::forget();
        let setup = begin(&[Purpose::Build, Purpose::Test, Purpose::Machines, Purpose::Bench])?;
        setup.finish()?
    };
    corpora::ensure(true)?;
    scapy::ensure(true)?;
    missing.iter().for_each(|missing| println!("    missing: {missing}"));
    println!("Set-up is complete ({:.1} s).", began.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// A set-up in progress: the eBPF compiler and linker may still be being installed on another thread.
#[must_use = "`finish` returns its errors"]
pub struct Pending {
    missing: Vec<Missing>,
    ebpf: Option<JoinHandle<Result<()>>>,
}

/// Installs what jobs with these purposes use. The eBPF compiler and linker are installed on another thread while the
/// job continues; crafter's build script waits for them.
///
/// # Errors
/// If something that every build needs cannot be installed; the error says what to do.
pub fn begin(purposes: &[Purpose]) -> Result<Pending> {
    if let Some(caveat) = caveat(env::consts::ARCH)? {
        sh::note(&caveat);
    }
    if tools::missing(purposes).is_empty() && ebpf::present() {
        return Ok(Pending { missing: Vec::new(), ebpf: None });
    }
    if let Some(home) = env::var("HOME").ok().filter(|home| sh::is_root() && is_of_another(home.as_ref())) {
        sh::note(&format!(
            "running as root in another user's home directory: files made in {home} will belong to root;"
        ));
        sh::note("to avoid that, run this command without sudo: set-up calls sudo itself where it needs root");
    }
    let lock = Lock::take()?;
    // Check again: another set-up may have installed it meanwhile.
    let (tools, ebpf) = (tools::missing(purposes), ebpf::present());
    disk_space::check(purposes, !ebpf)?;
    let Some(manager) = Manager::of_host() else {
        explain(&tools, ebpf);
        if !ebpf || tools.iter().any(|tool| tool.purpose == Purpose::Build) {
            bail!("set-up supports only apt and dnf: install the packages listed above, then try again");
        }
        return Ok(Pending { missing: tools.iter().map(Missing::unknown_host).collect(), ebpf: None });
    };
    if tools.iter().any(|tool| tool.purpose == Purpose::Build) {
        sh::become_root()?;
    } else if let Err(error) = sh::become_root() {
        // Building needs no peers, and the linker needs no packages if LLVM is installed.
        sh::note(&format!("continuing without packages: {error:#}"));
    }
    // Download crates while packages are installed. The build reports any error.
    let fetch = sh::cargo().args(["fetch", "--locked", "--quiet"]).stderr(Stdio::null()).spawn();
    let missing = install(manager, &tools)?;
    if let Ok(mut fetch) = fetch {
        fetch.wait()?;
    }
    let ebpf = (!ebpf).then(|| {
        std::thread::spawn(move || {
            let installed = ebpf::install(manager);
            progress::lane("ebpf", "");
            if installed.is_err() {
                cargo::cancel();
            }
            drop(lock);
            installed
        })
    });
    Ok(Pending { missing, ebpf })
}

impl Pending {
    /// Waits until the eBPF compiler and linker are installed; returns the peers that could not be installed.
    ///
    /// # Errors
    /// If no eBPF compiler or linker could be installed.
    pub fn finish(self) -> Result<Vec<Missing>> {
        if let Some(ebpf) = self.ebpf {
            ebpf.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(self.missing)
    }

    /// Like [`Pending::finish`], for a job that built something meanwhile. If both failed, set-up's error is the cause.
    ///
    /// # Errors
    /// The error of set-up, otherwise the error of the build.
    pub fn finish_with<T>(self, built: Result<T>) -> Result<(T, Vec<Missing>)> {
        let missing = self.finish()?;
        Ok((built?, missing))
    }
}

/// Installs the packages of these tools; returns the tools whose packages could not be installed.
fn install(manager: Manager, tools: &[Tool]) -> Result<Vec<Missing>> {
    // Jobs do not retry packages that failed within the last day; `setup` does.
    let (known, tools): (Vec<&Tool>, Vec<&Tool>) = tools.iter().partition(|tool| refused::read(tool).is_some());
    let mut missing: Vec<Missing> = known.into_iter().filter_map(refused::read).collect();
    if tools.is_empty() {
        return Ok(missing);
    }
    let commands: Vec<&str> = tools.iter().map(|tool| tool.command).collect();
    sh::step(&format!("Tools: {}", commands.join(", ")));
    progress::lane("setup", "installing packages");
    // Build tools first: a peer that cannot be installed must not prevent the build.
    let (build, peers): (Vec<&Tool>, Vec<&Tool>) = tools.iter().partition(|tool| tool.purpose == Purpose::Build);
    if let Some(found) = attempt(manager, &build)?.first() {
        bail!("{found}");
    }
    match attempt(manager, &peers) {
        Ok(refused) => {
            for found in &refused {
                sh::note(&found.to_string());
                if let Err(error) = refused::write(found) {
                    sh::note(&format!("the next run tries to install it again: {error:#}"));
                }
            }
            missing.extend(refused);
        }
        // Without a network, or after a failed installation: not recorded, since the next run may succeed.
        Err(error) => {
            sh::note(&format!("continuing without: {error:#}"));
            let absent = peers.into_iter().filter(|tool| !tool.is_there());
            missing.extend(absent.map(|tool| Missing::failed(tool, manager.package(tool), &error)));
        }
    }
    progress::lane("setup", "");
    Ok(missing)
}

/// Installs the packages of these tools; returns the tools that are missing afterwards.
fn attempt(manager: Manager, tools: &[&Tool]) -> Result<Vec<Missing>> {
    let mut packages: Vec<&str> = tools.iter().map(|tool| manager.package(tool)).collect();
    packages.sort_unstable();
    packages.dedup();
    let refusals = if packages.is_empty() { Vec::new() } else { manager.install(&packages)? };
    let absent = tools.iter().filter(|tool| !tool.is_there());
    let missing = absent.map(|tool| match refusals.iter().find(|refusal| refusal.package == manager.package(tool)) {
        Some(refusal) => Missing::refused(tool, refusal),
        None => Missing::incomplete(tool, manager.package(tool)),
    });
    Ok(missing.collect())
}

/// Installs a package that has one name on all distributions.
///
/// # Errors
/// If it cannot be installed; the error says why, and what to do.
pub fn require(package: &str) -> Result<()> {
    let Some(manager) = Manager::of_host() else {
        bail!("{package} is not installed, and set-up supports only apt and dnf: install {package}, then try again");
    };
    let _lock = Lock::take()?;
    sh::step(&format!("Packages: {package}"));
    manager.require(&[package])
}

/// Tries to install the system's QEMU; returns whether it is installed. Without it, `vm::emulator` unpacks one.
pub fn system_qemu() -> bool {
    let attempt = || -> Result<()> {
        if let Some(manager) = Manager::of_host().filter(|_| !tools::QEMU.is_there()) {
            let _lock = Lock::take()?;
            install(manager, &[tools::QEMU])?;
        }
        Ok(())
    };
    if let Err(error) = attempt() {
        sh::note(&format!("the system's QEMU: {error:#}"));
    }
    tools::QEMU.is_there()
}

/// A warning for architectures on which crafter is not tested.
///
/// # Errors
/// On an architecture that crafter does not support.
fn caveat(architecture: &str) -> Result<Option<String>> {
    match architecture {
        "x86_64" => Ok(None),
        "aarch64" => Ok(Some("this is an arm64 machine: crafter is tested on x86-64 only; continuing".into())),
        other => bail!("crafter runs on x86-64 (and, untested, on arm64), not on {other}"),
    }
}

/// Whether a home directory exists and does not belong to root.
fn is_of_another(home: &Path) -> bool {
    std::fs::metadata(home).is_ok_and(|metadata| metadata.uid() != 0)
}

/// Downloads the captures that tests read; without them, those tests are reported as not run.
pub fn ensure_corpora(again: bool) {
    if let Err(error) = corpora::ensure(again) {
        println!("    continuing without: {error:#}");
    }
}

/// The directory of the captures.
pub fn corpora() -> Result<PathBuf> {
    corpora::directory()
}

/// Updates the Python packages that tests use; without them, those tests use Debian's Scapy.
pub fn ensure_scapy(again: bool) {
    if let Err(error) = scapy::ensure(again) {
        println!("    continuing without: {error:#}");
    }
}

/// Test data that could not be downloaded: the tests that do not run without it, and the reason.
pub fn missing_data() -> Vec<(String, String)> {
    let corpora = corpora::missing().into_iter();
    let mut missing: Vec<(String, String)> = corpora
        .map(|(package, why)| (format!("the tests on captures and expressions of the source package {package}"), why))
        .collect();
    missing.extend(scapy::missing().map(|why| ("the tests of crafter-scapy with PyPI's Scapy".to_owned(), why)));
    missing
}

/// The directory of the Python packages; `None` if they are not installed.
pub fn scapy_packages() -> Option<PathBuf> {
    scapy::packages()
}

/// Lists what is missing on a host whose package manager set-up does not support.
fn explain(tools: &[Tool], ebpf: bool) {
    println!("Missing on this host:");
    for tool in tools {
        let Tool { command, debian, fedora, without, .. } = tool;
        println!("  {command} (package {debian} of Debian, {fedora} of Fedora); without it: {without}");
    }
    if !ebpf {
        println!("  an eBPF compiler and linker of one LLVM version:");
        println!("    rustup toolchain install nightly --profile minimal --component rust-src");
        println!("    LLVM's development files, in the version that `rustc +nightly -vV` says,");
        println!(
            "    cargo install bpf-linker --version {} --no-default-features \
             --features llvm-<version> --locked",
            toolchain::BPF_LINKER_VERSION
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_directory_of_another_user_is_detected() {
        let own = env::temp_dir().join(format!("xtask-home-{}", std::process::id()));
        std::fs::create_dir(&own).unwrap();
        let is_root = sh::is_root();
        assert_eq!(is_of_another(&own), !is_root);
        if is_root {
            std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
            assert!(is_of_another(&own));
        }
        std::fs::remove_dir(&own).unwrap();
        assert!(!is_of_another(&own), "a missing directory");
    }

    #[test]
    fn unsupported_architectures_are_refused() {
        assert_eq!(caveat("x86_64").unwrap(), None);
        assert!(caveat("aarch64").unwrap().unwrap().contains("tested on x86-64 only"));
        for other in ["riscv64", "s390x", "arm"] {
            let sentence = caveat(other).unwrap_err().to_string();
            assert!(sentence.ends_with(&format!("not on {other}")), "{sentence}");
        }
    }
}
