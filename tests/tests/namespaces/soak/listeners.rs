//! The server's side of the soak test: listeners that hold thousands of connections until they may accept and close
//! them, and counters of the server's kernel.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crafter::lab::{INTERFACE, Lab};
use crafter_tests::testbed::run;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Backlog, listen},
};

/// The ports of `count` listeners.
pub fn ports(count: u16) -> impl Iterator<Item = u16> {
    8000..8000 + count
}

/// Listeners with room for all connections that are not yet accepted.
pub fn start(lab: &Lab, address: IpAddr, count: u16) -> Vec<TcpListener> {
    // Also room for half-open connections: SYN cookies would make the counts less exact.
    for setting in ["net.core.somaxconn=65535", "net.ipv4.tcp_max_syn_backlog=65535"] {
        run(lab.server().command("sysctl").args(["-qw", setting]));
    }
    let open = |port| -> io::Result<TcpListener> {
        let listener = TcpListener::bind(SocketAddr::new(address, port))?;
        listen(&listener, Backlog::new(4096)?)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    lab.server().run(|| ports(count).map(open).collect::<io::Result<_>>()).expect("enter the server").expect("listen")
}

/// A thread that accepts and closes connections while it is enabled, until this is dropped.
pub struct Accepting {
    open: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Accepting {
    /// Starts the thread, not yet enabled.
    pub fn start(listeners: Vec<TcpListener>) -> Self {
        let (open, stop, accepted) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (may, end, count) = (Arc::clone(&open), Arc::clone(&stop), Arc::clone(&accepted));
        let thread = std::thread::spawn(move || accept(&listeners, &may, &end, &count));
        Self { open, stop, accepted, thread: Some(thread) }
    }

    /// Enables or disables it.
    pub fn open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// Number of accepted connections.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listeners: &[TcpListener], open: &AtomicBool, stop: &AtomicBool, accepted: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        if !open.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let mut polled: Vec<PollFd> =
            listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
        let _ = poll(&mut polled, PollTimeout::from(1_u8));
        for listener in listeners {
            // close() sends a FIN on an open connection, and nothing on one that was reset.
            while listener.accept().is_ok() {
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Counters of the server's kernel from /proc/net/snmp and /proc/net/netstat, with names such as `Tcp.InSegs`.
#[derive(Clone, Debug)]
pub struct KernelCounters(HashMap<String, u64>);

impl KernelCounters {
    pub fn of(lab: &Lab) -> Self {
        let read = || ["snmp", "netstat"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")));
        let texts = lab.server().run(read).expect("enter the server");
        let mut found = HashMap::new();
        for text in texts.into_iter().map(|text| text.expect("the kernel's counters")) {
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.chunks_exact(2) {
                let mut columns = pair[0].split(' ').zip(pair[1].split(' '));
                let Some((title, _)) = columns.next() else { continue };
                let title = title.trim_end_matches(':');
                found
                    .extend(columns.filter_map(|(name, value)| Some((format!("{title}.{name}"), value.parse().ok()?))));
            }
        }
        Self(found)
    }

    pub fn get(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("the kernel does not count {name}"))
    }
}

/// Number of the server's TCP connections in a state; without one, in any state but LISTEN.
pub fn connections(lab: &Lab, state: Option<&str>) -> usize {
    let read = || fs::read_to_string("/proc/thread-self/net/tcp");
    let text = lab.server().run(read).expect("enter the server").expect("its sockets");
    let states = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3));
    states.filter(|is| state.map_or(*is != "0A", |state| *is == state)).count()
}

/// Packets dropped by the server's end of the veth pair because its peer's ring was full.
pub fn not_carried(lab: &Lab) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/dev");
    let text = lab.server().run(read).expect("enter the server").expect("its interfaces");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{INTERFACE}:")));
    // Columns: eight for receive, then bytes, packets, errors and drops of transmit.
    let dropped = line.and_then(|line| line.split_whitespace().nth(11)?.parse().ok());
    dropped.expect("the drops of the interface")
}
