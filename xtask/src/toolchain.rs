//! Finds the compiler and the linker of the eBPF half.
//!
//! `crafter/build.rs` includes this file, too, so that set-up and the build agree. It uses only `std`, and prints and
//! installs nothing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version of bpf-linker that set-up installs; one in `PATH` may be another version.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// Variable with the path of a bpf-linker, which is used without a check of its version.
pub const LINKER_VARIABLE: &str = "CRAFTER_BPF_LINKER";

/// Variable with the path of a prebuilt eBPF object, so that nothing is compiled.
pub const OBJECT_VARIABLE: &str = "CRAFTER_EBPF_OBJECT";

/// Minor version (1.x) of the oldest rustc that compiles the workspace, as `rust-version` in `Cargo.toml`.
const OLDEST_MINOR: u32 = 91;

/// Where a compiler gets `core` for the BPF target from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// It is in the compiler's sysroot, as installed by Debian's `libstd-rust-web-dev-bpf`.
    Prebuilt,
    /// It is compiled from the sysroot's `rust-src` by the toolchain's cargo.
    FromSource,
}

/// A rustc that can compile for the BPF target.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The executable; never rustup's proxy.
    pub rustc: PathBuf,
    /// Its sysroot.
    pub sysroot: PathBuf,
    /// Major version of its LLVM; the linker's must not be older.
    pub llvm: u32,
    /// The source of its `core`.
    pub core: Core,
}

/// The BPF target of a host; BPF has the host's byte order.
pub fn target(big_endian: bool) -> &'static str {
    if big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

/// All compilers on this machine that can build for `target`. Those with a prebuilt `core` are first, because they need
/// neither nightly features nor the standard library's sources.
pub fn compilers(target: &str) -> Vec<Compiler> {
    let mut candidates = vec![PathBuf::from("/usr/bin/rustc")];
    candidates.extend(env::var_os("RUSTC").map(PathBuf::from));
    candidates.extend(rustup_rustc("nightly"));
    candidates.extend(rustup_rustc("stable"));

    let mut found: Vec<Compiler> = Vec::new();
    for rustc in candidates {
        if let Some(compiler) = inspect(&rustc, target)
            && !found.iter().any(|other| other.sysroot == compiler.sysroot)
        {
            found.push(compiler);
        }
    }
    found.sort_by_key(|compiler| compiler.core == Core::FromSource);
    found
}

/// The first compiler for which there is a matching linker.
pub fn find(target: &str) -> Option<(Compiler, PathBuf)> {
    compilers(target).into_iter().find_map(|compiler| {
        let linker = find_linker(compiler.llvm)?;
        Some((compiler, linker))
    })
}

/// The bpf-linker for a compiler with this LLVM version: the one in [`LINKER_VARIABLE`], the one installed by set-up,
/// or the first matching one in `PATH`.
pub fn find_linker(llvm: u32) -> Option<PathBuf> {
    if let Some(named) = env::var_os(LINKER_VARIABLE).filter(|named| !named.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let own = linker_root(llvm).map(|root| root.join("bin/bpf-linker"));
    own.into_iter()
        .chain(in_path("bpf-linker"))
        .find(|linker| linker.is_file() && linker_llvm(linker).is_none_or(|major| major >= llvm))
}

/// The directory of everything that set-up installs for this user.
pub fn data_directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let data = set("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/share")))?;
    Some(data.join("crafter"))
}

/// The lock file that a running set-up holds exclusively, so that builds wait for it.
pub fn setup_lock() -> Option<PathBuf> {
    Some(data_directory()?.join("setup.lock"))
}

/// Waits until a running set-up has ended.
#[allow(dead_code, reason = "crafter's build script uses it")]
pub fn wait_for_setup() {
    // If the file does not exist, set-up has never run.
    if let Some(file) = setup_lock().and_then(|path| fs::File::open(path).ok()) {
        // Errors are ignored: the build reports what is missing.
        let _ = file.lock_shared();
    }
}

/// The directory that set-up installs bpf-linker into (`cargo install --root`). Its name has the LLVM version, because
/// a linker must match the compiler's LLVM.
pub fn linker_root(llvm: u32) -> Option<PathBuf> {
    Some(data_directory()?.join(format!("bpf-linker-llvm{llvm}")))
}

/// Every executable of this name in `PATH`.
pub fn in_path(name: &str) -> Vec<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|directory| directory.join(name))
        .filter(|file| file.is_file())
        .collect()
}

/// The major LLVM version of a bpf-linker, from the name of the shared library that it links to, since it has no option
/// that prints it. `None` if LLVM is linked statically.
fn linker_llvm(linker: &Path) -> Option<u32> {
    let bytes = fs::read(linker).ok()?;
    ["libLLVM.so.", "libLLVM-"].iter().find_map(|prefix| {
        bytes
            .windows(prefix.len())
            .enumerate()
            .filter(|(_, window)| *window == prefix.as_bytes())
            .find_map(|(at, _)| leading_number(&bytes[at + prefix.len()..]))
    })
}

fn leading_number(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.iter().take(4).take_while(|byte| byte.is_ascii_digit());
    let digits: String = digits.map(|digit| char::from(*digit)).collect();
    digits.parse().ok()
}

/// The path of a rustup toolchain's rustc, if that toolchain is installed.
fn rustup_rustc(toolchain: &str) -> Option<PathBuf> {
    let mut rustup = Command::new("rustup");
    rustup.args(["which", "--toolchain", toolchain, "rustc"]);
    // Do not install a missing toolchain.
    rustup.env("RUSTUP_AUTO_INSTALL", "0");
    stdout_of(rustup).map(|path| PathBuf::from(path.trim()))
}

fn inspect(rustc: &Path, target: &str) -> Option<Compiler> {
    let mut sysroot = Command::new(rustc);
    sysroot.args(["--print", "sysroot"]);
    let sysroot = PathBuf::from(stdout_of(sysroot)?.trim());

    let mut version = Command::new(rustc);
    version.arg("-vV");
    let version = stdout_of(version)?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
    let minor: u32 = field("release: ")?.split('.').nth(1)?.parse().ok()?;
    let llvm = leading_number(field("LLVM version: ")?.as_bytes())?;
    if minor < OLDEST_MINOR {
        return None;
    }

    let core = if has_prebuilt_core(&sysroot, target) {
        Core::Prebuilt
    } else if sysroot.join("bin/cargo").is_file() && sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        Core::FromSource
    } else {
        return None;
    };
    // Rustup's proxy would run another compiler once the toolchain's variables are cleared.
    let own = sysroot.join("bin/rustc");
    Some(Compiler { rustc: if own.is_file() { own } else { rustc.into() }, sysroot, llvm, core })
}

fn has_prebuilt_core(sysroot: &Path, target: &str) -> bool {
    let libraries = sysroot.join("lib/rustlib").join(target).join("lib");
    fs::read_dir(libraries).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    })
}

fn stdout_of(mut command: Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}
