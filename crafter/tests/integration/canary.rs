//! Detects when the kernel has destroyed a network namespace.

use std::{
    fs,
    os::{fd::AsFd as _, fd::AsRawFd as _},
    time::{Duration, Instant},
};

use crafter::lab::NetNs;
use rtnetlink::{
    LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoVeth},
};

/// A veth pair between a private namespace and the watched one. Its local end disappears when the kernel destroys the
/// watched namespace.
pub struct Canary {
    cage: NetNs,
    /// Inode of the watched namespace. After the namespace is destroyed, the kernel may give the inode to another one.
    inode: u64,
}

const NAME: &str = "canary";

impl Canary {
    /// Watches `namespace` without holding a reference to it.
    pub fn new(namespace: &NetNs) -> Self {
        let cage = NetNs::new().unwrap();
        let fd = namespace.as_fd().as_raw_fd();
        let create = async || {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            let there = LinkUnspec::new_with_name(NAME).setns_by_fd(fd).build();
            let pair = LinkVeth::new(NAME, NAME).set_info_data(InfoData::Veth(InfoVeth::Peer(there))).build();
            handle.link().add(pair).execute().await.unwrap();
        };
        cage.run(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(create());
        })
        .unwrap();
        Self { cage, inode: namespace.inode() }
    }

    /// Whether the watched namespace still exists.
    pub fn exists(&self) -> bool {
        self.cage.run(|| nix::net::if_::if_nametoindex(NAME).is_ok()).unwrap()
    }

    /// Waits until all watched namespaces are destroyed, which implies that no process is left in them.
    ///
    /// # Panics
    /// After `limit`, with the processes that are left.
    pub fn assert_destroyed(canaries: &[Self], limit: Duration) {
        let start = Instant::now();
        while let Some(canary) = canaries.iter().find(|canary| canary.exists()) {
            if start.elapsed() >= limit {
                let processes = canary.processes();
                panic!("a network namespace still exists after {limit:?}; processes in it: {processes:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The processes in the watched namespace, as `PID COMMAND`; none once it is destroyed.
    fn processes(&self) -> Vec<String> {
        let link = format!("net:[{}]", self.inode);
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            // A process or thread may have ended.
            for thread in fs::read_dir(process.path().join("task")).into_iter().flatten().flatten() {
                if fs::read_link(thread.path().join("ns/net")).is_ok_and(|found| found.as_os_str() == link.as_str()) {
                    let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
                    found.push(format!("{} {}", thread.file_name().display(), name.trim()));
                }
            }
        }
        // Destroyed meanwhile: another namespace may have the inode.
        if self.exists() { found } else { Vec::new() }
    }
}

#[test]
fn process_keeps_its_namespace_and_is_named() {
    let namespace = NetNs::new().unwrap();
    let canary = Canary::new(&namespace);
    let mut child = namespace.command("sleep").arg("100").spawn().unwrap();
    let pid = child.id();
    drop(namespace);
    std::thread::sleep(Duration::from_millis(100));
    assert!(canary.exists());
    assert_eq!(canary.processes(), [format!("{pid} sleep")]);
    child.kill().unwrap();
    child.wait().unwrap();
    Canary::assert_destroyed(std::slice::from_ref(&canary), Duration::from_secs(10));
    // A new namespace may have the inode.
    let next: Vec<_> = (0..8).map(|_| NetNs::new().unwrap()).collect();
    let mut other = next[0].command("sleep").arg("100").spawn().unwrap();
    assert_eq!(canary.processes(), Vec::<String>::new());
    other.kill().unwrap();
    other.wait().unwrap();
}
