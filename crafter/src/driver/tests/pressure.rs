//! Back-pressure: packets that are kept, refused, or retransmitted.

use super::*;
use crate::{
    driver::{
        ROOM_RETRY_DELAY, ROOM_TIMEOUT,
        backend::{NoRoom, TxPacket},
        sending::Sending,
    },
    error::Error,
};

fn packets(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|number| udp(at(HERE, 5000), at(THERE, 53), &[number])).collect()
}

#[test]
fn batch_stops_at_the_first_packet_without_room() {
    let mut world = World::new();
    let (packets, route) = (packets(10), route());
    let batch: Vec<_> = packets.iter().map(|packet| TxPacket::Ip(&route, packet)).collect();
    world.fake().room = Some(4);
    let sent = world.core.backend.send_batch(&batch, NoRoom::Stop);
    assert_eq!((sent.sent, sent.refused, sent.tried), (4, 0, 4));
    // The backend keeps nothing: the rest is a new batch.
    world.fake().room = Some(3);
    let sent = world.core.backend.send_batch(&batch[4..], NoRoom::Stop);
    assert_eq!((sent.sent, sent.refused, sent.tried), (3, 0, 3));
    let sent = world.core.backend.send_batch(&batch[7..], NoRoom::Refuse);
    assert_eq!((sent.sent, sent.refused, sent.tried), (0, 3, 3));
    assert_eq!(world.take_sent(), packets[..7]);
    let stats = world.core.stats();
    assert_eq!((stats.sent, stats.not_sent), (7, 3));
}

#[test]
fn sender_keeps_packets_until_there_is_room() {
    let mut world = World::new();
    let packets = packets(10);
    let routed: Vec<_> = packets.iter().map(|packet| (route(), &packet[..])).collect();
    let mut sending = Sending::new(world.now, &routed);
    for room in [4, 0, 1, 0, 0, 3] {
        world.fake().room = Some(room);
        assert!(sending.send(world.now, &mut world.core, "fake0").is_none());
        // The whole may take longer than the timeout, as long as some packets find room in time.
        world.now += ROOM_TIMEOUT / 3;
    }
    world.fake().room = None;
    assert!(matches!(sending.send(world.now, &mut world.core, "fake0"), Some(Ok(()))));
    assert_eq!(world.take_sent(), packets, "each once, in order");
    assert_eq!(world.core.stats().not_sent, 0);
}

#[test]
fn sender_fails_after_the_timeout_without_room() {
    let mut world = World::new();
    let packets = packets(10);
    let routed: Vec<_> = packets.iter().map(|packet| (route(), &packet[..])).collect();
    let mut sending = Sending::new(world.now, &routed);
    world.fake().room = Some(2);
    let start = world.now;
    let result = loop {
        if let Some(result) = sending.send(world.now, &mut world.core, "fake0") {
            break result;
        }
        world.now += ROOM_RETRY_DELAY;
    };
    assert_eq!(world.now - start, ROOM_TIMEOUT);
    let error = result.unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock), "{error}");
    assert!(error.to_string().contains("fake0") && error.to_string().contains("8 packets"), "{error}");
    assert_eq!(world.take_sent(), packets[..2]);
    assert_eq!(world.core.stats().not_sent, 8);
}

#[test]
fn packets_around_an_invalid_one_are_sent() {
    let mut world = World::new();
    let mut packets = packets(3);
    packets[1] = udp(at(HERE, 5000), at(THERE, 53), &[0; 1473]);
    let routed: Vec<_> = packets.iter().map(|packet| (route(), &packet[..])).collect();
    world.fake().mtu = Some(1500);
    let result = Sending::new(world.now, &routed).send(world.now, &mut world.core, "fake0");
    assert!(matches!(&result, Some(Err(Error::Invalid { .. }))), "{result:?}");
    assert_eq!(world.take_sent(), [packets[0].clone(), packets[2].clone()]);
}

#[test]
fn stream_retransmits_segments_without_room() {
    let (mut world, _lease, stream, mut peer) = established();
    world.fake().room = Some(0);
    world.write(stream, b"not lost");
    assert!(world.take_sent().is_empty());
    assert_eq!(world.core.stats().not_sent, 1);
    world.fake().room = None;
    world.pass(Duration::from_secs(2));
    peer.exchange(&mut world);
    assert_eq!(peer.got, b"not lost");
    assert_eq!(world.state(stream), Some(StreamState::Established));
}

#[test]
fn invalid_segment_counts_as_not_sent() {
    let (mut world, _lease, stream, _peer) = established();
    // The MTU shrinks below that of the stream.
    world.core.handle_addresses(world.now, &[ip(HERE)], Some(500));
    assert!(world.core.backend.is_local(ip(HERE)));
    world.write(stream, &[0; 500]);
    assert_eq!((world.take_sent().len(), world.core.stats().not_sent), (0, 1));
    assert_eq!(world.state(stream), Some(StreamState::Established));
}

#[test]
fn many_segments_are_sent_in_order() {
    let (mut world, _lease, stream, mut peer) = established();
    let bytes: Vec<u8> = (0..400_000_u32).map(|number| (number / 7) as u8).collect();
    let mut at = 0;
    while at < bytes.len() {
        let _ = world.poll(stream, Waiter::Writer, &Arc::default(), |engine| {
            at += engine.send(&bytes[at..]).unwrap();
            Poll::Ready(())
        });
        peer.exchange(&mut world);
    }
    assert!(peer.got == bytes, "{} of {} bytes, or others", peer.got.len(), bytes.len());
    assert_eq!(world.core.table.stream(stream).unwrap().engine.stats().retransmissions, 0);
}
