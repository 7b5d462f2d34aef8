//! A bad network: two TAP devices, one in each of two namespaces, and a thread that carries frames between them as a
//! seed decides. Kernels without netem have it too, and XDP attaches to it natively.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd},
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

use crate::stage::{ENDS, run};

/// What happens to TCP in each direction; everything else passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network {
    /// How likely a packet is lost, from 0 to 1.
    pub loss: f64,
    /// How likely it arrives twice.
    pub duplicate: f64,
    /// How likely it is held back, for five times the latency and 2 ms.
    pub reorder: f64,
    /// How likely one of its bytes is changed.
    pub corrupt: f64,
    /// How long each packet takes.
    pub latency: Duration,
    /// What chance begins with.
    pub seed: u64,
}

/// What went in at one end.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// TCP packets.
    pub packets: u64,
    /// Those that were lost.
    pub lost: u64,
    /// Those that were changed.
    pub corrupted: u64,
    /// Those that say that there is no room.
    pub zero_windows: u64,
    /// Those with one byte of data, sent while the other end has no room.
    pub probes: u64,
    /// Those with SACK blocks.
    pub sacks: u64,
    /// Those but RSTs that lack a timestamp.
    pub without_timestamp: u64,
    /// The longest, from the IP header on.
    pub longest: usize,
    /// The first with SYN.
    pub syn: Option<Segment>,
    /// When the first FIN went in.
    pub fin_in: Option<Instant>,
    /// When the first FIN came out.
    pub fin_out: Option<Instant>,
    /// Whether the latest window was zero.
    is_closed: bool,
}

/// The two namespaces, and the thread between them.
pub struct BadNetwork {
    /// Has the client's addresses of the lab.
    pub client: NetNs,
    /// Has the server's.
    pub server: NetNs,
    seen: Arc<[Mutex<Seen>; 2]>,
    history: Arc<Mutex<VecDeque<String>>>,
    cut: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BadNetwork {
    /// Both ends up, with addresses; IPv6 from an MTU of 1280 on.
    pub fn new(network: Network, mtu: usize) -> Self {
        let (client, server) = (NetNs::new().expect("a namespace"), NetNs::new().expect("a namespace"));
        let open = |namespace: &NetNs| namespace.run(tap).expect("enter a namespace").expect("make a TAP device");
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
        let (stop, cut, seen) = (Arc::default(), Arc::default(), Arc::<[Mutex<Seen>; 2]>::default());
        let history = Arc::<Mutex<VecDeque<String>>>::default();
        let mut carrier = Carrier {
            ends,
            network,
            flying: BTreeMap::new(),
            order: 0,
            seen: Arc::clone(&seen),
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
        Self { client, server, seen, history, cut, stop, thread: Some(thread) }
    }

    /// From now on, nothing gets through.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// What the client has sent, and what the server has.
    pub fn seen(&self) -> [Seen; 2] {
        [0, 1].map(|end: usize| lock(&self.seen[end]).clone())
    }
}

impl Drop for BadNetwork {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let history: Vec<String> = lock(&self.history).drain(..).collect();
            println!("The last on the wire:\n{}", history.join("\n"));
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

/// Segments that are shown where a test fails.
const HISTORY: usize = 60;

struct Carrier {
    ends: [File; 2],
    network: Network,
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    order: u64,
    seen: Arc<[Mutex<Seen>; 2]>,
    history: Arc<Mutex<VecDeque<String>>>,
    began: Instant,
    cut: Arc<AtomicBool>,
    /// Of packets from either end.
    chance: [Impair; 2],
    corruption: [Impair; 2],
}

impl Carrier {
    /// Takes what goes in, hands out what is due, or waits a little for either.
    fn carry(&mut self) {
        let wait = self.flying.first_key_value().map_or(Duration::from_millis(20), |(key, _)| {
            key.0.saturating_duration_since(Instant::now()).min(Duration::from_millis(20))
        });
        let mut polled = [0, 1].map(|end: usize| PollFd::new(self.ends[end].as_fd(), PollFlags::POLLIN));
        let _ = ppoll(&mut polled, Some(TimeSpec::from_duration(wait)), None);
        let mut frame = [0; 65_536 + ETHERNET];
        for from in 0..2 {
            // Bounded, so that the other way gets its turn.
            for _ in 0..64 {
                let Ok(length) = (&self.ends[from]).read(&mut frame) else { break };
                self.take(from, frame[..length].to_vec());
            }
        }
        let now = Instant::now();
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, frame) = entry.remove();
            if Segment::parse(&frame[ETHERNET..]).is_ok_and(|segment| segment.flags.contains(Flags::FIN)) {
                lock(&self.seen[1 - to]).fin_out.get_or_insert(now);
            }
            // A device that is down, or a full queue: the packet is lost, as on any link.
            let _ = (&self.ends[to]).write(&frame);
        }
    }

    fn take(&mut self, from: usize, mut frame: Vec<u8>) {
        let now = Instant::now();
        let mut copies = 1;
        let mut late = Duration::ZERO;
        if let Some(Ok(segment)) = frame.get(ETHERNET..).map(Segment::parse) {
            self.note(now, from, &segment, frame.len() - ETHERNET);
            let action = self.chance[from].segment(now, Direction::Sent, &mut frame);
            self.remember(now, &segment, action);
            match action {
                Action::Drop => {
                    lock(&self.seen[from]).lost += 1;
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
            self.flying.insert((now + self.network.latency + late, self.order), (1 - from, frame.clone()));
        }
    }

    fn remember(&self, now: Instant, segment: &Segment, action: Action) {
        let mut history = lock(&self.history);
        if history.len() >= HISTORY {
            history.pop_front();
        }
        history.push_back(format!("{:10.4} {action:?} {segment}", (now - self.began).as_secs_f64()));
    }

    /// Changes one byte, so that a checksum tells.
    fn corrupt(&mut self, from: usize, frame: &mut [u8]) {
        self.order += 1;
        let at = ETHERNET + (self.order * 7919) as usize % (frame.len() - ETHERNET);
        let (old, new) = (frame[at], frame[at] ^ (1 << (self.order % 8)));
        frame[at] = new;
        // Where the checksum is by chance what it would be of the pseudo-header alone, it is taken for a partial one.
        if checksum::verify(&frame[ETHERNET..], true) == Checksum::Invalid {
            lock(&self.seen[from]).corrupted += 1;
        } else {
            frame[at] = old;
        }
    }

    fn note(&self, now: Instant, from: usize, segment: &Segment, length: usize) {
        let peer_is_closed = lock(&self.seen[1 - from]).is_closed;
        let mut seen = lock(&self.seen[from]);
        seen.packets += 1;
        seen.longest = seen.longest.max(length);
        if segment.flags.contains(Flags::SYN) && seen.syn.is_none() {
            seen.syn = Some(segment.clone());
        }
        if segment.flags.contains(Flags::FIN) {
            seen.fin_in.get_or_insert(now);
        }
        if !segment.flags.contains(Flags::RST) {
            seen.is_closed = segment.window == 0;
            seen.zero_windows += u64::from(seen.is_closed);
            let is_timestamp = |option: &TcpOption| matches!(option, TcpOption::Timestamp(..));
            seen.without_timestamp += u64::from(!segment.options.iter().any(is_timestamp));
        }
        seen.sacks += u64::from(segment.options.iter().any(|option| matches!(option, TcpOption::Sack(_))));
        seen.probes += u64::from(peer_is_closed && segment.payload.len() == 1);
    }
}

/// A TAP device without packet information, non-blocking, in the calling thread's namespace.
fn tap() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}
