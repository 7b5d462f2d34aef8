//! Streams: found by flow, driven by deadlines, and closed in the background after their owner dropped them.

use super::*;
use crate::error::Error;

/// A reference that a stream keeps until it is finished.
fn keep() -> (Arc<()>, crate::driver::core::KeepAlive) {
    let keep = Arc::new(());
    (keep.clone(), keep)
}

#[test]
fn stream_from_syn_to_time_wait() {
    let (mut world, lease, stream, mut peer) = established();
    let wakes = Arc::new(Wakes::default());
    assert!(world.read(stream, &wakes).is_pending());
    world.write(stream, b"GET / HTTP/1.0\r\n\r\n");
    peer.exchange(&mut world);
    assert_eq!(peer.got, b"GET / HTTP/1.0\r\n\r\n");
    wakes.take();

    assert!(world.read(stream, &wakes).is_pending());
    let answer = peer.segment(Flags::PSH | Flags::ACK, b"HTTP/1.0 200 OK\r\n\r\n");
    world.arrive_packet(answer);
    assert_eq!(wakes.take(), 1);
    let Poll::Ready(Ok(bytes)) = world.read(stream, &wakes) else { panic!("nothing to read") };
    assert_eq!(bytes, b"HTTP/1.0 200 OK\r\n\r\n");

    world.shut_down(stream);
    peer.exchange(&mut world);
    assert!(peer.has_fin);
    let fin = peer.segment(Flags::FIN | Flags::ACK, &[]);
    world.arrive_packet(fin);
    let last = world.take_segments();
    assert_eq!(last.last().map(|segment| (segment.flags, segment.ack)), Some((Flags::ACK, peer.seq)));
    assert!(matches!(world.read(stream, &wakes), Poll::Ready(Ok(end)) if end.is_empty()));
    assert_eq!(world.state(stream), Some(StreamState::TimeWait));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(stream), Some(StreamState::Closed));
    assert!(world.receive(&lease).is_none(), "all segments were the stream's");
    let stats = world.core.stats();
    assert_eq!((stats.stray, stats.bad_checksum, stats.overflow, stats.not_sent), (0, 0, 0, 0));
}

#[test]
fn segments_of_other_flows_are_delivered_to_the_lease() {
    let (mut world, lease, stream, mut peer) = established();
    let (local, remote) = (peer.remote, peer.address);
    let others = [
        tcp(at(THERE, 81), local, Flags::SYN),
        tcp(at("192.0.2.3", 80), local, Flags::SYN),
        icmp("198.51.100.1", HERE, 3, 1, [0; 4], &tcp(local, at("192.0.2.3", 80), Flags::SYN)),
    ];
    for packet in &others {
        world.arrive_packet(packet.clone());
        assert_eq!(&world.receive(&lease).unwrap().ip, packet);
    }
    // A second stream on the lease, but not of the same flow.
    let again = StreamEngine::connect(StreamConfig::new(local, remote, 1), None, world.now).unwrap();
    assert!(world.core.table.add_stream(again, route(), local, remote).is_none());
    let second = world.connect(local, at(THERE, 81));
    let mut second_peer = Peer::new(at(THERE, 81), local);
    second_peer.exchange(&mut world);
    let wakes = Arc::new(Wakes::default());
    for (stream, peer, bytes) in [(stream, &mut peer, b"first"), (second, &mut second_peer, b"other")] {
        let data = peer.segment(Flags::ACK, bytes);
        world.arrive_packet(data);
        assert!(matches!(world.read(stream, &wakes), Poll::Ready(Ok(read)) if read == bytes));
    }
}

#[test]
fn segment_with_invalid_checksum_is_ignored_and_counted() {
    let (mut world, lease, stream, mut peer) = established();
    let wakes = Arc::new(Wakes::default());
    let mut data = peer.segment(Flags::ACK, b"data");
    *data.last_mut().unwrap() ^= 1;
    assert!(world.read(stream, &wakes).is_pending());
    world.arrive_packet(data.clone());
    assert!(world.read(stream, &wakes).is_pending() && wakes.take() == 0);
    assert!(world.receive(&lease).is_none());
    assert_eq!(world.core.stats().bad_checksum, 1);
    // A checksum that the backend has verified is not verified again.
    world.arrive(Arrival::Packet(data, Meta { checksum: Some(Checksum::Valid), ..Meta::REDIRECTED }));
    assert!(matches!(world.read(stream, &wakes), Poll::Ready(Ok(read)) if read.len() == 4));
}

#[test]
fn icmp_error_ends_the_quoted_stream() {
    let mut world = World::new();
    let lease = world.lease(Transport::Tcp, HERE, 40_000);
    let stream = world.connect(at(HERE, 40_000), at(THERE, 80));
    let syn = world.take_sent().remove(0);
    let wakes = Arc::new(Wakes::default());
    assert!(world.read(stream, &wakes).is_pending());
    world.arrive_packet(icmp("198.51.100.1", HERE, 3, 1, [0; 4], &syn));
    assert_eq!(wakes.take(), 1);
    let read = world.read(stream, &wakes);
    assert!(matches!(&read, Poll::Ready(Err(Error::Unreachable { from, .. })) if *from == ip("198.51.100.1")));
    assert!(world.receive(&lease).is_none());
}

#[test]
fn connect_fails_on_rst_and_on_timeout() {
    let mut world = World::new();
    world.lease(Transport::Tcp, HERE, 40_000);
    let wakes = Arc::new(Wakes::default());
    let refused = world.connect(at(HERE, 40_000), at(THERE, 80));
    let syn = world.take_segments().remove(0);
    let reset = Segment {
        flags: Flags::RST | Flags::ACK,
        ack: syn.seq.wrapping_add(1),
        ..Segment::new(at(THERE, 80), at(HERE, 40_000))
    };
    world.arrive_packet(reset.build());
    assert!(matches!(world.read(refused, &wakes), Poll::Ready(Err(Error::Refused { .. }))));

    let silent = world.connect(at(HERE, 40_000), at(THERE, 81));
    assert!(world.read(silent, &wakes).is_pending());
    world.pass(Duration::from_millis(4900));
    assert!(world.take_sent().len() > 1, "the SYN is retransmitted");
    assert!(world.read(silent, &wakes).is_pending());
    wakes.take();
    world.pass(Duration::from_millis(200));
    assert_eq!(wakes.take(), 1);
    assert!(matches!(world.read(silent, &wakes), Poll::Ready(Err(Error::TimedOut { .. }))));
}

#[test]
fn reader_and_writer_do_not_wake_each_other() {
    let (mut world, _lease, stream, mut peer) = established();
    let (reader, writer) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
    assert!(world.read(stream, &reader).is_pending());
    let full = |engine: &mut StreamEngine| {
        while engine.send(&[0; 65_536]).is_ok_and(|length| length > 0) {}
        Poll::<()>::Pending
    };
    assert!(world.poll(stream, Waiter::Writer, &writer, full).is_pending());
    for _ in 0..3 {
        assert!(world.read(stream, &reader).is_pending());
        assert!(world.poll(stream, Waiter::Writer, &writer, full).is_pending());
    }
    assert_eq!((reader.take(), writer.take()), (0, 0));
    // The peer acknowledges: both are woken.
    let sent = world.take_sent();
    let answer = peer.handle(&sent[0]).unwrap();
    world.arrive_packet(answer);
    assert_eq!((reader.take(), writer.take()), (1, 1));
}

#[test]
fn orphan_closes_in_the_background_and_keeps_its_lease() {
    let (mut world, _lease, stream, mut peer) = established();
    world.write(stream, b"last words");
    world.shut_down(stream);
    let (kept, keep) = keep();
    world.core.release_stream(world.now, stream, keep);
    peer.exchange(&mut world);
    assert!(peer.has_fin && peer.got == b"last words");
    let fin = peer.segment(Flags::FIN | Flags::ACK, &[]);
    world.arrive_packet(fin);
    assert_eq!(world.state(stream), Some(StreamState::TimeWait));
    assert!(world.core.take_released().is_empty() && Arc::strong_count(&kept) == 2);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(stream), None, "it is removed");
    // Not dropped under the lock, but returned to be dropped after it.
    assert_eq!(Arc::strong_count(&kept), 2);
    drop(world.core.take_released());
    assert_eq!(Arc::strong_count(&kept), 1);
    assert!(world.core.arm().is_none(), "nothing is left to wait for");
    assert!(world.take_segments().iter().all(|segment| !segment.flags.contains(Flags::RST)));
}

#[test]
fn stream_dropped_without_shutdown_is_reset() {
    let (mut world, _lease, stream, peer) = established();
    let (kept, keep) = keep();
    world.core.release_stream(world.now, stream, keep);
    let sent = world.take_segments();
    assert!(matches!(&sent[..], [reset] if reset.flags.contains(Flags::RST) && reset.seq == peer.ack), "{sent:?}");
    assert_eq!(world.state(stream), None);
    drop(world.core.take_released());
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn orphan_is_aborted_after_a_minute() {
    let (mut world, lease, stream, mut peer) = established();
    world.shut_down(stream);
    let (kept, keep) = keep();
    world.core.release_stream(world.now, stream, keep);
    peer.exchange(&mut world);
    assert!(peer.has_fin, "the peer does not close its end");
    world.pass(Duration::from_secs(59));
    assert_eq!(world.state(stream), Some(StreamState::Closing));
    assert!(world.take_sent().is_empty());
    world.pass(Duration::from_secs(2));
    let sent = world.take_segments();
    assert!(matches!(&sent[..], [reset] if reset.flags.contains(Flags::RST)), "{sent:?}");
    assert_eq!(world.state(stream), None);
    drop(world.core.take_released());
    assert_eq!(Arc::strong_count(&kept), 1);
    assert!(world.core.arm().is_none());
    // The flow is free: later segments are delivered to the lease.
    let late = peer.segment(Flags::ACK, b"late");
    world.arrive_packet(late.clone());
    assert_eq!(world.receive(&lease).unwrap().ip, late);
}

#[test]
fn orphans_are_removed_without_a_driver_task() {
    let (mut world, _lease, stream, _peer) = established();
    let held = world.connect(at(HERE, 40_000), at(THERE, 81));
    world.shut_down(stream);
    let (kept, keep) = keep();
    world.core.release_stream(world.now, stream, keep);
    world.take_sent();
    world.core.give_up_orphans();
    assert_eq!((world.state(stream), world.state(held)), (None, Some(StreamState::Connecting)));
    assert!(world.take_sent().is_empty(), "nothing is sent");
    assert_eq!(Arc::strong_count(&kept), 2);
    drop(world.core.take_released());
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn driver_is_rearmed_for_a_nearer_deadline() {
    let mut world = World::new();
    world.lease(Transport::Tcp, HERE, 40_000);
    assert!(world.core.arm().is_none() && !world.core.nearer_than_armed());
    world.connect(at(HERE, 40_000), at(THERE, 80));
    assert!(world.core.nearer_than_armed());
    let armed = world.core.arm().unwrap();
    assert!(armed > world.now && armed <= world.now + Duration::from_secs(5));
    assert!(!world.core.nearer_than_armed());
}
