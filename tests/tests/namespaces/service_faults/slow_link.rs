//! Links slower than their senders: senders are slowed down by back-pressure, and no packet is lost while the link
//! makes progress.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crafter::{
    Crafter, LeaseRequest,
    lab::{CLIENT_V4, INTERFACE, Lab, SERVER_V4},
    layer::{Ip, Udp},
    protocol::record::Code,
    session::{Session, SessionOptions, SrOptions},
};
use crafter_tests::{
    leak::Serial,
    peer::wait_for,
    service::{NOBODY, REPLY_TIMEOUT, ROOT, Service, Socket},
    testbed::{self, ENDS, lab},
};

use nix::sys::signal::Signal;

use super::{lease, lease_call, packets, service};

const PORT: u16 = 7000;

/// Time without a packet after which all have arrived; a busy machine delivers late.
const QUIET: Duration = Duration::from_millis(700);

/// Limits the rate of the client's link, with a queue of 8 KiB.
fn slow_down(lab: &Lab, rate: &str, burst: &str) {
    let slow = ["qdisc", "replace", "dev", INTERFACE, "root", "tbf", "rate", rate, "burst", burst, "limit", "8kb"];
    testbed::run(lab.client().command("tc").args(slow));
}

fn speed_up(lab: &Lab) {
    testbed::run(lab.client().command("tc").args(["qdisc", "del", "dev", INTERFACE, "root"]));
}

/// A datagram with 200 bytes of payload that begin with its number.
fn datagram(from: u16, number: u32) -> Vec<u8> {
    let mut payload = vec![0; 200];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    (Ip::to(SERVER_V4).src(CLIENT_V4) / Udp::to(PORT).sport(from) / payload).build().expect("a datagram")
}

/// Receives datagrams on the server; records source port and number in order of arrival.
struct Peer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<(u16, u32)>>>,
}

impl Peer {
    fn start(lab: &Lab) -> Self {
        let open = || UdpSocket::bind((SERVER_V4, PORT)).expect("a socket");
        let socket = lab.server().run(open).expect("enter the server");
        socket.set_read_timeout(Some(QUIET)).expect("a timeout");
        // Veth delivers in bursts, so the buffer is large.
        let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20));
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut received, mut buffer) = (Vec::new(), [0; 2048]);
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((_, from)) => {
                        received.push((from.port(), u32::from_be_bytes(buffer[..4].try_into().expect("four"))))
                    }
                    Err(_) if over.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// All received datagrams, after no more arrive.
    fn finish(mut self) -> Vec<(u16, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("the thread").join().expect("the received datagrams")
    }
}

/// Asserts that each datagram arrived exactly once; a few may be reordered, because two CPUs forward on the link.
fn assert_all(received: impl Iterator<Item = (u16, u32)>, wanted: std::ops::Range<u32>) {
    let mut numbers: Vec<u32> = received.map(|one| one.1).collect();
    let swapped = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(swapped <= numbers.len() / 50, "{swapped} of {} are out of order", numbers.len());
    numbers.sort_unstable();
    assert!(
        numbers.iter().copied().eq(wanted.clone()),
        "received {} datagrams, not those of {wanted:?}",
        numbers.len()
    );
}

fn port(socket: &Socket) -> u16 {
    socket.leased.first_port.expect("a port")
}

/// Waits until the account of the only lease covers `count` packets.
fn accounted(service: &Service, count: u64) -> crafter::protocol::wire::Lease {
    wait_for("all packets in the account", REPLY_TIMEOUT, || {
        let lease = service.leases().into_iter().next().expect("the lease");
        (lease.sent + lease.refused + lease.not_sent == count).then_some(lease)
    })
}

/// Sends 7 MB through 40 Mbit/s, more than a lease's socket holds and longer than any timeout: all of it arrives, and
/// another lease gets its turn meanwhile.
#[test]
fn senders_are_slowed_by_back_pressure() {
    const COUNT: u32 = 30_000;
    let _serial = Serial::begin();
    let lab = lab();
    let peer = Peer::start(&lab);
    slow_down(&lab, "40mbit", "4kb");
    let service = service(&lab);
    let (one, other) = (
        lease(&service, ROOT, &lease_call("udp", None, None)),
        lease(&service, NOBODY, &lease_call("udp", None, None)),
    );
    let (one, other) = (one.expect("a lease"), other.expect("a lease"));
    let (first, second) = (port(&one), port(&other));
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|number| one.send(&datagram(first, number)).expect("send")));
        std::thread::sleep(Duration::from_millis(100));
        other.send(&datagram(second, 0)).expect("send");
    });
    let took = began.elapsed();
    wait_for("the last packet", REPLY_TIMEOUT, || {
        let sent: u64 = service.leases().iter().map(|lease| lease.sent + lease.not_sent).sum();
        (sent == u64::from(COUNT) + 1).then_some(())
    });
    let leases = service.leases();
    assert!(leases.iter().all(|lease| (lease.not_sent, lease.refused) == (0, 0)), "{leases:?}");
    let received = peer.finish();
    let position = received.iter().position(|one| *one == (second, 0)).expect("the datagram of the other lease");
    println!("sent within {took:?}; the other lease's datagram arrived after {position} of {COUNT}");
    assert!(position < received.len() - 1, "the other lease's datagram arrived last");
    assert_all(received.into_iter().filter(|one| one.0 == first), 0..COUNT);
}

/// Sixteen leases of one user that fill a link delay another user's packets by as many packets as that user sends, not
/// by all.
#[test]
fn users_share_a_full_link() {
    const EACH: u32 = 64;
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let many: Vec<_> =
        (0..16).map(|_| lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease")).collect();
    let one = lease(&service, NOBODY, &lease_call("udp", None, None)).expect("a lease");
    // Resolves the next hop.
    one.send(&datagram(port(&one), EACH)).expect("send");
    wait_for("the first packet", REPLY_TIMEOUT, || service.leases().iter().any(|lease| lease.sent == 1).then_some(()));
    let peer = Peer::start(&lab);
    slow_down(&lab, "4mbit", "2kb");
    service.signal(Signal::SIGSTOP);
    for socket in many.iter().chain([&one]) {
        (0..EACH).for_each(|number| socket.send(&datagram(port(socket), number)).expect("send"));
    }
    service.signal(Signal::SIGCONT);
    let all = u64::from(EACH) * 17 + 1;
    wait_for("all packets", REPLY_TIMEOUT, || {
        let leases = service.leases();
        assert!(leases.iter().all(|lease| (lease.not_sent, lease.refused) == (0, 0)), "{leases:?}");
        (leases.iter().map(|lease| lease.sent).sum::<u64>() == all).then_some(())
    });
    let received = peer.finish();
    let last = received.iter().rposition(|(from, _)| *from == port(&one)).expect("the other user's");
    println!("the last of {EACH} packets of the other user arrived as number {last} of {}", received.len());
    assert!(last < 5 * EACH as usize, "number {last} of {}", received.len());
}

/// Batches of the library wait for room like single packets, in whichever queue is full.
#[test]
fn library_batches_are_slowed_by_back_pressure() {
    const COUNT: u32 = 10_000;
    let _serial = Serial::begin();
    let lab = lab();
    let peer = Peer::start(&lab);
    slow_down(&lab, "40mbit", "4kb");
    let service = service(&lab);
    let (stats, port) = service.session(ROOT, async |control| {
        let crafter = Crafter::via_service(Arc::new(control), INTERFACE).await.expect("the service");
        let lease = crafter.lease(LeaseRequest::udp()).await.expect("a lease");
        let port = lease.port();
        let packets: Vec<_> = (0..COUNT).map(|number| datagram(port, number)).collect();
        lease.send_all(packets.iter().map(Vec::as_slice)).await.expect("sent");
        let stats = crafter.stats();
        // The service has not sent all of it yet; packets of a closed lease are still sent.
        (stats, port)
    });
    assert_eq!((stats.sent, stats.not_sent), (u64::from(COUNT), 0));
    wait_for("the release of the lease", REPLY_TIMEOUT, || service.leases().is_empty().then_some(()));
    let received = peer.finish();
    assert!(received.iter().all(|one| one.0 == port));
    assert_all(received.into_iter(), 0..COUNT);
}

/// A user at the limit of leases who closes one gets another, although packets of the first still wait for room or for
/// the Ethernet address of the next hop. All of them are sent.
#[test]
fn lease_is_granted_after_the_packets_of_a_closed_one() {
    const COUNT: u32 = 60;
    let _serial = Serial::begin();
    for is_resolved in [true, false] {
        let lab = lab();
        let peer = Peer::start(&lab);
        let policy = "[[rule]]\nuser = 0\nobserve = true\n[[rule]]\nuser = 65534\nmax_leases = 1\n";
        let service = Service::start(lab.client(), policy);
        let call = lease_call("udp", None, None);
        let first = lease(&service, NOBODY, &call).expect("a lease");
        let from = port(&first);
        let begin = u32::from(is_resolved);
        if is_resolved {
            first.send(&datagram(from, 0)).expect("send");
            accounted(&service, 1);
        }
        // The queue holds less than the packets, and takes half a second for them.
        slow_down(&lab, "256kbit", "2kb");
        (begin..COUNT).for_each(|number| first.send(&datagram(from, number)).expect("send"));
        // Positive control: the limit applies.
        lease(&service, NOBODY, &call).map(drop).expect_err("a second lease");
        drop(first);
        lease(&service, NOBODY, &call).expect("a lease after the packets of the closed one");
        assert_all(peer.finish().into_iter().filter(|one| one.0 == from), 0..COUNT);
    }
}

/// After a second without progress the client gets an error, and the lease works again as soon as the link does.
#[test]
fn stalled_link_is_reported() {
    const COUNT: u32 = 100;
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let socket = lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease");
    let from = port(&socket);
    // Resolves the neighbour before the link stalls.
    socket.send(&datagram(from, 0)).expect("send");
    accounted(&service, 1);
    let peer = Peer::start(&lab);
    slow_down(&lab, "8bit", "1kb");
    let began = Instant::now();
    (1..=COUNT).for_each(|number| socket.send(&datagram(from, number)).expect("send"));
    let (code, _, sentence) = socket.refusal();
    let waited = began.elapsed();
    assert_eq!(code, Code::NotSent, "{sentence}");
    assert!(sentence.contains("no room"), "{sentence}");
    assert!(waited >= Duration::from_millis(900), "reported after only {waited:?}");
    let account = accounted(&service, u64::from(COUNT) + 1);
    println!("{sentence}, after {waited:?}: {} sent, {} not sent", account.sent, account.not_sent);
    assert!(account.not_sent > 0 && account.refused == 0, "{account:?}");
    speed_up(&lab);
    socket.send(&datagram(from, COUNT + 1)).expect("send");
    let account = accounted(&service, u64::from(COUNT) + 2);
    assert_eq!(peer.finish().last(), Some(&(from, COUNT + 1)), "{account:?}");
}

/// The port of a lease that was closed with packets queued for a stalled link is released within a second.
#[test]
fn closed_lease_on_a_stalled_link_is_released() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let socket = lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease");
    let from = port(&socket);
    socket.send(&datagram(from, 0)).expect("send");
    accounted(&service, 1);
    slow_down(&lab, "8bit", "1kb");
    (1..=100).for_each(|number| socket.send(&datagram(from, number)).expect("send"));
    let fd: OwnedFd = socket.fd;
    drop(fd);
    let again = wait_for("the release of the port", REPLY_TIMEOUT, || {
        lease(&service, ROOT, &lease_call("udp", Some(from), None)).ok()
    });
    assert_eq!(port(&again), from);
    let local = SocketAddr::new(ENDS[0].0, from);
    let taken = lab.client().run(|| UdpSocket::bind(local).is_err()).expect("enter the client");
    assert!(taken, "the port is not reserved");
    speed_up(&lab);
}

/// A route is refreshed periodically, and packets do not wait for it: here the server answers no ARP request, and more
/// packets are sent than may wait.
#[test]
fn packets_do_not_wait_for_route_refresh() {
    const COUNT: u32 = 300;
    let _serial = Serial::begin();
    let lab = lab();
    let peer = Peer::start(&lab);
    let service = service(&lab);
    let socket = lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease");
    let from = port(&socket);
    socket.send(&datagram(from, 0)).expect("send");
    accounted(&service, 1);
    // A cached route is refreshed after five seconds and expires after ten.
    std::thread::sleep(Duration::from_secs(6));
    testbed::run(lab.server().command("ip").args(["link", "set", "dev", INTERFACE, "arp", "off"]));
    testbed::run(lab.client().command("ip").args(["neigh", "flush", "dev", INTERFACE]));
    (1..=COUNT).for_each(|number| socket.send(&datagram(from, number)).expect("send"));
    let account = accounted(&service, u64::from(COUNT) + 1);
    assert_eq!((account.refused, account.not_sent), (0, 0), "{account:?}");
    assert_all(peer.finish().into_iter(), 0..COUNT + 1);
}

/// A session, as used by `crafter sr`, sends more packets than the sockets hold: all leave, and all are answered.
#[test]
fn sessions_are_slowed_by_back_pressure() {
    let _serial = Serial::begin();
    let lab = lab();
    // At this rate one read of the service takes longer than the 20 ms that a session alone would wait.
    slow_down(&lab, "1mbit", "4kb");
    let service = service(&lab);
    let account = service.session(ROOT, async |control| {
        let session = Session::new(SessionOptions { service: Some(Arc::new(control)), ..SessionOptions::default() });
        let syns = packets(r#"IP(dst="192.0.2.1")/TCP(dport=(1,10000), flags="S")"#);
        let options = SrOptions { timeout: REPLY_TIMEOUT, ..SrOptions::default() };
        let exchanged = session.sr(syns, &options).await.expect("sent");
        session.close().await;
        exchanged.account
    });
    assert_eq!((account.sent, account.not_sent, account.answered), (10_000, 0, 10_000), "{account}");
}
