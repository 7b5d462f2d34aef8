//! Shares of the memory of received packets, as the programs count them.

use aya::programs::{TestRun as _, TestRunOptions};
use crafter_common::{
    reason::Reason,
    share::{RECORD, RING_POOL, record_class, record_units},
};
use crafter_tests::frame;

use super::{
    super::{
        maps::{OwnerMaps, Terms},
        program::{Hook, Kernel, LoadOptions},
        ring::Ring,
    },
    *,
};
use crate::packet::Transport;

/// Units that fit into the ring.
const CAPACITY: u64 = (65_535 / RECORD) as u64;

const PORTS: [u16; 3] = [7001, 7002, 7003];
/// The first and the last lease are of one user.
const USERS: [u32; 3] = [71_001, 71_002, 71_001];

fn terms(user: u32) -> Terms {
    Terms { user, ..Terms::default() }
}

/// A kernel half whose ring nothing reads, so that packets wait in it.
fn loaded() -> (Kernel, OwnerMaps, Ring) {
    let options = LoadOptions { flow_entries: 1024, ring_bytes: 1 << 16, ..LoadOptions::default() };
    let (kernel, mut maps) = Kernel::load(&options, 14, 1792).unwrap();
    let ring = Ring::new(kernel.ring().unwrap());
    maps.limit(1, 0, options.ring_bytes).unwrap();
    for (port, user) in PORTS.into_iter().zip(USERS) {
        maps.own(port.into(), Transport::Udp, ip(HERE[0]), port, terms(user)).unwrap();
    }
    (kernel, maps, ring)
}

/// Runs a program `count` times on a datagram with `bytes` of payload.
fn receive(kernel: &Kernel, hook: Hook, port: u16, bytes: usize, count: u64) {
    let datagram = frame::udp_ip((ip(THERE[0]), 9).into(), (ip(HERE[0]), port).into(), &vec![7; bytes]);
    let frame = frame::framed(&datagram);
    for _ in 0..count {
        let run = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
        match hook {
            Hook::Xdp => kernel.xdp(hook, |program| Ok(program.test_run(run).unwrap().return_value)).unwrap(),
            _ => kernel.classifier(hook, |program| Ok(program.test_run(run).unwrap().return_value)).unwrap(),
        };
    }
}

/// Reads everything from the ring, as the driver does.
fn drain(ring: &mut Ring, maps: &OwnerMaps) -> u64 {
    let mut count = 0;
    while ring.drain(|header, _| {
        maps.release(RING_POOL, header.share, record_units(record_class(header.length)).into());
        count += 1;
    }) > 0
    {}
    count
}

#[test]
fn flood_of_one_lease_leaves_room_and_every_loss_is_counted() {
    let (kernel, maps, mut ring) = loaded();
    let lost = || PORTS.map(|port| maps.lost(port.into()));
    for hook in [Hook::Xdp, Hook::Ingress] {
        let before = lost();
        // A burst of the flood, of another user, and of another lease of the flood's user.
        receive(&kernel, hook, PORTS[0], 10, 2 * CAPACITY);
        receive(&kernel, hook, PORTS[1], 10, CAPACITY / 4 - 2);
        receive(&kernel, hook, PORTS[2], 10, 10);
        let after = lost();
        let [flooded, other, third] = std::array::from_fn(|at| after[at] - before[at]);
        assert_eq!((other, third > 10), (0, false), "losses of others: {after:?}");
        let delivered = drain(&mut ring, &maps);
        assert_eq!(delivered + flooded + third, 2 * CAPACITY + CAPACITY / 4 - 2 + 10, "each packet, once");
        assert!(flooded >= CAPACITY, "the flood gets half of the ring: {flooded} lost");
        // Everything is released: the next burst finds as much room.
        receive(&kernel, hook, PORTS[0], 10, CAPACITY / 2 - 1);
        assert_eq!((lost(), drain(&mut ring, &maps)), (after, CAPACITY / 2 - 1));
    }
    assert_eq!(maps.lost_by_all(), lost().iter().sum::<u64>());
    assert_eq!(maps.counters().unwrap().get(Reason::DeliveryFull), maps.lost_by_all());
}

#[test]
fn large_packets_count_by_their_size() {
    let (kernel, maps, mut ring) = loaded();
    receive(&kernel, Hook::Ingress, PORTS[0], 1000, 100);
    assert_eq!(maps.waiting(PORTS[0].into()), CAPACITY / 2 / 8 * 8);
    let delivered = drain(&mut ring, &maps);
    assert_eq!((delivered, maps.lost(PORTS[0].into())), (CAPACITY / 2 / 8, 100 - CAPACITY / 2 / 8));
    assert_eq!(maps.waiting(PORTS[0].into()), 0);
}

#[test]
fn packets_of_an_ended_lease_do_not_count_for_a_later_one() {
    let (kernel, mut maps, mut ring) = loaded();
    receive(&kernel, Hook::Xdp, PORTS[0], 10, 2 * CAPACITY);
    maps.disown(PORTS[0].into(), Transport::Udp, ip(HERE[0]), PORTS[0]).unwrap();
    maps.end(PORTS[0].into());
    maps.own(9, Transport::Udp, ip(HERE[0]), PORTS[0], terms(71_009)).unwrap();
    assert_eq!(maps.lost(9), 0, "a new lease begins with no losses");
    receive(&kernel, Hook::Xdp, PORTS[0], 10, CAPACITY / 8);
    assert_eq!(maps.lost(9), 0, "and with an empty share");
    drain(&mut ring, &maps);
}
