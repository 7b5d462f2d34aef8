//! Compares the host's state before and after a test run to find what the tests left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::sh;

/// An internal job, which runs as root because only root may read the environment of other users' processes.
pub const JOB: &str = "host-state";

/// The variable that every process of a test run inherits.
pub const MARKER: &str = "CRAFTER_TEST_RUN";

/// Prefix of the entry of a process; its id follows.
const PROCESS: &str = "process ";

/// Prints everything that crafter or its tests could have created, one entry per line.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let marker = args.first().map(String::as_str);
    for entry in state(marker)? {
        println!("{entry}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The current state, as seen by root.
pub fn snapshot(marker: &str) -> Result<BTreeSet<String>> {
    // Not by its path, since another cargo may have replaced the file.
    let this = format!("/proc/{}/exe", std::process::id());
    let text = sh::output(sh::root(this, [])?.args([JOB, marker]))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The entries that were not there before. Retries for 2 s, because the kernel removes a namespace some time after its
/// last process has ended.
pub fn left_behind(before: &BTreeSet<String>, marker: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for _ in 0..5 {
        left = snapshot(marker)?.difference(before).cloned().collect();
        if left.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(400));
    }
    Ok(left)
}

/// Ends the processes among these entries. They have this run's marker in their environment, so they belong to this
/// run.
pub fn end_processes(left: &[String]) -> Result<()> {
    let pids = left.iter().filter_map(|entry| entry.strip_prefix(PROCESS)?.split(':').next());
    for pid in pids {
        // It may have ended already.
        let _ = sh::output(sh::root("sh", [])?.args(["-c", sh::KILL, "sh", "KILL", pid.trim()]));
    }
    Ok(())
}

fn state(marker: Option<&str>) -> Result<BTreeSet<String>> {
    let mut state = BTreeSet::new();
    let mut list = |what: &str, directory: &str| {
        for name in names(Path::new(directory)) {
            state.insert(format!("{what} {name}"));
        }
    };
    list("network interface", "/sys/class/net");
    list("named network namespace", "/run/netns");
    list("pin in the BPF filesystem", "/sys/fs/bpf");
    for interface in names(Path::new("/sys/class/net")) {
        for attached in attachments(&interface) {
            state.insert(format!("on {interface}: {attached}"));
        }
    }
    if let Some(marker) = marker {
        state.extend(processes(&format!("{MARKER}={marker}")));
    }
    Ok(state)
}

/// XDP programs and clsact qdiscs of an interface, as reported by iproute2.
fn attachments(interface: &str) -> Vec<String> {
    let said = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        sh::output(command.args(args).arg(interface)).unwrap_or_default()
    };
    let link = said("ip", &["-details", "link", "show", "dev"]);
    let qdiscs = said("tc", &["qdisc", "show", "dev"]);
    let link = link.lines().filter(|line| line.contains("prog/xdp"));
    let qdiscs = qdiscs.lines().filter(|line| line.contains("clsact"));
    link.chain(qdiscs).map(|line| line.trim().to_owned()).collect()
}

fn processes(variable: &str) -> Vec<String> {
    let mut found = Vec::new();
    for pid in names(Path::new("/proc")) {
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let directory = Path::new("/proc").join(&pid);
        // The process may have ended.
        let Ok(environment) = fs::read(directory.join("environ")) else {
            continue;
        };
        if environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()) {
            let command = fs::read(directory.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(format!("{PROCESS}{pid}: {}", command.trim()));
        }
    }
    found
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
