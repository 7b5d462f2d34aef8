//! The compiler and the linker of the kernel half. The linker's LLVM must not be older than the compiler's.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::lock::cannot_write;
use super::packages::{self, Manager};
use crate::{cargo, progress, sh, toolchain};

/// A rustc with a prebuilt `core` for BPF; it does not interfere with rustup's toolchains.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// The LLVM versions that this version of bpf-linker supports.
const LINKER_LLVM: [u32; 3] = [21, 22, 23];

/// Whether crafter's build script finds both, or needs neither.
pub fn present() -> bool {
    env::var_os(toolchain::OBJECT_VARIABLE).is_some_and(|object| !object.is_empty())
        || toolchain::find(target()).is_some()
}

/// Installs a compiler and a linker, by the first method that works on this host.
pub fn install(manager: Manager) -> Result<()> {
    progress::lane("ebpf", "installing the eBPF compiler");
    let mut hurdles = Vec::new();
    for method in [already_there, debian, stable, nightly] {
        match method(manager).and_then(|()| linker(manager)) {
            Ok(()) => return Ok(()),
            Err(error) if error.downcast_ref::<cargo::Obstacle>().is_some() => return Err(error),
            Err(error) => hurdles.push(format!("{error:#}")),
        }
    }
    bail!("no eBPF compiler with a matching linker: {}", hurdles.join("; "))
}

fn target() -> &'static str {
    toolchain::target(cfg!(target_endian = "big"))
}

fn already_there(_: Manager) -> Result<()> {
    if toolchain::compilers(target()).is_empty() {
        bail!("no compiler on this host builds for {}", target());
    }
    Ok(())
}

fn debian(manager: Manager) -> Result<()> {
    if manager != Manager::Apt {
        bail!("only Debian packages a compiler with core for BPF");
    }
    for package in COMPILER_PACKAGES {
        if !packages::exists(package)? {
            bail!("this distribution has no package {package}");
        }
    }
    sh::step("eBPF compiler: Debian's rustc beside yours, with core for BPF");
    manager.require(&COMPILER_PACKAGES)
}

/// Adds the sources of `core` to the toolchain that compiles crafter.
fn stable(_: Manager) -> Result<()> {
    sh::step("eBPF compiler: rustup's stable with the standard library's sources");
    rustup(&["component", "add", "rust-src", "--toolchain", "stable"])
}

fn nightly(_: Manager) -> Result<()> {
    sh::step("eBPF compiler: rustup's nightly with the standard library's sources");
    rustup(&["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"])
}

fn rustup(args: &[&str]) -> Result<()> {
    let mut command = Command::new("rustup");
    let output = command.args(args).output().context("rustup is not installed (https://rustup.rs)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason");
        bail!("`rustup {}` failed: {last}", args.join(" "));
    }
    Ok(())
}

/// Installs a linker for one of the installed compilers, in their order of preference.
fn linker(manager: Manager) -> Result<()> {
    if present() {
        return Ok(());
    }
    let mut hurdles = vec!["no compiler".to_owned()];
    for compiler in toolchain::compilers(target()) {
        match linker_for(manager, compiler.llvm) {
            Ok(()) => return Ok(()),
            Err(error) if error.downcast_ref::<cargo::Obstacle>().is_some() => return Err(error),
            Err(error) => {
                let rustc = compiler.rustc.display();
                hurdles.push(format!("for {rustc}: {error:#}"));
            }
        }
    }
    bail!("no linker: {}", hurdles.pop().unwrap_or_default())
}

/// Installs a linker for one compiler into the user's data directory, as the user.
fn linker_for(manager: Manager, llvm: u32) -> Result<()> {
    if !LINKER_LLVM.contains(&llvm) {
        let version = toolchain::BPF_LINKER_VERSION;
        bail!("bpf-linker {version} does not support LLVM {llvm}");
    }
    let root = toolchain::linker_root(llvm).context("neither HOME nor XDG_DATA_HOME is set")?;
    let build = root.with_extension("build");
    // Before LLVM is installed and the linker is built, which takes minutes.
    fs::create_dir_all(&build).with_context(|| cannot_write(&build))?;
    let llvm_config = llvm_config(manager, llvm)?;
    sh::step(&format!("eBPF linker: bpf-linker with LLVM {llvm}, beside the build"));
    progress::lane("ebpf", "building the eBPF linker");
    let directory = llvm_config.parent().unwrap_or(Path::new("/"));
    let path = env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(directory.to_owned()).chain(env::split_paths(&path));
    let mut cargo = sh::cargo();
    cargo
        // Without optimisation: it spends its time in LLVM, and is built in half the time.
        .args(["install", "bpf-linker", "--quiet", "--locked", "--force", "--debug"])
        .args(["--version", toolchain::BPF_LINKER_VERSION])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(&root)
        // A separate target directory: a build in the usual one may hold its lock while it waits for this set-up.
        .arg("--target-dir")
        .arg(&build)
        .env("PATH", env::join_paths(path)?);
    cargo::quietly(&mut cargo).context("bpf-linker cannot be built")?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    if !present() {
        bail!("bpf-linker was installed into {}, but is not found there", root.display());
    }
    Ok(())
}

/// The path of `llvm-config` on Debian, its derivatives and Fedora, after installing its package.
fn llvm_config(manager: Manager, llvm: u32) -> Result<PathBuf> {
    if manager == Manager::Dnf {
        manager.require(&["llvm-devel", "polly-devel", "gcc-c++"])?;
        let places = [format!("/usr/lib64/llvm{llvm}/bin/llvm-config"), "/usr/bin/llvm-config".into()];
        let found = places.iter().map(PathBuf::from).find(|path| path.is_file());
        return found.with_context(|| format!("llvm-devel has no llvm-config of LLVM {llvm}"));
    }
    let llvm_config = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-config"));
    let development = format!("llvm-{llvm}-dev");
    let polly = format!("libpolly-{llvm}-dev");
    // llvm-config lists Polly among LLVM's libraries, so it must be installed; bpf-linker links to C++'s standard
    // library.
    let present = llvm_config.is_file() && installed(&development) && installed(&polly);
    if !present || sh::find("g++").is_none() {
        if !packages::exists(&development)? {
            bail!("this distribution has no package {development}");
        }
        sh::step(&format!("LLVM {llvm}'s development files, for the eBPF linker"));
        progress::lane("ebpf", "installing LLVM");
        manager.require(&[&development, &polly, "g++"])?;
    }
    Ok(llvm_config)
}

fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    sh::output(&mut query).is_ok_and(|status| status == "installed")
}
