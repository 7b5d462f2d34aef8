//! Full maps, ring buffer and frames.

use std::{net::UdpSocket, thread, time::Duration};

use crafter::{
    Crafter, Error, LeaseRequest, Options,
    datapath::program::{Attach, LoadOptions},
    lab::{INTERFACE, Lab},
};
use crafter_common::reason::Reason;
use crafter_tests::{
    capture::{Capture, unreachables},
    leak::Serial,
    peer::Nginx,
    testbed::{ENDS, lab},
    within,
};

use super::{assert_rsts, handshake};

fn with(attach: Attach, load: LoadOptions) -> Options {
    Options { attach, load }
}

/// The ports that fit are leased, and a further one is refused with the reason; a released port makes room.
#[test]
fn full_map_of_owned_ports_refuses_leases() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let objects = within(lab.client(), async || {
        let load = LoadOptions { owned_entries: 4, ..LoadOptions::default() };
        let crafter = Crafter::open(INTERFACE, with(Attach::Auto, load)).await.unwrap();
        let mut leases = Vec::new();
        let error = loop {
            match crafter.lease(LeaseRequest::tcp()).await {
                Ok(lease) => leases.push(lease),
                Err(error) => break error,
            }
            assert!(leases.len() < 10, "the map is never full");
        };
        assert_eq!(leases.len(), 4);
        let message = error.to_string();
        assert!(message.contains("4 are owned") && message.contains("no room"), "{message}");
        // A range is leased completely or not at all.
        leases.pop();
        let range = crafter.lease(LeaseRequest::tcp().ports(40_000..=40_001)).await.map(drop);
        range.expect_err("room for one, not for two");
        leases.push(crafter.lease(LeaseRequest::tcp().port(40_000)).await.expect("room for one"));
        for lease in &leases {
            handshake(lease).await;
        }
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
    assert_rsts(&lab, 4);
}

/// The oldest flow entries are evicted, and packets are still delivered.
#[test]
fn full_map_of_flows_evicts_the_oldest() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let objects = within(lab.client(), async || {
        let load = LoadOptions { flow_entries: 16, ..LoadOptions::default() };
        let crafter = Crafter::open(INTERFACE, with(Attach::Auto, load)).await.unwrap();
        let mut ports = Vec::new();
        for _ in 0..100 {
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            handshake(&lease).await;
            ports.push(lease.port());
        }
        let flows = crafter.flows();
        assert!(!flows.is_empty() && flows.len() <= 16, "{} flows", flows.len());
        let last = ports.last().unwrap();
        assert!(flows.iter().any(|flow| flow.local.port() == *last), "the newest flow is missing");
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
}

/// Sends `count` datagrams of `length` bytes to a port of the client.
fn flood(lab: &Lab, port: u16, count: usize, length: usize) {
    let send = || {
        let socket = UdpSocket::bind((ENDS[0].1, 0)).unwrap();
        for number in 0..count {
            socket.send_to(&vec![0x55; length], (ENDS[0].0, port)).unwrap();
            // Pauses, so that the link's own queue does not overflow.
            if number % 64 == 63 {
                thread::sleep(Duration::from_micros(200));
            }
        }
    };
    lab.server().run(send).unwrap();
}

/// While nothing is read, packets without room are dropped and counted, and the kernel sends no error; all packets are
/// accounted for. Afterwards new packets are delivered.
#[test]
fn full_ring_buffer_and_frames_drop_and_count() {
    const COUNT: usize = 20_000;
    for (attach, ring_bytes) in [(Attach::Tc, 1 << 16), (Attach::Native, 1 << 16), (Attach::Generic, 1 << 16)] {
        let serial = Serial::begin();
        let lab = lab();
        let capture = Capture::start(lab.server(), INTERFACE, Some("icmp or udp port 9"));
        let objects = within(lab.client(), async || {
            let load = LoadOptions { ring_bytes, ..LoadOptions::default() };
            let crafter = Crafter::open(INTERFACE, with(attach, load)).await.unwrap();
            let lease = crafter.lease(LeaseRequest::udp()).await.unwrap();
            // This thread would read, and is blocked meanwhile.
            flood(&lab, lease.port(), COUNT, 1000);
            thread::sleep(Duration::from_millis(200));
            let mut read = 0;
            while lease.recv_timeout(Duration::from_millis(500)).await.unwrap().is_some() {
                read += 1;
            }
            let (counters, stats) = (crafter.counters().unwrap(), crafter.stats());
            let full = counters.get(Reason::DeliveryFull) as usize;
            let (redirected, copied) =
                (counters.get(Reason::Redirected) as usize, counters.get(Reason::Copied) as usize);
            let lost = stats.lost as usize;
            println!("{attach:?}: {read} read, {full} no room, {redirected} redirected, {copied} copied, {stats:?}");
            assert!(full + lost > 0, "nothing was dropped");
            assert_eq!(full + redirected + copied, COUNT, "packets counted by the kernel half");
            assert_eq!(read + lost + full + stats.overflow as usize, COUNT, "packets accounted for");
            assert_eq!(counters.get(Reason::UnreachableSuppressed), 0, "the kernel received a datagram");
            // New packets are delivered.
            flood(&lab, lease.port(), 10, 1000);
            for _ in 0..10 {
                lease.recv_timeout(Duration::from_secs(5)).await.unwrap().expect("delivered");
            }
            serial.objects()
        });
        // Positive control: an unowned port.
        lab.server().run(|| UdpSocket::bind((ENDS[0].1, 9)).unwrap().send_to(b"x", (ENDS[0].0, 9)).unwrap()).unwrap();
        crafter_tests::peer::wait_for("the control's unreachable", Duration::from_secs(5), || {
            thread::sleep(Duration::from_millis(300));
            Some(())
        });
        assert_eq!(
            unreachables(&capture.finish(), ENDS[0].0),
            1,
            "{attach:?}: only the error of the control is expected"
        );
        serial.finish(&objects, lab.client(), INTERFACE);
    }
}

/// Invalid map sizes are refused when the interface is opened.
#[test]
fn invalid_map_sizes_are_refused() {
    let _serial = Serial::begin();
    let lab = lab();
    within(lab.client(), async || {
        for load in [
            LoadOptions { ring_bytes: 1000, ..LoadOptions::default() },
            LoadOptions { owned_entries: 0, ..LoadOptions::default() },
            LoadOptions { flow_entries: 0, ..LoadOptions::default() },
        ] {
            let text = format!("{load:?}");
            let error = Crafter::open(INTERFACE, with(Attach::Auto, load)).await.map(drop);
            let error = error.expect_err(&text);
            assert!(!matches!(error, Error::UnknownInterface { .. }), "{text}: {error}");
            println!("{text}: {error}");
        }
    });
    crafter_tests::leak::assert_detached(lab.client(), INTERFACE);
}
