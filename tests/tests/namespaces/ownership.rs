//! A lease takes its own packets and nothing else: what belongs to others reaches them, as without the lease.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use crafter::{Error, LeaseRequest, datapath::program::Attach, lab::INTERFACE};
use crafter_tests::{
    frame::{self, ICMP, MORE, UDP, V4},
    guarded::GuardedLab,
    leak::Serial,
    testbed::{ENDS, lab, open},
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
