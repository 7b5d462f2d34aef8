//! Links that take less than is sent: who sends is held back, and nothing is lost before that helps no more.

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
    service::{NOBODY, PATIENCE, ROOT, Service, Socket},
    stage::{self, ENDS, lab},
};

use super::{call, lease, packets, service};

const PORT: u16 = 7000;

/// How long nothing may have come for nothing to come any more; a busy machine hands packets on late.
const QUIET: Duration = Duration::from_millis(700);

/// The client's link takes so much from now on, and keeps 8 KiB of what is too much.
fn slow_down(lab: &Lab, rate: &str, burst: &str) {
    let slow = ["qdisc", "replace", "dev", INTERFACE, "root", "tbf", "rate", rate, "burst", burst, "limit", "8kb"];
    stage::run(lab.client().command("tc").args(slow));
}

fn speed_up(lab: &Lab) {
    stage::run(lab.client().command("tc").args(["qdisc", "del", "dev", INTERFACE, "root"]));
}

/// A datagram of 200 bytes that begin with its number.
fn datagram(from: u16, number: u32) -> Vec<u8> {
    let mut payload = vec![0; 200];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    (Ip::to(SERVER_V4).src(CLIENT_V4) / Udp::to(PORT).sport(from) / payload).build().expect("a datagram")
}

/// The server's end: what comes to it, by source port and number, in its order.
struct Peer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<(u16, u32)>>>,
}

impl Peer {
    fn start(lab: &Lab) -> Self {
        let open = || UdpSocket::bind((SERVER_V4, PORT)).expect("a socket");
        let socket = lab.server().run(open).expect("enter the server");
        socket.set_read_timeout(Some(QUIET)).expect("a timeout");
        // Packets of veth pairs come in bursts.
        let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20));
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut seen, mut buffer) = (Vec::new(), [0; 2048]);
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((_, from)) => {
                        seen.push((from.port(), u32::from_be_bytes(buffer[..4].try_into().expect("four"))))
                    }
                    Err(_) if over.load(Ordering::Relaxed) => return seen,
                    Err(_) => {}
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// All that came, once nothing comes any more.
    fn finish(mut self) -> Vec<(u16, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("the thread").join().expect("what came")
    }
}

/// Each of them came once, and in their order but for a few: the link hands packets on from both processors.
fn assert_all(seen: impl Iterator<Item = (u16, u32)>, wanted: std::ops::Range<u32>) {
    let mut numbers: Vec<u32> = seen.map(|one| one.1).collect();
    let swapped = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(swapped <= numbers.len() / 50, "{swapped} of {} are out of order", numbers.len());
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(wanted.clone()), "{} came, and not {wanted:?}", numbers.len());
}

fn port(socket: &Socket) -> u16 {
    socket.leased.first_port.expect("a port")
}

/// The lease's line once it accounts for `count` packets.
fn accounted(service: &Service, count: u64) -> crafter::protocol::wire::Lease {
    wait_for("all packets in the account", PATIENCE, || {
        let lease = service.leases().into_iter().next().expect("the lease");
        (lease.sent + lease.refused + lease.not_sent == count).then_some(lease)
    })
}

/// 7 MB, which takes longer than the other waits, and is more than the socket of a lease holds, through 40 Mbit/s: all of it arrives, and meanwhile others get their
/// turn.
#[test]
fn senders_are_held_back() {
    const COUNT: u32 = 30_000;
    let _serial = Serial::begin();
    let lab = lab();
    let peer = Peer::start(&lab);
    slow_down(&lab, "40mbit", "4kb");
    let service = service(&lab);
    let (one, other) =
        (lease(&service, ROOT, &call("udp", None, None)), lease(&service, NOBODY, &call("udp", None, None)));
    let (one, other) = (one.expect("a lease"), other.expect("a lease"));
    let (first, second) = (port(&one), port(&other));
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|number| one.send(&datagram(first, number)).expect("send")));
        std::thread::sleep(Duration::from_millis(100));
        other.send(&datagram(second, 0)).expect("send");
    });
    let took = began.elapsed();
    wait_for("the end of sending", PATIENCE, || {
        let sent: u64 = service.leases().iter().map(|lease| lease.sent + lease.not_sent).sum();
        (sent == u64::from(COUNT) + 1).then_some(())
    });
    let leases = service.leases();
    assert!(leases.iter().all(|lease| (lease.not_sent, lease.refused) == (0, 0)), "{leases:?}");
    let seen = peer.finish();
    let place = seen.iter().position(|one| *one == (second, 0)).expect("the other's");
    println!("sent within {took:?}; the other's came behind {place} of {COUNT}");
    assert!(place < seen.len() - 1, "the other's came last");
    assert_all(seen.into_iter().filter(|one| one.0 == first), 0..COUNT);
}

/// The library's batches wait in the same way, at whichever side of the service they are full.
#[test]
fn batches_of_the_library_are_held_back() {
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
        // The service still has some of it; a lease that is closed is sent to its end.
        (stats, port)
    });
    assert_eq!((stats.sent, stats.not_sent), (u64::from(COUNT), 0));
    wait_for("the end of the lease", PATIENCE, || service.leases().is_empty().then_some(()));
    let seen = peer.finish();
    assert!(seen.iter().all(|one| one.0 == port));
    assert_all(seen.into_iter(), 0..COUNT);
}

/// After a second without any progress it is told, and the lease goes on as soon as the link does.
#[test]
fn a_link_that_takes_nothing_is_told() {
    const COUNT: u32 = 100;
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let socket = lease(&service, ROOT, &call("udp", None, None)).expect("a lease");
    let from = port(&socket);
    // The next hop is known before nothing passes any more.
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
    assert!(waited >= Duration::from_millis(900), "told after {waited:?} already");
    let account = accounted(&service, u64::from(COUNT) + 1);
    println!("{sentence}, after {waited:?}: {} sent, {} not", account.sent, account.not_sent);
    assert!(account.not_sent > 0 && account.refused == 0, "{account:?}");
    speed_up(&lab);
    socket.send(&datagram(from, COUNT + 1)).expect("send");
    let account = accounted(&service, u64::from(COUNT) + 2);
    assert_eq!(peer.finish().last(), Some(&(from, COUNT + 1)), "{account:?}");
}

/// A port whose lease was closed with packets that the link does not take is free all the same, a second later at most.
#[test]
fn a_closed_lease_does_not_wait_for_ever() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let socket = lease(&service, ROOT, &call("udp", None, None)).expect("a lease");
    let from = port(&socket);
    socket.send(&datagram(from, 0)).expect("send");
    accounted(&service, 1);
    slow_down(&lab, "8bit", "1kb");
    (1..=100).for_each(|number| socket.send(&datagram(from, number)).expect("send"));
    let fd: OwnedFd = socket.fd;
    drop(fd);
    let again = wait_for("the port", PATIENCE, || lease(&service, ROOT, &call("udp", Some(from), None)).ok());
    assert_eq!(port(&again), from);
    let local = SocketAddr::new(ENDS[0].0, from);
    let taken = lab.client().run(|| UdpSocket::bind(local).is_err()).expect("enter the client");
    assert!(taken, "the port is not reserved");
    speed_up(&lab);
}

/// The way to the server is looked for again in its time, but what is sent meanwhile does not wait for that: here the
/// server does not answer who asks for it, and there are more packets than may wait.
#[test]
fn known_ways_do_not_age() {
    const COUNT: u32 = 300;
    let _serial = Serial::begin();
    let lab = lab();
    let peer = Peer::start(&lab);
    let service = service(&lab);
    let socket = lease(&service, ROOT, &call("udp", None, None)).expect("a lease");
    let from = port(&socket);
    socket.send(&datagram(from, 0)).expect("send");
    accounted(&service, 1);
    // It is asked for anew from five seconds on, and not used any more after ten.
    std::thread::sleep(Duration::from_secs(6));
    stage::run(lab.server().command("ip").args(["link", "set", "dev", INTERFACE, "arp", "off"]));
    stage::run(lab.client().command("ip").args(["neigh", "flush", "dev", INTERFACE]));
    (1..=COUNT).for_each(|number| socket.send(&datagram(from, number)).expect("send"));
    let account = accounted(&service, u64::from(COUNT) + 1);
    assert_eq!((account.refused, account.not_sent), (0, 0), "{account:?}");
    assert_all(peer.finish().into_iter(), 0..COUNT + 1);
}

/// More packets than the sockets in between hold, by a session, as `crafter sr` has one: all leave, and all are answered.
#[test]
fn sessions_are_held_back() {
    let _serial = Serial::begin();
    let lab = lab();
    // What the service reads at once is more than 20 ms of this, for which a session would wait alone.
    slow_down(&lab, "1mbit", "4kb");
    let service = service(&lab);
    let account = service.session(ROOT, async |control| {
        let session = Session::new(SessionOptions { service: Some(Arc::new(control)), ..SessionOptions::default() });
        let syns = packets(r#"IP(dst="192.0.2.1")/TCP(dport=(1,10000), flags="S")"#);
        let options = SrOptions { timeout: PATIENCE, ..SrOptions::default() };
        let exchanged = session.sr(syns, &options).await.expect("sent");
        session.close().await;
        exchanged.account
    });
    assert_eq!((account.sent, account.not_sent, account.answered), (10_000, 0, 10_000), "{account}");
}
