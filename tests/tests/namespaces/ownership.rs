//! A lease takes its own packets and nothing else: what belongs to others reaches them, as without the lease.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crafter::{
    Error, LeaseRequest,
    datapath::{peers::Peers, program::Attach},
    lab::INTERFACE,
};
use crafter_tests::{
    frame::{self, ICMP, MORE, UDP, V4},
    guarded::GuardedLab,
    leak::Serial,
    service::{Credentials, NOBODY, Service, Socket, lease_call},
    testbed::{ENDS, assert_refuses, lab, open},
    wire::{Wire, mac},
    within,
};

/// Ports of the client: leased, and of a socket of the kernel.
const LEASED: u16 = 6000;
const OTHER: u16 = 7000;

/// How long a packet may take, and how long is waited for one that must not arrive.
const ARRIVAL: Duration = Duration::from_secs(5);
const ABSENCE: Duration = Duration::from_millis(200);

/// Sends packets from the server's interface, from its IP header on.
fn send(lab: &GuardedLab, packets: &[Vec<u8>]) {
    let neighbour = lab.client().run(|| mac(INTERFACE)).expect("enter the client");
    let sent = lab.server().run(|| {
        let wire = Wire::open(INTERFACE, neighbour)?;
        packets.iter().try_for_each(|packet| wire.send(packet))
    });
    sent.expect("enter the server").expect("send packets");
}

/// A datagram of the server to `port` of the client in two fragments.
fn fragments(version: usize, id: u16, port: u16, payload: u8) -> [Vec<u8>; 2] {
    let (client, server) = ENDS[version];
    let whole = frame::udp(SocketAddr::new(server, 53), SocketAddr::new(client, port), &[payload; 64]);
    [(0, &whole[..16], true), (16, &whole[16..], false)].map(|(offset, piece, more)| {
        if version == 0 {
            let fragment = offset / 8 | if more { MORE } else { 0 };
            V4 { id, fragment, ..V4::default() }.packet(server, client, UDP, piece)
        } else {
            frame::v6(server, client, 44, &frame::fragment6(UDP, offset, more, id.into(), piece))
        }
    })
}

/// Somebody sends first fragments under the server's address to a leased port. The server's datagrams to another port
/// with the same identifications reach that port's socket complete, while the lease exists and afterwards.
#[test]
fn fragments_of_others_reach_their_socket() {
    let _serial = Serial::begin();
    let lab = lab();
    for attach in [Attach::Native, Attach::Tc] {
        for version in 0..2 {
            within(lab.client(), async || {
                let (client, _) = ENDS[version];
                let socket = UdpSocket::bind((client, OTHER)).expect("a socket");
                socket.set_read_timeout(Some(ARRIVAL)).expect("a timeout");
                let crafter = open(attach).await;
                let lease = crafter.lease(LeaseRequest::udp().address(client).port(LEASED)).await.expect("a lease");
                // Positive control: the lease's own datagram.
                send(&lab, &fragments(version, 1, LEASED, 1));
                let received = lease.recv_timeout(ARRIVAL).await.expect("the lease").expect("its datagram");
                assert!(received.ip.ends_with(&[1; 64]));
                let mut payload = [0; 100];
                let mut arrives = |id: u16, packets: &[Vec<u8>]| {
                    send(&lab, packets);
                    let length = socket.recv(&mut payload).unwrap_or_else(|error| panic!("datagram {id}: {error}"));
                    assert_eq!(payload[..length], [2; 64], "datagram {id}");
                };
                for id in 100..120 {
                    let [spoofed, _] = fragments(version, id, LEASED, 9);
                    let [first, second] = fragments(version, id, OTHER, 2);
                    arrives(id, &[spoofed, first, second]);
                }
                for id in 200..220 {
                    let [spoofed, _] = fragments(version, id, LEASED, 9);
                    send(&lab, &[spoofed]);
                }
                // They are no datagrams for the lease.
                assert!(lease.recv_timeout(ABSENCE).await.expect("the lease").is_none());
                drop(lease);
                // The interface stays attached. The second fragment first: no first one ends the earlier one.
                for id in 200..220 {
                    let [first, second] = fragments(version, id, OTHER, 2);
                    arrives(id, &[second, first]);
                }
                drop(crafter);
            });
        }
    }
}

/// The IPv4-mapped form of an address is that address: a lease of it does not take the port of another lease.
#[test]
fn mapped_address_is_the_ipv4_address() {
    let _serial = Serial::begin();
    let lab = lab();
    within(lab.client(), async || {
        let (client, server) = ENDS[0];
        let IpAddr::V4(v4) = client else { panic!("IPv4") };
        let mapped = IpAddr::V6(v4.to_ipv6_mapped());
        let crafter = open(Attach::Auto).await;
        for request in [LeaseRequest::icmp(), LeaseRequest::udp(), LeaseRequest::tcp()] {
            let request = request.port(LEASED);
            let first = crafter.lease(request.clone().address(client)).await.expect("a lease");
            for address in [mapped, client] {
                let again = crafter.lease(request.clone().address(address)).await.map(drop);
                let again = again.expect_err("leased already");
                assert!(matches!(&again, Error::PortTaken { address, .. } if *address == client), "{again}");
            }
            drop(first);
            let second = crafter.lease(request.clone().address(mapped)).await.expect("a lease of a mapped address");
            assert_eq!(second.address(), Some(client));
            crafter.lease(request.address(client)).await.map(drop).expect_err("leased by the mapped address");
        }
        // The refused lease has not taken or removed the entry of the first one.
        let echo = crafter.lease(LeaseRequest::icmp().port(LEASED).address(client)).await.expect("a lease");
        crafter.lease(LeaseRequest::icmp().port(LEASED).address(mapped)).await.map(drop).expect_err("leased already");
        let reply = frame::packet(server, client, ICMP, &frame::icmp_query(server, client, 0, LEASED, b"\0data")[20..]);
        send(&lab, &[reply]);
        assert!(echo.recv_timeout(ARRIVAL).await.expect("the lease").is_some(), "a reply for the first lease");
        // All addresses, in each form.
        for any in [IpAddr::V6(Ipv6Addr::UNSPECIFIED), "::ffff:0.0.0.0".parse().expect("an address")] {
            let lease = crafter.lease(LeaseRequest::icmp().address(any)).await.expect("a lease of any address");
            assert_eq!(lease.address(), None, "{any}");
        }
    });
}

/// Another user than `NOBODY`.
const OTHER_USER: Credentials = Credentials { user: 71_950, group: 71_950 };

fn policy(more: &str) -> String {
    format!("[[rule]]\neverybody = true\npackets_per_second = \"unlimited\"\n{more}")
}

fn leased(service: &Service, user: Credentials, protocol: &str, port: u16) -> Socket {
    service.session(user, async |control| {
        Socket::lease(&control, &lease_call(protocol, Some(port), None)).await.expect("a lease")
    })
}

/// A socket of the server that sends to the leased port.
fn server_socket(lab: &GuardedLab, version: usize, from: u16, to: u16) -> UdpSocket {
    let (client, server) = ENDS[version];
    let socket = lab.server().run(|| UdpSocket::bind((server, from)).expect("a socket")).expect("enter the server");
    socket.connect((client, to)).expect("connect");
    socket.set_read_timeout(Some(ARRIVAL)).expect("a timeout");
    socket
}

/// Sends a datagram that is not the lease's: the lease does not get it, and the kernel says that the port is not open.
fn is_refused(lease: &Socket, socket: &UdpSocket) {
    socket.send(b"not the lease's").expect("send");
    let error = socket.recv(&mut [0; 100]).expect_err("a port-unreachable");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert!(lease.receive(ABSENCE).expect("the lease").is_none(), "a datagram of another peer");
}

/// Sends a datagram to the lease, which receives it.
fn arrives(lease: &Socket, socket: &UdpSocket) {
    socket.send(b"an answer").expect("send");
    let message = lease.receive(ARRIVAL).expect("the lease").expect("the peer's datagram");
    assert!(message.packet().expect("a packet").ends_with(b"an answer"));
}

#[test]
fn lease_of_the_service_receives_what_its_peers_send() {
    let _serial = Serial::begin();
    let lab = lab();
    for (peers, version) in [("flow", 0), ("flow", 1), ("address", 0), ("address", 1)] {
        let service = Service::start(lab.client(), &policy(&format!("peers = \"{peers}\"\n")));
        let (client, server) = ENDS[version];
        let lease = leased(&service, NOBODY, "udp", LEASED);
        let (peer, other) = (server_socket(&lab, version, 53, LEASED), server_socket(&lab, version, 54, LEASED));
        is_refused(&lease, &peer);
        // Whoever the lease sends to, it hears.
        let ask = |lease: &Socket| {
            let from = SocketAddr::new(client, LEASED);
            lease.send(&frame::udp_ip(from, SocketAddr::new(server, 53), b"a question")).expect("send");
            assert_eq!(peer.recv(&mut [0; 100]).expect("the question"), 10);
        };
        ask(&lease);
        arrives(&lease, &peer);
        if peers == "flow" {
            is_refused(&lease, &other)
        } else {
            arrives(&lease, &other)
        }
        // Another user who gets the port gets none of it.
        drop(lease);
        let next = leased(&service, OTHER_USER, "udp", LEASED);
        is_refused(&next, &peer);
        ask(&next);
        arrives(&next, &peer);
        // TCP: the kernel refuses connections to the leased port.
        let _tcp = leased(&service, NOBODY, "tcp", LEASED);
        assert_refuses(&lab, SocketAddr::new(client, LEASED));
    }
}

#[test]
fn lease_of_any_peer_receives_what_all_send() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), &policy("peers = \"any\"\n"));
    let lease = leased(&service, NOBODY, "udp", LEASED);
    arrives(&lease, &server_socket(&lab, 0, 53, LEASED));
    // A request for fewer.
    let call =
        crafter::protocol::wire::LeaseCall { peers: Some("flow".into()), ..lease_call("udp", Some(OTHER), None) };
    let lease = service.session(NOBODY, async |control| Socket::lease(&control, &call).await.expect("a lease"));
    is_refused(&lease, &server_socket(&lab, 0, 53, OTHER));
}

/// In process, leases receive the packets of all peers, and of those that they have sent to on request.
#[test]
fn lease_in_process_receives_what_its_peers_send_on_request() {
    let _serial = Serial::begin();
    let lab = lab();
    within(lab.client(), async || {
        let (client, server) = ENDS[0];
        let crafter = open(Attach::Auto).await;
        let peer = server_socket(&lab, 0, 53, LEASED);
        let any = crafter.lease(LeaseRequest::udp().port(LEASED)).await.expect("a lease");
        peer.send(b"unasked").expect("send");
        assert!(any.recv_timeout(ARRIVAL).await.expect("the lease").is_some());
        drop(any);
        let lease = crafter.lease(LeaseRequest::udp().port(LEASED).peers(Peers::Flow)).await.expect("a lease");
        peer.send(b"unasked").expect("send");
        assert!(lease.recv_timeout(ABSENCE).await.expect("the lease").is_none());
        assert_eq!(peer.recv(&mut [0; 9]).expect_err("a port-unreachable").kind(), ErrorKind::ConnectionRefused);
        let question = frame::udp_ip(SocketAddr::new(client, LEASED), SocketAddr::new(server, 53), b"a question");
        lease.send(&question).await.expect("send");
        assert_eq!(peer.recv(&mut [0; 100]).expect("the question"), 10);
        peer.send(b"an answer").expect("send");
        assert!(lease.recv_timeout(ARRIVAL).await.expect("the lease").is_some());
    });
}

/// Packets of each user in [`two_users_of_one_peer_receive_their_own_packets`]; `CRAFTER_TEST_CROSSED` overrides it.
const CROSSED: u64 = 10_000;

/// Two users exchange packets with one peer, while another peer sends each of them what is the other's.
#[test]
fn two_users_of_one_peer_receive_their_own_packets() {
    let _serial = Serial::begin();
    let lab = lab();
    let count = std::env::var("CRAFTER_TEST_CROSSED").ok().and_then(|text| text.parse().ok()).unwrap_or(CROSSED);
    let service = Service::start(lab.client(), &policy(""));
    let (client, server) = ENDS[0];
    let peer = lab.server().run(|| UdpSocket::bind((server, 53)).expect("a socket")).expect("enter the server");
    peer.set_read_timeout(Some(ABSENCE)).expect("a timeout");
    let users = [(NOBODY, LEASED, b'a'), (OTHER_USER, OTHER, b'b')];
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = [0; 100];
            let stranger = lab.server().run(|| UdpSocket::bind((server, 54)).expect("a socket")).expect("the server");
            while !is_over.load(Ordering::Relaxed) {
                let Ok((length, from)) = peer.recv_from(&mut bytes) else { continue };
                let _ = peer.send_to(&bytes[..length], from);
                let other = if from.port() == LEASED { OTHER } else { LEASED };
                let _ = stranger.send_to(&bytes[..length], (client, other));
            }
        });
        let received = users.map(|(user, port, letter)| {
            let service = &service;
            scope.spawn(move || {
                let lease = leased(service, user, "udp", port);
                let packet = frame::udp_ip(SocketAddr::new(client, port), SocketAddr::new(server, 53), &[letter; 16]);
                let (mut own, began) = (0, Instant::now());
                for _ in 0..count {
                    lease.send(&packet).expect("send");
                    if let Some(message) = lease.receive(Duration::from_millis(20)).expect("the lease") {
                        let packet = message.packet().expect("no refusal");
                        assert!(packet.ends_with(&[letter; 16]), "a packet of the other user");
                        own += 1;
                    }
                }
                println!("user {}: {own} of {count} in {:?}", user.user, began.elapsed());
                own
            })
        });
        let received = received.map(|thread| thread.join());
        is_over.store(true, Ordering::Relaxed);
        for own in received {
            let own: u64 = own.expect("a user");
            assert!(own > count / 2 && own <= count, "{own} of {count}");
        }
    });
}
