//! Later fragments follow their first only while its lease owns the port, for 30 seconds at most, and until the sender
//! begins another datagram with the same identification.

use std::time::Duration;

use crafter::{datapath::program::Hook, packet::Transport};
use crafter_common::{flow::FRAGMENT_NS, reason::Reason};
use crafter_tests::{
    bench::{ANY, Bench, terms},
    frame::{self, MORE, UDP, V4},
    leak::Parallel,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    inside,
    rows::{FREE, LOCAL, ON_ANY, PEER, at, ip},
};

const LEASE: u32 = 1;

/// A datagram of the peer in two fragments: the first, and the second.
fn fragments(version: usize, port: u16) -> [Vec<u8>; 2] {
    let (peer, local) = (at(PEER[version], 53), at(LOCAL[version], port));
    let whole = frame::udp(peer, local, &[0x5a; 64]);
    [(0, &whole[..16], true), (16, &whole[16..], false)].map(|(offset, piece, more)| {
        let packet = if version == 0 {
            let fragment = offset / 8 | if more { MORE } else { 0 };
            V4 { id: 9, fragment, ..V4::default() }.packet(peer.ip(), local.ip(), UDP, piece)
        } else {
            frame::v6(peer.ip(), local.ip(), 44, &frame::fragment6(UDP, offset, more, 9, piece))
        };
        frame::framed(&packet)
    })
}

/// Runs `test` for both ingress hooks and both IP versions, with a lease that has received a first fragment.
fn following(test: impl Fn(&mut Bench, Hook, usize, [Vec<u8>; 2]) + Sync) {
    let _parallel = Parallel::begin();
    inside(|| {
        for (hook, version) in [(Hook::Xdp, 0), (Hook::Xdp, 1), (Hook::Ingress, 0), (Hook::Ingress, 1)] {
            let mut bench = Bench::new(&Bench::small(), 14, false);
            bench.maps.set_local(&LOCAL.map(ip)).expect("set the local addresses");
            own(&mut bench, LEASE, ON_ANY);
            let [first, second] = fragments(version, ON_ANY);
            assert_eq!(bench.run(hook, &second, 0).reason, Reason::FragmentNotOwned, "without its first");
            assert_eq!(bench.run(hook, &first, 0).reason, Reason::Copied);
            // Positive control.
            assert_eq!(bench.run(hook, &second, 0).reason, Reason::Copied);
            test(&mut bench, hook, version, [first, second]);
        }
    });
}

fn own(bench: &mut Bench, lease: u32, port: u16) {
    bench.maps.own(lease, Transport::Udp, ANY, port, terms(false, true)).expect("own a port");
}

fn disown(bench: &mut Bench, lease: u32, port: u16) {
    bench.maps.disown(lease, Transport::Udp, ANY, port).expect("disown a port");
}

/// Makes all first fragments older.
fn age(bench: &Bench, by: Duration) {
    let mut views = bench.views();
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock"));
    let since = (now - by).as_nanos() as u64;
    let entries: Vec<_> = views.fragments.iter().map(|entry| entry.expect("a first fragment")).collect();
    assert!(!entries.is_empty());
    for (key, mut value) in entries {
        value[..8].copy_from_slice(&since.to_le_bytes());
        views.fragments.insert(key, value, 0).expect("write a first fragment");
    }
}

#[test]
fn first_fragment_expires() {
    following(|bench, hook, _, [first, second]| {
        age(bench, Duration::from_nanos(FRAGMENT_NS) - Duration::from_secs(10));
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::Copied, "20 seconds old");
        age(bench, Duration::from_nanos(FRAGMENT_NS) + Duration::from_millis(1));
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::FragmentNotOwned, "30 seconds old");
        // The next datagram with this identification.
        assert_eq!(bench.run(hook, &first, 0).reason, Reason::Copied);
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::Copied);
    });
}

#[test]
fn first_fragment_for_nobody_ends_an_earlier_one() {
    following(|bench, hook, version, [first, second]| {
        // One that was sent under the peer's address must not take the fragments of the peer's own datagrams.
        let [unowned, _] = fragments(version, FREE);
        assert_eq!(bench.run(hook, &unowned, 0).reason, Reason::NotOwned);
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::FragmentNotOwned);
        assert_eq!(bench.views().fragments.keys().count(), 0);
        assert_eq!(bench.run(hook, &first, 0).reason, Reason::Copied);
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::Copied);
        // The header of a fragment of another protocol is not read, but it begins another datagram as well. IPv4
        // numbers the datagrams of each protocol.
        let other = if version == 0 {
            let quoted = frame::udp_ip(at(LOCAL[0], ON_ANY), at(PEER[0], 53), &[7; 8]);
            let mut error = frame::icmp(ip(PEER[0]), ip(LOCAL[0]), 3, 1, &quoted);
            error[6] = 0x20;
            frame::framed(&error)
        } else {
            frame::framed(&frame::v6(ip(PEER[1]), ip(LOCAL[1]), 44, &frame::fragment6(47, 0, true, 9, &[0; 16])))
        };
        bench.run(hook, &other, 0);
        let expected = [Reason::Copied, Reason::FragmentNotOwned][version];
        assert_eq!(bench.run(hook, &second, 0).reason, expected, "IPv{}", [4, 6][version]);
    });
}

#[test]
fn first_fragment_ends_with_its_lease() {
    following(|bench, hook, _, [first, second]| {
        disown(bench, LEASE, ON_ANY);
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::FragmentNotOwned, "nobody owns the port");
        // The next owner gets nothing of the former's datagrams.
        own(bench, LEASE + 1, ON_ANY);
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::FragmentNotOwned, "another lease owns the port");
        assert_eq!(bench.run(hook, &first, 0).reason, Reason::Copied);
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::Copied, "the next owner's own datagram");
    });
}

#[test]
fn first_fragment_ends_with_the_local_address() {
    following(|bench, hook, version, [_, second]| {
        bench.maps.set_local(&[ip(LOCAL[1 - version])]).expect("set the local addresses");
        assert_eq!(bench.run(hook, &second, 0).reason, Reason::FragmentNotOwned);
    });
}
