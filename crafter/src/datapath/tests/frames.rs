use rtnetlink::LinkUnspec;

use super::{
    super::{
        frames::{FrameSender, Outlet},
        interface::{Interface, interface},
    },
    *,
};
use crate::{
    error::Error,
    layer::{Ether, Ip, Udp},
};

/// `count` frames that differ in both ports and the identification.
fn frames(count: u32) -> Vec<Vec<u8>> {
    let frame = |i: u32| {
        let udp = Udp::to((i >> 8) as u16 + 1000).sport((i & 0xff) as u16 + 1000);
        let ip = Ip::to(THERE[0]).src(HERE[0]).id(i as u16);
        (Ether::new().dst("02:00:00:00:00:99").src("02:00:00:00:00:01") / ip / udp / "frame").build().unwrap()
    };
    (0..count).map(frame).collect()
}

/// What `name` of this thread's namespace has received, from /proc/net/dev, which shows the caller's.
fn received(name: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn v0() -> Interface {
    interface("v0").await.unwrap()
}

#[test]
fn frames_arrive_in_order_and_unchanged() {
    pair(|peer| async move {
        for outlet in [Outlet::Direct, Outlet::Queued { mark: 0 }, Outlet::Queued { mark: 7 }] {
            let mut sender = FrameSender::open(&v0().await, outlet).unwrap();
            let tap = peer.run(tx::tap);
            // Some batches, and one that is not full.
            let frames = frames(1000);
            assert_eq!(sender.send(&frames).unwrap(), 1000);
            assert_eq!((sender.sent(), sender.refused()), (1000, 0));
            let arrived = tx::caught(&tap, b"frame");
            assert!(arrived == frames, "{outlet:?}: {} frames, or changed ones", arrived.len());
        }
    });
}

#[test]
fn only_queued_frames_are_seen_by_taps_of_the_sender() {
    pair(|_peer| async move {
        for (outlet, seen) in [(Outlet::Direct, 0), (Outlet::Queued { mark: 0 }, 10)] {
            let tap = tx::tap();
            FrameSender::open(&v0().await, outlet).unwrap().send(&frames(10)).unwrap();
            assert_eq!(tx::caught(&tap, b"frame").len(), seen, "{outlet:?}");
        }
    });
}

#[test]
fn refused_frames_are_counted_and_later_ones_sent() {
    pair(|peer| async move {
        let mut sender = FrameSender::open(&v0().await, Outlet::Direct).unwrap();
        let mut some = frames(600);
        some[3] = vec![0; 13];
        some[300] = vec![0; 1515];
        let _drop = peer.run(|| features::drop_all(block_on(interface("v1")).unwrap().ifindex));
        let before = peer.run(|| received("v1"));
        let error = sender.send(&some).unwrap_err();
        assert!(matches!(&error, Error::Invalid { reason, .. } if reason.starts_with("13 bytes")), "{error}");
        assert_eq!((sender.sent(), sender.refused()), (598, 2));
        let error = sender.send(&some[300..301]).unwrap_err();
        assert_eq!(error.to_string(), "frame: 1515 bytes exceed the longest frame of v0 (1514)");
        assert_eq!(sender.send::<Vec<u8>>(&[]).unwrap(), 0);
        // NAPI of the far end may lag behind by a moment.
        let arrived = (0..2000).any(|_| {
            thread::sleep(Duration::from_millis(5));
            peer.run(|| received("v1")) >= before + 598
        });
        assert!(arrived, "only {} arrived", peer.run(|| received("v1")) - before);
    });
}

#[test]
fn sender_works_again_after_link_down_but_not_after_removal() {
    pair(|_peer| async move {
        let v0 = v0().await;
        for outlet in [Outlet::Direct, Outlet::Queued { mark: 0 }] {
            let mut sender = FrameSender::open(&v0, outlet).unwrap();
            let some = frames(300);
            set(LinkUnspec::new_with_name("v0").down().build()).await;
            let error = sender.send(&some).unwrap_err();
            assert!(matches!(&error, Error::Io { action, .. } if action == "send through v0"), "{error}");
            assert_eq!((sender.sent(), sender.refused()), (0, 300));
            link_up("v0").await;
            assert_eq!(sender.send(&some).unwrap(), 300, "{outlet:?}");
        }
        let mut sender = FrameSender::open(&v0, Outlet::Direct).unwrap();
        netlink().link().del(v0.ifindex).execute().await.unwrap();
        let error = sender.send(&frames(2)).unwrap_err();
        assert!(matches!(&error, Error::UnknownInterface { name } if name == "v0"), "{error}");
        assert_eq!(sender.refused(), 2);
        assert!(matches!(FrameSender::open(&v0, Outlet::Direct), Err(Error::UnknownInterface { .. })));
    });
}

#[test]
fn full_queue_refuses_frames_in_bounded_time() {
    pair(|_peer| async move {
        // One frame a second may leave, and two may wait.
        let tbf = ["qdisc", "add", "dev", "v0", "root", "tbf", "rate", "1kbit", "burst", "100", "limit", "200"];
        let status = std::process::Command::new("tc").args(tbf).status().unwrap();
        assert!(status.success());
        let mut sender = FrameSender::open(&v0().await, Outlet::Queued { mark: 0 }).unwrap();
        let start = std::time::Instant::now();
        let taken = sender.send(&frames(1000)).unwrap() as u64;
        assert_eq!((sender.sent(), sender.refused()), (taken, 1000 - taken));
        assert!((1..20).contains(&taken), "{taken}");
        // All of them would take a quarter of an hour.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        // Past the discipline all leave.
        let mut direct = FrameSender::open(&v0().await, Outlet::Direct).unwrap();
        assert_eq!(direct.send(&frames(1000)).unwrap(), 1000);
    });
}

#[test]
fn links_without_an_ethernet_header_are_refused() {
    alone(|| async {
        let _tun = tx::tun("t0");
        let error = FrameSender::open(&interface("t0").await.unwrap(), Outlet::Direct).unwrap_err();
        assert!(error.to_string().contains("t0 carry no Ethernet header"), "{error}");
        FrameSender::open(&interface("lo").await.unwrap(), Outlet::Direct).unwrap();
    });
}
