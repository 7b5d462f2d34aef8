//! `cargo xtask fresh [--test] [SUITE]...`: runs the README's first command on a minimal Debian: a chroot made by
//! debootstrap with a fresh clone and rustup's toolchain. Prints the time until the first packet. With `--test`, runs
//! the README's second command instead.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{setup, sh, vm};

/// Debian 12 and Debian 13.
pub const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// The option that runs all tests instead of the demo.
const TEST: &str = "--test";

/// How the demo's line with the first packet begins.
const FIRST_PACKET: &str = "   > IP ";

/// The settings of apt that determine how archives are reached.
const APT_OPTIONS: [&str; 5] = [
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
];

/// Sets up the chroot's mounts and runs a job of `cargo xtask` in it. The toolchain is mounted read-only at its path on
/// the host, which is compiled into it.
const ENTER: &str = r#"
set -eu
root=$1; toolchain=$2; job=$3
# The root must be a mount point: otherwise the lab cannot replace resolv.conf.
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mkdir -p "$root$toolchain"
mount --bind "$toolchain" "$root$toolchain"
mount -o remount,bind,ro "$root$toolchain"
cd "$root"
exec chroot "$root" env -i HOME=/root LC_ALL=C "PATH=$toolchain/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    sh -c "cd /checkout && exec cargo xtask $job"
"#;

/// Runs the demo, or with `--test` all tests, in a chroot of each suite.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let is_test = args.iter().any(|arg| arg == TEST);
    let args: Vec<&String> = args.iter().filter(|arg| *arg != TEST).collect();
    // The suite is used as the name of a directory that is removed, so it must be a known one.
    if let Some(unknown) = args.iter().find(|arg| !SUITES.contains(&arg.as_str())) {
        bail!("unknown suite `{unknown}`; known suites are {}", SUITES.join(" and "));
    }
    for suite in SUITES.iter().filter(|suite| args.is_empty() || args.iter().any(|arg| arg == *suite)) {
        if is_test { test(suite) } else { one(suite) }?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates a chroot of one suite, runs all tests in it, and removes it.
///
/// # Errors
/// If the chroot cannot be created, or a test fails.
fn test(suite: &str) -> Result<()> {
    possible()?;
    let root = Root::make(suite)?;
    sh::step(&format!("All tests on a minimal {suite}"));
    let began = Instant::now();
    root.run("test", |_| ())?;
    println!("    {suite}: all tests passed after {:.0} s", began.elapsed().as_secs_f32());
    Ok(())
}

/// Creates a chroot of one suite, runs the demo in it twice, and removes it.
///
/// # Errors
/// If the chroot cannot be created, or a demo fails.
pub fn one(suite: &str) -> Result<()> {
    possible()?;
    let root = Root::make(suite)?;
    for run in ["first", "second"] {
        sh::step(&format!("The demo on a minimal {suite}, {run} run"));
        let first_packet = root.demo()?;
        println!("    {suite}, {run} run: {:.1} s until the first packet", first_packet.as_secs_f32());
    }
    Ok(())
}

/// Checks that chroots can be created, and installs debootstrap if it is missing.
///
/// # Errors
/// If they cannot be created; the error says what is missing.
pub fn possible() -> Result<()> {
    if !sh::is_root() {
        bail!("a chroot needs root: run `cargo xtask fresh` as root");
    }
    if sh::find("debootstrap").is_none() {
        setup::require("debootstrap")?;
    }
    Ok(())
}

/// The chroot, removed when dropped.
struct Root(PathBuf);

impl Root {
    fn make(suite: &str) -> Result<Self> {
        let directory = sh::release_directory().with_file_name("fresh");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let root = Self(directory.join(suite));
        // Left by an interrupted run; its mounts ended with its mount namespace.
        root.remove();
        let (main, security) = vm::mirrors()?;
        sh::step(&format!("A minimal {suite}, by debootstrap"));
        let mut debootstrap = in_namespace();
        debootstrap.arg("debootstrap");
        debootstrap
            .args(["--variant=minbase", "--include=ca-certificates,build-essential", suite])
            .arg(&root.0)
            .arg(&main);
        sh::run_quietly(&mut debootstrap).context("debootstrap failed")?;
        let sources =
            format!("deb {main} {suite} main\ndeb {main} {suite}-updates main\ndeb {security} {suite}-security main\n");
        fs::write(root.0.join("etc/apt/sources.list"), sources)?;
        fs::write(root.0.join("etc/apt/apt.conf.d/90host"), apt_options()?)?;
        root.trust()?;
        sh::run_quietly(
            Command::new("git")
                .args(["-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks"])
                .arg(sh::workspace())
                .arg(root.0.join("checkout")),
        )
        .context("the clone failed")?;
        Ok(root)
    }

    /// Copies the certificates that the host's administrator added, such as a proxy's.
    fn trust(&self) -> Result<()> {
        let local = Path::new("usr/local/share/ca-certificates");
        fs::create_dir_all(self.0.join(local))?;
        let entries = fs::read_dir(Path::new("/").join(local)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.is_file()) {
            fs::copy(&path, self.0.join(local).join(path.file_name().unwrap_or_default()))?;
        }
        sh::run_quietly(Command::new("chroot").arg(&self.0).arg("update-ca-certificates"))
    }

    /// Runs the demo; returns the time until its first packet.
    fn demo(&self) -> Result<Duration> {
        let began = Instant::now();
        let mut first_packet = None;
        self.run("demo", |line| {
            if line.starts_with(FIRST_PACKET) && first_packet.is_none() {
                first_packet = Some(began.elapsed());
            }
        })?;
        first_packet.context("the demo ended without a packet")
    }

    /// Runs a job of `cargo xtask` in the chroot, prints each line of its output with the elapsed time, and passes it
    /// to `on_line`.
    fn run(&self, job: &str, mut on_line: impl FnMut(&str)) -> Result<()> {
        let sysroot = sh::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let began = Instant::now();
        let mut command = in_namespace();
        command.args(["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]);
        command.arg(&self.0).arg(sysroot.trim()).arg(job);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("unshare does not start")?;
        for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines().map_while(Result::ok)) {
            println!("[{:>6.1} s] {line}", began.elapsed().as_secs_f32());
            let _ = std::io::stdout().flush();
            on_line(&line);
        }
        match sh::code_of(child.wait()?) {
            0 => Ok(()),
            code => bail!("`cargo xtask {job}` ended with exit code {code}"),
        }
    }

    fn remove(&self) {
        // It may not exist.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A command that runs a program in a private mount namespace and ends it with this process.
fn in_namespace() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
    command
}

fn apt_options() -> Result<String> {
    let dump = sh::output(Command::new("apt-config").arg("dump"))?;
    let wanted = dump.lines().filter(|line| APT_OPTIONS.iter().any(|option| line.starts_with(option)));
    Ok(wanted.map(|line| format!("{line}\n")).collect())
}
