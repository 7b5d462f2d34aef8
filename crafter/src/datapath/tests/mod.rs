//! Tests against the real kernel, each in network namespaces of its own. They need root.
//!
//! A namespace exists as long as a thread is in it, so a test that is killed leaves nothing behind.

mod abi;
mod features;
mod frames;
mod reserve;
mod route;
mod shared;
mod shares;
mod tap;
mod tx;
mod verified;

use std::{
    fs::{self, File},
    future::Future,
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, packet_route::link::LinkMessage};

use super::interface::interface;

/// The test's end of the pair: v0.
const HERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// The peer's end: v1.
const THERE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs `test` in a new network namespace that has only `lo`, which is up.
fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    thread::spawn(move || {
        enter();
        block_on(async {
            link_up("lo").await;
            test().await;
        });
    })
    .join()
    .unwrap();
}

/// Runs `test` in a new network namespace that a veth pair connects to a second one, the peer's.
fn pair<F: Future<Output = ()>>(test: impl FnOnce(Peer) -> F + Send + 'static) {
    alone(move || async move {
        let peer = Peer::new();
        let handle = netlink();
        let add = handle.link().add(LinkVeth::new("v0", "v1").build());
        add.execute().await.unwrap();
        set(LinkUnspec::new_with_name("v1").setns_by_fd(peer.namespace.as_raw_fd()).build()).await;
        configure("v0", HERE).await;
        peer.run(|| {
            block_on(configure("v1", THERE));
            usable(THERE);
        });
        usable(HERE);
        // A test that does not use its peer drops it at once; its namespace, and with it the veth pair, must stay.
        let _alive = peer.jobs.clone();
        test(peer).await;
    });
}

/// A thread in a network namespace of its own.
struct Peer {
    namespace: File,
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Peer {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            enter();
            ready.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        Self { namespace: is_ready.recv().unwrap(), jobs }
    }

    /// Runs `job` in the peer's namespace and waits for it.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).unwrap();
        result.recv().expect("the job in the peer's namespace panicked")
    }
}

fn enter() {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn netlink() -> Handle {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

async fn set(link: LinkMessage) {
    netlink().link().set(link).execute().await.unwrap();
}

async fn link_up(name: &str) {
    set(LinkUnspec::new_with_name(name).up().build()).await;
}

async fn configure(name: &str, addresses: [&str; 2]) {
    // Without duplicate address detection: it keeps IPv6 addresses tentative for a second or two.
    sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0");
    let index = interface(name).await.unwrap().ifindex;
    for address in addresses.map(ip) {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        netlink().address().add(index, address, prefix).execute().await.unwrap();
    }
    link_up(name).await;
}

/// Retries `work` until it succeeds, for at most ten seconds. A port that this process has closed may still be in use:
/// a child that another test starts has a copy of the socket between fork() and exec().
#[track_caller]
fn again<T, E: std::fmt::Debug>(mut work: impl FnMut() -> Result<T, E>) -> T {
    for _ in 0..5000 {
        if let Ok(done) = work() {
            return done;
        }
        thread::sleep(Duration::from_millis(2));
    }
    work().unwrap()
}

/// Waits until bind() to the addresses works. For IPv6, the carrier must be up and addrconf_dad_work() must have run.
fn usable(addresses: [&str; 2]) {
    for address in addresses {
        let bound = (0..2500).any(|_| {
            let bound = UdpSocket::bind((ip(address), 0)).is_ok();
            if !bound {
                thread::sleep(Duration::from_millis(4));
            }
            bound
        });
        assert!(bound, "{address} is still not usable");
    }
}

fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{name}"), value).unwrap();
}
