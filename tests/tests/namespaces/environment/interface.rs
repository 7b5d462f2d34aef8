//! The interface changes while it is in use.

use std::time::Duration;

use crafter::{
    Crafter, Error, Lease, LeaseRequest,
    datapath::program::Attach,
    lab::{INTERFACE, Lab, NetNs},
};
use crafter_tests::{
    frame,
    leak::{Serial, assert_detached, attached},
    manual::REPLY_TIMEOUT,
    peer::{Nginx, Process},
    testbed::{self, ENDS, lab, open},
    within,
};

use super::{assert_rsts, handshake, ip, web};

/// A segment whose packet has `length` bytes.
fn segment(lease: &Lease, length: usize) -> Vec<u8> {
    frame::Tcp::new(0x10, 1, 1).with(&vec![0; length - 40]).ip((ENDS[0].0, lease.port()).into(), web())
}

/// Sends such segments until one is refused, and returns the error: a change may be noticed late, because a cached
/// route is used for up to five seconds.
async fn refusal(lease: &Lease, length: usize) -> Error {
    for _ in 0..100 {
        if let Err(error) = lease.send(&segment(lease, length)).await {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the segment is still sent")
}

const HOOKS: [Attach; 3] = [Attach::Native, Attach::Generic, Attach::Tc];

/// Runs `work` with a lease on the lab's interface, with a web server on the other end, for each attach mode; nothing may
/// be left afterwards. `handshakes`: expected number of RSTs at the server, by [`assert_rsts`].
fn with_lease(modes: &[Attach], handshakes: Option<usize>, work: impl AsyncFn(&Lab, &Crafter, &Lease) + Sync) {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    for attach in modes {
        let objects = within(lab.client(), async || {
            let crafter = open(*attach).await;
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            println!("{attach:?}");
            work(&lab, &crafter, &lease).await;
            serial.objects()
        });
        serial.finish(&objects, lab.client(), INTERFACE);
    }
    if let Some(handshakes) = handshakes {
        assert_rsts(&lab, handshakes);
    }
}

#[test]
fn link_down_is_reported_and_recovers() {
    with_lease(&HOOKS, Some(2 * HOOKS.len()), async |lab, crafter, lease| {
        handshake(lease).await;
        ip(lab, "link set lab0 down");
        // The error is reported.
        let error = refusal(lease, 40).await;
        assert!(matches!(error, Error::NoRoute { .. } | Error::Io { .. }), "{error:?}");
        assert_eq!(attached(lab.client(), INTERFACE).len(), 2, "the hooks were removed");
        ip(lab, "link set lab0 up");
        wait_for_route(crafter).await;
        handshake(lease).await;
    });
}

/// Waits until there is a route to the server again.
async fn wait_for_route(crafter: &Crafter) {
    let deadline = tokio::time::Instant::now() + REPLY_TIMEOUT;
    while crafter.route(ENDS[0].1, None).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no route to the server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The lease stays active under the new name; opening the old name fails.
#[test]
fn lease_survives_rename_of_the_interface() {
    with_lease(&[Attach::Auto], Some(2), async |lab, crafter, lease| {
        handshake(lease).await;
        ip(lab, "link set lab0 down");
        ip(lab, "link set lab0 name lab7");
        ip(lab, "link set lab7 up");
        let other = Crafter::open(INTERFACE, testbed::options(Attach::Auto)).await.map(drop).expect_err("no such name");
        assert!(matches!(other, Error::UnknownInterface { .. }), "{other:?}");
        wait_for_route(crafter).await;
        handshake(lease).await;
        ip(lab, "link set lab7 down");
        ip(lab, "link set lab7 name lab0");
        ip(lab, "link set lab0 up");
    });
}

/// Packets longer than the new MTU are refused with an error, others are sent.
#[test]
fn reduced_mtu_is_enforced() {
    with_lease(&HOOKS, None, async |lab, _, lease| {
        lease.send(&segment(lease, 1500)).await.expect("1500 bytes fit");
        ip(lab, "link set lab0 mtu 1280");
        let error = refusal(lease, 1400).await.to_string();
        assert!(error.contains("which is 1280 bytes") || error.contains("which is no longer 1500"), "{error}");
        lease.send(&segment(lease, 1280)).await.expect("1280 bytes fit");
        ip(lab, "link set lab0 mtu 1500");
    });
}

/// The interface leaves this namespace: waiting tasks get an error, and nothing stays attached to it.
#[test]
fn interface_moved_to_another_namespace_ends_leases() {
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
            let received = tokio::time::timeout(REPLY_TIMEOUT, lease.recv()).await.expect("no hang");
            assert!(matches!(received, Err(Error::UnknownInterface { .. })), "{attach:?}: {received:?}");
            objects
        });
        objects.wait_until_freed(REPLY_TIMEOUT);
        assert_detached(&elsewhere, INTERFACE);
    }
}

#[test]
fn removed_address_is_reported_and_recovers() {
    with_lease(&[Attach::Auto], Some(2), async |lab, crafter, lease| {
        handshake(lease).await;
        ip(lab, "address del 192.0.2.2/24 dev lab0");
        let error = refusal(lease, 40).await;
        assert!(matches!(error, Error::NoRoute { .. }), "{error:?}");
        ip(lab, "address add 192.0.2.2/24 dev lab0");
        wait_for_route(crafter).await;
        handshake(lease).await;
    });
}

/// A next hop that does not answer is reported as a missing neighbour, and found again later.
#[test]
fn missing_neighbour_is_reported_and_recovers() {
    with_lease(&[Attach::Auto], None, async |lab, _, lease| {
        handshake(lease).await;
        testbed::run(lab.server().command("ip").args(["address", "del", "192.0.2.1/24", "dev", "lab0"]));
        ip(lab, "neighbour flush dev lab0");
        let error = refusal(lease, 40).await;
        assert!(matches!(error, Error::NoNeighbour { .. }), "{error:?}");
        testbed::run(lab.server().command("ip").args(["address", "add", "192.0.2.1/24", "dev", "lab0"]));
        ip(lab, "neighbour flush dev lab0");
        handshake(lease).await;
    });
}

/// AF_XDP sockets are bound to queues: the kernel refuses to change their number, or the lease survives the change.
#[test]
fn lease_survives_change_of_queues() {
    with_lease(&[Attach::Native], Some(3), async |lab, _, lease| {
        handshake(lease).await;
        for count in ["2", "1"] {
            let mut ethtool = lab.client().command("ethtool");
            let output = ethtool.args(["-L", INTERFACE, "rx", count, "tx", count]).output().expect("ethtool");
            println!("{count} queues: {}", String::from_utf8_lossy(&output.stderr).trim());
            handshake(lease).await;
        }
    });
}
