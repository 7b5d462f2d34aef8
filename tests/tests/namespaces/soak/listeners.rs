//! The kernel's side of the soak: listeners that keep thousands of connections until they are told to let go, and what
//! that kernel has counted.

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
use crafter_tests::stage::run;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Backlog, listen},
};

/// Where they listen.
pub fn ports(count: u16) -> impl Iterator<Item = u16> {
    8000..8000 + count
}

/// Listeners with room for all connections that are not accepted yet.
pub fn start(lab: &Lab, address: IpAddr, count: u16) -> Vec<TcpListener> {
    // Room for SYNs too: with cookies it would go as well, but not be as exact.
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

/// Accepts and closes, while it is let; from a thread that ends when this is dropped.
pub struct Accepting {
    open: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Accepting {
    /// Nothing is accepted yet.
    pub fn start(listeners: Vec<TcpListener>) -> Self {
        let (open, stop, accepted) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (may, end, count) = (Arc::clone(&open), Arc::clone(&stop), Arc::clone(&accepted));
        let thread = std::thread::spawn(move || accept(&listeners, &may, &end, &count));
        Self { open, stop, accepted, thread: Some(thread) }
    }

    /// Whether it accepts.
    pub fn open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// How many were accepted so far.
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
            // Closed at once: who has closed too is answered by a FIN, who has reset by nothing.
            while listener.accept().is_ok() {
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A counter of the server's kernel, of /proc/net/snmp and /proc/net/netstat: `Tcp.InSegs`.
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

/// Connections of the server in this state; none named: in any but LISTEN.
pub fn connections(lab: &Lab, state: Option<&str>) -> usize {
    let read = || fs::read_to_string("/proc/thread-self/net/tcp");
    let text = lab.server().run(read).expect("enter the server").expect("its sockets");
    let states = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3));
    states.filter(|is| state.map_or(*is != "0A", |state| *is == state)).count()
}

/// Packets that the server's end of the link had no room for in its peer's ring: those of a veth pair that nobody polls
/// at that moment.
pub fn not_carried(lab: &Lab) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/dev");
    let text = lab.server().run(read).expect("enter the server").expect("its interfaces");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{INTERFACE}:")));
    // Eight columns of what was received, then bytes, packets, errors, drops of what was sent.
    let dropped = line.and_then(|line| line.split_whitespace().nth(11)?.parse().ok());
    dropped.expect("the drops of the interface")
}
