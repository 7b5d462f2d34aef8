//! A lab that checks, when it is dropped, that the test left nothing in it.
//!
//! It only inspects the lab's own namespaces, so that tests with separate labs can run in parallel.

use std::{
    collections::BTreeSet,
    fs,
    ops::Deref,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use crafter::lab::{INTERFACE, Lab, LabOptions, NetNs};

use crate::{
    leak::{attached, clsact},
    slow,
};

/// Timeout for the service and the kernel to release what the test has just closed.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel frees closed netlink sockets one RCU grace period later; the count is stable after this time without a
/// change.
const QUIET: Duration = Duration::from_millis(100);

/// A lab that must be in its initial state when it is dropped: attachments and qdiscs of the client's interface,
/// processes in both namespaces, and sockets in the client's namespace (reserved ports, AF_XDP sockets with their
/// frames, packet sockets, leases). Not checked while a failed test unwinds.
pub struct GuardedLab {
    lab: Lab,
    state: BTreeSet<String>,
    /// Number of sockets of all families and processes (`sockets: used` in /proc/net/sockstat).
    sockets: u64,
}

impl GuardedLab {
    /// Makes a lab.
    ///
    /// # Panics
    /// If the lab cannot be created; it requires root.
    pub fn new(options: &LabOptions) -> Self {
        let lab = Lab::new(options).expect("a lab; these tests run as root");
        let (state, sockets) = (state(&lab), stable_socket_count(lab.client()));
        Self { lab, state, sockets }
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
        let left = self.left(RELEASE_TIMEOUT);
        assert!(left.is_empty(), "the test left these in the lab: {left:?}");
    }
}

impl GuardedLab {
    /// What was added since the lab was created and is still there after `timeout`.
    fn left(&self, timeout: Duration) -> Vec<String> {
        let mut left = Vec::new();
        let more = || {
            left = state(&self.lab).difference(&self.state).cloned().collect();
            left.is_empty()
        };
        // Checked last, because the other checks open netlink sockets themselves, and the kernel frees them later.
        let mut count = 0;
        let fewer = || {
            count = used(self.lab.client()).saturating_sub(self.sockets);
            count == 0
        };
        if slow::wait_until(timeout, more) && !slow::wait_until(timeout, fewer) {
            left.push(format!("{count} sockets: {}", sockets(self.lab.client())));
        }
        left
    }
}

/// Everything that could be left, except sockets.
fn state(lab: &Lab) -> BTreeSet<String> {
    let mut state: BTreeSet<String> = processes_in(&[lab.client(), lab.server()]).into_iter().collect();
    let exists = || nix::net::if_::if_nametoindex(INTERFACE).is_ok();
    // Some tests remove the interface, rename it, or move it elsewhere.
    if lab.client().run(exists).expect("enter the client") {
        state.extend(attached(lab.client(), INTERFACE));
        state.extend(clsact(lab.client(), INTERFACE));
    }
    state
}

/// Number of sockets after the kernel has freed the closed ones.
fn stable_socket_count(namespace: &NetNs) -> u64 {
    let (mut least, mut since) = (used(namespace), Instant::now());
    while since.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(5));
        let now = used(namespace);
        if now < least {
            (least, since) = (now, Instant::now());
        }
    }
    least
}

/// Processes in any of `namespaces` except this one: id and command line.
pub fn processes_in(namespaces: &[&NetNs]) -> Vec<String> {
    let this = std::process::id().to_string();
    let exists = |entry: &fs::DirEntry| {
        let namespace = fs::metadata(entry.path().join("ns/net"));
        let is_in = namespace.is_ok_and(|there| namespaces.iter().any(|one| one.inode() == there.ino()));
        is_in && entry.file_name() != this.as_str()
    };
    let named = |entry: fs::DirEntry| {
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        format!("process {}: {}", entry.file_name().display(), command.replace('\0', " "))
    };
    fs::read_dir("/proc").expect("/proc").flatten().filter(exists).map(named).collect()
}

fn used(namespace: &NetNs) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/sockstat").expect("the count of sockets");
    let text = namespace.run(read).expect("enter a namespace");
    text.lines().find_map(|line| line.strip_prefix("sockets: used ")?.parse().ok()).expect("sockets: used")
}

/// The sockets as listed by `ss`, for the failure message.
fn sockets(namespace: &NetNs) -> String {
    let output = namespace.command("ss").args(["-Hanp"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, process::Stdio};

    use super::*;
    use crate::testbed::{lab, run};

    /// Longer than the kernel takes to free the netlink sockets opened by the check itself.
    const SHORT: Duration = Duration::from_secs(2);

    #[test]
    fn leftover_socket_process_and_filter_are_reported() {
        let lab = lab();
        assert_eq!(lab.left(RELEASE_TIMEOUT), Vec::<String>::new());

        let socket = lab.client().run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let left = lab.left(SHORT);
        assert!(left.len() == 1 && left[0].starts_with("1 sockets: "), "{left:?}");
        drop(socket);

        let mut process = lab.server().command("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let left = lab.left(SHORT);
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(left.len() == 1 && left[0].contains(": sleep 60"), "{left:?}");

        let tc = |arguments: &[&str]| run(lab.client().command("tc").args(arguments));
        tc(&["qdisc", "add", "dev", INTERFACE, "clsact"]);
        tc(&["filter", "add", "dev", INTERFACE, "egress", "pref", "7", "bpf", "bytecode", "1,6 0 0 0,"]);
        let left = lab.left(SHORT);
        tc(&["qdisc", "del", "dev", INTERFACE, "clsact"]);
        assert!(left.len() == 2 && left.iter().any(|one| one.starts_with("qdisc clsact")), "{left:?}");
        assert_eq!(lab.left(RELEASE_TIMEOUT), Vec::<String>::new());
    }

    /// The kernel frees a netlink socket only after `tc`, which the check runs, has exited.
    #[test]
    fn netlink_sockets_of_the_check_are_not_reported() {
        let lab = lab();
        let before = used(lab.client());
        let mut busy = 0;
        // Repeats until a socket that is not yet freed was observed, which depends on timing.
        for round in 0.. {
            if round >= 20 && busy > 0 {
                break;
            }
            assert!(round < 500, "no unfreed socket was observed in 500 rounds");
            run(lab.client().command("tc").arg("qdisc"));
            busy += u32::from(used(lab.client()) > before);
            assert_eq!(lab.left(RELEASE_TIMEOUT), Vec::<String>::new());
        }
    }
}
