//! A lab that is looked at when its test is done with it: nothing may be left in it.
//!
//! It looks into the lab's own namespaces alone, so that tests with a lab each may run side by side.

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

/// How long the end of what a test had may take: it lets go of it just before, and service and kernel take a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// The kernel frees closed netlink sockets a grace period of RCU later; how long none may have gone to be done with it.
const QUIET: Duration = Duration::from_millis(100);

/// A lab; as it was when it was made, it has to be when it is dropped: attachments and qdiscs of the client's interface,
/// processes in both namespaces, and sockets in the client's, which are reserved ports, AF_XDP sockets with their
/// frames, packet sockets and those of leases. Not looked at while a failed test unwinds.
pub struct GuardedLab {
    lab: Lab,
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
        let (things, sockets) = (things(&lab), settled(lab.client()));
        Self { lab, things, sockets }
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
        let left = self.left(PATIENCE);
        assert!(left.is_empty(), "left in the lab: {left:?}");
    }
}

impl GuardedLab {
    /// What is there and was not, after `patience` at most if it is still there then.
    fn left(&self, patience: Duration) -> Vec<String> {
        let mut left = Vec::new();
        let more = || {
            left = things(&self.lab).difference(&self.things).cloned().collect();
            left.is_empty()
        };
        // Apart from what opens netlink sockets itself: as long as that goes on, some are not freed yet.
        let mut count = 0;
        let fewer = || {
            count = used(self.lab.client()).saturating_sub(self.sockets);
            count == 0
        };
        if slow::wait_until(patience, more) && !slow::wait_until(patience, fewer) {
            left.push(format!("{count} sockets: {}", sockets(self.lab.client())));
        }
        left
    }
}

/// What could be left, but for sockets.
fn things(lab: &Lab) -> BTreeSet<String> {
    let mut things: BTreeSet<String> = processes_in(&[lab.client(), lab.server()]).into_iter().collect();
    let is_there = || nix::net::if_::if_nametoindex(INTERFACE).is_ok();
    // Some tests remove the interface, rename it, or move it elsewhere.
    if lab.client().run(is_there).expect("enter the client") {
        things.extend(attached(lab.client(), INTERFACE));
        things.extend(clsact(lab.client(), INTERFACE));
    }
    things
}

/// How many sockets there are once those are freed that are closed already.
fn settled(namespace: &NetNs) -> u64 {
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

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, process::Stdio};

    use super::*;
    use crate::stage::{lab, run};

    /// Longer than the kernel takes to free the netlink sockets of the looking itself.
    const SHORT: Duration = Duration::from_secs(2);

    #[test]
    fn what_was_left_is_told() {
        let lab = lab();
        assert_eq!(lab.left(PATIENCE), Vec::<String>::new());

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
        assert_eq!(lab.left(PATIENCE), Vec::<String>::new());
    }

    /// The kernel frees a netlink socket after `tc`, which the lab's own looking starts, has ended.
    #[test]
    fn its_own_looking_is_not_left() {
        let lab = lab();
        let before = used(lab.client());
        let mut busy = 0;
        // Until it was seen, which is a matter of chance.
        for round in 0.. {
            if round >= 20 && busy > 0 {
                break;
            }
            assert!(round < 500, "never saw a socket that was not freed yet");
            run(lab.client().command("tc").arg("qdisc"));
            busy += u32::from(used(lab.client()) > before);
            assert_eq!(lab.left(PATIENCE), Vec::<String>::new());
        }
    }
}
