//! An interface is renamed, or removed and added again, while it is leased.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crafter::{
    Crafter, Error, LeaseRequest,
    lab::{CLIENT_V4, INTERFACE, Lab, SERVER_V4},
    protocol::{
        record::{Code, Kind},
        wire::{CountersCall, LeaseCall},
    },
};
use crafter_tests::{
    frame,
    leak::Serial,
    peer::{Process, wait_for},
    service::{REPLY_TIMEOUT, ROOT, Socket},
    testbed::{lab, run},
};

use super::{Neighbour, lease, lease_call, service};

/// The second interface, and the addresses of both of its ends.
const OTHER: &str = "lab1";
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn ip(namespace: &crafter::lab::NetNs, arguments: &str) {
    run(namespace.command("ip").args(arguments.split(' ')));
}

/// Adds a second link between client and server.
fn connect(lab: &Lab, within: &Process) {
    ip(lab.client(), &format!("link add {OTHER} type veth peer name {OTHER} netns {}", within.id()));
    for (namespace, address) in [(lab.client(), CLIENT), (lab.server(), SERVER)] {
        ip(namespace, &format!("address add {address}/24 dev {OTHER}"));
        ip(namespace, &format!("link set {OTHER} up"));
    }
}

fn on(interface: &str, call: LeaseCall) -> LeaseCall {
    LeaseCall { interface: Some(interface.to_owned()), ..call }
}

/// Asserts that a SYN to a closed port is answered.
fn assert_works(socket: &Socket, ends: (Ipv4Addr, Ipv4Addr)) {
    assert!(works(socket, ends), "no RST");
}

fn works(socket: &Socket, (client, server): (Ipv4Addr, Ipv4Addr)) -> bool {
    let end = |address, port| SocketAddr::new(IpAddr::V4(address), port);
    let port = socket.leased.first_port.expect("a port");
    socket.send(&frame::Tcp::new(frame::SYN, 1, 0).ip(end(client, port), end(server, 9))).expect("send");
    let message = socket.receive(REPLY_TIMEOUT).expect("the lease").expect("a RST or a refusal");
    message.packet().is_some()
}

fn assert_ended(socket: &Socket) {
    let message = socket.receive(REPLY_TIMEOUT).expect("a message before the close").expect("an end message");
    let code = match message.header.kind {
        Kind::End { code } => code,
        _ => panic!("{message:?}"),
    };
    assert_eq!(code, Code::InterfaceRemoved);
    let (sentence, _) = message.header.sentence(&message.rest);
    assert!(sentence.contains(OTHER), "{sentence}");
    socket.receive(REPLY_TIMEOUT).expect_err("a closed socket");
}

/// After a rename, leases stay active, new leases use the new name, and the old name is unknown.
#[test]
fn renamed_interface_keeps_its_leases() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let here = lease(&service, ROOT, &lease_call("tcp", Some(20_000), None)).expect("a lease");
    assert_works(&here, (CLIENT_V4, SERVER_V4));
    for (number, (from, to)) in [(INTERFACE, "lab7"), ("lab7", INTERFACE)].into_iter().enumerate() {
        for change in [format!("{from} down"), format!("{from} name {to}"), format!("{to} up")] {
            ip(lab.client(), &format!("link set {change}"));
        }
        let none = lease(&service, ROOT, &on(from, lease_call("tcp", None, None))).map(drop);
        assert!(matches!(none, Err(Error::UnknownInterface { .. })), "{none:?}");
        let more =
            lease(&service, ROOT, &on(to, lease_call("tcp", Some(20_001), None))).expect("a lease under its new name");
        // Routes are missing for a moment after the link was down.
        for socket in [&here, &more] {
            wait_for("an answer", REPLY_TIMEOUT, || works(socket, (CLIENT_V4, SERVER_V4)).then_some(()));
        }
        let interfaces = service.session(ROOT, async |control| {
            control.call(&CountersCall::default()).await.expect("the counters").interfaces
        });
        let names: Vec<&str> = interfaces.iter().map(|counted| &counted.interface[..]).collect();
        assert_eq!(names, [to], "attached once, round {number}");
    }
}

#[test]
fn removed_interface_ends_its_leases_and_can_be_added_again() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    // ip(8) refers to the server's namespace by this process.
    let within = Process::start(lab.server().command("sleep").arg("300"));
    let neighbour = Neighbour::start(lab.client(), &service.socket);
    let here = lease(&service, ROOT, &lease_call("tcp", Some(20_000), None)).expect("a lease");
    for round in 0..3 {
        connect(&lab, &within);
        let there = lease(&service, ROOT, &on(OTHER, lease_call("tcp", Some(22_000), None))).expect("a lease");
        assert_works(&there, (CLIENT, SERVER));
        assert_works(&here, (CLIENT_V4, SERVER_V4));
        let without_ports = lease(&service, ROOT, &on(OTHER, lease_call("none", None, None))).expect("a lease");
        let observing = service.session(ROOT, async |control| {
            let call = crafter::protocol::wire::ObserveCall {
                interface: OTHER.to_owned(),
                filter: Some("udp port 1".to_owned()),
                direction: None,
            };
            let (_, mut descriptors) = control.call_for_descriptors(&call).await.expect("observe");
            Socket { leased: Default::default(), fd: descriptors.remove(0) }
        });
        service.session(ROOT, async |control| {
            let crafter = Crafter::via_service(control.into(), OTHER).await.expect("the interface");
            let lost = crafter.lease(LeaseRequest::tcp().port(21_000)).await.expect("a lease");
            ip(lab.client(), &format!("link delete {OTHER}"));
            let error = tokio::time::timeout(REPLY_TIMEOUT, lost.recv()).await.expect("an error in time").map(drop);
            println!("error: {error:?}");
            match error {
                Err(Error::UnknownInterface { name }) => assert_eq!(name, OTHER),
                Err(Error::Service { reason, .. }) => assert!(reason.contains(OTHER), "{reason}"),
                other => panic!("{other:?}"),
            }
            let again = tokio::time::timeout(REPLY_TIMEOUT, crafter.lease(LeaseRequest::tcp())).await.expect("no hang");
            again.map(drop).expect_err("there is no interface");
        });
        for socket in [&there, &without_ports] {
            assert_ended(socket);
        }
        let message = observing.receive(REPLY_TIMEOUT).expect("a message before the close").expect("an end message");
        assert!(matches!(message.header.kind, Kind::End { code: Code::InterfaceRemoved }), "{message:?}");
        let none = lease(&service, ROOT, &on(OTHER, lease_call("tcp", None, None))).map(drop);
        assert!(matches!(none, Err(Error::UnknownInterface { .. })), "{none:?}");
        assert_works(&here, (CLIENT_V4, SERVER_V4));
        assert!(service.leases().iter().all(|lease| lease.interface == INTERFACE), "round {round}");
    }
    // Removed while it is still attached but not leased.
    connect(&lab, &within);
    drop(lease(&service, ROOT, &on(OTHER, lease_call("tcp", None, None))).expect("a lease"));
    ip(lab.client(), &format!("link delete {OTHER}"));
    connect(&lab, &within);
    // The service detaches from the removed interface a moment later.
    wait_for("the detachment from the removed interface", REPLY_TIMEOUT, || {
        let interfaces = service.session(ROOT, async |control| {
            control.call(&CountersCall::default()).await.expect("the counters").interfaces
        });
        interfaces.iter().all(|counted| counted.interface == INTERFACE).then_some(())
    });
    let there = lease(&service, ROOT, &on(OTHER, lease_call("tcp", Some(22_000), None))).expect("a lease");
    assert_works(&there, (CLIENT, SERVER));
    drop(here);
    neighbour.finish().assert_undisturbed();
}
