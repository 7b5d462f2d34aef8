//! Sets up what the init process of a distribution would.

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

/// Search path of programs; the kernel sets none.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Type, mount point and options of each file system.
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

/// Mounts all of them; file systems that the kernel does not support are skipped, except the essential ones.
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

/// The part that runs other programs: kernel modules, the loopback interface.
pub fn environment(modules: &[String]) {
    let _ = fs::write("/proc/sys/kernel/hostname", "vm");
    let _ = fs::write("/proc/sys/kernel/printk", "4");
    // The limits set by systemd, inherited by children.
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
