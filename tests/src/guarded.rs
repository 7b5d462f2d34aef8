//! A lab that is looked at when its test is done with it: nothing may be left in it.
//!
//! It looks into the lab's own namespaces alone, so that tests with a lab each may run side by side.

use std::{collections::BTreeSet, fs, ops::Deref, os::unix::fs::MetadataExt as _, time::Duration};

use crafter::lab::{INTERFACE, Lab, LabOptions, NetNs};

use crate::{leak::attached, slow};

/// How long the end of what a test had may take: it lets go of it just before, and service and kernel take a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab; as it was when it was made, it has to be when it is dropped: attachments and qdiscs of the client's interface,
/// processes in both namespaces, and sockets in the client's, which are reserved ports, AF_XDP sockets with their
/// frames, packet sockets and those of leases. Not looked at while a failed test unwinds.
pub struct GuardedLab {
    lab: Lab,
    before: State,
}

/// What could be left.
#[derive(Debug)]
struct State {
    things: BTreeSet<String>,
    /// Sockets of all families, of this process and others (`sockets: used` in /proc/net/sockstat).
    sockets: u64,
}

impl GuardedLab {
    /// Makes a lab.
    ///
    /// # Panics
    /// If there can be none: these tests run as root.
    pub fn new(options: &LabOptions) -> Self {
        let lab = Lab::new(options).expect("a lab; these tests run as root");
        let before = State::of(&lab);
        Self { lab, before }
    }
}

impl Deref for GuardedLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for GuardedLab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut left = (Vec::new(), 0);
        let clean = slow::wait_until(PATIENCE, || {
            let now = State::of(&self.lab);
            let things = now.things.difference(&self.before.things).cloned().collect();
            left = (things, now.sockets.saturating_sub(self.before.sockets));
            left.0.is_empty() && left.1 == 0
        });
        assert!(clean, "left in the lab: {:?}, and {} sockets: {}", left.0, left.1, sockets(self.lab.client()));
    }
}

impl State {
    fn of(lab: &Lab) -> Self {
        let mut things: BTreeSet<String> = processes_in(&[lab.client(), lab.server()]).into_iter().collect();
        let is_there = || nix::net::if_::if_nametoindex(INTERFACE).is_ok();
        // Some tests remove the interface, rename it, or move it elsewhere.
        if lab.client().run(is_there).expect("enter the client") {
            things.extend(attached(lab.client(), INTERFACE));
            let shown = crate::stage::run(lab.client().command("tc").args(["qdisc", "show", "dev", INTERFACE]));
            things.extend(shown.lines().filter(|line| line.contains("clsact")).map(str::to_owned));
        }
        Self { things, sockets: used(lab.client()) }
    }
}

/// The processes in some namespaces, beside this one: id and command line.
pub fn processes_in(namespaces: &[&NetNs]) -> Vec<String> {
    let this = std::process::id().to_string();
    let is_there = |entry: &fs::DirEntry| {
        let namespace = fs::metadata(entry.path().join("ns/net"));
        let is_in = namespace.is_ok_and(|there| namespaces.iter().any(|one| one.inode() == there.ino()));
        is_in && entry.file_name() != this.as_str()
    };
    let named = |entry: fs::DirEntry| {
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        format!("process {}: {}", entry.file_name().display(), command.replace('\0', " "))
    };
    fs::read_dir("/proc").expect("/proc").flatten().filter(is_there).map(named).collect()
}

fn used(namespace: &NetNs) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/sockstat").expect("the count of sockets");
    let text = namespace.run(read).expect("enter a namespace");
    text.lines().find_map(|line| line.strip_prefix("sockets: used ")?.parse().ok()).expect("sockets: used")
}

/// What `ss` knows of them, for the message.
fn sockets(namespace: &NetNs) -> String {
    let output = namespace.command("ss").args(["-Hanp"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
