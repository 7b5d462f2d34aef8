//! An impaired network: one TAP device in each of two namespaces, and a thread that carries frames between them with
//! loss, duplication, reordering and corruption chosen by a seed. It needs no netem, and XDP attaches natively to TAP.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crafter::{
    engine::{Action, Direction, Impair, SegmentHook},
    lab::{INTERFACE, NetNs},
    layer::TcpOption,
    packet::{Checksum, Flags, checksum},
};
use crafter_packet::testing::Segment;
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{
    testbed::{ENDS, run},
    tun::open_device,
};

/// Impairments of TCP in each direction; all other packets pass unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network {
    /// Probability that a packet is lost, from 0 to 1.
    pub loss: f64,
    /// Probability that a packet is duplicated, from 0 to 1.
    pub duplicate: f64,
    /// Probability that a packet is delayed by five times the latency plus 2 ms, from 0 to 1.
    pub reorder: f64,
    /// Probability that one byte of a packet is changed, from 0 to 1.
    pub corrupt: f64,
    /// Latency of each direction.
    pub latency: Duration,
    /// Seed of the random choices.
    pub seed: u64,
}

/// Statistics of the TCP packets sent by one end.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Number of packets.
    pub packets: u64,
    /// Packets dropped by the network.
    pub lost: u64,
    /// Packets corrupted by the network.
    pub corrupted: u64,
    /// Segments without RST that announce a zero window.
    pub zero_windows: u64,
    /// Segments with one byte of payload, sent while the other end's window is zero.
    pub probes: u64,
    /// Segments with SACK blocks.
    pub sacks: u64,
    /// Segments without RST that lack a timestamp.
    pub without_timestamp: u64,
    /// Length of the longest packet in bytes, from the IP header on.
    pub longest: usize,
    /// The first segment with SYN.
    pub syn: Option<Segment>,
    /// When the first FIN was sent.
    pub fin_in: Option<Instant>,
    /// When the first FIN was delivered to the other end.
    pub fin_out: Option<Instant>,
    /// Whether the latest window was zero.
    is_window_closed: bool,
}

/// The two namespaces, and the thread that connects them.
pub struct ImpairedNetwork {
    /// The namespace with the client's addresses of the lab.
    pub client: NetNs,
    /// The namespace with the server's addresses of the lab.
    pub server: NetNs,
    sent: Arc<[Mutex<Sent>; 2]>,
    history: Arc<Mutex<VecDeque<String>>>,
    cut: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImpairedNetwork {
    /// Makes both namespaces with their devices up and addresses assigned; IPv6 only if the MTU is at least 1,280
    /// bytes.
    pub fn new(network: Network, mtu: usize) -> Self {
        let (client, server) = (NetNs::new().expect("a namespace"), NetNs::new().expect("a namespace"));
        let open = |namespace: &NetNs| {
            namespace
                .run(|| open_device(INTERFACE, libc::IFF_TAP))
                .expect("enter a namespace")
                .expect("make a TAP device")
        };
        let ends = [open(&client), open(&server)];
        let mtu = mtu.to_string();
        for (namespace, addresses) in [(&client, ENDS.map(|ends| ends.0)), (&server, ENDS.map(|ends| ends.1))] {
            let ip = |arguments: &[&str]| run(namespace.command("ip").args(arguments));
            ip(&["link", "set", INTERFACE, "mtu", &mtu, "txqueuelen", "10000", "up"]);
            for address in addresses {
                let prefix = if address.is_ipv4() { 24 } else { 64 };
                if address.is_ipv4() || network_takes_v6(&mtu) {
                    ip(&["address", "add", &format!("{address}/{prefix}"), "dev", INTERFACE, "nodad"]);
                }
            }
        }
        let (stop, cut, sent) = (Arc::default(), Arc::default(), Arc::<[Mutex<Sent>; 2]>::default());
        let history = Arc::<Mutex<VecDeque<String>>>::default();
        let mut carrier = Carrier {
            ends,
            network,
            in_flight: BTreeMap::new(),
            order: 0,
            sent: Arc::clone(&sent),
            history: Arc::clone(&history),
            began: Instant::now(),
            cut: Arc::clone(&cut),
            chance: [0, 1].map(|end| Impair {
                loss: network.loss,
                duplicate: network.duplicate,
                reorder: network.reorder,
                delay: network.latency * 5 + Duration::from_millis(2),
                ..Impair::new(network.seed * 2 + end)
            }),
            corruption: [2, 3].map(|end| Impair { loss: network.corrupt, ..Impair::new(network.seed * 7 + end) }),
        };
        let stopped: Arc<AtomicBool> = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                carrier.carry();
            }
        });
        Self { client, server, sent, history, cut, stop, thread: Some(thread) }
    }

    /// From now on, drops every packet in both directions.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Statistics of the client and of the server.
    pub fn sent(&self) -> [Sent; 2] {
        [0, 1].map(|end: usize| lock(&self.sent[end]).clone())
    }
}

impl Drop for ImpairedNetwork {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let history: Vec<String> = lock(&self.history).drain(..).collect();
            println!("The last segments on the wire:\n{}", history.join("\n"));
        }
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn network_takes_v6(mtu: &str) -> bool {
    mtu.parse::<usize>().is_ok_and(|mtu| mtu >= 1280)
}

const ETHERNET: usize = 14;

/// Number of segments that are printed if a test fails.
const HISTORY: usize = 60;

struct Carrier {
    ends: [File; 2],
    network: Network,
    in_flight: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    order: u64,
    sent: Arc<[Mutex<Sent>; 2]>,
    history: Arc<Mutex<VecDeque<String>>>,
    began: Instant,
    cut: Arc<AtomicBool>,
    /// Loss, duplication and reordering, by the sending end.
    /// Corruption, by the sending end.
    chance: [Impair; 2],
    corruption: [Impair; 2],
}

impl Carrier {
    /// Reads frames from both ends, delivers those that are due, and waits up to 20 ms if there are none.
    fn carry(&mut self) {
        let wait = self.in_flight.first_key_value().map_or(Duration::from_millis(20), |(key, _)| {
            key.0.saturating_duration_since(Instant::now()).min(Duration::from_millis(20))
        });
        let mut polled = [0, 1].map(|end: usize| PollFd::new(self.ends[end].as_fd(), PollFlags::POLLIN));
        let _ = ppoll(&mut polled, Some(TimeSpec::from_duration(wait)), None);
        let mut frame = [0; 65_536 + ETHERNET];
        for from in 0..2 {
            // Bounded, so that the other direction is served too.
            for _ in 0..64 {
                let Ok(length) = (&self.ends[from]).read(&mut frame) else { break };
                self.accept(from, frame[..length].to_vec());
            }
        }
        let now = Instant::now();
        while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, frame) = entry.remove();
            if Segment::parse(&frame[ETHERNET..]).is_ok_and(|segment| segment.flags.contains(Flags::FIN)) {
                lock(&self.sent[1 - to]).fin_out.get_or_insert(now);
            }
            // A write fails if the device is down or its queue is full; the frame is then lost, as on any link.
            let _ = (&self.ends[to]).write(&frame);
        }
    }

    fn accept(&mut self, from: usize, mut frame: Vec<u8>) {
        let now = Instant::now();
        let mut copies = 1;
        let mut late = Duration::ZERO;
        if let Some(Ok(segment)) = frame.get(ETHERNET..).map(Segment::parse) {
            self.count(now, from, &segment, frame.len() - ETHERNET);
            let action = self.chance[from].segment(now, Direction::Sent, &mut frame);
            self.log(now, &segment, action);
            match action {
                Action::Drop => {
                    lock(&self.sent[from]).lost += 1;
                    return;
                }
                Action::Duplicate(more) => copies += more,
                Action::Delay(delay) => late = delay,
                Action::Pass => {}
            }
            if self.corruption[from].segment(now, Direction::Sent, &mut frame) == Action::Drop {
                self.corrupt(from, &mut frame);
            }
        }
        if self.cut.load(Ordering::Relaxed) {
            return;
        }
        for _ in 0..copies {
            self.order += 1;
            self.in_flight.insert((now + self.network.latency + late, self.order), (1 - from, frame.clone()));
        }
    }

    fn log(&self, now: Instant, segment: &Segment, action: Action) {
        let mut history = lock(&self.history);
        if history.len() >= HISTORY {
            history.pop_front();
        }
        history.push_back(format!("{:10.4} {action:?} {segment}", (now - self.began).as_secs_f64()));
    }

    /// Flips one bit such that a checksum detects it.
    fn corrupt(&mut self, from: usize, frame: &mut [u8]) {
        self.order += 1;
        let at = ETHERNET + (self.order * 7919) as usize % (frame.len() - ETHERNET);
        let (old, new) = (frame[at], frame[at] ^ (1 << (self.order % 8)));
        frame[at] = new;
        // A checksum that happens to equal the one of the pseudo-header alone is accepted as partial, so undo the
        // change.
        if checksum::verify(&frame[ETHERNET..], true) == Checksum::Invalid {
            lock(&self.sent[from]).corrupted += 1;
        } else {
            frame[at] = old;
        }
    }

    fn count(&self, now: Instant, from: usize, segment: &Segment, length: usize) {
        let is_peer_closed = lock(&self.sent[1 - from]).is_window_closed;
        let mut sent = lock(&self.sent[from]);
        sent.packets += 1;
        sent.longest = sent.longest.max(length);
        if segment.flags.contains(Flags::SYN) && sent.syn.is_none() {
            sent.syn = Some(segment.clone());
        }
        if segment.flags.contains(Flags::FIN) {
            sent.fin_in.get_or_insert(now);
        }
        if !segment.flags.contains(Flags::RST) {
            sent.is_window_closed = segment.window == 0;
            sent.zero_windows += u64::from(sent.is_window_closed);
            let is_timestamp = |option: &TcpOption| matches!(option, TcpOption::Timestamp(..));
            sent.without_timestamp += u64::from(!segment.options.iter().any(is_timestamp));
        }
        sent.sacks += u64::from(segment.options.iter().any(|option| matches!(option, TcpOption::Sack(_))));
        sent.probes += u64::from(is_peer_closed && segment.payload.len() == 1);
    }
}
