//! The interface changes while it is in use.

use std::time::Duration;

use crafter::{
    Crafter, Error, Lease, LeaseRequest,
    datapath::program::Attach,
    lab::{INTERFACE, NetNs},
};
use crafter_tests::{
    by_hand::PATIENCE,
    frame,
    leak::{Serial, assert_detached, attached},
    peer::{Nginx, Process},
    stage::{self, ENDS, lab, open},
    within,
};

use super::{assert_rsts, handshake, ip, web};

/// A segment of so many bytes from its IP header on.
fn segment(lease: &Lease, length: usize) -> Vec<u8> {
    frame::Tcp::new(0x10, 1, 1).with(&vec![0; length - 40]).ip((ENDS[0].0, lease.port()).into(), web())
}

/// Why such a segment is not sent: at once, or when the news has come, or what was known a moment ago, and is used for
/// five seconds, is asked for again.
async fn refusal(lease: &Lease, length: usize) -> Error {
    for _ in 0..100 {
        if let Err(error) = lease.send(&segment(lease, length)).await {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it is sent")
}

const HOOKS: [Attach; 3] = [Attach::Native, Attach::Generic, Attach::Tc];

#[test]
fn down_and_up_again() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    for attach in HOOKS {
        let objects = within(lab.client(), async || {
            let crafter = open(attach).await;
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            handshake(&lease).await;
            ip(&lab, "link set lab0 down");
            // Told, not swallowed.
            let error = refusal(&lease, 40).await;
            assert!(matches!(error, Error::NoRoute { .. } | Error::Io { .. }), "{attach:?}: {error:?}");
            assert_eq!(attached(lab.client(), INTERFACE).len(), 2, "the hooks stay");
            ip(&lab, "link set lab0 up");
            up_again(&crafter).await;
            handshake(&lease).await;
            serial.objects()
        });
        serial.finish(&objects, lab.client(), INTERFACE);
    }
    assert_rsts(&lab, 2 * HOOKS.len());
}

/// Waits until there is a way to the server again.
async fn up_again(crafter: &Crafter) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while crafter.route(ENDS[0].1, None).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no way to the server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The lease goes on under the new name; who opens the old one is told that there is none.
#[test]
fn renamed() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        handshake(&lease).await;
        ip(&lab, "link set lab0 down");
        ip(&lab, "link set lab0 name lab7");
        ip(&lab, "link set lab7 up");
        let other = Crafter::open(INTERFACE, stage::options(Attach::Auto)).await.map(drop).expect_err("no such name");
        assert!(matches!(other, Error::UnknownInterface { .. }), "{other:?}");
        up_again(&crafter).await;
        handshake(&lease).await;
        ip(&lab, "link set lab7 down");
        ip(&lab, "link set lab7 name lab0");
        ip(&lab, "link set lab0 up");
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
    assert_rsts(&lab, 2);
}

/// What no longer fits is refused with a sentence; what fits goes.
#[test]
fn another_mtu() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    for attach in HOOKS {
        let objects = within(lab.client(), async || {
            let crafter = open(attach).await;
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            lease.send(&segment(&lease, 1500)).await.expect("1500 bytes fit");
            ip(&lab, "link set lab0 mtu 1280");
            let error = refusal(&lease, 1400).await.to_string();
            assert!(
                error.contains("which is 1280 bytes") || error.contains("which is no longer 1500"),
                "{attach:?}: {error}"
            );
            lease.send(&segment(&lease, 1280)).await.expect("1280 bytes fit");
            ip(&lab, "link set lab0 mtu 1500");
            serial.objects()
        });
        serial.finish(&objects, lab.client(), INTERFACE);
    }
}

/// Gone for this namespace: told to who waits; nothing is left on it where it went.
#[test]
fn moved_to_another_namespace() {
    for attach in HOOKS {
        let serial = Serial::begin();
        let lab = lab();
        let elsewhere = NetNs::new().expect("a namespace");
        let sleeper = Process::start(elsewhere.command("sleep").arg("60"));
        let objects = within(lab.client(), async || {
            let crafter = open(attach).await;
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            let objects = serial.objects();
            ip(&lab, &format!("link set lab0 netns {}", sleeper.id()));
            let told = tokio::time::timeout(PATIENCE, lease.recv()).await.expect("no hang");
            assert!(matches!(told, Err(Error::UnknownInterface { .. })), "{attach:?}: {told:?}");
            objects
        });
        objects.wait_until_freed(PATIENCE);
        assert_detached(&elsewhere, INTERFACE);
    }
}

#[test]
fn an_address_goes_and_comes_back() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        handshake(&lease).await;
        ip(&lab, "address del 192.0.2.2/24 dev lab0");
        let error = refusal(&lease, 40).await;
        assert!(matches!(error, Error::NoRoute { .. }), "{error:?}");
        ip(&lab, "address add 192.0.2.2/24 dev lab0");
        up_again(&crafter).await;
        handshake(&lease).await;
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
    assert_rsts(&lab, 2);
}

/// Whoever had the next hop's address answers no more: told as that, and found again.
#[test]
fn a_neighbour_goes_and_comes_back() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        handshake(&lease).await;
        stage::run(lab.server().command("ip").args(["address", "del", "192.0.2.1/24", "dev", "lab0"]));
        ip(&lab, "neighbour flush dev lab0");
        let error = refusal(&lease, 40).await;
        assert!(matches!(error, Error::NoNeighbour { .. }), "{error:?}");
        stage::run(lab.server().command("ip").args(["address", "add", "192.0.2.1/24", "dev", "lab0"]));
        ip(&lab, "neighbour flush dev lab0");
        handshake(&lease).await;
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
}

/// AF_XDP sockets belong to queues: while they are bound the kernel keeps the queues (or what changes is survived).
#[test]
fn another_number_of_queues() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Native).await;
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        handshake(&lease).await;
        for count in ["2", "1"] {
            let mut ethtool = lab.client().command("ethtool");
            let output = ethtool.args(["-L", INTERFACE, "rx", count, "tx", count]).output().expect("ethtool");
            println!("{count} queues: {}", String::from_utf8_lossy(&output.stderr).trim());
            handshake(&lease).await;
        }
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
    assert_rsts(&lab, 3);
}
