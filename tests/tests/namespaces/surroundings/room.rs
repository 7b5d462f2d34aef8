//! No room: maps, ring buffer, frames.

use std::{net::UdpSocket, thread, time::Duration};

use crafter::{
    Crafter, Error, LeaseRequest, Options,
    datapath::program::{Attach, LoadOptions},
    lab::{INTERFACE, Lab},
};
use crafter_common::reason::Reason;
use crafter_tests::{
    judge::{Capture, unreachables},
    leak::Serial,
    peer::Nginx,
    stage::{ENDS, lab},
    within,
};

use super::{assert_rsts, handshake};

fn with(attach: Attach, load: LoadOptions) -> Options {
    Options { attach, load }
}

/// The ports that fit are leased, the next is refused with a reason, and those leased go on; a port given back is room.
#[test]
fn the_map_of_owned_ports_is_full() {
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
            assert!(leases.len() < 10, "no end of room");
        };
        assert_eq!(leases.len(), 4);
        let said = error.to_string();
        assert!(said.contains("4 are owned") && said.contains("no room"), "{said}");
        // All or none of a range.
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

/// The oldest flows are forgotten, and packets go on.
#[test]
fn the_map_of_flows_is_full() {
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
        assert!(flows.iter().any(|flow| flow.local.port() == *last), "the newest is forgotten");
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
}

/// `count` datagrams of `length` bytes to a port of the client.
fn flood(lab: &Lab, port: u16, count: usize, length: usize) {
    let send = || {
        let socket = UdpSocket::bind((ENDS[0].1, 0)).unwrap();
        for number in 0..count {
            socket.send_to(&vec![0x55; length], (ENDS[0].0, port)).unwrap();
            // The link's own queue is not what is to be full.
            if number % 64 == 63 {
                thread::sleep(Duration::from_micros(200));
            }
        }
    };
    lab.server().run(send).unwrap();
}

/// Nobody reads: what has no room is dropped and counted, the kernel answers nothing, and all are accounted for. Then
/// reading begins, and what comes now is delivered.
#[test]
fn ring_buffer_and_frames_are_full() {
    const COUNT: usize = 20_000;
    for (attach, ring_bytes) in [(Attach::Tc, 1 << 16), (Attach::Native, 1 << 16), (Attach::Generic, 1 << 16)] {
        let serial = Serial::begin();
        let lab = lab();
        let capture = Capture::start(lab.server(), INTERFACE, Some("icmp or udp port 9"));
        let objects = within(lab.client(), async || {
            let load = LoadOptions { ring_bytes, ..LoadOptions::default() };
            let crafter = Crafter::open(INTERFACE, with(attach, load)).await.unwrap();
            let lease = crafter.lease(LeaseRequest::udp()).await.unwrap();
            // This thread is the one that would read.
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
            assert!(full + lost > 0, "there was room for all");
            assert_eq!(full + redirected + copied, COUNT, "counted by the kernel half");
            assert_eq!(read + lost + full + stats.overflow as usize, COUNT, "accounted for");
            assert_eq!(counters.get(Reason::UnreachableSuppressed), 0, "the kernel has seen one");
            // And again.
            flood(&lab, lease.port(), 10, 1000);
            for _ in 0..10 {
                lease.recv_timeout(Duration::from_secs(5)).await.unwrap().expect("delivered");
            }
            serial.objects()
        });
        // The control: a port that nobody owns.
        lab.server().run(|| UdpSocket::bind((ENDS[0].1, 9)).unwrap().send_to(b"x", (ENDS[0].0, 9)).unwrap()).unwrap();
        crafter_tests::peer::wait_for("the control's unreachable", Duration::from_secs(5), || {
            thread::sleep(Duration::from_millis(300));
            Some(())
        });
        assert_eq!(unreachables(&capture.finish(), ENDS[0].0), 1, "{attach:?}: only the control's");
        serial.finish(&objects, lab.client(), INTERFACE);
    }
}

/// Neither the kernel nor this process keeps what it cannot have: a wrong size is refused at the door.
#[test]
fn sizes_that_cannot_be() {
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
