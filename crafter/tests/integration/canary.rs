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
        Self { cage }
    }

    /// Whether the watched namespace still exists.
    pub fn lives(&self) -> bool {
        self.cage.run(|| nix::net::if_::if_nametoindex(NAME).is_ok()).unwrap()
    }

    /// Waits until all watched namespaces are destroyed; panics after `limit`.
    pub fn assert_gone(canaries: &[Self], limit: Duration) {
        let start = Instant::now();
        while canaries.iter().any(Self::lives) {
            assert!(start.elapsed() < limit, "a network namespace still exists after {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The processes in one of these network namespaces, as `PID COMMAND`.
pub fn processes_in(inodes: &[u64]) -> Vec<String> {
    let links: Vec<_> = inodes.iter().map(|inode| format!("net:[{inode}]")).collect();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        // A process or thread may have ended.
        for thread in fs::read_dir(process.path().join("task")).into_iter().flatten().flatten() {
            let inside = fs::read_link(thread.path().join("ns/net"))
                .is_ok_and(|link| links.iter().any(|known| link.as_os_str() == known.as_str()));
            if inside {
                let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
                found.push(format!("{} {}", thread.file_name().display(), name.trim()));
            }
        }
    }
    found
}
