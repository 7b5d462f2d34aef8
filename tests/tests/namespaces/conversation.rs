//! The complete conversation of the tutorial with nginx and dnsmasq in each attach mode, while other programs use the
//! same host. A capture in the server's namespace shows what was on the wire.

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
    capture::{CONTROL, Capture, Packet, from, rsts, unreachables},
    dns,
    leak::{Serial, assert_detached, attached},
    manual::{self, ManualConnection, REPLY_TIMEOUT, sha256},
    peer::{Dnsmasq, HOST, HOST_V4, HOST_V6, Nginx},
    slow,
    testbed::{self, CONTROL_PORT, ENDS, assert_curl_works, assert_refuses, lab, open},
    within,
};

#[test]
fn native() {
    converse(Attach::Native, Mode::Native, false, Reason::Redirected);
}

#[test]
fn generic() {
    converse(Attach::Generic, Mode::Generic, false, Reason::Redirected);
}

#[test]
fn tc() {
    converse(Attach::Tc, Mode::Tc, false, Reason::Copied);
}

#[test]
fn observe() {
    converse(Attach::Auto, Mode::Native, true, Reason::Observed);
}

/// First shows the RST of the kernel for an unowned port, then runs the conversation without one.
fn converse(attach: Attach, mode: Mode, observe: bool, delivered: Reason) {
    let serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::with_big(lab.server());
    let _dnsmasq = Dnsmasq::start(lab.server());

    let all = Capture::start(lab.server(), INTERFACE, None);
    for ends in ENDS {
        testbed::unowned_syn(&lab, ends, CONTROL_PORT);
        testbed::wait_for_rst(&lab, SocketAddr::new(ends.0, CONTROL_PORT));
    }
    assert_detached(lab.client(), INTERFACE);

    let (locals, objects) = within(lab.client(), async || {
        let crafter = open(attach).await;
        assert_eq!(crafter.report().mode, mode, "{}", crafter.report());
        let mut locals = Vec::new();
        for (_, server) in ENDS {
            queries(&crafter, server, observe).await;
            locals.push(one_page(&crafter, &lab, &nginx, server, observe).await);
        }
        let objects = serial.objects();
        assert_eq!(attached(lab.client(), INTERFACE).len(), 2, "an ingress and an egress hook");
        let counters = crafter.counters().expect("counters");
        assert!(counters.get(delivered) > 0, "{counters:?}");
        // In observe mode the kernel answers each segment with a RST, which must be suppressed.
        assert_eq!(counters.get(Reason::RstSuppressed) > 0, observe, "{counters:?}");
        assert_eq!(counters.get(Reason::DeliveryFull) + counters.get(Reason::ObserveFull), 0);
        (locals, objects)
    });
    check_segments(&all.finish(), &locals, observe);
    serial.finish(&objects, lab.client(), INTERFACE);

    // The complete 100 MB, while other programs use the same host.
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
        assert_eq!(rsts(&packets, local), 0, "a RST was sent from the owned port");
        assert_eq!(from(&packets, local).iter().filter(|packet| packet.is_fin()).count(), 1, "one FIN");
        // Positive control at the same time: an unowned port is refused with a RST.
        assert!(rsts(&packets, SocketAddr::new(local.ip(), CONTROL_PORT)) > 0, "no RST from the unowned port");
        // After the lease ends, the kernel refuses connections to the port.
        assert_refuses(&lab, local);
    }
}

/// Other programs on the client, active during a download.
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
    /// Repeatedly connects to an unowned port, which is refused, and downloads a page with curl.
    fn run(&self, lab: &Lab, nginx: &Nginx) {
        while !self.stop.load(Ordering::Relaxed) {
            for (client, server) in ENDS {
                assert_refuses(lab, SocketAddr::new(client, CONTROL_PORT));
                assert_curl_works(lab, server, nginx);
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Stops [`Self::run`] when dropped, also by a panic.
    fn stop(&self) -> Stop<'_> {
        Stop(self)
    }

    fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }
}

/// Crafted queries for both addresses.
async fn queries(crafter: &Crafter, server: IpAddr, observe: bool) {
    let lease = crafter.lease(LeaseRequest::udp().observe(observe)).await.expect("a UDP lease");
    let server = SocketAddr::new(server, 53);
    let answer = manual::dns(&lease, server, HOST, dns::A, None).await;
    assert_eq!(answer.data, [HOST_V4.to_vec()]);
    let answer = manual::dns(&lease, server, HOST, dns::AAAA, None).await;
    assert_eq!(answer.data, [HOST_V6.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()]);
}

/// Handshake and GET segment by segment; returns the local address and port.
async fn one_page(crafter: &Crafter, lab: &Lab, nginx: &Nginx, server: IpAddr, observe: bool) -> SocketAddr {
    let lease = crafter.lease(LeaseRequest::tcp().observe(observe)).await.expect("a TCP lease");
    let mut connection = ManualConnection::new(&lease, SocketAddr::new(server, 80)).await;
    let local = connection.cursor.local;
    connection.handshake().await;
    assert_eq!(testbed::server_socket(lab, local).as_deref(), Some("ESTAB"));
    let answer = connection.get(nginx.small.path).await;
    assert_eq!(sha256(manual::body(&answer)), nginx.small.sha256);
    // The server closed first, so it is in TIME-WAIT.
    assert_eq!(testbed::server_socket(lab, local).as_deref(), Some("TIME-WAIT"));
    local
}

fn check_segments(packets: &[Packet], locals: &[SocketAddr], observe: bool) {
    for (&local, (client, server)) in locals.iter().zip(ENDS) {
        // Positive control in the same capture: the kernel's RST from an unowned port.
        let control = SocketAddr::new(client, CONTROL_PORT);
        assert!(rsts(packets, control) > 0, "the control's RST is not in the capture");

        let ours = from(packets, local);
        let theirs: Vec<&Packet> = packets.iter().filter(|packet| packet.destination == local).collect();
        assert_eq!(rsts(packets, local), 0, "a RST was sent from the owned port");
        assert_eq!(theirs.iter().filter(|packet| packet.is_rst()).count(), 0, "the server sent a RST");
        for packet in &ours {
            assert_eq!(packet.checksum, Some(true), "{packet:?}");
            assert!(!packet.malformed, "{packet:?}");
        }
        let fins = |packets: &[&Packet]| packets.iter().filter(|packet| packet.is_fin()).count();
        assert_eq!((fins(&ours), fins(&theirs)), (1, 1), "one FIN in each direction");
        // All data and the FIN were acknowledged.
        let fin = theirs.iter().find(|packet| packet.is_fin()).expect("the server's FIN");
        let last = ours.last().expect("our last segment");
        assert_eq!(last.ack, fin.seq.wrapping_add(fin.length).wrapping_add(1));
        let our_fin = ours.iter().find(|packet| packet.is_fin()).expect("our FIN");
        assert_eq!(theirs.last().expect("its last segment").ack, our_fin.seq.wrapping_add(1));
        // No retransmission: the server never waited for an ACK.
        let mut data: Vec<u32> = theirs.iter().filter(|packet| packet.length > 0).map(|packet| packet.seq).collect();
        let sent = data.len();
        data.sort_unstable();
        data.dedup();
        assert_eq!(data.len(), sent, "the server retransmitted data");

        let dns = SocketAddr::new(server, 53);
        let queries: Vec<&Packet> = packets.iter().filter(|packet| packet.destination == dns).collect();
        assert_eq!(queries.len(), 2);
        assert!(queries.iter().all(|query| query.checksum == Some(true) && !query.malformed));
        assert_eq!(unreachables(packets, client), 0, "a port-unreachable was sent (observe: {observe})");
    }
}

/// Downloads 100 MB over a stream while others use the host; returns the local address and port.
async fn big_page(crafter: &Crafter, others: &Others, nginx: &Nginx, server: IpAddr, observe: bool) -> SocketAddr {
    let remote = SocketAddr::new(server, 80);
    let request = LeaseRequest::tcp().observe(observe);
    let before = others.rounds();
    let mut stream = manual::connect(crafter, request, remote, StreamOptions::default()).await;
    let local = stream.local();
    let page = nginx.big.as_ref().expect("the big page");
    let began = Instant::now();
    let (length, sum) = manual::download(&mut stream, page.path).await;
    println!("100 MB in {:?}, {:?}", began.elapsed(), stream.stats());
    println!("{:?} {:?}", crafter.counters().expect("counters"), crafter.stats());
    assert_eq!(length, page.length);
    assert_eq!(sum, page.sha256, "wrong bytes");
    let flow = crafter.flows().into_iter().find(|flow| flow.local == local).expect("the flow");
    assert!(flow.rx_bytes > page.length && flow.remote == remote, "{flow:?}");
    manual::close(&mut stream).await;
    // Waits until the others have completed a round while the port is owned.
    let deadline = Instant::now() + slow::allow(REPLY_TIMEOUT);
    while others.rounds() < before + 2 {
        assert!(Instant::now() < deadline, "the other programs make no progress");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    local
}

/// With policy `pass` in observe mode the kernel's RST is sent; with `suppress` on the same interface it is not.
#[test]
fn policy_pass_sends_the_kernels_rst() {
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
                let mut connection = ManualConnection::new(&lease, remote).await;
                connection.handshake().await;
                list.push(connection.cursor.local);
                if suppress {
                    // The connection works: the server acknowledges data.
                    let answer = connection.get("/small").await;
                    manual::body(&answer);
                } else {
                    testbed::wait_for_rst(&lab, connection.cursor.local);
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
        assert!(rsts(&packets, local) > 0, "no RST from {local} with policy pass");
    }
    for local in suppressed {
        assert_eq!(rsts(&packets, local), 0, "a RST was sent from {local}");
    }
    serial.finish(&objects, lab.client(), INTERFACE);
}

/// Packets sent by crafter itself are never suppressed, not even a RST.
#[test]
fn crafted_rst_passes() {
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
                let mut connection = ManualConnection::new(&lease, remote).await;
                connection.handshake().await;
                let rst = connection.cursor.rst();
                connection.send(&rst).await;
                testbed::wait_for_rst(&lab, connection.cursor.local);
                assert!(crafter.counters().unwrap().get(Reason::Crafted) >= 3);
                connection.cursor.local
            });
            // The server's program gets the reset as an error.
            use std::io::Read as _;
            let (mut stream, peer) = listener.accept().expect("the connection");
            assert_eq!(peer, local);
            stream.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
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

/// A datagram to an owned UDP port causes no port-unreachable error, not even in observe mode. With policy `pass`, and
/// for an unowned port, there is one.
#[test]
fn owned_udp_port_sends_no_port_unreachable() {
    let _serial = Serial::begin();
    let lab = lab();
    let capture = Capture::start(lab.server(), INTERFACE, Some("icmp or icmp6"));
    within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        for (client, server) in ENDS {
            // Sends a datagram to `port` of the client; returns whether the sender gets an ICMP error.
            let is_unreachable = |port: u16| {
                lab.server()
                    .run(|| {
                        let socket = UdpSocket::bind(SocketAddr::new(server, 0)).unwrap();
                        socket.connect(SocketAddr::new(client, port)).unwrap();
                        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                        socket.send(b"are you there?").unwrap();
                        socket.recv(&mut [0; 1]).expect_err("no answer").kind() == io::ErrorKind::ConnectionRefused
                    })
                    .unwrap()
            };
            for (observe, suppress, unreachable) in
                [(false, true, false), (true, true, false), (true, false, true), (false, false, false)]
            {
                let request = LeaseRequest::udp().observe(observe).suppress(suppress);
                let lease = crafter.lease(request).await.expect("a lease");
                let what = format!("{client}, observe {observe}, suppress {suppress}");
                assert_eq!(is_unreachable(lease.port()), unreachable, "{what}");
                let received = lease.recv_timeout(REPLY_TIMEOUT).await.unwrap().expect("the datagram");
                assert!(received.ip.ends_with(b"are you there?"), "{what}");
                // Positive control at the same time.
                assert!(is_unreachable(CONTROL_PORT), "{what}");
            }
        }
        let counters = crafter.counters().unwrap();
        assert_eq!(counters.get(Reason::UnreachableSuppressed), 2, "{counters:?}");
        assert_eq!(counters.get(Reason::UnreachableAllowed), 2, "{counters:?}");
        assert_eq!(counters.get(Reason::UnreachableNotOwned), 8, "{counters:?}");
    });
    let packets = capture.finish();
    for (client, _) in ENDS {
        // One with policy `pass`, four from the unowned port.
        assert_eq!(unreachables(&packets, client), 5, "{client}");
    }
}
