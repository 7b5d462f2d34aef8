//! `cargo xtask setup`: what building and testing crafter need, from Debian's
//! packages where the host has them, else from rustup. Looks first, so that it
//! is quick when all is there, and goes on where an interrupted run stopped.

mod corpora;
mod ebpf;
mod packages;
mod scapy;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{sh, toolchain};

/// A program that building, the tests, the demo or the benchmark run.
struct Tool {
    /// What must be in `PATH`, or in root's directories.
    command: &'static str,
    /// The Debian package that has it; without any service of its own where
    /// there is the choice.
    package: &'static str,
    /// What it is for.
    purpose: &'static str,
}

const TOOLS: [Tool; 20] = [
    tool("capinfos", "wireshark-common", "judges capture files"),
    tool("cc", "build-essential", "links every Rust program"),
    tool("curl", "curl", "peer of the tests and the benchmark"),
    tool("depmod", "kmod", "finds kernel modules for virtual machines"),
    tool("dnsmasq", "dnsmasq-base", "DNS server of the tests"),
    tool("ethtool", "ethtool", "switches offloads"),
    tool("groff", "groff-base", "judges the manual pages"),
    tool("ip", "iproute2", "sets up the tests' networks"),
    tool("iptables", "iptables", "shows that no rule is needed"),
    tool("nginx", "nginx-light", "web server of the tests"),
    tool("pcap-config", "libpcap-dev", "library of capture filters"),
    tool("ps", "procps", "watches the tests' processes"),
    tool("qemu-system-x86_64", "qemu-system-x86", "runs the tests on other kernels"),
    tool("socat", "socat", "calls the service from a shell in an example"),
    tool("strace", "strace", "ends the tests' programs at any system call"),
    tool("systemd-analyze", "systemd", "judges the units"),
    tool("tcpdump", "tcpdump", "judges what is on the wire"),
    tool("traceroute", "traceroute", "judges the hops of a path"),
    tool("trafgen", "netsniff-ng", "peer of the benchmark"),
    tool("tshark", "tshark", "judges what is on the wire"),
];

/// What is no program: modules of the system's Python.
const SCAPY: Tool = tool("scapy (for /usr/bin/python3)", "python3-scapy", "makes malformed peers");

/// See [`SCAPY`].
const VENV: Tool = tool("ensurepip (for /usr/bin/python3)", "python3-venv", "installs Scapy from PyPI for tests");

const fn tool(command: &'static str, package: &'static str, purpose: &'static str) -> Tool {
    Tool { command, package, purpose }
}

/// Installs what is missing.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = args.first() {
        bail!("setup takes no arguments, `{unknown}` is one too many");
    }
    let began = Instant::now();
    ensure()?;
    corpora::ensure(true)?;
    scapy::ensure(true)?;
    println!("Set-up is complete ({:.1} s).", began.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// As the job, but says nothing if there is nothing to do.
pub fn ensure() -> Result<()> {
    let tools = missing_tools();
    let ebpf = ebpf::present();
    if tools.is_empty() && ebpf {
        return Ok(());
    }
    if !packages::available() {
        explain(&tools, ebpf);
        bail!("set-up knows Debian's packages only: install the above, then try again");
    }
    if !tools.is_empty() {
        let commands: Vec<&str> = tools.iter().map(|tool| tool.command).collect();
        sh::step(&format!("Tools: {}", commands.join(", ")));
        let packages: Vec<&str> = tools.iter().map(|tool| tool.package).collect();
        packages::install(&packages)?;
    }
    if !ebpf {
        ebpf::install()?;
    }
    Ok(())
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

/// Where they are; `None`: they are not.
pub fn scapy_packages() -> Option<PathBuf> {
    scapy::packages()
}

fn missing_tools() -> Vec<Tool> {
    let mut missing: Vec<Tool> = TOOLS.into_iter().filter(|tool| sh::find(tool.command).is_none()).collect();
    if !has_module("scapy") {
        missing.push(SCAPY);
    }
    if !has_module("ensurepip") {
        missing.push(VENV);
    }
    missing
}

fn has_module(name: &str) -> bool {
    // Finds the module without the second that loading Scapy takes.
    let find = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)";
    sh::output(Command::new("/usr/bin/python3").args(["-c", find, name])).is_ok()
}

/// For a host whose packages set-up does not know.
fn explain(tools: &[Tool], ebpf: bool) {
    println!("Missing on this host:");
    for Tool { command, package, purpose } in tools {
        println!("  {command}: {purpose}; Debian has it in the package {package}");
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
