//! Compiles the eBPF half (crate crafter-ebpf) into `$OUT_DIR/crafter.bpf.o`,
//! with the compiler and linker that `cargo xtask setup` installs.

use std::env;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

#[allow(dead_code, reason = "set-up uses the rest")]
#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

#[path = "build/origin.rs"]
mod origin;

use toolchain::{Compiler, Core};

/// What the object depends on; the profile `ebpf` and the versions count too.
const SOURCES: [&str; 6] = [
    "crafter-ebpf/src",
    "crafter-ebpf/Cargo.toml",
    "crafter-common/src",
    "crafter-common/Cargo.toml",
    "Cargo.toml",
    "Cargo.lock",
];

type Result<T> = std::result::Result<T, Failure>;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Sentence(sentence)) => {
            // Fails the build. With an exit code other than 0, or a panic, cargo
            // would show this script's whole output around the sentence.
            println!("cargo::error={sentence}");
            ExitCode::SUCCESS
        }
        Err(Failure::Diagnostics(diagnostics)) => {
            eprintln!("{diagnostics}");
            ExitCode::FAILURE
        }
    }
}

/// Why there is no object.
enum Failure {
    /// Something is missing on this machine; the sentence says what to do.
    Sentence(String),
    /// What the compiler says about crafter-ebpf.
    Diagnostics(String),
}

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Sentence(error.to_string())
    }
}

fn build() -> Result<()> {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("crate crafter lies outside of its workspace")?
        .to_owned();
    let out = PathBuf::from(variable("OUT_DIR")?);
    let (object, mut inputs) = match env::var_os(toolchain::OBJECT_VARIABLE).filter(|path| !path.is_empty()) {
        Some(ready) => (PathBuf::from(&ready), vec![PathBuf::from(ready)]),
        None => compile(&workspace, &out)?,
    };
    fs::copy(&object, out.join("crafter.bpf.o"))
        .map_err(|error| format!("the eBPF object {}: {error}", object.display()))?;

    inputs.extend(origin::stamp(&workspace));
    // Printed last: if the script fails, cargo shows all of its output, and runs it again in any case.
    let variables = [toolchain::OBJECT_VARIABLE, toolchain::LINKER_VARIABLE].into_iter().chain(origin::VARIABLES);
    for variable in variables {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    inputs.extend(SOURCES.iter().map(|source| workspace.join(source)));
    for input in inputs {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    Ok(())
}

/// Compiles crafter-ebpf by a cargo within this one; returns the object's path
/// and the tools that made it.
fn compile(workspace: &Path, out: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let target = toolchain::target(variable("CARGO_CFG_TARGET_ENDIAN")? == "big");
    let found = toolchain::find(target).or_else(|| {
        toolchain::wait_for_setup();
        toolchain::find(target)
    });
    let Some((compiler, linker)) = found else {
        return Err("the eBPF compiler or its linker is missing: \
                    run `cargo xtask setup`, which installs both"
            .into());
    };
    // A separate target directory, because the outer cargo holds the lock of its own. It is next to those of the
    // profiles, which share one eBPF object.
    let target_directory =
        out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file()).unwrap_or(out).join("ebpf");

    let mut cargo = inner_cargo(&compiler)?;
    cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--locked", "--package", "crafter-ebpf"])
        .args(["--bin", "crafter", "--profile", "ebpf", "--target", target])
        .arg("--target-dir")
        .arg(&target_directory)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker)?)
        .stdin(Stdio::null());
    if compiler.core == Core::FromSource {
        cargo.args(["-Z", "build-std=core"]);
    }
    let output = cargo.output().map_err(|error| format!("cargo for the eBPF half does not start: {error}"))?;
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Failure::Diagnostics(diagnostics.into_owned()));
    }
    relay_warnings(&diagnostics);
    let object = target_directory.join(target).join("ebpf/crafter");
    Ok((object, vec![compiler.rustc, linker]))
}

/// A cargo command without the outer build's compiler, flags and wrappers (clippy is a wrapper), but with its registry
/// and network settings.
fn inner_cargo(compiler: &Compiler) -> Result<Command> {
    let program = match compiler.core {
        Core::Prebuilt => PathBuf::from(variable("CARGO")?),
        // `-Z build-std` needs the cargo of the toolchain that the sources belong to.
        Core::FromSource => compiler.sysroot.join("bin/cargo"),
    };
    let mut cargo = Command::new(program);
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_MAKEFLAGS",
        "CARGO_CACHE_",
    ];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let leaks = (name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept)))
            || name.starts_with("RUSTC")
            || name.starts_with("RUSTDOC")
            || name == "RUSTFLAGS"
            || name == "RUSTUP_TOOLCHAIN";
        if leaks {
            cargo.env_remove(name);
        }
    }
    cargo
        .env("RUSTC", &compiler.rustc)
        // Its warnings are read line by line.
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        // aya-ebpf uses unstable features; so does build-std.
        .env("RUSTC_BOOTSTRAP", "1")
        // Empty, not removed: that overrides a wrapper of the user's own
        // configuration files too.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "");
    Ok(cargo)
}

fn rustflags(linker: &Path) -> Result<String> {
    let linker = linker.to_str().ok_or_else(|| format!("bpf-linker's path is not UTF-8: {}", linker.display()))?;
    let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
    let flags = [
        // aya-ebpf takes the layout of pt_regs by it.
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={linker}"),
        "-Clink-arg=--btf".to_owned(),
        // Blocks in the order of the source: else a loop may be laid out so that its last instruction falls through to
        // its first, which the verifier takes for an endless loop before Linux 6.8 (visit_insn() of check_cfg()).
        "-Clink-arg=--llvm-args=-disable-block-placement".to_owned(),
    ];
    Ok(flags.join("\x1f"))
}

/// Cargo shows nothing of a build script that succeeds, except by this.
fn relay_warnings(diagnostics: &str) {
    let mut within = false;
    for line in diagnostics.lines() {
        within = line.starts_with("warning") || (within && !line.trim().is_empty());
        if within {
            println!("cargo::warning={line}");
        }
    }
}

fn variable(name: &str) -> Result<String> {
    Ok(env::var(name).map_err(|error| format!("{name}: {error}"))?)
}
