//! Handshakes segment by segment, with thousands of connections open at once: memory stays constant, and every packet
//! is accounted for on both sides.
//!
//! `CRAFTER_TEST_HANDSHAKES` sets their number; 20,000 are open at the same time.

mod hooks;
mod listeners;

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use crafter::{
    Crafter, Lease, LeaseRequest, PortChoice,
    datapath::program::Attach,
    driver::Stats,
    lab::{INTERFACE, Lab},
    layer::TcpOption,
    packet::{Checksum, Flags},
};
use crafter_packet::testing::Segment;
use crafter_tests::{
    leak::Serial,
    service::{ROOT, Service},
    testbed::{ENDS, lab, open},
    within,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use hooks::Hooks;
use listeners::{Accepting, KernelCounters, connections, not_carried, ports, start};

/// Number of handshakes, unless `CRAFTER_TEST_HANDSHAKES` is set.
const HANDSHAKES: usize = 100_000;
/// Connections open at the same time: from each of these local ports to each of these ports of the server.
const LOCAL_PORTS: u16 = 2000;
const REMOTE_PORTS: u16 = 10;
const FLOWS: usize = LOCAL_PORTS as usize * REMOTE_PORTS as usize;
/// Packets sent before replies are received.
const BATCH: usize = 256;
/// In every n-th round the connections are closed, in the others reset.
const CLOSED: usize = 5;
/// `TCP_ESTABLISHED` of include/net/tcp_states.h, as /proc/net/tcp has it.
const ESTABLISHED: Option<&str> = Some("01");
/// No limits for root.
const POLICY: &str = r#"
[[rule]]
user = 0
protocols = ["any"]
packets_per_second = "unlimited"
max_leases = "unlimited"
max_ports = "unlimited"
max_flows = "unlimited"
"#;
/// Permitted growth of the process in KiB after one round of each kind.
const GROWTH: u64 = 4096;
/// Timeout of each wait; generous, because the machine may be busy.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Resources of a process that must not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// Resident anonymous memory in KiB.
    resident: u64,
    descriptors: usize,
    /// Memory of its BPF maps in bytes, as reported by the kernel.
    maps: u64,
}

impl Size {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let resident =
            status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().split(' ').next()?.parse().ok());
        let mut maps = 0;
        let mut descriptors = 0;
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("its descriptors").flatten() {
            descriptors += 1;
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            maps += field("map_id:").and_then(|_| field("memlock:")).unwrap_or(0);
        }
        Self { resident: resident.expect("its resident memory"), descriptors, maps }
    }
}

/// State of one connection.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// The next sequence number of each side.
    next: u32,
    expected: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    SynSent,
    Established,
    /// Our FIN was sent.
    FinSent,
}

struct Soak<'l> {
    lab: &'l Lab,
    lease: Lease,
    client: IpAddr,
    server: IpAddr,
    first: u16,
    flows: Vec<Flow>,
    round: u32,
    sent: u64,
    received: u64,
    /// Segments without news: retransmissions of the server.
    retransmitted: u64,
    done: usize,
}

impl Soak<'_> {
    fn segment(&self, position: usize, flags: Flags) -> Segment {
        let flow = self.flows[position];
        let (local, remote) = (position / usize::from(REMOTE_PORTS), position % usize::from(REMOTE_PORTS));
        let source = SocketAddr::new(self.client, self.first + local as u16);
        let destination = SocketAddr::new(self.server, ports(REMOTE_PORTS).nth(remote).expect("a port"));
        let ack = if flags.contains(Flags::ACK) { flow.expected } else { 0 };
        Segment { flags, seq: flow.next, ack, window: 65_535, ..Segment::new(source, destination) }
    }

    fn position(&self, local: SocketAddr, remote: SocketAddr) -> usize {
        usize::from(local.port() - self.first) * usize::from(REMOTE_PORTS) + usize::from(remote.port() - 8000)
    }

    async fn send(&mut self, packets: &[Vec<u8>]) {
        self.lease.send_all(packets.iter().map(Vec::as_slice)).await.expect("send");
        self.sent += packets.len() as u64;
    }

    /// Sends one segment of each flow in batches, and receives replies after each batch.
    async fn send_on_all_flows(&mut self, flags: Flags, from: State, to: State, length: u32) {
        let mut at = 0;
        while at < FLOWS {
            let end = (at + BATCH).min(FLOWS);
            let mut packets = Vec::with_capacity(BATCH);
            for position in at..end {
                let flow = &mut self.flows[position];
                assert_eq!(flow.state, from, "flow {position}");
                if flags == Flags::SYN {
                    flow.next = self.round.wrapping_mul(0x9e37_79b9).wrapping_add(position as u32 * 7919);
                }
                flow.state = to;
                let mut segment = self.segment(position, flags);
                if flags == Flags::SYN {
                    segment.options = vec![TcpOption::Mss(1460)];
                }
                packets.push(segment.build());
                self.flows[position].next = segment.seq.wrapping_add(length);
            }
            self.send(&packets).await;
            self.receive().await;
            at = end;
        }
    }

    /// Receives pending segments, and answers them if necessary.
    async fn receive(&mut self) {
        let mut answers = Vec::new();
        while let Some(received) = self.lease.try_recv() {
            self.received += 1;
            assert_ne!(received.checksum, Checksum::Invalid);
            let segment = Segment::parse(&received.ip).expect("a segment");
            let position = self.position(segment.destination, segment.source);
            let flow = &mut self.flows[position];
            assert!(!segment.flags.contains(Flags::RST), "reset by the server: {segment}, {flow:?}");
            match flow.state {
                State::SynSent if segment.flags == Flags::SYN | Flags::ACK && segment.ack == flow.next => {
                    flow.expected = segment.seq.wrapping_add(1);
                    flow.state = State::Established;
                    self.done += 1;
                }
                State::FinSent if segment.flags.contains(Flags::FIN) && segment.seq == flow.expected => {
                    flow.expected = segment.seq.wrapping_add(1);
                    flow.state = State::Idle;
                    self.done += 1;
                    answers.push(self.segment(position, Flags::ACK).build());
                }
                // The server's kernel acknowledges a FIN before its program closes the socket.
                State::FinSent if segment.flags == Flags::ACK => {}
                _ => self.retransmitted += 1,
            }
        }
        if !answers.is_empty() {
            self.send(&answers).await;
        }
    }

    /// Receives until every flow has reached its next state.
    async fn wait_until_done(&mut self, what: &str) {
        let began = Instant::now();
        while self.done < FLOWS {
            assert!(began.elapsed() < REPLY_TIMEOUT, "round {}: {what} of {} flows", self.round, self.done);
            self.receive().await;
            tokio::task::yield_now().await;
        }
        self.done = 0;
    }

    /// Waits until the server has this number of established connections: the service may still be sending.
    async fn wait_until_established(&self, count: usize) {
        let began = Instant::now();
        while connections(self.lab, ESTABLISHED) != count {
            assert!(
                began.elapsed() < REPLY_TIMEOUT,
                "round {}: {} established",
                self.round,
                connections(self.lab, ESTABLISHED)
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Opens and ends all flows; then the server closes its sockets.
    async fn round(&mut self, closes: bool, accepting: &Accepting) {
        self.send_on_all_flows(Flags::SYN, State::Idle, State::SynSent, 1).await;
        self.wait_until_done("SYN-ACKs").await;
        self.send_on_all_flows(Flags::ACK, State::Established, State::Established, 0).await;
        if self.round == 0 {
            // All are open at the same time.
            self.wait_until_established(FLOWS).await;
        }
        if closes {
            self.send_on_all_flows(Flags::FIN | Flags::ACK, State::Established, State::FinSent, 1).await;
            // The server must close second: otherwise its side enters TIME-WAIT, and the next round cannot reuse the
            // ports.
            self.wait_until_established(0).await;
            accepting.open(true);
            self.wait_until_done("FINs").await;
        } else {
            self.send_on_all_flows(Flags::RST | Flags::ACK, State::Established, State::Idle, 0).await;
            // The server must not close before it has received the RST: it would send a FIN.
            self.wait_until_established(0).await;
            accepting.open(true);
        }
        self.round += 1;
    }
}

/// Counts of both sides.
struct Account {
    handshakes: u64,
    resets: u64,
    sent: u64,
    received: u64,
    retransmitted: u64,
    hooks: Hooks,
    stats: [Stats; 2],
    kernel: [KernelCounters; 2],
    /// Packets of the server that were dropped by the link.
    not_carried: u64,
    accepted: u64,
    took: Duration,
    sizes: Vec<Size>,
}

/// Raises the descriptor limit: each port needs one descriptor per IP version.
fn raise_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    let wanted = most.max(8192);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).expect("8192 descriptors");
}

fn handshakes() -> usize {
    std::env::var("CRAFTER_TEST_HANDSHAKES").map_or(HANDSHAKES, |text| text.parse().expect("CRAFTER_TEST_HANDSHAKES"))
}

/// Runs `rounds` rounds; `watched` is the process whose size is recorded, and `hooks` reads the counters of the hooks.
async fn soak(lab: &Lab, crafter: &Crafter, rounds: usize, watched: u32, hooks: impl AsyncFn() -> Hooks) -> Account {
    let (client, server) = ENDS[0];
    let listeners = start(lab, server, REMOTE_PORTS);
    let port = PortChoice::FreeRange(LOCAL_PORTS);
    let lease = crafter.lease(LeaseRequest { port, ..LeaseRequest::tcp() }).await.expect("ports");
    let first = lease.port();
    // Resolves the neighbours of both ends.
    lease.local(server).await.expect("a route");
    let accepting = Accepting::start(listeners);
    let before = (hooks().await, crafter.stats(), KernelCounters::of(lab), not_carried(lab));
    let mut soak = Soak {
        lab,
        lease,
        client,
        server,
        first,
        flows: vec![Flow::default(); FLOWS],
        round: 0,
        sent: 0,
        received: 0,
        retransmitted: 0,
        done: 0,
    };
    let began = Instant::now();
    let (mut sizes, mut resets) = (Vec::new(), 0);
    for number in 0..rounds {
        let closes = number % CLOSED == 1;
        soak.round(closes, &accepting).await;
        resets += if closes { 0 } else { FLOWS as u64 };
        // The server must have closed all sockets before the next round.
        let began = Instant::now();
        while accepting.accepted() < ((number + 1) * FLOWS) as u64 || connections(lab, None) > 0 {
            assert!(began.elapsed() < REPLY_TIMEOUT, "the server does not close its connections");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        accepting.open(false);
        if number >= 1 {
            sizes.push(Size::of(watched));
        }
    }
    let took = began.elapsed();
    // Waits for packets in flight.
    tokio::time::sleep(Duration::from_millis(100)).await;
    soak.receive().await;
    Account {
        handshakes: (rounds * FLOWS) as u64,
        resets,
        sent: soak.sent,
        received: soak.received,
        retransmitted: soak.retransmitted,
        hooks: hooks().await.since(&before.0),
        stats: [before.1, crafter.stats()],
        kernel: [before.2, KernelCounters::of(lab)],
        not_carried: not_carried(lab) - before.3,
        accepted: accepting.accepted(),
        took,
        sizes,
    }
}

impl Account {
    fn kernel(&self, name: &str) -> u64 {
        self.kernel[1].get(name) - self.kernel[0].get(name)
    }

    /// Packets to this host that were lost on it.
    fn lost(&self) -> u64 {
        self.hooks.lost + self.hooks.lost_in_lease_socket + self.hooks.delivery_full
    }

    fn check(&self) {
        let rate = self.handshakes as f64 / self.took.as_secs_f64();
        println!(
            "{} handshakes, {FLOWS} at once, in {:.1} s: {rate:.0}/s; {} sent, {} received, {} of them retransmissions",
            self.handshakes,
            self.took.as_secs_f64(),
            self.sent,
            self.received,
            self.retransmitted
        );
        let (first, last) = (self.sizes.first().expect("a size"), self.sizes.last().expect("a size"));
        let most = self.sizes.iter().map(|size| size.resident).max();
        println!("memory: {first:?} after the second round, {last:?} at the end, peak {most:?} KiB");
        // Sent: the server's TCP received every packet sent here.
        let [_, stats] = &self.stats;
        assert_eq!(stats.sent - self.stats[0].sent, self.sent);
        assert_eq!(stats.not_sent, self.stats[0].not_sent);
        assert_eq!(self.hooks.crafted, self.sent + self.hooks.turned_away, "the egress hook");
        assert_eq!(self.kernel("Tcp.InSegs"), self.sent, "the server's TCP");
        assert_eq!(self.kernel("Tcp.InErrs"), 0);
        // Received: every packet sent by the server's TCP arrived here or is counted as lost.
        let delivered = stats.delivered - self.stats[0].delivered;
        let lost = self.lost();
        // The kernel counts retransmitted SYN-ACKs in OutSegs, too.
        let retransmitted = self.kernel("Tcp.RetransSegs") - self.kernel("TcpExt.TCPSynRetrans");
        let answers = self.kernel("Tcp.OutSegs") + retransmitted;
        assert_eq!(delivered, self.received);
        assert_eq!(
            stats.lost - self.stats[0].lost,
            if self.hooks.is_ours { self.hooks.lost } else { self.hooks.lost_in_lease_socket }
        );
        assert_eq!(
            self.hooks.delivered - self.hooks.lost - self.hooks.lost_in_lease_socket,
            delivered,
            "the ingress hook"
        );
        println!("lost: {lost} here, {} on the link", self.not_carried);
        assert_eq!(answers, self.received + lost + self.not_carried, "the server's TCP");
        assert_eq!((stats.stray, stats.overflow, stats.bad_checksum), (0, 0, 0));
        // The server's kernel saw complete handshakes.
        assert_eq!(self.kernel("Tcp.PassiveOpens"), self.handshakes);
        assert_eq!(self.accepted, self.handshakes);
        assert_eq!(self.kernel("Tcp.EstabResets"), self.resets);
        assert_eq!(self.kernel("Tcp.AttemptFails"), 0);
        assert_eq!(self.kernel("TcpExt.ListenOverflows"), 0);
        assert_eq!(self.hooks.rst_suppressed, 0, "the kernel received a segment of an owned port");
        // Memory did not grow.
        assert!(last.resident <= first.resident + GROWTH, "{first:?}, {last:?}");
        assert_eq!((last.descriptors, last.maps), (first.descriptors, first.maps));
    }
}

#[test]
fn handshakes_in_process() {
    let serial = Serial::begin();
    raise_descriptors();
    let lab = lab();
    let rounds = handshakes().div_ceil(FLOWS).max(3);
    let (account, objects) = within(lab.client(), async || {
        let crafter = open(Attach::Native).await;
        let account = soak(&lab, &crafter, rounds, std::process::id(), async || Hooks::ours(&crafter)).await;
        // The kernel half has one entry for each flow, and no others.
        let flows: HashMap<_, _> = crafter.flows().into_iter().map(|flow| ((flow.local, flow.remote), flow)).collect();
        assert_eq!(flows.len(), FLOWS);
        let sum = |of: fn(&crafter::datapath::maps::Flow) -> u64| flows.values().map(of).sum::<u64>();
        // The entries include packets lost between the hook and the lease.
        let received = account.received + account.lost();
        assert_eq!((sum(|flow| flow.tx_packets), sum(|flow| flow.rx_packets)), (account.sent, received));
        let least = flows.values().map(|flow| flow.rx_packets).min();
        assert!(least >= Some(rounds as u64), "{least:?}");
        (account, serial.objects())
    });
    account.check();
    serial.finish(&objects, lab.client(), INTERFACE);
}

/// The same with a client of the service, which sends faster than the link; the size of the service is recorded.
#[test]
fn handshakes_through_the_service() {
    let _serial = Serial::begin();
    raise_descriptors();
    let lab = lab();
    let rounds = handshakes().div_ceil(FLOWS).max(3);
    let service = Service::start(lab.client(), POLICY);
    let account = service.session(ROOT, async |control| {
        let control = Arc::new(control);
        let crafter = Crafter::via_service(control.clone(), INTERFACE).await.expect("the service");
        soak(&lab, &crafter, rounds, service.pid(), async || Hooks::of_the_service(&control).await).await
    });
    account.check();
}
