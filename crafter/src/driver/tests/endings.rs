//! External ends: a removed interface, a service that stops, a packet that the policy refuses.

use super::*;
use crate::{error::Error, protocol::record::QUOTED};

#[test]
fn removed_interface_ends_leases_and_streams() {
    let (mut world, lease, stream, _peer) = established();
    let watcher = Arc::new(Notify::new());
    world.core.watch(watcher.clone());
    let wakes = Arc::new(Wakes::default());
    assert!(world.read(stream, &wakes).is_pending());
    let late = udp(at(THERE, 53), at(HERE, 5000), b"x");
    let other = world.lease(Transport::Udp, HERE, 5000);
    world.arrive_packet(late.clone());
    assert!(take_notification(&other.arrived));
    world.core.table.check_alive("fake0").unwrap();
    assert!(!take_notification(&watcher));

    world.core.handle_addresses(world.now, &[ip(HERE)], None);
    assert!(take_notification(&watcher) && take_notification(&lease.arrived) && take_notification(&other.arrived));
    assert_eq!(wakes.take(), 1);
    let error = world.core.table.check_alive("fake0").unwrap_err();
    assert!(matches!(&error, Error::UnknownInterface { name } if name == "fake0"), "{error}");
    assert!(matches!(world.read(stream, &wakes), Poll::Ready(Err(Error::UnknownInterface { .. } | Error::Io { .. }))));
    assert!(world.take_sent().is_empty(), "no backend is left to send with");
    // Packets that arrived before can still be received.
    assert_eq!(world.receive(&other).unwrap().ip, late);
    // A second event changes nothing.
    world.core.handle_addresses(world.now, &[ip(HERE)], None);
    assert!(!take_notification(&watcher) && !take_notification(&lease.arrived));
    // A later watcher is notified at once.
    world.core.watch(watcher.clone());
    assert!(take_notification(&watcher));
}

#[test]
fn failed_send_reports_removed_interface() {
    let (mut world, lease, stream, _peer) = established();
    let wakes = Arc::new(Wakes::default());
    assert!(world.read(stream, &wakes).is_pending());
    world.fake().is_removed = true;
    world.write(stream, b"into the void");
    assert!(matches!(world.core.table.check_alive("fake0"), Err(Error::UnknownInterface { .. })));
    assert!(take_notification(&lease.arrived));
    assert_eq!(wakes.take(), 1, "at once, not with the next deadline");
    assert_eq!(world.state(stream), Some(StreamState::Closed));
    assert!(world.core.table.is_over());
}

#[test]
fn end_of_the_service_ends_all_leases() {
    let (mut world, lease, stream, _peer) = established();
    let other = world.lease(Transport::Udp, HERE, 5000);
    let wakes = Arc::new(Wakes::default());
    assert!(world.read(stream, &wakes).is_pending());
    world.arrive(Arrival::Ended { path: "/run/crafter.sock", reason: "it is stopped" });
    assert_eq!(wakes.take(), 1);
    assert!(take_notification(&lease.arrived) && take_notification(&other.arrived));
    // Only the first reason is reported, also if the interface is removed later.
    world.arrive(Arrival::Ended { path: "/run/crafter.sock", reason: "it closed a lease" });
    world.core.handle_addresses(world.now, &[], None);
    let error = world.core.table.check_alive("fake0").unwrap_err();
    assert!(
        matches!(&error, Error::Service { path, reason } if path == "/run/crafter.sock" && reason == "it is stopped"),
        "{error}"
    );
    assert_eq!(world.state(stream), Some(StreamState::Closed));
    assert!(world.take_sent().is_empty());
}

#[test]
fn refused_segment_ends_its_stream() {
    let (mut world, lease, stream, _peer) = established();
    let other = world.connect(at(HERE, 40_000), at(THERE, 81));
    world.take_sent();
    world.write(stream, &[7; 1000]);
    // The service quotes only the beginning.
    let quoted = world.take_sent().remove(0)[..QUOTED].to_vec();
    let wakes = Arc::new(Wakes::default());
    assert!(world.read(stream, &wakes).is_pending());
    world.arrive(Arrival::Refused { quoted, rule: Some(3), sentence: "port 80 is closed" });
    assert_eq!(wakes.take(), 1);
    let Poll::Ready(Err(error)) = world.read(stream, &wakes) else { panic!("it goes on") };
    assert!(matches!(&error, Error::Forbidden { rule: Some(3), .. }), "{error:?}");
    assert!(error.to_string().contains("port 80 is closed"), "{error}");
    // Other streams continue.
    world.arrive(Arrival::Refused {
        quoted: udp(at(HERE, 5000), at(THERE, 53), b"x"),
        rule: None,
        sentence: "for no stream",
    });
    assert_eq!(world.state(other), Some(StreamState::Connecting));
    world.core.table.check_alive("fake0").unwrap();
    assert!(!take_notification(&lease.arrived));
}
