//! Other users of the same host: programs that hold ports or hooks, and other instances of crafter.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use crafter::{
    Crafter, Error, LeaseRequest, StreamOptions,
    datapath::{
        features,
        program::{Attach, Mode},
    },
    lab::INTERFACE,
};
use crafter_common::reason::Reason;
use crafter_tests::{
    capture::{CONTROL, Capture, from, rsts},
    holder::Holder,
    leak::Serial,
    manual::{self, REPLY_TIMEOUT},
    peer::{Nginx, wait_for},
    testbed::{self, CONTROL_PORT, ENDS, lab, open, options},
    within,
};
use tokio::io::AsyncReadExt;

#[test]
fn used_port_is_refused_and_leased_port_is_reserved() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let (tcp, udp) = (TcpListener::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("192.0.2.2:0").unwrap());
        let own = format!("(pid {})", std::process::id());
        for (request, port) in [
            (LeaseRequest::tcp(), tcp.local_addr().unwrap().port()),
            (LeaseRequest::udp(), udp.local_addr().unwrap().port()),
        ] {
            let refused = crafter.lease(request.clone().port(port)).await.map(drop).expect_err("a port in use");
            assert!(matches!(refused, Error::PortTaken { .. }), "{refused:?}");
            assert!(refused.to_string().contains(&own), "{refused} does not name {own}");
        }
        // After its holder has closed it, the port can be leased.
        let port = tcp.local_addr().unwrap().port();
        drop(tcp);
        let lease = crafter.lease(LeaseRequest::tcp().port(port)).await.expect("a free port");
        assert_eq!(lease.port(), port);

        let taken = |result: io::Result<()>| {
            assert_eq!(result.expect_err("a leased port").kind(), io::ErrorKind::AddrInUse);
        };
        for address in ["0.0.0.0", "192.0.2.2", "::", "2001:db8::2"] {
            taken(TcpListener::bind((address, port)).map(drop));
        }
        let datagrams = crafter.lease(LeaseRequest::udp()).await.expect("a UDP lease");
        for address in ["192.0.2.2", "2001:db8::2"] {
            taken(UdpSocket::bind((address, datagrams.port())).map(drop));
        }
        // A second lease of the port is refused, in this process and in others.
        let again = crafter.lease(LeaseRequest::tcp().port(port)).await.map(drop).expect_err("leased already");
        assert!(matches!(again, Error::PortTaken { .. }), "{again:?}");
        // curl cannot use the leased port for its connection: exit code 45, CURLE_INTERFACE_FAILED.
        let url = format!("http://192.0.2.1{}", nginx.small.path);
        let curl = |port: u16| {
            let mut curl = lab.client().command("curl");
            curl.args(["-sS", "-o", "/dev/null", "--max-time", "20", "--local-port", &port.to_string(), &url]);
            curl.output().expect("curl").status.code()
        };
        assert_eq!(curl(port), Some(45));
        drop(lease);
        assert_eq!(curl(port), Some(0), "the released port cannot be used");
    });
}

/// The second process falls back to tc and names the holder of the XDP hook; both work at the same time.
#[test]
fn two_processes_on_one_interface() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::with_big(lab.server());
    let page = nginx.big.as_ref().expect("the big page");
    let capture = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    let mut command = lab.client().command(env!("CARGO_BIN_EXE_holder"));
    // Limited in rate, so that it lasts as long as the downloads of this process.
    let mut first = Holder::start(command.args([INTERFACE, "auto", "get", "192.0.2.1:80", "/slow/medium"]));
    assert!(first.report.contains("native XDP"), "{}", first.report);
    let (port, pid) = (first.port, first.id());
    let ours = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        assert_eq!(crafter.report().mode, Mode::Tc);
        let notes = crafter.report().notes.join("; ");
        assert!(notes.contains("holder") && notes.contains(&format!("pid {pid}")), "{notes}");
        // A forced mode is refused, and the error names the holder, too.
        let refused = Crafter::open(INTERFACE, options(Attach::Native)).await.map(drop).expect_err("a held hook");
        assert!(matches!(refused, Error::Attach { .. }) && refused.to_string().contains("holder"), "{refused}");
        // The port of the other process cannot be leased.
        let taken = crafter.lease(LeaseRequest::tcp().port(port)).await.map(drop).expect_err("its port");
        assert!(matches!(taken, Error::PortTaken { .. }), "{taken}");
        // Since Linux 6.8 the kernel reports the owner of a socket that is only bound.
        let names_holder = features::version(&features::host().expect("the host's facts").kernel) >= (6, 8);
        assert_eq!(taken.to_string().contains("holder"), names_holder, "{taken}");

        let mut ours = Vec::new();
        for (_, server) in ENDS {
            let remote = SocketAddr::new(server, 80);
            let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, StreamOptions::default()).await;
            let (_, sum) = manual::download(&mut stream, page.path).await;
            assert_eq!(sum, page.sha256);
            ours.push(stream.local());
            manual::close(&mut stream).await;
        }
        ours
    });
    assert_eq!(first.wait_for("done "), nginx.medium.hex());
    first.end();
    // After the first process has exited, its hook is free.
    let mut command = lab.client().command(env!("CARGO_BIN_EXE_holder"));
    let mut third = Holder::start(command.args([INTERFACE, "auto", "get", "[2001:db8::1]:80", page.path]));
    assert!(third.report.contains("native XDP"), "{}", third.report);
    assert_eq!(third.wait_for("done "), page.hex());
    let third_port = third.port;
    third.end();
    testbed::unowned_syn(&lab, ENDS[0], CONTROL_PORT);
    testbed::wait_for_rst(&lab, SocketAddr::new(ENDS[0].0, CONTROL_PORT));
    let packets = capture.finish();
    assert!(rsts(&packets, SocketAddr::new(ENDS[0].0, CONTROL_PORT)) > 0);
    for local in ours.into_iter().chain([SocketAddr::new(ENDS[0].0, port), SocketAddr::new(ENDS[1].0, third_port)]) {
        assert!(!from(&packets, local).is_empty());
        assert_eq!(rsts(&packets, local), 0, "a RST was sent from {local}");
    }
}

/// Dropping a stream whose peer does not close resets the connection, with a RST of crafter and not of the kernel.
#[test]
fn dropped_stream_resets_its_peer() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::with_big(lab.server());
    within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let remote = SocketAddr::new(ENDS[0].1, 80);
        let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, StreamOptions::default()).await;
        let local = stream.local();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /slow/big HTTP/1.0\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 1000]).await.unwrap();
        assert_eq!(testbed::server_socket(&lab, local).as_deref(), Some("ESTAB"));
        drop(stream);
        testbed::wait_for_rst(&lab, local);
        wait_for("the release of the server's socket", REPLY_TIMEOUT, || {
            testbed::server_socket(&lab, local).is_none().then_some(())
        });
        assert_eq!(crafter.counters().unwrap().get(Reason::RstSuppressed), 0);
    });
    drop(nginx);
}
