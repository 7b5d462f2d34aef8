use std::time::Instant;

use rtnetlink::{
    LinkUnspec, RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAttribute, RouteMetric, RouteType},
    },
};

use super::{
    super::{
        address::{AddressWatch, local_addresses},
        interface::{Interface, interface, interfaces},
        netlink::Netlink,
        route::{LinkLayer, Route, resolve},
    },
    *,
};
use crate::error::{Error, Result};

fn next_hop(route: &Route) -> [u8; 6] {
    match route.link {
        LinkLayer::Ethernet { destination, .. } => destination,
        LinkLayer::None => panic!("{route:?} has no Ethernet header"),
    }
}

fn mac_of_peer(peer: &Peer) -> [u8; 6] {
    peer.run(|| block_on(interface("v1"))).unwrap().mac.unwrap()
}

fn neighbour(ifindex: u32, address: &str) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, address) = match ip(address) {
        IpAddr::V4(address) => (2, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (10, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family.into();
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

async fn set_neighbour(ifindex: u32, address: &str, state: NeighbourState, mac: Option<[u8; 6]>) {
    let mut message = neighbour(ifindex, address);
    message.header.state = state;
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.into())));
    let request = RouteNetlinkMessage::NewNeighbour(message);
    Netlink::open().unwrap().change(request, NLM_F_CREATE | NLM_F_REPLACE).await.unwrap();
}

async fn state(ifindex: u32, address: &str) -> NeighbourState {
    let request = RouteNetlinkMessage::GetNeighbour(neighbour(ifindex, address));
    match Netlink::open().unwrap().get(request).await.unwrap() {
        RouteNetlinkMessage::NewNeighbour(answer) => answer.header.state,
        other => panic!("{other:?}"),
    }
}

fn reason(result: Result<Route>) -> String {
    match result {
        Err(Error::NoRoute { reason, .. }) => reason,
        other => panic!("expected NoRoute, not {other:?}"),
    }
}

#[test]
fn unknown_neighbour_is_resolved() {
    pair(|peer| async move {
        let here = interface("v0").await.unwrap();
        for (from, to) in HERE.into_iter().zip(THERE) {
            let route = resolve(ip(to), None, None).await.unwrap();
            assert_eq!((route.interface.as_str(), route.ifindex), ("v0", here.ifindex));
            assert_eq!((route.source, route.mtu, route.gateway), (ip(from), 1500, None));
            let link = LinkLayer::Ethernet { source: here.mac.unwrap(), destination: mac_of_peer(&peer) };
            assert_eq!(route.link, link);
            // Now known: the same answer without asking.
            assert_eq!(resolve(ip(to), Some("v0"), Some(ip(from))).await.unwrap(), route);
        }
    });
}

/// Attempts for a test of timing: one attempt may be slow because the machine is busy.
const TRIES: usize = 10;

#[test]
fn stale_neighbour_is_probed() {
    pair(|peer| async move {
        let index = interface("v0").await.unwrap().ifindex;
        let mac = mac_of_peer(&peer);
        for to in THERE {
            for doubtful in [NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe] {
                // On a busy machine the neighbour may be late now and then.
                let mut seen = Vec::new();
                for _ in 0..TRIES {
                    set_neighbour(index, to, doubtful, Some(mac)).await;
                    let start = Instant::now();
                    assert_eq!(next_hop(&resolve(ip(to), None, None).await.unwrap()), mac);
                    seen.push((start.elapsed() < Duration::from_millis(150), state(index, to).await));
                    if seen.last() == Some(&(true, NeighbourState::Reachable)) {
                        break;
                    }
                }
                assert_eq!(seen.last(), Some(&(true, NeighbourState::Reachable)), "{to} after {doubtful:?}: {seen:?}");
            }
            set_neighbour(index, to, NeighbourState::Failed, None).await;
            assert_eq!(next_hop(&resolve(ip(to), None, None).await.unwrap()), mac);
        }
    });
}

#[test]
fn stale_address_is_used_if_the_probe_is_not_answered() {
    pair(|_peer| async move {
        let index = interface("v0").await.unwrap().ifindex;
        for nobody in ["192.0.2.77", "2001:db8::77"] {
            let mac = [2, 0, 0, 0, 0, 0x77];
            set_neighbour(index, nobody, NeighbourState::Stale, Some(mac)).await;
            let start = Instant::now();
            assert_eq!(next_hop(&resolve(ip(nobody), None, None).await.unwrap()), mac);
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(190) && took < Duration::from_secs(2), "{took:?}");
        }
    });
}

#[test]
fn silent_neighbour_is_an_error_within_three_seconds() {
    pair(|_peer| async move {
        let start = Instant::now();
        match resolve(ip("192.0.2.77"), None, None).await {
            Err(Error::NoNeighbour { address, interface, .. }) => {
                assert_eq!((address, interface.as_str()), (ip("192.0.2.77"), "v0"));
            }
            other => panic!("{other:?}"),
        }
        let took = start.elapsed();
        assert!(took > Duration::from_secs(2) && took < Duration::from_secs(10), "{took:?}");
    });
}

#[test]
fn groups_broadcasts_and_links_without_arp() {
    pair(|_peer| async move {
        let group = resolve(ip("224.0.0.251"), Some("v0"), None).await.unwrap();
        assert_eq!(next_hop(&group), [0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb]);
        let group = resolve(ip("ff02::1"), Some("v0"), None).await.unwrap();
        assert_eq!(next_hop(&group), [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(next_hop(&resolve(ip("192.0.2.255"), None, None).await.unwrap()), [0xff; 6]);

        set(LinkUnspec::new_with_name("v0").arp(false).build()).await;
        let own = interface("v0").await.unwrap().mac.unwrap();
        for to in ["192.0.2.50", "2001:db8::50"] {
            let mut fastest = Duration::MAX;
            for _ in 0..TRIES {
                let start = Instant::now();
                assert_eq!(next_hop(&resolve(ip(to), None, None).await.unwrap()), own);
                fastest = fastest.min(start.elapsed());
            }
            assert!(fastest < Duration::from_millis(100), "{fastest:?}");
        }
    });
}

#[test]
fn gateways_and_route_mtu() {
    pair(|peer| async move {
        let index = interface("v0").await.unwrap().ifindex;
        for (net, bits, gateway) in [("198.51.100.0", 24, THERE[0]), ("2001:db8:1::", 64, THERE[1])] {
            let mut route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(ip(net), bits)
                .unwrap()
                .gateway(ip(gateway))
                .unwrap()
                .output_interface(index)
                .build();
            route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]));
            netlink().route().add(route).execute().await.unwrap();
        }
        for (to, gateway) in [("198.51.100.7", THERE[0]), ("2001:db8:1::7", THERE[1])] {
            let route = resolve(ip(to), None, None).await.unwrap();
            assert_eq!((route.gateway, route.mtu), (Some(ip(gateway)), 1400));
            assert_eq!(next_hop(&route), mac_of_peer(&peer));
        }
        // A source that is not an address of this host is kept.
        for (to, source) in [(THERE[0], "203.0.113.9"), (THERE[1], "2001:db8:9::9")] {
            let route = resolve(ip(to), None, Some(ip(source))).await.unwrap();
            assert_eq!((route.source, next_hop(&route)), (ip(source), mac_of_peer(&peer)));
        }
    });
}

#[test]
fn own_addresses_are_routed_over_lo() {
    pair(|_peer| async move {
        for to in ["127.0.0.1", "::1", HERE[0], HERE[1]] {
            for through in [None, Some("lo")] {
                let route = resolve(ip(to), through, None).await.unwrap();
                assert_eq!((route.interface.as_str(), route.link), ("lo", LinkLayer::None));
                assert_eq!((route.source, route.mtu), (ip(to), 65_535));
            }
        }
        for to in HERE {
            assert_eq!(resolve(ip(to), Some("v0"), None).await.unwrap().interface, "lo");
        }
        assert!(reason(resolve(ip(THERE[1]), Some("lo"), None).await).contains("out of v0, not lo"));
    });
}

#[test]
fn routing_errors_have_reasons() {
    pair(|peer| async move {
        assert!(matches!(
            resolve(ip(THERE[0]), Some("nope0"), None).await,
            Err(Error::UnknownInterface { name }) if name == "nope0"
        ));
        assert!(matches!(interface("a-name-that-is-too-long").await, Err(Error::UnknownInterface { .. })));
        assert!(matches!(resolve(ip(THERE[0]), None, Some(ip("::1"))).await, Err(Error::Invalid { .. })));
        assert!(matches!(resolve(ip("0.0.0.0"), None, None).await, Err(Error::Invalid { .. })));
        for nowhere in ["198.51.100.1", "2001:db8:5::1"] {
            assert!(reason(resolve(ip(nowhere), None, None).await).contains("no entry"));
        }
        assert!(reason(resolve(ip("fe80::5"), None, None).await).contains("needs an interface"));

        let kinds = [
            (RouteType::BlackHole, "blackhole"),
            (RouteType::Unreachable, "unreachable"),
            (RouteType::Prohibit, "prohibit"),
        ];
        for (kind, word) in kinds {
            for (net, bits, to) in [("203.0.113.0", 24, "203.0.113.5"), ("2001:db8:6::", 64, "2001:db8:6::5")] {
                let rejected = RouteMessageBuilder::<IpAddr>::new().destination_prefix(ip(net), bits).unwrap();
                let rejected = rejected.kind(kind).build();
                netlink().route().add(rejected.clone()).execute().await.unwrap();
                let said = reason(resolve(ip(to), None, None).await);
                assert!(said.contains(word), "{kind:?} {to}: {said}");
                netlink().route().del(rejected).execute().await.unwrap();
            }
        }

        peer.run(|| block_on(set(LinkUnspec::new_with_name("v1").down().build())));
        assert!(reason(resolve(ip(THERE[0]), None, None).await).contains("no carrier"));
        set(LinkUnspec::new_with_name("v0").down().build()).await;
        assert!(reason(resolve(ip(THERE[0]), Some("v0"), None).await).contains("ip link set v0 up"));
        assert!(reason(resolve(ip(THERE[0]), None, None).await).contains("no entry"));
    });
}

#[test]
fn interfaces_of_this_namespace_only() {
    pair(|_peer| async move {
        let all = interfaces().await.unwrap();
        let lo = all.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.loopback && !lo.ethernet && lo.up && lo.kind.is_none());
        assert!(lo.addresses.contains(&ip("127.0.0.1")) && lo.addresses.contains(&ip("::1")));
        let v0 = all.iter().find(|link| link.name == "v0").unwrap();
        assert_eq!((v0.kind.as_deref(), v0.mtu, v0.rx_queues, v0.xdp), (Some("veth"), 1500, 1, None));
        assert!(v0.ethernet && v0.up && v0.carrier && v0.mac.is_some());
        assert!(HERE.iter().all(|address| v0.addresses.contains(&ip(address))));
        assert!(!all.iter().any(|link| link.name == "v1" || link.name == "eth0"));
        // But for the addresses: the link-local one may have been added in between.
        let one = interface("v0").await.unwrap();
        assert!(v0.addresses.iter().all(|address| one.addresses.contains(address)));
        assert_eq!(Interface { addresses: v0.addresses.clone(), ..one }, *v0);
    });
}

#[test]
fn addresses_and_their_changes() {
    pair(|_peer| async move {
        let mut watch = AddressWatch::open().unwrap();
        // The link-local address is added some milliseconds later.
        let mut quiet = Ok(Ok(()));
        for _ in 0..10 {
            if quiet.is_ok() {
                quiet = tokio::time::timeout(Duration::from_millis(100), watch.changed()).await;
            }
        }
        assert!(quiet.is_err(), "nothing has changed: {quiet:?}");
        for new in ["192.0.2.9", "2001:db8::9"] {
            let index = interface("v0").await.unwrap().ifindex;
            assert!(!local_addresses().await.unwrap().contains(&ip(new)));
            netlink().address().add(index, ip(new), 32).execute().await.unwrap();
            quiet = tokio::time::timeout(Duration::from_secs(1), watch.changed()).await;
            quiet.expect("word of the new address").unwrap();
            assert!(local_addresses().await.unwrap().contains(&ip(new)));
        }
    });
}

#[test]
fn resolving_a_known_neighbour_is_fast() {
    pair(|_peer| async move {
        resolve(ip(THERE[0]), None, None).await.unwrap();
        let mut times = Vec::new();
        for _ in 0..500 {
            let start = Instant::now();
            resolve(ip(THERE[0]), None, None).await.unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("resolve, neighbour known: median {:?}", times[times.len() / 2]);
        // Some of it at least, however busy the machine is.
        assert!(times[times.len() / 10] < Duration::from_millis(1));
    });
}
