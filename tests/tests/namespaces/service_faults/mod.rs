//! Faults around the service: hostile clients, SIGKILL, invalid policies, removed interfaces.

mod budgets;
mod fence;
mod hostile;
mod idle;
mod kept;
mod killed;
mod load;
mod locked;
mod neighbours;
mod reload;
mod removed;
mod slow_link;
mod stopped;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crafter::{
    lab::{Lab, NetNs},
    protocol::{
        Control,
        wire::{Account, AccountCall, LeaseCall},
    },
    session::{Session, SessionOptions, SrOptions},
};
use crafter_tests::{
    block_on, packets,
    peer::wait_for,
    service::{Credentials, REPLY_TIMEOUT, Service, Socket, lease_call},
};

/// Root may do everything, other users little.
const POLICY: &str = r#"
[[rule]]
user = 0
protocols = ["any"]
packets_per_second = "unlimited"
max_leases = "unlimited"
max_ports = "unlimited"
max_flows = "unlimited"
raw_ethernet = true
foreign_sources = true
peers = "any"
observe = true
multicast = true
broadcast = true

[[rule]]
everybody = true
protocols = ["tcp", "udp", "icmp"]
ports = ["1024-65535"]
allow = ["any"]
max_leases = 8
peers = "any"
"#;

/// A number from the environment, to run longer than usual.
fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Number of descriptors of a process.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the descriptors of a process").count()
}

/// Resident memory of a process in KiB (proc_pid_status(5)).
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the state of a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// CPU time of a process in ticks (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the state of a process");
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// Number of descriptors of a service without leases, after it has detached and without connections.
fn at_rest(service: &Service) -> usize {
    let mut last = (0, Instant::now());
    wait_for("a service at rest", REPLY_TIMEOUT, || {
        let now = descriptors(service.pid());
        if now != last.0 {
            last = (now, Instant::now());
        }
        // It stays attached for one second after the last lease.
        (last.1.elapsed() > Duration::from_millis(1500)).then_some(now)
    })
}

/// Acquires a lease through a control connection that is then closed.
fn lease(service: &Service, credentials: Credentials, call: &LeaseCall) -> crafter::Result<Socket> {
    service.session(credentials, async |control| Socket::lease(&control, call).await)
}

/// Observations of the well-behaved client.
#[derive(Debug)]
struct NeighbourReport {
    requests: u64,
    answered: u64,
    slowest: Duration,
    /// Packets that it did not receive or could not send, by its own account.
    missing: u64,
    /// The service's account of it.
    account: Account,
}

impl NeighbourReport {
    /// Asserts that every request was answered and no packet was lost.
    fn assert_undisturbed(&self) {
        println!("neighbour: {self:?}");
        assert!(self.requests > 0);
        assert_eq!(self.answered, self.requests, "requests without an answer: {self:?}");
        let Account { lost, refused, not_sent, .. } = self.account;
        assert_eq!((self.missing, lost, refused, not_sent), (0, 0, 0, 0), "{self:?}");
    }
}

/// A well-behaved client that runs while others misbehave: it sends one request, then 32 at once, repeatedly.
struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<NeighbourReport>,
}

impl Neighbour {
    fn start(namespace: &NetNs, socket: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, socket) = (namespace.try_clone().expect("the namespace"), socket.to_owned());
        let until = stop.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let work = || block_on(exchange(&socket, &until, &|| _ = ready.send(())));
            namespace.run(work).expect("enter the namespace")
        });
        is_ready.recv_timeout(REPLY_TIMEOUT).expect("the well-behaved client's first answers");
        Self { stop, thread }
    }

    fn finish(self) -> NeighbourReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the well-behaved client")
    }
}

async fn exchange(socket: &Path, stop: &AtomicBool, ready: &(dyn Fn() + Sync)) -> NeighbourReport {
    let control = Arc::new(Control::connect(socket).await.expect("connect"));
    let session = Session::new(SessionOptions { service: Some(control.clone()), ..SessionOptions::default() });
    // Closed ports: each SYN is answered with a RST.
    let one = packets(r#"IP(dst="192.0.2.1")/TCP(dport=9, flags="S")"#);
    let many = packets(r#"IP(dst="192.0.2.1")/TCP(dport=(1000,1031), flags="S")"#);
    let options = SrOptions { timeout: Duration::from_secs(5), ..SrOptions::default() };
    let mut report =
        NeighbourReport { requests: 0, answered: 0, slowest: Duration::ZERO, missing: 0, account: Account::default() };
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let reply = session.sr1(one[0].clone(), &options).await.expect("sr1");
        report.slowest = report.slowest.max(began.elapsed());
        report.requests += 1 + many.len() as u64;
        report.answered += u64::from(reply.is_some());
        let exchanged = session.sr(many.iter().cloned(), &options).await.expect("sr");
        let account = exchanged.account;
        report.answered += account.answered;
        report.missing += account.not_sent + account.delivery_full + account.lost + account.overflow;
        ready();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.close().await;
    report.account = control.call(&AccountCall {}).await.expect("the account");
    report
}

/// A service with [`POLICY`] in the lab's client namespace.
fn service(lab: &Lab) -> Service {
    Service::start(lab.client(), POLICY)
}
