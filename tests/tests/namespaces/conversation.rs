//! The tutorial's conversation, whole, against nginx and dnsmasq, in each mode; and what must not
//! be disturbed by it. tcpdump in the server's namespace is the judge.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crafter::{
    Crafter, LeaseRequest, StreamOptions,
    datapath::program::{Attach, Mode},
    lab::{INTERFACE, Lab},
};
use crafter_common::reason::Reason;
use crafter_tests::{
    by_hand::{self, ByHand, PATIENCE, sha256},
    dns,
    judge::{CONTROL, Capture, Packet, from, rsts, unreachables},
    leak::{Serial, assert_detached, attached},
    peer::{Dnsmasq, HOST, HOST_V4, HOST_V6, Nginx},
    slow,
    stage::{self, CONTROL_PORT, ENDS, assert_curl_works, assert_refuses, lab, open},
    within,
};

#[test]
fn native() {
    story(Attach::Native, Mode::Native, false, Reason::Redirected);
}

#[test]
fn generic() {
    story(Attach::Generic, Mode::Generic, false, Reason::Redirected);
}

#[test]
fn tc() {
    story(Attach::Tc, Mode::Tc, false, Reason::Copied);
}

#[test]
fn observe() {
    story(Attach::Auto, Mode::Native, true, Reason::Observed);
}

/// First the tutorial's failure, then what it should have been.
fn story(attach: Attach, mode: Mode, observe: bool, delivered: Reason) {
    let serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::with_big(lab.server());
    let _dnsmasq = Dnsmasq::start(lab.server());

    let all = Capture::start(lab.server(), INTERFACE, None);
    for ends in ENDS {
        stage::unowned_syn(&lab, ends, CONTROL_PORT);
        stage::wait_for_rst(&lab, SocketAddr::new(ends.0, CONTROL_PORT));
    }
    assert_detached(lab.client(), INTERFACE);

    let (spoke, objects) = within(lab.client(), async || {
        let crafter = open(attach).await;
        assert_eq!(crafter.report().mode, mode, "{}", crafter.report());
        let mut spoke = Vec::new();
        for (_, server) in ENDS {
            queries(&crafter, server, observe).await;
            spoke.push(one_page(&crafter, &lab, &nginx, server, observe).await);
        }
        let objects = serial.objects();
        assert_eq!(attached(lab.client(), INTERFACE).len(), 2, "an ingress and an egress hook");
        let counters = crafter.counters().expect("counters");
        assert!(counters.get(delivered) > 0, "{counters:?}");
        // Where the kernel sees the segments it answers each; what it says stays here.
        assert_eq!(counters.get(Reason::RstSuppressed) > 0, observe, "{counters:?}");
        assert_eq!(counters.get(Reason::DeliveryFull) + counters.get(Reason::ObserveFull), 0);
        (spoke, objects)
    });
    judge_by_hand(&all.finish(), &spoke, observe);
    serial.finish(&objects, lab.client(), INTERFACE);

    // The whole 100 MB, while others use the same host.
    let control = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    let others = Others::default();
    let ports = std::thread::scope(|scope| {
        scope.spawn(|| others.run(&lab, &nginx));
        let _stop = others.stop();
        within(lab.client(), async || {
            let crafter = open(attach).await;
            let mut ports = Vec::new();
            for (_, server) in ENDS {
                ports.push(big_page(&crafter, &others, &nginx, server, observe).await);
            }
            ports
        })
    });
    let packets = control.finish();
    for local in ports {
        assert_eq!(rsts(&packets, local), 0, "a RST escaped");
        assert_eq!(from(&packets, local).iter().filter(|packet| packet.is_fin()).count(), 1, "one FIN");
        // The control at the same time: a port of nobody was refused by a RST.
        assert!(rsts(&packets, SocketAddr::new(local.ip(), CONTROL_PORT)) > 0, "no RST from the port of nobody");
        // Given back, the port is the kernel's.
        assert_refuses(&lab, local);
    }
}

/// Other users of the client, for as long as something is downloaded.
#[derive(Default)]
struct Others {
    rounds: AtomicUsize,
    stop: AtomicBool,
}

struct Stop<'o>(&'o Others);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Others {
    /// Connects to a port of nobody, which is refused, and gets a page by curl, again and again.
    fn run(&self, lab: &Lab, nginx: &Nginx) {
        while !self.stop.load(Ordering::Relaxed) {
            for (client, server) in ENDS {
                assert_refuses(lab, SocketAddr::new(client, CONTROL_PORT));
                assert_curl_works(lab, server, nginx);
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends it when dropped, also by a panic.
    fn stop(&self) -> Stop<'_> {
        Stop(self)
    }

    fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }
}

/// A query for each address, by a datagram made by hand.
async fn queries(crafter: &Crafter, server: IpAddr, observe: bool) {
    let lease = crafter.lease(LeaseRequest::udp().observe(observe)).await.expect("a UDP lease");
    let server = SocketAddr::new(server, 53);
    let answer = by_hand::dns(&lease, server, HOST, dns::A, None).await;
    assert_eq!(answer.data, [HOST_V4.to_vec()]);
    let answer = by_hand::dns(&lease, server, HOST, dns::AAAA, None).await;
    assert_eq!(answer.data, [HOST_V6.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()]);
}

/// The handshake and a GET, segment by segment. Gives our end.
async fn one_page(crafter: &Crafter, lab: &Lab, nginx: &Nginx, server: IpAddr, observe: bool) -> SocketAddr {
    let lease = crafter.lease(LeaseRequest::tcp().observe(observe)).await.expect("a TCP lease");
    let mut talk = ByHand::new(&lease, SocketAddr::new(server, 80)).await;
    let local = talk.cursor.local;
    talk.handshake().await;
    assert_eq!(stage::server_socket(lab, local).as_deref(), Some("ESTAB"));
    let answer = talk.get(nginx.small.path).await;
    assert_eq!(sha256(by_hand::body(&answer)), nginx.small.sha256);
    // The server has closed first, and so is the one that waits.
    assert_eq!(stage::server_socket(lab, local).as_deref(), Some("TIME-WAIT"));
    local
}

fn judge_by_hand(packets: &[Packet], spoke: &[SocketAddr], observe: bool) {
    for (&local, (client, server)) in spoke.iter().zip(ENDS) {
        // The control, in the same capture: the kernel's RST to what it knows nothing of.
        let control = SocketAddr::new(client, CONTROL_PORT);
        assert!(rsts(packets, control) > 0, "the control's RST is not in the capture");

        let ours = from(packets, local);
        let theirs: Vec<&Packet> = packets.iter().filter(|packet| packet.destination == local).collect();
        assert_eq!(rsts(packets, local), 0, "a RST escaped");
        assert_eq!(theirs.iter().filter(|packet| packet.is_rst()).count(), 0, "the server reset");
        for packet in &ours {
            assert_eq!(packet.checksum, Some(true), "{packet:?}");
            assert!(!packet.malformed, "{packet:?}");
        }
        let fins = |packets: &[&Packet]| packets.iter().filter(|packet| packet.is_fin()).count();
        assert_eq!((fins(&ours), fins(&theirs)), (1, 1), "a FIN each way, once");
        // Every byte was acknowledged, and the FIN behind them.
        let fin = theirs.iter().find(|packet| packet.is_fin()).expect("the server's FIN");
        let last = ours.last().expect("our last segment");
        assert_eq!(last.ack, fin.seq.wrapping_add(fin.length).wrapping_add(1));
        let our_fin = ours.iter().find(|packet| packet.is_fin()).expect("our FIN");
        assert_eq!(theirs.last().expect("its last segment").ack, our_fin.seq.wrapping_add(1));
        // Nothing was sent twice: the server never had to wait for an ACK.
        let mut data: Vec<u32> = theirs.iter().filter(|packet| packet.length > 0).map(|packet| packet.seq).collect();
        let sent = data.len();
        data.sort_unstable();
        data.dedup();
        assert_eq!(data.len(), sent, "the server repeated data");

        let dns = SocketAddr::new(server, 53);
        let queries: Vec<&Packet> = packets.iter().filter(|packet| packet.destination == dns).collect();
        assert_eq!(queries.len(), 2);
        assert!(queries.iter().all(|query| query.checksum == Some(true) && !query.malformed));
        assert_eq!(unreachables(packets, client), 0, "a port-unreachable escaped (observe: {observe})");
    }
}

/// 100 MB by a stream, while others do what they do. Gives our end.
async fn big_page(crafter: &Crafter, others: &Others, nginx: &Nginx, server: IpAddr, observe: bool) -> SocketAddr {
    let remote = SocketAddr::new(server, 80);
    let request = LeaseRequest::tcp().observe(observe);
    let before = others.rounds();
    let mut stream = by_hand::connect(crafter, request, remote, StreamOptions::default()).await;
    let local = stream.local();
    let page = nginx.big.as_ref().expect("the big page");
    let began = Instant::now();
    let (length, sum) = by_hand::download(&mut stream, page.path).await;
    println!("100 MB in {:?}, {:?}", began.elapsed(), stream.stats());
    println!("{:?} {:?}", crafter.counters().expect("counters"), crafter.stats());
    assert_eq!(length, page.length);
    assert_eq!(sum, page.sha256, "the bytes are not the server's");
    let flow = crafter.flows().into_iter().find(|flow| flow.local == local).expect("the flow");
    assert!(flow.rx_bytes > page.length && flow.remote == remote, "{flow:?}");
    by_hand::close(&mut stream).await;
    // A whole round began and ended while the port was owned.
    let deadline = Instant::now() + slow::allow(PATIENCE);
    while others.rounds() < before + 2 {
        assert!(Instant::now() < deadline, "the others stand still");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    local
}

/// With policy `pass`, where the kernel sees the segments, its RST is on the wire again; with
/// `suppress` beside it, it is not.
#[test]
fn policy_pass_lets_the_rst_through() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let capture = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    let (passed, suppressed, objects) = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let (mut passed, mut suppressed) = (Vec::new(), Vec::new());
        for (_, server) in ENDS {
            let remote = SocketAddr::new(server, 80);
            for (suppress, list) in [(true, &mut suppressed), (false, &mut passed)] {
                let request = LeaseRequest::tcp().observe(true).suppress(suppress);
                let lease = crafter.lease(request).await.expect("a lease");
                let mut talk = ByHand::new(&lease, remote).await;
                talk.handshake().await;
                list.push(talk.cursor.local);
                if suppress {
                    // The connection lives: the server acknowledges data.
                    let answer = talk.get("/small").await;
                    by_hand::body(&answer);
                } else {
                    stage::wait_for_rst(&lab, talk.cursor.local);
                }
            }
        }
        let counters = crafter.counters().expect("counters");
        assert!(counters.get(Reason::RstAllowed) >= 2, "{counters:?}");
        assert!(counters.get(Reason::RstSuppressed) >= 2, "{counters:?}");
        (passed, suppressed, serial.objects())
    });
    let packets = capture.finish();
    for local in passed {
        assert!(rsts(&packets, local) > 0, "policy pass, and no RST from {local}");
    }
    for local in suppressed {
        assert_eq!(rsts(&packets, local), 0, "a RST escaped from {local}");
    }
    serial.finish(&objects, lab.client(), INTERFACE);
}

/// What crafter sends itself, a RST too, is not held back.
#[test]
fn a_crafted_rst_passes() {
    let _serial = Serial::begin();
    let lab = lab();
    let capture = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    let mut locals = Vec::new();
    for attach in [Attach::Native, Attach::Generic, Attach::Tc] {
        for (_, server) in ENDS {
            let listener = lab.server().run(|| TcpListener::bind(SocketAddr::new(server, 8080))).unwrap().unwrap();
            let remote = listener.local_addr().unwrap();
            let local = within(lab.client(), async || {
                let crafter = open(attach).await;
                let lease = crafter.lease(LeaseRequest::tcp()).await.expect("a lease");
                let mut talk = ByHand::new(&lease, remote).await;
                talk.handshake().await;
                let rst = talk.cursor.rst();
                talk.send(&rst).await;
                stage::wait_for_rst(&lab, talk.cursor.local);
                assert!(crafter.counters().unwrap().get(Reason::Crafted) >= 3);
                talk.cursor.local
            });
            // The server's program is told.
            use std::io::Read as _;
            let (mut stream, peer) = listener.accept().expect("the connection");
            assert_eq!(peer, local);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let error = stream.read(&mut [0; 1]).expect_err("a reset connection");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            locals.push(local);
        }
    }
    let packets = capture.finish();
    for local in locals {
        assert_eq!(rsts(&packets, local), 1, "RSTs from {local}");
    }
}

/// A datagram to an owned UDP port: no port-unreachable, though the kernel sees it in observe
/// mode; with policy `pass`, and from a port of nobody, there is one.
#[test]
fn udp_owned_is_not_unreachable() {
    let _serial = Serial::begin();
    let lab = lab();
    let capture = Capture::start(lab.server(), INTERFACE, Some("icmp or icmp6"));
    within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        for (client, server) in ENDS {
            // To `port` of the client by the server's kernel; whether it is told that nobody is there.
            let told = |port: u16| {
                lab.server()
                    .run(|| {
                        let socket = UdpSocket::bind(SocketAddr::new(server, 0)).unwrap();
                        socket.connect(SocketAddr::new(client, port)).unwrap();
                        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                        socket.send(b"are you there?").unwrap();
                        socket.recv(&mut [0; 1]).expect_err("nobody answers").kind() == io::ErrorKind::ConnectionRefused
                    })
                    .unwrap()
            };
            for (observe, suppress, unreachable) in
                [(false, true, false), (true, true, false), (true, false, true), (false, false, false)]
            {
                let request = LeaseRequest::udp().observe(observe).suppress(suppress);
                let lease = crafter.lease(request).await.expect("a lease");
                let what = format!("{client}, observe {observe}, suppress {suppress}");
                assert_eq!(told(lease.port()), unreachable, "{what}");
                let received = lease.recv_timeout(PATIENCE).await.unwrap().expect("the datagram");
                assert!(received.ip.ends_with(b"are you there?"), "{what}");
                // The control, at the same time.
                assert!(told(CONTROL_PORT), "{what}");
            }
        }
        let counters = crafter.counters().unwrap();
        assert_eq!(counters.get(Reason::UnreachableSuppressed), 2, "{counters:?}");
        assert_eq!(counters.get(Reason::UnreachableAllowed), 2, "{counters:?}");
        assert_eq!(counters.get(Reason::UnreachableNotOwned), 8, "{counters:?}");
    });
    let packets = capture.finish();
    for (client, _) in ENDS {
        // One by policy, four controls.
        assert_eq!(unreachables(&packets, client), 5, "{client}");
    }
}
