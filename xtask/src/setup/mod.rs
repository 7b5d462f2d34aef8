//! `cargo xtask setup`, and the set-up that each job does by itself: only what that job uses, by the distribution's
//! packages where it has them. Looks first, so that it is quick when all is there, and goes on where an interrupted
//! run stopped. What is refused and not essential is reported, and the job goes on without.

mod corpora;
mod ebpf;
mod lock;
mod packages;
mod refused;
mod room;
mod scapy;
mod tools;

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

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
        bail!("setup takes no arguments, `{unknown}` is one too many");
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

/// A set-up whose longest part, the eBPF compiler and linker, may still be at work.
#[must_use = "its errors come with `finish`"]
pub struct Pending {
    missing: Vec<Missing>,
    ebpf: Option<JoinHandle<Result<()>>>,
}

/// Installs what a job of these purposes uses, but for the eBPF compiler and linker, which are installed beside what
/// the job does next: crafter's build script waits for them.
///
/// # Errors
/// If something is missing without which nothing can be built: a sentence that says what to do.
pub fn begin(purposes: &[Purpose]) -> Result<Pending> {
    if let Some(caveat) = caveat(env::consts::ARCH)? {
        sh::note(&caveat);
    }
    if tools::missing(purposes).is_empty() && ebpf::present() {
        return Ok(Pending { missing: Vec::new(), ebpf: None });
    }
    if let Some(home) = env::var("HOME").ok().filter(|home| sh::is_root() && is_of_another(home.as_ref())) {
        sh::note(&format!("as root in the home directory of another user: what is made below {home} will be root's;"));
        sh::note("to avoid that, run it without sudo: set-up calls sudo itself where it takes root");
    }
    let lock = Lock::take()?;
    // Once more: another set-up may have done it meanwhile.
    let (tools, ebpf) = (tools::missing(purposes), ebpf::present());
    room::check(purposes, !ebpf)?;
    let Some(manager) = Manager::of_host() else {
        explain(&tools, ebpf);
        if !ebpf || tools.iter().any(|tool| tool.purpose == Purpose::Build) {
            bail!("set-up knows apt and dnf only: install what is listed above, then try again");
        }
        return Ok(Pending { missing: tools.iter().map(Missing::unknown_host).collect(), ebpf: None });
    };
    if tools.iter().any(|tool| tool.purpose == Purpose::Build) {
        sh::become_root()?;
    } else if let Err(error) = sh::become_root() {
        // It may do without: peers are not needed for building, nor packages for the linker where LLVM is there.
        sh::note(&format!("going on without packages: {error:#}"));
    }
    // While packages are installed, nothing compiles. An error of it is the build's to report.
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
    /// Waits for the rest; returns the peers that this host cannot have.
    ///
    /// # Errors
    /// If there is no eBPF compiler or linker to be had.
    pub fn finish(self) -> Result<Vec<Missing>> {
        if let Some(ebpf) = self.ebpf {
            ebpf.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(self.missing)
    }

    /// As [`Pending::finish`], after something was built meanwhile: if both failed, set-up's error is the cause.
    ///
    /// # Errors
    /// That of set-up, else that of building.
    pub fn finish_with<T>(self, built: Result<T>) -> Result<(T, Vec<Missing>)> {
        let missing = self.finish()?;
        Ok((built?, missing))
    }
}

/// Installs these tools' packages; returns those that are refused.
fn install(manager: Manager, tools: &[Tool]) -> Result<Vec<Missing>> {
    // What was refused today is not asked for again by each job; `setup` does.
    let (known, tools): (Vec<&Tool>, Vec<&Tool>) = tools.iter().partition(|tool| refused::read(tool).is_some());
    let mut missing: Vec<Missing> = known.into_iter().filter_map(refused::read).collect();
    if tools.is_empty() {
        return Ok(missing);
    }
    let commands: Vec<&str> = tools.iter().map(|tool| tool.command).collect();
    sh::step(&format!("Tools: {}", commands.join(", ")));
    progress::lane("setup", "installing packages");
    // What building takes comes first: a peer whose installation fails must not keep it away.
    let (build, peers): (Vec<&Tool>, Vec<&Tool>) = tools.iter().partition(|tool| tool.purpose == Purpose::Build);
    if let Some(found) = attempt(manager, &build)?.first() {
        bail!("{found}");
    }
    match attempt(manager, &peers) {
        Ok(refused) => {
            for found in &refused {
                sh::note(&found.to_string());
                if let Err(error) = refused::write(found) {
                    sh::note(&format!("the next run asks for it again: {error:#}"));
                }
            }
            missing.extend(refused);
        }
        // No network, or a package that breaks off: not remembered, since the next run may do better.
        Err(error) => {
            sh::note(&format!("going on without: {error:#}"));
            let absent = peers.into_iter().filter(|tool| !tool.is_there());
            missing.extend(absent.map(|tool| Missing::failed(tool, manager.package(tool), &error)));
        }
    }
    progress::lane("setup", "");
    Ok(missing)
}

/// Installs these tools' packages; returns the tools that are not there afterwards.
fn attempt(manager: Manager, tools: &[&Tool]) -> Result<Vec<Missing>> {
    let mut packages: Vec<&str> = tools.iter().map(|tool| manager.package(tool)).collect();
    packages.sort_unstable();
    packages.dedup();
    let refusals = if packages.is_empty() { Vec::new() } else { manager.install(&packages)? };
    let absent = tools.iter().filter(|tool| !tool.is_there());
    let missing = absent.map(|tool| match refusals.iter().find(|refusal| refusal.package == manager.package(tool)) {
        Some(refusal) => Missing::refused(tool, refusal),
        None => Missing::failed(tool, manager.package(tool), &anyhow!("it is installed, and has no such program")),
    });
    Ok(missing.collect())
}

/// Tries the system's QEMU; returns whether it is there. Without it, `vm` has a way of its own.
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

/// crafter is tested on x86-64 alone. What is to be said of another architecture, where set-up goes on all the same.
///
/// # Errors
/// On an architecture that crafter does not run on.
fn caveat(architecture: &str) -> Result<Option<String>> {
    match architecture {
        "x86_64" => Ok(None),
        "aarch64" => {
            Ok(Some("this is an arm64 machine: crafter is tested on x86-64 only, going on all the same".into()))
        }
        other => bail!("crafter runs on x86-64 (and, untested, on arm64), not on {other}"),
    }
}

/// Whether a home directory is there and not root's.
fn is_of_another(home: &Path) -> bool {
    std::fs::metadata(home).is_ok_and(|metadata| metadata.uid() != 0)
}

/// Fetches the captures that tests read; without them, those tests say what is missing.
pub fn ensure_corpora(again: bool) {
    if let Err(error) = corpora::ensure(again) {
        println!("    going on without: {error:#}");
    }
}

/// Where they are.
pub fn corpora() -> Result<PathBuf> {
    corpora::directory()
}

/// Brings the Python packages of tests up to date; without them, those tests take what Debian has.
pub fn ensure_scapy(again: bool) {
    if let Err(error) = scapy::ensure(again) {
        println!("    going on without: {error:#}");
    }
}

/// What tests read besides programs, could not be had, and so is not tested on; and why.
pub fn missing_data() -> Vec<(String, String)> {
    let corpora = corpora::missing().into_iter();
    let mut missing: Vec<(String, String)> =
        corpora.map(|(package, why)| (format!("the tests on captures of the source package {package}"), why)).collect();
    missing.extend(scapy::missing().map(|why| ("the tests of crafter-scapy with PyPI's Scapy".to_owned(), why)));
    missing
}

/// Where they are; `None`: they are not.
pub fn scapy_packages() -> Option<PathBuf> {
    scapy::packages()
}

/// For a host whose packages set-up does not know.
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
    fn whose_home_it_is() {
        let own = env::temp_dir().join(format!("xtask-home-{}", std::process::id()));
        std::fs::create_dir(&own).unwrap();
        let is_root = sh::is_root();
        assert_eq!(is_of_another(&own), !is_root);
        if is_root {
            std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
            assert!(is_of_another(&own));
        }
        std::fs::remove_dir(&own).unwrap();
        assert!(!is_of_another(&own), "it is not there");
    }

    #[test]
    fn architectures() {
        assert_eq!(caveat("x86_64").unwrap(), None);
        assert!(caveat("aarch64").unwrap().unwrap().contains("going on all the same"));
        for other in ["riscv64", "s390x", "arm"] {
            let sentence = caveat(other).unwrap_err().to_string();
            assert!(sentence.ends_with(&format!("not on {other}")), "{sentence}");
        }
    }
}
