//! Devices other than veth: `lo`, and tun, which has no link-layer header.

use std::{io, net::SocketAddr};

use crafter::{
    Crafter, Error, LeaseRequest, StreamOptions,
    datapath::program::{Attach, Mode},
    lab::NetNs,
};
use crafter_common::reason::Reason;
use crafter_tests::{
    capture::{CONTROL, Capture, from, rsts},
    frame::{SYN, Tcp},
    leak::Serial,
    manual::{self, ManualConnection, sha256},
    peer::Nginx,
    testbed::{ENDS, lab, options, run},
    tun::Tunnel,
    wire::Wire,
    within,
};

/// A conversation over `lo` with a server on the same host.
#[test]
fn conversation_over_loopback() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::with_big(lab.client());
    let page = nginx.big.as_ref().expect("the big page");
    let capture = Capture::start(lab.client(), "lo", Some(CONTROL));
    let locals = within(lab.client(), async || {
        let mut locals = Vec::new();
        for (attach, mode) in [(Attach::Auto, Mode::Generic), (Attach::Tc, Mode::Tc)] {
            let crafter = Crafter::open("lo", options(attach)).await.expect("open lo");
            assert_eq!(crafter.report().mode, mode);
            for server in ["127.0.0.1:80", "[::1]:80"] {
                let remote: SocketAddr = server.parse().unwrap();
                let lease = crafter.lease(LeaseRequest::tcp()).await.expect("a lease");
                let mut connection = ManualConnection::new(&lease, remote).await;
                connection.handshake().await;
                let answer = connection.get(nginx.small.path).await;
                assert_eq!(sha256(manual::body(&answer)), nginx.small.sha256);
                locals.push(connection.cursor.local);
                let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, StreamOptions::default()).await;
                let (_, sum) = manual::download(&mut stream, page.path).await;
                assert_eq!(sum, page.sha256);
                locals.push(stream.local());
                manual::close(&mut stream).await;
            }
            // `lo` has no native XDP, which the report notes.
            if attach == Attach::Auto {
                assert!(crafter.report().notes.iter().any(|note| note.contains("native")), "{:?}", crafter.report());
                let refused = Crafter::open("lo", options(Attach::Native)).await.map(drop).expect_err("no native XDP");
                assert!(matches!(refused, Error::Attach { .. }), "{refused:?}");
            }
        }
        locals
    });
    // Positive control: an unowned port.
    let refused = lab.client().run(|| std::net::TcpStream::connect("127.0.0.1:40000").map(drop)).unwrap();
    assert_eq!(refused.expect_err("a refused connection").kind(), io::ErrorKind::ConnectionRefused);
    let packets = capture.finish();
    assert!(rsts(&packets, "127.0.0.1:40000".parse().unwrap()) > 0);
    for local in locals {
        assert!(!from(&packets, local).is_empty());
        assert_eq!(rsts(&packets, local), 0, "a RST was sent from {local}");
    }
}

/// A conversation over tun: sends through raw IP sockets, receives through tc.
#[test]
fn conversation_over_tun() {
    let _serial = Serial::begin();
    let (client, server) = (NetNs::new().unwrap(), NetNs::new().unwrap());
    let _tunnel = Tunnel::between(&client, &server);
    for (namespace, ends) in [(&client, ENDS.map(|ends| ends.0)), (&server, ENDS.map(|ends| ends.1))] {
        for address in ends {
            let prefix = if address.is_ipv4() { 24 } else { 64 };
            let address = format!("{address}/{prefix}");
            run(namespace.command("ip").args(["address", "add", &address, "dev", "tun0", "nodad"]));
        }
        run(namespace.command("ip").args(["link", "set", "tun0", "up"]));
    }
    let nginx = Nginx::start(&server);
    let capture = Capture::start(&server, "tun0", Some(CONTROL));
    // Positive control: a SYN from an unowned port.
    for (local, remote) in ENDS {
        let syn = Tcp::new(SYN, 1, 0).ip(SocketAddr::new(local, 40_000), SocketAddr::new(remote, 80));
        client.run(|| Wire::open("tun0", [0; 6])?.send(&syn)).unwrap().unwrap();
    }
    let locals = within(&client, async || {
        let crafter = Crafter::open("tun0", options(Attach::Auto)).await.expect("open tun0");
        assert_eq!(crafter.report().mode, Mode::Tc, "{}", crafter.report());
        let mut locals = Vec::new();
        for observe in [false, true] {
            for (_, remote) in ENDS {
                let remote = SocketAddr::new(remote, 80);
                let request = LeaseRequest::tcp().observe(observe);
                let lease = crafter.lease(request.clone()).await.expect("a lease");
                let mut connection = ManualConnection::new(&lease, remote).await;
                connection.handshake().await;
                let answer = connection.get(nginx.small.path).await;
                assert_eq!(sha256(manual::body(&answer)), nginx.small.sha256);
                locals.push(connection.cursor.local);
                let mut stream = manual::connect(&crafter, request, remote, StreamOptions::default()).await;
                let (_, sum) = manual::download(&mut stream, nginx.medium.path).await;
                assert_eq!(sum, nginx.medium.sha256);
                locals.push(stream.local());
                manual::close(&mut stream).await;
            }
        }
        let counters = crafter.counters().expect("counters");
        assert!(counters.get(Reason::Copied) > 0 && counters.get(Reason::RstSuppressed) > 0, "{counters:?}");
        locals
    });
    let packets = capture.finish();
    for (local, _) in ENDS {
        assert!(rsts(&packets, SocketAddr::new(local, 40_000)) > 0, "no RST from the unowned port");
    }
    for local in locals {
        assert!(!from(&packets, local).is_empty());
        assert_eq!(rsts(&packets, local), 0, "a RST was sent from {local}");
    }
}
