//! Packets that the kernel does not take are not a lease's either. Each row is sent twice on the wire: to a socket of the
//! kernel, which decides what is right, and to a lease of crafter, which must agree.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use crafter::{LeaseRequest, datapath::program::Attach, lab::INTERFACE};
use crafter_common::reason::Reason;
use crafter_tests::{
    frame,
    leak::Serial,
    manual::REPLY_TIMEOUT,
    testbed::{ENDS, lab, open},
    wire::{Wire, mac},
    within,
};

/// What is wrong with a datagram.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    Source(&'static str),
    Station([u8; 6]),
    Vlan(u16),
    Checksum,
    NoTimeToLive,
}

/// The kernel delivers it, and a lease gets it.
const TAKEN: Option<Reason> = None;

/// The IPv4 address of the server in the form of IPv6.
const MAPPED: &str = "::ffff:192.0.2.1";

/// IP version, fault, and why it is passed. Two rows are stricter than Linux: it leaves to routers to destroy a packet
/// without time to live (RFC 791 section 3.2), and takes UDP from a mapped address, which the maps keep for IPv4.
const ROWS: &[(usize, Fault, Option<Reason>)] = &[
    (0, Fault::None, TAKEN),
    (1, Fault::None, TAKEN),
    (0, Fault::Station([0xff; 6]), TAKEN),
    (0, Fault::Station([1, 0, 0x5e, 0, 0, 1]), TAKEN),
    (0, Fault::Vlan(0xe000), TAKEN),
    (1, Fault::Vlan(0), TAKEN),
    (0, Fault::Station([2, 0, 0, 0, 0, 9]), Some(Reason::OtherLink)),
    (1, Fault::Station([2, 0, 0, 0, 0, 9]), Some(Reason::OtherLink)),
    (0, Fault::Vlan(5), Some(Reason::OtherLink)),
    (1, Fault::Vlan(0x2fff), Some(Reason::OtherLink)),
    (0, Fault::Source("127.0.0.1"), Some(Reason::MartianSource)),
    (0, Fault::Source("192.0.2.2"), Some(Reason::MartianSource)),
    (0, Fault::Source("224.0.0.1"), Some(Reason::MartianSource)),
    (0, Fault::Source("255.255.255.255"), Some(Reason::MartianSource)),
    (0, Fault::Source("0.0.0.0"), Some(Reason::MartianSource)),
    (0, Fault::Source("0.1.2.3"), TAKEN),
    (1, Fault::Source("::1"), Some(Reason::MartianSource)),
    (1, Fault::Source("ff02::1"), Some(Reason::MartianSource)),
    (1, Fault::Source(MAPPED), Some(Reason::MartianSource)),
    (0, Fault::Checksum, Some(Reason::InvalidHeader)),
    (0, Fault::NoTimeToLive, Some(Reason::InvalidHeader)),
];

/// The end of what is sent for a row; what has not arrived before it never will.
const LAST: &[u8] = b"last";

/// Sends a datagram with this fault to port `port` of the client, then one without that ends the row.
fn send(neighbour: [u8; 6], version: usize, fault: Fault, port: u16) {
    let (client, server) = ENDS[version];
    let to = SocketAddr::new(client, port);
    let source: IpAddr = if let Fault::Source(source) = fault { source.parse().unwrap() } else { server };
    let mut packet = frame::udp_ip(SocketAddr::new(source, 53), to, b"row");
    match fault {
        Fault::Checksum => packet[10] ^= 0x40,
        Fault::NoTimeToLive => {
            // RFC 1624: the sum changes by what the field does.
            let check = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + u32::from(packet[8]) * 256;
            let check = (check & 0xffff) + (check >> 16);
            packet[8] = 0;
            packet[10..12].copy_from_slice(&(check as u16).to_be_bytes());
        }
        _ => {}
    }
    let station = if let Fault::Station(station) = fault { station } else { neighbour };
    let wire = Wire::open(INTERFACE, station).unwrap();
    match fault {
        Fault::Vlan(tci) => wire.send_tagged(tci, &packet).unwrap(),
        _ => wire.send(&packet).unwrap(),
    }
    let last = frame::udp_ip(SocketAddr::new(server, 53), to, LAST);
    Wire::open(INTERFACE, neighbour).unwrap().send(&last).unwrap();
}

#[test]
fn lease_gets_what_the_kernel_takes_and_nothing_else() {
    let _serial = Serial::begin();
    let lab = lab();
    let neighbour = lab.client().run(|| mac(INTERFACE)).unwrap();
    let send = |version, fault, port| lab.server().run(|| send(neighbour, version, fault, port)).unwrap();
    // What the kernel does.
    for &(version, fault, refused) in ROWS {
        let any = ["0.0.0.0:0", "[::]:0"][version];
        let socket = lab.client().run(|| UdpSocket::bind(any).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        send(version, fault, socket.local_addr().unwrap().port());
        let mut is_taken = false;
        loop {
            let mut bytes = [0; 16];
            let count = socket.recv(&mut bytes).expect("the last datagram");
            if &bytes[..count] == LAST {
                break;
            }
            is_taken = true;
        }
        let expected = refused.is_none() || matches!(fault, Fault::NoTimeToLive | Fault::Source(MAPPED));
        assert_eq!(is_taken, expected, "the kernel, {fault:?}, IPv{}", [4, 6][version]);
    }
    for attach in [Attach::Native, Attach::Generic, Attach::Tc] {
        within(lab.client(), async || {
            let crafter = open(attach).await;
            let lease = crafter.lease(LeaseRequest::udp()).await.expect("a lease");
            for &(version, fault, refused) in ROWS {
                let name = format!("{attach:?}, {fault:?}, IPv{}", [4, 6][version]);
                let before = crafter.counters().unwrap();
                send(version, fault, lease.port());
                let mut is_taken = false;
                loop {
                    let received = lease.recv_timeout(REPLY_TIMEOUT).await.unwrap().expect("the last datagram");
                    if received.ip.ends_with(LAST) {
                        break;
                    }
                    is_taken = true;
                }
                assert_eq!(is_taken, refused.is_none(), "{name}");
                if let Some(reason) = refused {
                    assert_eq!(crafter.counters().unwrap().get(reason), before.get(reason) + 1, "{name}");
                }
            }
        });
    }
}

/// Another Ethernet address of the interface is the one that frames are for, and `accept_local` is the host's choice.
#[test]
fn changes_of_the_interface_apply_to_its_leases() {
    let _serial = Serial::begin();
    let lab = lab();
    let old = lab.client().run(|| mac(INTERFACE)).unwrap();
    let new = [2, 0, 0, 0, 0, 0x77];
    let send = |station, port| lab.server().run(|| self::send(station, 0, Fault::None, port)).unwrap();
    within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let lease = crafter.lease(LeaseRequest::udp()).await.expect("a lease");
        send(old, lease.port());
        for _ in 0..2 {
            lease.recv_timeout(REPLY_TIMEOUT).await.unwrap().expect("a datagram to the first address");
        }
        crafter_tests::testbed::run(lab.client().command("ip").args([
            "link",
            "set",
            INTERFACE,
            "address",
            "02:00:00:00:00:77",
        ]));
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        // The driver learns of it by a notification.
        loop {
            send(new, lease.port());
            if lease.recv_timeout(Duration::from_millis(50)).await.unwrap().is_some() {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "nothing arrives at the new address");
        }
        let before = crafter.counters().unwrap().get(Reason::OtherLink);
        send(old, lease.port());
        crafter_tests::peer::wait_for("two frames to the former address", Duration::from_secs(10), || {
            (crafter.counters().unwrap().get(Reason::OtherLink) == before + 2).then_some(())
        });
    });
}
