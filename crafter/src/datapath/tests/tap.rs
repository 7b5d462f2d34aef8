use std::io::Write;

use super::{
    super::{
        frames::{FrameSender, Outlet},
        tap::{Tap, TapOptions},
    },
    *,
};
use crate::{
    capture::{Captured, Direction, Link},
    error::Error,
    layer::{Dot1Q, Ether, Ip, Kind, Packet, Udp},
};

fn options(filter: &str) -> TapOptions {
    TapOptions { filter: Some(filter.to_owned()), ..TapOptions::default() }
}

async fn next(tap: &mut Tap) -> Captured {
    tokio::time::timeout(Duration::from_secs(5), tap.next()).await.expect("no packet within 5 s").unwrap()
}

fn frame(port: u16) -> Packet {
    Ether::new().dst("02:00:00:00:00:99").src("02:00:00:00:00:01")
        / Ip::to(THERE[0]).src(HERE[0])
        / Udp::to(port).sport(7)
        / "tapped"
}

/// Sends frames out of a link as the kernel would.
async fn send(link: &str, packets: impl IntoIterator<Item = Packet>) {
    let frames: Vec<Vec<u8>> = packets.into_iter().map(|packet| packet.build().unwrap()).collect();
    let link = interface(link).await.unwrap();
    let taken = FrameSender::open(&link, Outlet::Queued { mark: 0 }).unwrap().send(&frames).unwrap();
    assert_eq!(taken, frames.len());
}

fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
}

#[test]
fn filtered_packets_have_full_length_and_timestamp() {
    pair(|_peer| async move {
        let filter = options("udp dst port 5001 or udp dst port 5003");
        let mut tap = Tap::open("v0", &TapOptions { gather: Duration::ZERO, ..filter }).await.unwrap();
        assert_eq!((tap.interface(), tap.link()), ("v0", Link::ETHERNET));
        assert!(tap.try_next().unwrap().is_none());
        let before = now();
        send("v0", (5000..5004).map(frame)).await;
        for port in [5001, 5003] {
            let captured = next(&mut tap).await;
            let (bytes, after) = (frame(port).build().unwrap(), now());
            assert!(captured.time.is_some_and(|time| before < time && time < after), "{captured:?}");
            assert_eq!(captured.interface.as_deref(), Some("v0"));
            assert_eq!((captured.original_length, captured.first), (bytes.len() as u32, Kind::Ether));
            assert_eq!(captured.bytes, bytes);
        }
        assert!(tap.try_next().unwrap().is_none());
        let stats = tap.stats().unwrap();
        assert_eq!((stats.received, stats.dropped), (2, 0));
        // Nanoseconds, not microseconds with zeroes.
        send("v0", (0..20).map(|_| frame(5001))).await;
        let mut fractions = Vec::new();
        for _ in 0..20 {
            fractions.push(next(&mut tap).await.time.unwrap().subsec_nanos() % 1000);
        }
        assert!(fractions.iter().any(|fraction| *fraction != 0));
        assert_eq!(tap.stats().unwrap().received, 22);
    });
}

#[test]
fn removed_vlan_tags_are_restored() {
    pair(|peer| async move {
        let with = |direction| TapOptions { direction: Some(direction), ..options("vlan 5") };
        let mut left = Tap::open("v0", &with(Direction::Out)).await.unwrap();
        let mut received = Tap::open("v0", &with(Direction::In)).await.unwrap();
        let tagged = || {
            Ether::new().dst("02:00:00:00:00:99").src("02:00:00:00:00:01")
                / Dot1Q::new().vlan(5)
                / Ip::to(THERE[0]).src(HERE[0])
                / Udp::to(9)
        };
        send("v0", [tagged()]).await;
        assert_eq!(next(&mut left).await.bytes, tagged().build().unwrap());
        // The kernel removes the tag of a received frame before taps see the frame (skb_vlan_untag()).
        peer.run(move || block_on(send("v1", [tagged()])));
        assert_eq!(next(&mut received).await.bytes, tagged().build().unwrap());
    });
}

#[test]
fn directions_lengths_and_gathering() {
    pair(|peer| async move {
        let with =
            |direction, snaplen| TapOptions { direction: Some(direction), snaplen, ..options("udp and dst port 5000") };
        let mut out = Tap::open("v0", &with(Direction::Out, 20)).await.unwrap();
        let mut incoming = Tap::open("v0", &with(Direction::In, 262_144)).await.unwrap();
        let gather = TapOptions { gather: Duration::from_millis(100), ..options("udp and dst port 5000") };
        let mut gathering = Tap::open("v0", &gather).await.unwrap();
        send("v0", [frame(5000)]).await;
        peer.run(|| UdpSocket::bind((ip(THERE[0]), 0)).unwrap().send_to(b"there", (ip(HERE[0]), 5000)).unwrap());
        let left = next(&mut out).await;
        assert_eq!((left.bytes.len(), left.original_length), (20, 48));
        assert!(next(&mut incoming).await.bytes.ends_with(b"there"));
        assert!(next(&mut gathering).await.bytes.ends_with(b"tapped"));
        assert!(next(&mut gathering).await.bytes.ends_with(b"there"));
        assert!(out.try_next().unwrap().is_none() && incoming.try_next().unwrap().is_none());
    });
}

#[test]
fn packets_dropped_by_a_full_ring_are_counted() {
    pair(|_peer| async move {
        let small = TapOptions { buffer: 1 << 16, gather: Duration::ZERO, ..options("udp") };
        let mut tap = Tap::open("v0", &small).await.unwrap();
        send("v0", (0..5000).map(|_| frame(5000))).await;
        let stats = tap.stats().unwrap();
        let mut got = 0;
        while tap.try_next().unwrap().is_some() {
            got += 1;
        }
        assert_eq!((stats.received, got + stats.dropped), (5000, 5000), "{got}");
        assert!(stats.dropped > 0);
    });
}

#[test]
fn bare_ip_packets_of_a_tun() {
    alone(|| async {
        let mut tun = tx::tun("t0");
        configure("t0", HERE).await;
        let mut tap = Tap::open("t0", &options("udp port 5000")).await.unwrap();
        assert_eq!(tap.link(), Link::RAW);
        let packet = Ip::to(HERE[0]).src(THERE[0]) / Udp::to(5000) / "in";
        tun.write_all(&packet.build().unwrap()).unwrap();
        let captured = next(&mut tap).await;
        assert_eq!((captured.first, captured.bytes), (Kind::Ip, packet.build().unwrap()));
    });
}

#[test]
fn open_errors_and_removal_are_reported() {
    pair(|_peer| async move {
        let open = async |name: &str, filter: &str| Tap::open(name, &options(filter)).await.map(drop);
        assert!(matches!(open("v7", "").await, Err(Error::UnknownInterface { name }) if name == "v7"));
        assert!(matches!(open("v0", "tcp port").await, Err(Error::Invalid { what, .. }) if what == "filter"));
        open("v0", "inbound and icmp").await.unwrap();
        let mut tap = Tap::open("v0", &TapOptions::default()).await.unwrap();
        let v0 = interface("v0").await.unwrap();
        set(rtnetlink::LinkUnspec::new_with_name("v0").down().build()).await;
        let error = open("v0", "").await.unwrap_err();
        assert_eq!(error.to_string(), "capture on v0: Network is down (os error 100)");
        // The tap waits while the interface is down; packets arrive again when it is up.
        link_up("v0").await;
        send("v0", [frame(5000)]).await;
        while !next(&mut tap).await.bytes.ends_with(b"tapped") {}
        netlink().link().del(v0.ifindex).execute().await.unwrap();
        let ended = async { while tap.next().await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the end is not noticed");
    });
}
