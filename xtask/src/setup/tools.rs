//! The programs that each job runs, and the packages that contain them.

use std::process::Command;

use crate::sh;

/// What a job needs tools for; each purpose includes [`Purpose::Build`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `build`, `run`, `demo`, `install`: compiling only.
    Build,
    /// `test`: real peers and independent dissectors.
    Test,
    /// `vm-test`: building and booting virtual machines.
    Machines,
    /// `bench`: the tools that crafter is compared with.
    Bench,
}

/// A program that a job runs, or a module of the system's Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// A program in `PATH` or a system directory; `python3-NAME`: a module of `/usr/bin/python3`.
    pub command: &'static str,
    /// The package of Debian and Ubuntu; where there is a choice, the one that starts no service.
    pub debian: &'static str,
    /// The package of Fedora.
    pub fedora: &'static str,
    /// The jobs that need it.
    pub purpose: Purpose,
    /// What does not run without it.
    pub without: &'static str,
}

const fn tool(
    command: &'static str,
    debian: &'static str,
    fedora: &'static str,
    purpose: Purpose,
    without: &'static str,
) -> Tool {
    Tool { command, debian, fedora, purpose, without }
}

use Purpose::{Bench, Build, Machines, Test};

const TOOLS: [Tool; 26] = [
    tool("cc", "build-essential", "gcc", Build, "nothing can be linked"),
    tool("c++", "build-essential", "gcc-c++", Build, "the eBPF linker cannot be built"),
    tool("pcap-config", "libpcap-dev", "libpcap-devel", Build, "crafter cannot be linked"),
    tool("capinfos", "wireshark-common", "wireshark-cli", Test, "the tests of capture files"),
    tool("curl", "curl", "curl", Test, "the tests of the kernel's connections next to crafter's"),
    tool("dnsmasq", "dnsmasq-base", "dnsmasq", Test, "the tests of DNS against a real server"),
    tool("ethtool", "ethtool", "ethtool", Test, "the tests that switch offloads"),
    tool("groff", "groff-base", "groff-base", Test, "the tests of the manual pages"),
    tool("ip", "iproute2", "iproute", Test, "all tests in network namespaces"),
    tool("iptables", "iptables", "iptables-nft", Test, "the tests with a firewall"),
    tool("nginx", "nginx-light", "nginx", Test, "the tests against a real web server"),
    tool("ps", "procps", "procps-ng", Test, "the tests that inspect processes"),
    tool("python3", "python3", "python3", Test, "the tests with Scapy as the peer"),
    tool("python3-ensurepip", "python3-venv", "python3", Test, "the tests of crafter-scapy with PyPI's Scapy"),
    tool("python3-scapy", "python3-scapy", "python3-scapy", Test, "the tests with Scapy as the peer"),
    tool("socat", "socat", "socat", Test, "the test of the protocol's example"),
    tool("strace", "strace", "strace", Test, "the tests that kill crafter at any system call"),
    tool("systemd-analyze", "systemd", "systemd", Test, "the tests of the units"),
    tool("tc", "iproute2", "iproute-tc", Test, "the tests that use qdiscs and tc filters"),
    tool("tcpdump", "tcpdump", "tcpdump", Test, "the tests that capture packets"),
    tool("traceroute", "traceroute", "traceroute", Test, "the tests of traceroute"),
    tool("tshark", "tshark", "wireshark-cli", Test, "the tests that compare crafter's dissection with tshark's"),
    tool("depmod", "kmod", "kmod", Machines, "the tests in virtual machines"),
    tool("hping3", "hping3", "hping3", Bench, "the comparison with hping3"),
    tool("nping", "nmap", "nmap", Bench, "the comparison with nping"),
    tool("trafgen", "netsniff-ng", "netsniff-ng", Bench, "the comparison with trafgen"),
];

/// Attaches the egress program on kernels without tcx.
const TC: Tool = tool("tc", "iproute2", "iproute-tc", Build, "attaching the egress program on Linux before 6.6");

/// The first kernel with tcx.
const TCX: (u32, u32) = (6, 6);

/// The system's QEMU; not in the table, since `vm::emulator` can unpack one instead.
pub const QEMU: Tool = tool(
    "qemu-system-x86_64",
    "qemu-system-x86",
    "qemu-system-x86-core",
    Machines,
    "the tests in virtual machines by the system's QEMU",
);

impl Tool {
    /// Whether it is installed.
    pub fn is_there(&self) -> bool {
        match self.command.strip_prefix("python3-") {
            Some(module) => has_module(module),
            None => sh::find(self.command).is_some(),
        }
    }
}

/// The tools that these purposes need and that are not installed.
pub fn missing(purposes: &[Purpose]) -> Vec<Tool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let wanted = TOOLS.into_iter().filter(|tool| tool.purpose == Build || purposes.contains(&tool.purpose));
    let wanted = wanted.chain((!has_tcx(&release)).then_some(TC));
    wanted.filter(|tool| !tool.is_there()).collect()
}

/// Whether a kernel release has tcx; `true` if the release cannot be parsed.
fn has_tcx(release: &str) -> bool {
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= TCX,
        _ => true,
    }
}

fn has_module(name: &str) -> bool {
    // Finds the module without importing it: importing Scapy takes a second.
    let find = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)";
    sh::output(Command::new("/usr/bin/python3").args(["-c", find, name])).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_needs_no_peer() {
        let packages: Vec<_> = TOOLS.iter().filter(|tool| tool.purpose == Build).map(|tool| tool.debian).collect();
        assert_eq!(packages, ["build-essential", "build-essential", "libpcap-dev"]);
    }

    /// Programs that the tests start, of Debian's essential packages.
    const ESSENTIAL: [&str; 16] = [
        "bash", "cat", "chmod", "cp", "gzip", "prlimit", "readlink", "setarch", "setpriv", "setsid", "sh", "sleep",
        "stty", "timeout", "true", "unshare",
    ];

    /// Programs that the tests start, and a tool whose package has them too, on Debian and on Fedora.
    const ALONG: [(&str, &str); 3] = [("ss", "ip"), ("sysctl", "ps"), ("systemd-sysusers", "systemd-analyze")];

    /// The programs that Rust sources below a directory start by name.
    fn started(directory: &std::path::Path, found: &mut std::collections::BTreeSet<String>) {
        for path in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                started(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                for start in ["Command::new(\"", "command(\""] {
                    let names = text.split(start).skip(1).filter_map(|behind| behind.split('"').next());
                    found.extend(names.filter(|name| !name.contains('/')).map(str::to_owned));
                }
            }
        }
    }

    #[test]
    fn every_program_that_tests_start_is_in_the_table() {
        let mut found = std::collections::BTreeSet::new();
        for directory in ["tests/src", "tests/tests", "crafter/tests"] {
            started(&sh::workspace().join(directory), &mut found);
        }
        assert!(found.contains("tshark") && found.contains("ip"), "{found:?}");
        let is_known = |name: &str| TOOLS.iter().any(|tool| tool.command == name) || ESSENTIAL.contains(&name);
        found.retain(|name| !is_known(name) && !ALONG.iter().any(|(along, with)| along == name && is_known(with)));
        assert!(found.is_empty(), "name these in the table: {found:?}");
    }

    #[test]
    fn old_kernels_need_tc() {
        assert!(!has_tcx("6.1.0-40-amd64") && !has_tcx("5.18.0"));
        assert!(has_tcx("6.6.1") && has_tcx("7.0.0-rc1") && has_tcx(""));
    }

    #[test]
    fn each_tool_names_what_needs_it() {
        for tool in TOOLS.iter().chain([&QEMU]) {
            assert!(!tool.without.is_empty() && !tool.debian.is_empty() && !tool.fedora.is_empty(), "{tool:?}");
        }
    }
}
