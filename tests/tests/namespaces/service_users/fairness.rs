//! One client's flood costs another nothing: shares of the memory of received packets, and turns of senders. All work
//! is counted: the service is stopped while packets arrive for it, and continued when all are there.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crafter::{
    datapath::{
        frames::{FrameSender, Outlet},
        interface::interface,
    },
    lab::{CLIENT_V4, INTERFACE, Lab, SERVER_V4},
    protocol::{
        record::Code,
        wire::{Lease, ListFlowsCall},
    },
};
use crafter_tests::{
    capture::Capture,
    foreign::drop_all,
    frame,
    leak::Serial,
    peer::wait_for,
    service::{Credentials, REPLY_TIMEOUT, Service, Socket},
    testbed::lab,
    wire::mac,
    within,
};
use nix::sys::signal::Signal;

use super::{OBSERVER, ONE, TWO, Tenant, isolation::in_flight_limit, udp};

const POLICY: &str = "\
[[rule]]
user = 0
observe = true

[[rule]]
user = [71001, 71002]
ports = [\"50000-50999\"]
packets_per_second = \"unlimited\"
max_leases = 40

[[rule]]
user = 71003
observe = true

[[rule]]
user = 71004
ports = [\"50000-50999\"]
deny = [\"198.51.100.0/24\"]
packets_per_second = 1
burst = 10
";

/// A frame from the server with a datagram for `port` as a tenant expects it.
fn datagram(client: [u8; 6], port: u16) -> Vec<u8> {
    let (from, to) = (SocketAddr::new(SERVER_V4.into(), 9), SocketAddr::new(CLIENT_V4.into(), port));
    let payload = [&port.to_be_bytes()[..], &[frame::UDP]].concat();
    let mut frame = frame::framed(&frame::udp_ip(from, to, &payload));
    frame[..6].copy_from_slice(&client);
    frame
}

/// Sends bursts of datagrams from the server: each `(port, count)`.
fn send(lab: &Lab, bursts: &[(u16, u64)]) {
    let client = lab.client().run(|| mac(INTERFACE)).expect("enter the client");
    within(lab.server(), async || {
        let link = interface(INTERFACE).await.expect("the interface");
        let mut sender = FrameSender::open(&link, Outlet::Direct).expect("a sender");
        for &(port, count) in bursts {
            let frames = vec![datagram(client, port); 32];
            let mut rest = count;
            while rest > 0 {
                let few = rest.min(frames.len() as u64);
                sender.send(&frames[..few as usize]).expect("send");
                rest -= few;
            }
        }
        assert_eq!(sender.refused(), 0);
    });
}

/// How many packets the kernel half received for a port, whether delivered or not.
fn received(service: &Service, port: u16) -> u64 {
    service.session(OBSERVER, async |control| {
        let call = ListFlowsCall { port: Some(port.into()), ..ListFlowsCall::default() };
        let flows = control.call(&call).await.expect("the flows").flows;
        flows.iter().filter(|flow| flow.local.ends_with(&format!(":{port}"))).map(|flow| flow.rx_packets).sum()
    })
}

/// The leases on `ports`, as soon as every received packet is delivered or lost.
fn accounted(service: &Service, ports: &[u16]) -> Vec<(u64, Lease)> {
    wait_for("an account of every packet", REPLY_TIMEOUT, || {
        let leases = service.leases();
        let account = |port: &u16| {
            let lease = leases.iter().find(|lease| lease.first_port == Some(*port)).expect("the lease");
            (received(service, *port), lease.clone())
        };
        let all: Vec<_> = ports.iter().map(account).collect();
        all.iter().all(|(received, lease)| lease.delivered + lease.lost == *received).then_some(all)
    })
}

/// While the service is stopped, a flood arrives for one lease, then bursts for another user's lease and for another
/// one of the same user.
fn assert_flood_leaves_room(lab: &Lab, service: &Service, room: u64) {
    const PORTS: [u16; 3] = [50_000, 50_001, 50_002];
    let tenants = [ONE, TWO, ONE].into_iter().zip(PORTS);
    let tenants: Vec<Tenant> =
        tenants.map(|(user, port)| Tenant::start(service, user, "udp", port, port, &[])).collect();
    let bursts = [(PORTS[0], room * 3), (PORTS[1], room / 5), (PORTS[2], room / 64)];
    service.signal(Signal::SIGSTOP);
    send(lab, &bursts);
    service.signal(Signal::SIGCONT);
    let accounts = accounted(service, &PORTS);
    let ends: Vec<[u64; 4]> = tenants.into_iter().map(Tenant::end).collect();
    for (((received, lease), [read, crossed, other, reported]), (port, sent)) in accounts.iter().zip(&ends).zip(bursts)
    {
        println!("port {port}: {sent} sent, {received} received, {} delivered, {} lost", lease.delivered, lease.lost);
        assert_eq!((*crossed, *other), (0, 0));
        assert_eq!(*read, lease.delivered, "delivered packets are read");
        assert!(*reported <= lease.lost, "{reported} of {} losses were reported with packets", lease.lost);
        // The link itself loses few.
        assert!(*received > sent * 9 / 10, "{received} of {sent}");
    }
    assert_eq!(accounts[0].1.queue_full, accounts[0].1.lost, "the tenant read all of its messages");
    assert!(accounts[0].1.lost > room, "the flood exceeds its share");
    assert!(accounts[0].1.delivered > room / 4, "the flood gets a share");
    assert_eq!((accounts[1].1.lost, accounts[2].1.lost), (0, 0), "the flood took the room of others");
}

#[test]
fn flood_of_one_lease_leaves_frames_for_others() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let held = Tenant::start(&service, ONE, "udp", 50_900, 50_900, &[]);
    assert_flood_leaves_room(&lab, &service, in_flight_limit(&service) * 2);
    held.end();
}

/// The same without AF_XDP: another program holds the XDP hook.
#[test]
fn flood_of_one_lease_leaves_ring_space_for_others() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let foreign = lab.client().run(|| drop_all(INTERFACE)).expect("enter the client").expect("the hook is free");
    let held = Tenant::start(&service, ONE, "udp", 50_900, 50_900, &[]);
    // The program would drop all packets. The service stays at the tc hook.
    drop(foreign);
    // 8 MiB of records for small packets.
    assert_flood_leaves_room(&lab, &service, 28_000);
    held.end();
}

/// A client that does not read loses its own packets only, and all of them are counted.
#[test]
fn client_that_does_not_read_loses_only_its_own() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let unread = service.session(ONE, async |control| Socket::lease(&control, &udp(50_000)).await.expect("a lease"));
    let tenant = Tenant::start(&service, TWO, "udp", 50_001, 50_001, &[]);
    for _ in 0..10 {
        send(&lab, &[(50_000, 2000), (50_001, 200)]);
        accounted(&service, &[50_000, 50_001]);
    }
    let accounts = accounted(&service, &[50_000, 50_001]);
    let [(sent, unread_lease), (others, other)] = &accounts[..] else { panic!("two leases") };
    println!("{} of {sent} lost; {} of {others}", unread_lease.lost, other.lost);
    assert!(unread_lease.lost > unread_lease.queue_full && *sent > 18_000, "{unread_lease:?}");
    assert_eq!(other.lost, 0);
    let mut read = 0;
    while unread.receive(Duration::from_millis(20)).expect("the lease").is_some() {
        read += 1;
    }
    assert_eq!(read, unread_lease.delivered);
    // The next packet reports the losses.
    send(&lab, &[(50_000, 1)]);
    let message = unread.receive(REPLY_TIMEOUT).expect("the lease").expect("a packet");
    assert_eq!(u64::from(message.header.lost), unread_lease.lost);
    assert_eq!(tenant.end()[0], other.delivered);
}

fn outgoing(from: u16, number: u8) -> Vec<u8> {
    frame::udp_ip(SocketAddr::new(CLIENT_V4.into(), from), SocketAddr::new(SERVER_V4.into(), 7777), &[number])
}

async fn leases(control: &crafter::protocol::Control, ports: std::ops::Range<u16>) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for port in ports {
        sockets.push(Socket::lease(control, &udp(port)).await.expect("a lease"));
    }
    sockets
}

/// A user with 32 leases that are full of packets delays another user's by a few batches, not by all.
#[test]
fn users_send_in_turn() {
    const LEASES: u16 = 32;
    const EACH: u8 = 64;
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let many = service.session(ONE, async |control| leases(&control, 50_000..50_000 + LEASES).await);
    let one = service.session(TWO, async |control| leases(&control, 50_500..50_501).await).remove(0);
    // Resolves the next hop.
    one.send(&outgoing(50_500, 0)).expect("send");
    wait_for("the first packet", REPLY_TIMEOUT, || service.leases().iter().any(|lease| lease.sent == 1).then_some(()));
    let capture = Capture::start(lab.server(), INTERFACE, Some("udp dst port 7777"));
    service.signal(Signal::SIGSTOP);
    for (at, socket) in many.iter().enumerate() {
        (0..EACH).for_each(|number| socket.send(&outgoing(50_000 + at as u16, number)).expect("send"));
    }
    (0..EACH).for_each(|number| one.send(&outgoing(50_500, number)).expect("send"));
    service.signal(Signal::SIGCONT);
    let all = u64::from(EACH) * u64::from(LEASES + 1) + 1;
    wait_for("all packets", REPLY_TIMEOUT, || {
        (service.leases().iter().map(|lease| lease.sent).sum::<u64>() == all).then_some(())
    });
    let captured = capture.finish();
    assert_eq!(captured.len() as u64, all - 1);
    let last = captured.iter().rposition(|packet| packet.source.port() == 50_500).expect("the other user's");
    println!("the last of {EACH} packets of the other user was number {last} of {}", captured.len());
    assert!(last <= 6 * usize::from(EACH), "number {last} of {}", captured.len());
}

/// Packets that are refused for any reason count towards the rate like those that are sent.
#[test]
fn refused_packets_count_towards_the_rate() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let user = Credentials { user: 71_004, group: 71_004 };
    let denied = SocketAddr::new([198, 51, 100, 1].into(), 9);
    let allowed = SocketAddr::new(SERVER_V4.into(), 9);
    let from = SocketAddr::new(CLIENT_V4.into(), 50_000);
    let sockets = service.session(user, async |control| leases(&control, 50_000..50_001).await);
    let socket = &sockets[0];
    let began = Instant::now();
    let packets = [
        frame::udp_ip(from, denied, b"denied"),
        frame::udp_ip(SocketAddr::new(from.ip(), 1), allowed, b"another port"),
        b"no packet".to_vec(),
    ];
    for packet in packets.iter().cycle().take(60) {
        socket.send(packet).expect("send");
    }
    let mut codes = Vec::new();
    while codes.len() < 60 {
        codes.push(
            socket.receive(REPLY_TIMEOUT).expect("the lease").expect("a refusal").refusal().expect("a refusal").0,
        );
    }
    let rate = codes.iter().filter(|code| **code == Code::Rate).count();
    let others = codes.len() - rate;
    // The burst, and one for each second.
    assert!((10..=11 + began.elapsed().as_secs() as usize).contains(&others), "{codes:?}");
    assert!(codes[..9].iter().all(|code| matches!(code, Code::Policy | Code::Malformed)), "{codes:?}");
}
