//! The file system of the virtual machines: an uncompressed initramfs, which boots faster than a compressed one
//! (measured) and needs no disk driver.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cpio::Entry;
use super::files::Files;
use super::kernels::Kernel;
use crate::{setup, sh};

/// The path of the orders for `vm_init`.
const ORDERS: &str = "/vm-orders.json";

/// Programs that the tests and crafter run, or that are useful in a shell.
const TOOLS: [&str; 68] = [
    "awk",
    "basename",
    "bash",
    "capinfos",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "curl",
    "cut",
    "dash",
    "date",
    "dirname",
    "dnsmasq",
    "dumpcap",
    "echo",
    "env",
    "ethtool",
    "false",
    "getent",
    "grep",
    "gzip",
    "head",
    "id",
    "ip",
    "ip6tables",
    "iptables",
    "kill",
    "kmod",
    "ln",
    "ls",
    "mkdir",
    "modprobe",
    "mount",
    "mv",
    "nginx",
    "prlimit",
    "ps",
    "readlink",
    "rm",
    "sed",
    "seq",
    "setarch",
    "setcap",
    "setpriv",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "socat",
    "sort",
    "ss",
    "stat",
    "strace",
    "stty",
    "sysctl",
    "tail",
    "tc",
    "tcpdump",
    "timeout",
    "touch",
    "tr",
    "true",
    "tshark",
    "umount",
    "unshare",
    "wc",
];

/// Data files of these programs; missing ones are skipped.
const DATA: [&str; 22] = [
    "/etc/alternatives",
    "/etc/ethertypes",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/iproute2",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/sbin/modprobe",
    "/usr/bin/trafgen",
    "/usr/lib/tc",
    "/usr/sbin/trafgen",
    "/usr/sbin/traceroute",
    "/usr/share/iproute2",
    "/usr/share/wireshark",
    "/usr/lib/x86_64-linux-gnu/xtables",
];

/// Directories that must exist, with their permissions.
const FOLDERS: [(&str, u32); 8] = [
    ("/dev", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var/lib/nginx", 0o755),
    ("/var/log/nginx", 0o755),
];

/// The binary of the machines' init process.
pub const INIT: &str = "vm_init";

/// The binaries of crafter and of the tests.
const BINARIES: [&str; 5] = ["crafter", "holder", "client", "tenant", INIT];

/// An archive on disk with the files that all kernels share.
pub struct Base {
    path: PathBuf,
    length: u64,
}

/// The path of the init process, in the archive and for the kernel's command line.
pub fn init() -> PathBuf {
    sh::release_directory().join(INIT)
}

impl Base {
    /// Packs tools, `programs` and crafter's executables into `directory`.
    pub fn make(directory: &Path, programs: &[PathBuf]) -> Result<Self> {
        let mut files = skeleton();
        for tool in TOOLS {
            // A missing program is reported by the test that runs it.
            if let Some(path) = sh::find(tool) {
                files.add(&path)?;
            }
        }
        for path in DATA.map(Path::new).into_iter().filter(|path| path.exists()) {
            files.add(path)?;
        }
        python(&mut files)?;
        // At the same path as on this host, which is compiled into the tests.
        files.add(&sh::workspace().join("crafter/python"))?;
        files.put(&sh::workspace().join("tests"), Entry::Directory(0o755));
        files.put(&sh::workspace().join("crafter"), Entry::Directory(0o755));
        let mut binaries: BTreeSet<PathBuf> = BINARIES.iter().map(|name| sh::release_directory().join(name)).collect();
        binaries.extend(programs.iter().cloned());
        for binary in binaries {
            files.add_from(&binary, &stripped(directory, &binary)?)?;
        }
        files.add_libraries()?;
        Self::write(directory.join("base.cpio"), &files)
    }

    /// Packs the minimum that boots, to test the emulator.
    pub fn trial(directory: &Path) -> Result<Self> {
        let mut files = skeleton();
        files.add_from(&init(), &stripped(directory, &init())?)?;
        files.add_libraries()?;
        Self::write(directory.join("trial.cpio"), &files)
    }

    fn write(path: PathBuf, files: &Files) -> Result<Self> {
        let mut out = BufWriter::new(File::create(&path).with_context(|| format!("make {}", path.display()))?);
        files.write(&mut out)?;
        let length = out.into_inner().context("write the archive")?.metadata()?.len();
        Ok(Self { path, length })
    }

    /// Appends the modules of this kernel and the orders of this run; returns the path of the archive.
    pub fn with(&self, kernel: Option<&Kernel>, orders: &Value) -> Result<PathBuf> {
        let mut files = Files::default();
        if let Some(kernel) = kernel {
            kernel.add_modules(&mut files)?;
        }
        files.put(Path::new(ORDERS), Entry::Bytes(0o644, orders.to_string().into_bytes()));
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        file.set_len(self.length)?;
        file.seek(SeekFrom::End(0))?;
        // An archive begins at a multiple of four bytes.
        file.write_all(&[0; 3][..(self.length.next_multiple_of(4) - self.length) as usize])?;
        let mut out = BufWriter::new(file);
        files.write(&mut out)?;
        Ok(self.path.clone())
    }
}

fn skeleton() -> Files {
    let mut files = Files::default();
    for (path, mode) in FOLDERS {
        files.put(Path::new(path), Entry::Directory(mode));
    }
    // The kernel opens it for the init process.
    files.put(Path::new("/dev/console"), Entry::Characters(0o600, 5, 1));
    files
}

/// Adds the system's Python with its standard library, Scapy, and the packages that set-up installed.
fn python(files: &mut Files) -> Result<()> {
    let python = Path::new("/usr/bin/python3");
    files.add(python)?;
    let find = "import sysconfig, importlib.util as u; print(sysconfig.get_path('stdlib')); \
                print(u.find_spec('scapy').submodule_search_locations[0])";
    let paths = sh::output(Command::new(python).args(["-c", find]))?;
    for path in paths.lines() {
        files.add(Path::new(path))?;
    }
    match setup::scapy_packages() {
        Some(packages) => files.add(&packages),
        None => Ok(()),
    }
}

/// Copies a binary without debug information, which is most of its size.
fn stripped(directory: &Path, binary: &Path) -> Result<PathBuf> {
    let directory = directory.join("stripped");
    fs::create_dir_all(&directory)?;
    let to = directory.join(binary.file_name().context("a binary without a name")?);
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let original = modified(binary).with_context(|| format!("{} is not built", binary.display()))?;
    if !modified(&to).is_ok_and(|copied| copied > original) {
        sh::run_quietly(Command::new("strip").args(["--strip-debug", "-o"]).arg(&to).arg(binary))?;
    }
    Ok(to)
}
