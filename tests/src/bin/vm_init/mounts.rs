//! What a distribution's own first process would have set up.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{Resource, setrlimit},
        stat::{Mode, umask},
    },
};

/// Where programs are; the kernel does not say.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// File system, where, options.
const MOUNTS: [(&str, &str, &str); 9] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("bpf", "/sys/fs/bpf", "mode=700"),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
];

/// Mounts all of them; those that this kernel lacks are missing to whoever needs them.
pub fn all() -> anyhow::Result<()> {
    umask(Mode::from_bits_truncate(0o022));
    for (kind, path, options) in MOUNTS {
        let _ = fs::create_dir_all(path);
        let mounted = mount(Some(kind), path, Some(kind), MsFlags::empty(), Some(options));
        if matches!(kind, "proc" | "sysfs" | "devtmpfs") {
            mounted.with_context(|| format!("mount {path}"))?;
        }
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")] {
        let _ = symlink(target, format!("/dev/{name}"));
    }
    Ok(())
}

/// What takes programs of its own: modules, the loopback interface.
pub fn environment(modules: &[String]) {
    let _ = fs::write("/proc/sys/kernel/hostname", "vm");
    let _ = fs::write("/proc/sys/kernel/printk", "4");
    // As systemd has it; children inherit it.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 1024, 524_288);
    for module in modules {
        run("modprobe", &["-q", module]);
    }
    run("ip", &["link", "set", "lo", "up"]);
}

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).env("PATH", PATH).stdin(Stdio::null()).status();
    if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
        eprintln!("vm_init: {program} {}: {done:?}", arguments.join(" "));
    }
}
