//! What goes wrong around the service: clients that do harm, sudden death, policies that break, interfaces that go.

mod hostile;
mod idle;
mod killed;
mod load;
mod locked;
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
    expr::PacketSet,
    lab::{INTERFACE, Lab, NetNs},
    layer::Packet,
    protocol::{
        Control,
        wire::{Account, AccountCall, LeaseCall},
    },
    session::{Session, SessionOptions, SrOptions},
};
use crafter_tests::{
    block_on,
    peer::wait_for,
    service::{PATIENCE, Service, Socket, Who},
};

/// Root may do everything, nobody's group a little.
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
observe = true
multicast = true
broadcast = true

[[rule]]
everybody = true
protocols = ["tcp", "udp", "icmp"]
ports = ["1024-65535"]
allow = ["any"]
max_leases = 8
"#;

/// A number of the environment, for those who want more than the usual run has.
fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Packets of an expression.
fn packets(text: &str) -> Vec<Packet> {
    PacketSet::parse(text).expect("an expression").packets(1 << 16).expect("packets").collect()
}

/// How many descriptors a process has.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the descriptors of a process").count()
}

/// Resident memory of a process in KiB (proc_pid_status(5)).
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the state of a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Processor time that a process has used, in ticks (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the state of a process");
    let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// The descriptors that a service without leases has, once it has detached and nobody is connected.
fn at_rest(service: &Service) -> usize {
    let mut last = (0, Instant::now());
    wait_for("a service at rest", PATIENCE, || {
        let now = descriptors(service.pid());
        if now != last.0 {
            last = (now, Instant::now());
        }
        // It stays attached for a second behind the last lease.
        (last.1.elapsed() > Duration::from_millis(1500)).then_some(now)
    })
}

/// A lease of ports on the lab's interface; `last`: the end of a range.
fn call(protocol: &str, port: Option<u16>, last: Option<u16>) -> LeaseCall {
    LeaseCall {
        interface: Some(INTERFACE.to_owned()),
        protocol: protocol.to_owned(),
        port: port.map(u64::from),
        last_port: last.map(u64::from),
        ..LeaseCall::default()
    }
}

/// Takes a lease by a control connection that is closed then.
fn lease(service: &Service, who: Who, call: &LeaseCall) -> crafter::Result<Socket> {
    service.session(who, async |control| Socket::lease(&control, call).await)
}

/// What the well-behaved client saw.
#[derive(Debug)]
struct Told {
    asked: u64,
    answered: u64,
    slowest: Duration,
    /// Packets that did not come to it, or that it could not send, by its own account.
    missing: u64,
    /// The same by the service's.
    account: Account,
}

impl Told {
    /// It noticed nothing.
    fn assert_undisturbed(&self) {
        println!("beside: {self:?}");
        assert!(self.asked > 0);
        assert_eq!(self.answered, self.asked, "unanswered: {self:?}");
        let Account { lost, refused, not_sent, .. } = self.account;
        assert_eq!((self.missing, lost, refused, not_sent), (0, 0, 0, 0), "{self:?}");
    }
}

/// A client that behaves well, beside others that do not: it asks one question, then 32 at once, and so on.
struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Told>,
}

impl Neighbour {
    fn start(namespace: &NetNs, socket: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, socket) = (namespace.try_clone().expect("the namespace"), socket.to_owned());
        let until = stop.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let work = || block_on(ask(&socket, &until, &|| _ = ready.send(())));
            namespace.run(work).expect("enter the namespace")
        });
        is_ready.recv_timeout(PATIENCE).expect("the well-behaved client's first answers");
        Self { stop, thread }
    }

    fn finish(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the well-behaved client")
    }
}

async fn ask(socket: &Path, stop: &AtomicBool, ready: &(dyn Fn() + Sync)) -> Told {
    let control = Arc::new(Control::connect(socket).await.expect("connect"));
    let session = Session::new(SessionOptions { service: Some(control.clone()), ..SessionOptions::default() });
    // Ports that nobody listens on: each SYN is answered by a RST.
    let one = packets(r#"IP(dst="192.0.2.1")/TCP(dport=9, flags="S")"#);
    let many = packets(r#"IP(dst="192.0.2.1")/TCP(dport=(1000,1031), flags="S")"#);
    let options = SrOptions { timeout: Duration::from_secs(5), ..SrOptions::default() };
    let mut told = Told { asked: 0, answered: 0, slowest: Duration::ZERO, missing: 0, account: Account::default() };
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let reply = session.sr1(one[0].clone(), &options).await.expect("sr1");
        told.slowest = told.slowest.max(began.elapsed());
        told.asked += 1 + many.len() as u64;
        told.answered += u64::from(reply.is_some());
        let exchanged = session.sr(many.iter().cloned(), &options).await.expect("sr");
        let account = exchanged.account;
        told.answered += account.answered;
        told.missing += account.not_sent + account.delivery_full + account.lost + account.overflow;
        ready();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.close().await;
    told.account = control.call(&AccountCall {}).await.expect("the account");
    told
}

/// A service with [`POLICY`] beside the lab's client.
fn service(lab: &Lab) -> Service {
    Service::start(lab.client(), POLICY)
}
