//! Leases: their ports, and the packets that they receive.

use super::*;
use crate::driver::table::QUEUE_BYTES;

#[test]
fn ports_are_owned_until_the_lease_is_dropped() {
    let mut world = World::new();
    let lease = world.try_lease(Transport::Udp, HERE, &[5000, 5001, 5002], false).unwrap();
    let ports = Ports { transport: Transport::Udp, address: ip(HERE), ports: vec![5000, 5001, 5002] };
    assert_eq!(world.fake().owned.get(&lease.id), Some(&(ports, Terms::default())));
    for port in 5000..5003 {
        assert!(world.core.table.is_leased(Transport::Udp, ip(HERE), port));
        world.arrive_packet(udp(at(THERE, 53), at(HERE, port), b"to each"));
        assert!(world.receive(&lease).is_some(), "{port}");
    }
    assert!(!world.core.table.is_leased(Transport::Tcp, ip(HERE), 5000));
    assert!(!world.core.table.is_leased(Transport::Udp, ip(THERE), 5000));
    assert!(world.core.table.is_leased(Transport::Udp, ip("0.0.0.0"), 5000), "any address includes the leased one");

    world.core.remove_lease(lease.id);
    assert!(world.fake().owned.is_empty());
    assert!(!world.core.table.is_leased(Transport::Udp, ip(HERE), 5000));
    world.arrive_packet(udp(at(THERE, 53), at(HERE, 5000), b"too late"));
    assert!(world.receive(&lease).is_none());
    let stats = world.core.stats();
    assert_eq!((stats.delivered, stats.stray), (3, 1));
}

#[test]
fn lease_fails_if_the_backend_is_full() {
    let mut world = World::new();
    world.fake().places = Some(1);
    let first = world.lease(Transport::Udp, HERE, 5000);
    assert!(world.try_lease(Transport::Udp, HERE, &[5001], false).is_err());
    assert!(!world.core.table.is_leased(Transport::Udp, ip(HERE), 5001));
    world.core.remove_lease(first.id);
    world.try_lease(Transport::Udp, HERE, &[5001], false).unwrap();
}

#[test]
fn packet_is_delivered_to_the_owner_of_its_address_and_port() {
    let mut world = World::new();
    let any = world.lease(Transport::Udp, "0.0.0.0", 5000);
    let here = world.lease(Transport::Udp, HERE, 5000);
    let tcp_lease = world.lease(Transport::Tcp, HERE, 5000);
    let to_here = udp(at(THERE, 53), at(HERE, 5000), b"here");
    let to_other = udp(at(THERE, 53), at("192.0.2.9", 5000), b"elsewhere");
    let to_v6 = udp("[2001:db8::2]:53".parse().unwrap(), "[2001:db8::1]:5000".parse().unwrap(), b"over IPv6");
    let segment = tcp(at(THERE, 53), at(HERE, 5000), Flags::SYN);
    for packet in [&to_here, &to_other, &to_v6, &segment] {
        world.arrive_packet(packet.clone());
    }
    assert_eq!(world.receive(&here).unwrap().ip, to_here, "the lease on the specific address is the owner");
    assert_eq!(world.receive(&any).unwrap().ip, to_other);
    assert_eq!(world.receive(&any).unwrap().ip, to_v6);
    assert_eq!(world.receive(&tcp_lease).unwrap().ip, segment);
    for lease in [&here, &any, &tcp_lease] {
        assert!(world.receive(lease).is_none());
    }
    world.core.remove_lease(here.id);
    world.arrive_packet(to_here.clone());
    assert_eq!(world.receive(&any).unwrap().ip, to_here);
    assert_eq!(world.core.stats().stray, 0);
    world.arrive_packet(udp(at(THERE, 53), at(HERE, 5001), b"nobody's"));
    world.arrive_packet(b"no packet".to_vec());
    world.arrive(Arrival::Malformed);
    assert_eq!(world.core.stats().stray, 3);
}

#[test]
fn metadata_is_delivered_with_the_packet() {
    use crafter_common::reason::Reason;
    let mut world = World::new();
    let lease = world.lease(Transport::Udp, HERE, 5000);
    let mut packet = udp(at(THERE, 53), at(HERE, 5000), b"right");
    let meta = Meta { timestamp: Some(7), cut: true, reason: Reason::Observed, checksum: None };
    world.arrive(Arrival::Packet(packet.clone(), meta));
    *packet.last_mut().unwrap() ^= 1;
    world.arrive_packet(packet.clone());
    world.arrive(Arrival::Packet(packet, Meta { checksum: Some(Checksum::Partial), ..Meta::REDIRECTED }));
    let first = world.receive(&lease).unwrap();
    let known = (first.checksum, first.timestamp_ns, first.cut, first.reason);
    assert_eq!(known, (Checksum::Valid, Some(7), true, Reason::Observed));
    let second = world.receive(&lease).unwrap();
    assert_eq!((second.checksum, second.timestamp_ns, second.cut), (Checksum::Invalid, None, false));
    assert_eq!(world.receive(&lease).unwrap().checksum, Checksum::Partial, "the backend has verified it");
}

#[test]
fn icmp_replies_and_errors_are_delivered_to_the_sender_of_the_query() {
    let mut world = World::new();
    let echo = world.lease(Transport::Icmp, HERE, 77);
    let datagrams = world.lease(Transport::Udp, HERE, 5000);
    let segments = world.lease(Transport::Tcp, HERE, 6000);
    let id = [0, 77, 0, 1];
    let reply = icmp(THERE, HERE, 0, 0, id, b"ping");
    let request = icmp(HERE, THERE, 8, 0, id, b"ping");
    let router = "198.51.100.1";
    let of_request = icmp(router, HERE, 11, 0, [0; 4], &request);
    let of_datagram = icmp(router, HERE, 3, 3, [0; 4], &udp(at(HERE, 5000), at(THERE, 53), b"x"));
    let of_segment = icmp(router, HERE, 3, 1, [0; 4], &tcp(at(HERE, 6000), at(THERE, 80), Flags::SYN));
    for packet in [&reply, &of_request, &of_datagram, &of_segment] {
        world.arrive_packet(packet.clone());
    }
    assert_eq!(world.receive(&echo).unwrap().ip, reply);
    assert_eq!(world.receive(&echo).unwrap().ip, of_request);
    assert_eq!(world.receive(&datagrams).unwrap().ip, of_datagram);
    assert_eq!(world.receive(&segments).unwrap().ip, of_segment);
    assert_eq!(world.core.stats().stray, 0);

    let of_nobody = icmp(router, HERE, 3, 3, [0; 4], &udp(at(HERE, 5001), at(THERE, 53), b"x"));
    for packet in [of_nobody, icmp(THERE, HERE, 0, 0, [0, 78, 0, 1], b"ping"), request] {
        world.arrive_packet(packet);
    }
    assert_eq!(world.core.stats().stray, 3, "another port, another identifier, a request");
}

#[test]
fn suppressed_answers_of_the_kernel_have_a_queue_of_their_own() {
    use crafter_common::reason::Reason;
    let mut world = World::new();
    let segments = world.lease(Transport::Tcp, HERE, 6000);
    let datagrams = world.lease(Transport::Udp, HERE, 5000);
    let meta = |reason| Meta { reason, ..Meta::REDIRECTED };
    // The answers that this host's kernel would have sent.
    let reset = tcp(at(HERE, 6000), at(THERE, 80), Flags::RST);
    let unreachable = icmp(HERE, THERE, 3, 3, [0; 4], &udp(at(THERE, 53), at(HERE, 5000), b"x"));
    world.arrive(Arrival::Suppressed(reset.clone(), meta(Reason::RstSuppressed)));
    world.arrive(Arrival::Suppressed(unreachable.clone(), meta(Reason::UnreachableSuppressed)));
    for (lease, answer, reason) in
        [(&segments, reset.clone(), Reason::RstSuppressed), (&datagrams, unreachable, Reason::UnreachableSuppressed)]
    {
        assert!(take_notification(&lease.arrived));
        assert!(world.receive(lease).is_none(), "it is not a reply");
        let suppressed = &mut world.core.table.lease(lease.id).unwrap().suppressed;
        let kept = suppressed.pop_front().unwrap();
        assert_eq!((kept.ip, kept.reason, kept.checksum), (answer, reason, Checksum::Valid));
        assert!(suppressed.is_empty());
    }
    // The queue is bounded.
    for _ in 0..5000 {
        world.arrive(Arrival::Suppressed(reset.clone(), meta(Reason::RstSuppressed)));
    }
    assert_eq!(world.core.table.lease(segments.id).unwrap().suppressed.len(), 4096);
    assert_eq!(world.core.stats().delivered, 0);
    world.core.remove_lease(segments.id);
    world.arrive(Arrival::Suppressed(reset, meta(Reason::RstSuppressed)));
    world.arrive(Arrival::Suppressed(b"no packet".to_vec(), meta(Reason::RstSuppressed)));
    assert_eq!(world.core.stats().stray, 1, "the unreadable packet");
}

#[test]
fn queue_overflow_is_counted() {
    let mut world = World::new();
    let (full, other) = (world.lease(Transport::Udp, HERE, 5000), world.lease(Transport::Udp, HERE, 5001));
    let valid = Meta { checksum: Some(Checksum::Valid), ..Meta::REDIRECTED };
    let packet = udp(at(THERE, 53), at(HERE, 5000), &[0; 60_000]);
    let fits = QUEUE_BYTES / packet.len();
    for _ in 0..fits + 3 {
        world.arrive(Arrival::Packet(packet.clone(), valid));
    }
    world.arrive_packet(udp(at(THERE, 53), at(HERE, 5001), b"not its queue"));
    let stats = world.core.stats();
    assert_eq!((stats.delivered, stats.overflow, stats.stray), (fits as u64 + 1, 3, 0));
    assert!(world.receive(&other).is_some());
    // Received packets make room.
    assert_eq!(world.receive(&full).unwrap().ip, packet);
    world.arrive(Arrival::Packet(packet.clone(), valid));
    world.arrive(Arrival::Packet(packet, valid));
    assert_eq!(world.core.stats().overflow, 4);
}

#[test]
fn fragments_are_reassembled() {
    let mut world = World::new();
    let lease = world.lease(Transport::Udp, HERE, 5000);
    let whole = udp(at(THERE, 53), at(HERE, 5000), &[7; 2000]);
    let fragment = |from: usize, to: usize| {
        let mut part = [&whole[..20], &whole[20 + from..20 + to]].concat();
        let (length, more) = (part.len() as u16, if 20 + to < whole.len() { 0x2000 } else { 0 });
        part[2..4].copy_from_slice(&length.to_be_bytes());
        part[6..8].copy_from_slice(&(more | (from as u16 / 8)).to_be_bytes());
        checksum::fix(&mut part);
        part
    };
    // The second fragment has no ports.
    world.arrive_packet(fragment(1200, 2008));
    assert!(world.receive(&lease).is_none());
    world.arrive_packet(fragment(0, 1200));
    let received = world.receive(&lease).unwrap();
    assert_eq!((&received.ip[20..], received.checksum), (&whole[20..], Checksum::Valid));
    world.arrive_packet(fragment(0, 1200));
    assert!(world.core.arm().is_some(), "a deadline waits for the rest");
    world.pass(Duration::from_secs(61));
    assert!(world.core.arm().is_none(), "until it expires");
    let stats = world.core.stats();
    assert_eq!((stats.fragments, stats.reassembled, stats.delivered, stats.stray), (3, 1, 1, 0));
}

#[test]
fn each_packet_notifies_one_task_of_its_lease() {
    let mut world = World::new();
    let (lease, other) = (world.lease(Transport::Udp, HERE, 5000), world.lease(Transport::Udp, HERE, 5001));
    let wakes = [Arc::new(Wakes::default()), Arc::new(Wakes::default()), Arc::new(Wakes::default())];
    let mut waiting: Vec<_> = wakes.iter().map(|_| Box::pin(lease.arrived.notified())).collect();
    for (task, wakes) in waiting.iter_mut().zip(&wakes) {
        assert!(task.as_mut().poll(&mut Context::from_waker(&wakes.clone().into())).is_pending());
    }
    // Two packets in one batch, for three tasks.
    let packet = Arrival::Packet(udp(at(THERE, 53), at(HERE, 5000), b"one"), Meta::REDIRECTED);
    world.fake().arrivals.push_back(packet);
    world.arrive_packet_with(udp(at(THERE, 53), at(HERE, 5000), b"two"));
    assert_eq!(wakes.each_ref().map(|wakes| wakes.take()), [1, 1, 0]);
    assert!(!take_notification(&other.arrived));
}

#[test]
fn gathered_leases_are_drained_together() {
    let mut world = World::new();
    let leases = [5000, 5001, 5002].map(|port| world.try_lease(Transport::Udp, HERE, &[port], true).unwrap());
    let apart = world.lease(Transport::Udp, HERE, 5003);
    let packet = |port| udp(at(THERE, 53), at(HERE, port), b"x");
    for port in [5002, 5000, 5002, 5003] {
        world.arrive_packet(packet(port));
    }
    let reset = Meta { reason: crafter_common::reason::Reason::UnreachableSuppressed, ..Meta::REDIRECTED };
    let answer = icmp(HERE, THERE, 3, 3, [0; 4], &udp(at(THERE, 53), at(HERE, 5000), b"x"));
    world.arrive(Arrival::Suppressed(answer.clone(), reset));
    let mut sink = Vec::new();
    world.core.table.gather(&mut sink);
    let taken: Vec<_> = sink.drain(..).map(|(id, received)| (id, received.ip)).collect();
    let (last, first) = (leases[2].id, leases[0].id);
    assert_eq!(taken, [(last, packet(5002)), (last, packet(5002)), (first, packet(5000)), (first, answer)]);
    world.core.table.gather(&mut sink);
    assert!(sink.is_empty());
    // A removed lease is skipped.
    world.arrive_packet(packet(5000));
    world.core.remove_lease(first);
    world.core.table.gather(&mut sink);
    assert!(sink.is_empty());
    assert!(world.receive(&apart).is_some());
}

impl World {
    /// Like [`World::arrive_packet`], after queued deliveries.
    fn arrive_packet_with(&mut self, packet: Vec<u8>) {
        self.fake().arrivals.push_back(Arrival::Packet(packet, Meta::REDIRECTED));
        assert!(self.core.drain(self.now) > 1);
    }
}
