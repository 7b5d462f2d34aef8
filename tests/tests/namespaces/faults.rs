//! Faults: bad networks, servers that end the connection, killed processes, removed interfaces.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use crafter::{
    Crafter, Error, LeaseRequest, Options, StreamOptions,
    datapath::program::Attach,
    engine::Impair,
    lab::{INTERFACE, Lab},
};
use crafter_tests::{
    capture::Capture,
    dns, frame,
    holder::Holder,
    leak::{BpfObjects, Serial, attached, has_tcx},
    manual::{self, REPLY_TIMEOUT},
    peer::{Dnsmasq, LONG, LONG_RECORDS, Nginx, wait_for},
    slow::{allow, bytes},
    testbed::{self, ENDS, assert_refuses, lab, open, run},
    within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn ip(lab: &Lab, arguments: &str) {
    run(lab.server().command("ip").args(arguments.split(' ')));
}

/// Downloads 100 MB through a network that loses, reorders and duplicates packets in both directions.
#[test]
fn download_survives_loss_reordering_and_duplication() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::with_big(lab.server());
    let page = nginx.big.as_ref().expect("the big page");
    // The server's minimum retransmission timeout of 200 ms would dominate the test on this link with a round-trip time
    // of about 100 us; the route lowers it, as in data centres.
    ip(&lab, "route change 192.0.2.0/24 dev lab0 proto kernel scope link src 192.0.2.1 rto_min 5ms");
    let took = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        // A fixed seed makes the faults reproducible.
        let bad =
            Impair { loss: 0.1, duplicate: 0.05, reorder: 0.1, delay: Duration::from_millis(1), ..Impair::new(42) };
        let options = StreamOptions { hook: Some(Box::new(bad)), ..StreamOptions::default() };
        let remote = SocketAddr::new(ENDS[0].1, 80);
        let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, options).await;
        let began = Instant::now();
        let (length, sum) = manual::download(&mut stream, page.path).await;
        let took = began.elapsed();
        let stats = stream.stats();
        assert_eq!((length, sum), (page.length, page.sha256));
        let share = stats.hook_drops as f64 / (stats.segments_sent + stats.segments_received + stats.hook_drops) as f64;
        println!("100 MB in {took:?}, {:.1}% lost, {stats:?}", share * 100.0);
        assert!((0.05..0.15).contains(&share), "{share} lost");
        assert!(stats.duplicates > bytes(1000) && stats.out_of_order > bytes(1000), "{stats:?}");
        manual::close(&mut stream).await;
        took
    });
    assert!(took < allow(Duration::from_secs(60)), "{took:?}");
}

/// Starts a server in the server's namespace that passes its single accepted connection to `serve`.
fn server(
    lab: &Lab,
    address: IpAddr,
    serve: impl FnOnce(std::net::TcpStream) + Send + 'static,
) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = lab.server().run(|| TcpListener::bind(SocketAddr::new(address, 0))).unwrap().unwrap();
    let local = listener.local_addr().unwrap();
    (local, std::thread::spawn(move || serve(listener.accept().expect("a connection").0)))
}

#[test]
fn server_closes_first() {
    let _serial = Serial::begin();
    let lab = lab();
    for (_, address) in ENDS {
        let (remote, served) = server(&lab, address, |mut socket| {
            socket.write_all(b"and that is all").unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            // The direction from the server is closed, the other is still open.
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"understood");
        });
        within(lab.client(), async || {
            let crafter = open(Attach::Auto).await;
            let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, StreamOptions::default()).await;
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.expect("read to the end");
            assert_eq!(received, b"and that is all");
            stream.write_all(b"understood").await.expect("write after the server's FIN");
            let local = stream.local();
            manual::close(&mut stream).await;
            assert!(testbed::server_socket(&lab, local).is_none_or(|state| state == "TIME-WAIT"));
        });
        served.join().expect("the server received everything");
    }
    assert_eq!(lab.tap().count().unwrap(), 0, "RSTs at the server");
}

#[test]
fn server_that_resets_refuses_or_never_answers() {
    let _serial = Serial::begin();
    let lab = lab();
    for (version, (_, address)) in ENDS.into_iter().enumerate() {
        let (remote, served) = server(&lab, address, |mut socket| {
            socket.write_all(b"half").unwrap();
            socket.read_exact(&mut [0; 2]).unwrap();
            use std::os::fd::AsFd as _;
            let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&socket.as_fd(), nix::sys::socket::sockopt::Linger, &now).unwrap();
        });
        within(lab.client(), async || {
            let crafter = open(Attach::Auto).await;
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            let mut stream = lease.connect(remote, StreamOptions::default()).await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
            stream.write_all(b"ok").await.unwrap();
            let error = tokio::time::timeout(REPLY_TIMEOUT, stream.read(&mut [0; 16])).await.expect("in time");
            assert_eq!(error.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
            assert!(matches!(stream.error(), Some(Error::Reset { remote: from }) if from == remote));
            drop(stream);
            // No listener: the connection is refused at once, and the lease can be used again.
            let closed = SocketAddr::new(address, 1);
            let refused = lease.connect(closed, StreamOptions::default()).await.map(drop).expect_err("a closed port");
            assert!(matches!(refused, Error::Refused { remote } if remote == closed), "{refused:?}");
            // The server does not forward: packets to other hosts are lost.
            let hole: IpAddr = ["198.51.100.1", "2001:db8:ffff::1"][version].parse().unwrap();
            if version == 1 {
                // Without a route the server's kernel answers with ICMPv6, which is a different error.
                let unreachable = lease.connect(SocketAddr::new(hole, 80), StreamOptions::default()).await;
                let unreachable = unreachable.map(drop).expect_err("no route beyond the server");
                assert!(matches!(unreachable, Error::Unreachable { from, .. } if from == address), "{unreachable:?}");
                ip(&lab, "route add blackhole 2001:db8:ffff::/48");
            }
            let options =
                StreamOptions { connect_timeout: Some(Duration::from_millis(1200)), ..StreamOptions::default() };
            let began = Instant::now();
            let silent = lease.connect(SocketAddr::new(hole, 80), options).await.map(drop).expect_err("a black hole");
            match silent {
                Error::TimedOut { .. } => assert!(began.elapsed() >= Duration::from_millis(1000), "{silent}"),
                _ => panic!("{silent:?}"),
            }
            assert!(began.elapsed() < REPLY_TIMEOUT);
        });
        served.join().expect("the server");
    }
    // No host has this address.
    within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        let missing = "192.0.2.77:80".parse().unwrap();
        let error = lease.connect(missing, StreamOptions::default()).await.map(drop).expect_err("no neighbour");
        assert!(matches!(error, Error::NoNeighbour { .. }), "{error:?}");
    });
}

fn holder(lab: &Lab, arguments: &[&str], clsact: bool) -> Holder {
    let mut command = lab.client().command(env!("CARGO_BIN_EXE_holder"));
    if clsact {
        command.env("CRAFTER_CLSACT", "1");
    }
    Holder::start(command.arg(INTERFACE).args(arguments))
}

/// Whether a socket of the kernel can bind the port.
fn can_bind(lab: &Lab, port: u16) -> bool {
    lab.client().run(|| TcpListener::bind(("0.0.0.0", port)).is_ok()).unwrap()
}

/// Waits for the kernel's RST to a segment that the server sends to a connection whose owner was killed.
fn wait_for_rst_of_dead_connection(lab: &Lab, port: u16) {
    wait_for("the RST to the dead connection", REPLY_TIMEOUT, || {
        let rsts = lab.tap().segments().unwrap();
        rsts.iter().any(|rst| rst.port == port && rst.destination_port == 80).then_some(())
    });
}

/// Kills a process during a download: within a second its port, hooks and BPF objects are released.
#[test]
fn sigkill_releases_everything() {
    let _serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let mut times = Vec::new();
    for attach in ["native", "tc"] {
        for (client, server) in ENDS {
            lab.tap().clear().unwrap();
            let remote = SocketAddr::new(server, 80).to_string();
            let mut download = holder(&lab, &[attach, "get", &remote, "/slow/medium"], false);
            let local = SocketAddr::new(client, download.port);
            while download.wait_for("bytes ").parse::<u64>().unwrap() < 500_000 {}
            // Everything is in place during the download.
            let objects = BpfObjects::of(download.id());
            assert!(
                objects.programs.len() >= 2 && objects.maps.len() >= 8 && (objects.links.len() >= 2 || !has_tcx()),
                "{objects:?}"
            );
            assert_eq!(objects.alive(), objects);
            assert_eq!(attached(lab.client(), INTERFACE).len(), 2);
            assert!(!can_bind(&lab, local.port()));
            assert_eq!(lab.tap().count().unwrap(), 0, "a RST during the download");

            let began = Instant::now();
            download.kill();
            // The kernel releases everything when the process exits, memory a moment later.
            wait_for("the port", REPLY_TIMEOUT, || can_bind(&lab, local.port()).then_some(()));
            wait_for("the hooks", REPLY_TIMEOUT, || attached(lab.client(), INTERFACE).is_empty().then_some(()));
            assert_refuses(&lab, local);
            objects.wait_until_freed(REPLY_TIMEOUT);
            let took = began.elapsed();
            println!("{attach}, {client}: released after {took:?}");
            times.push(took);
            // The kernel answers later segments of the server to the dead connection with a RST, as usual.
            wait_for_rst_of_dead_connection(&lab, local.port());
        }
    }
    assert_soon(times);
}

/// Asserts that the median is below one second: a busy machine causes outliers.
fn assert_soon(mut times: Vec<Duration>) {
    times.sort();
    assert!(times[(times.len() - 1) / 2] < allow(Duration::from_secs(1)), "{times:?}");
}

/// Without tcx, filters of clsact are removed when their owner exits, even by SIGKILL.
#[test]
fn clsact_filters_are_removed_with_their_owner() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let shown = |what: &[&str]| run(lab.client().command("tc").args(what));
    let filters = || ["ingress", "egress"].map(|side| shown(&["filter", "show", "dev", INTERFACE, side])).concat();
    let qdiscs = || shown(&["qdisc", "show", "dev", INTERFACE]);
    let mut times = Vec::new();
    for (attach, count) in [("auto", 1), ("tc", 2)] {
        lab.tap().clear().unwrap();
        assert!(!qdiscs().contains("clsact"));
        let mut download = holder(&lab, &[attach, "get", "192.0.2.1:80", "/slow/medium"], true);
        assert!(download.report.contains("clsact"), "{}", download.report);
        while download.wait_for("bytes ").parse::<u64>().unwrap() < 500_000 {}
        assert_eq!(filters().matches("direct-action").count(), count, "{}", filters());
        assert!(qdiscs().contains("clsact"));
        let objects = BpfObjects::of(download.id());
        assert_eq!(lab.tap().count().unwrap(), 0, "a RST during the download");

        let began = Instant::now();
        download.kill();
        wait_for("the removal of filters and qdisc", REPLY_TIMEOUT, || {
            (filters().is_empty() && !qdiscs().contains("clsact")).then_some(())
        });
        objects.wait_until_freed(REPLY_TIMEOUT);
        let took = began.elapsed();
        println!("clsact, {attach}: released after {took:?}");
        times.push(took);
        assert_refuses(&lab, SocketAddr::new(ENDS[0].0, download.port));
        wait_for_rst_of_dead_connection(&lab, download.port);
    }
    assert_soon(times);
    // A foreign qdisc with a foreign filter stays; an orderly exit removes only crafter's filters.
    shown(&["qdisc", "add", "dev", INTERFACE, "clsact"]);
    // A classic BPF program that matches nothing ("return 0").
    shown(&["filter", "add", "dev", INTERFACE, "egress", "pref", "1", "bpf", "bytecode", "1,6 0 0 0,"]);
    let mut download = holder(&lab, &["tc", "get", "[2001:db8::1]:80", "/small"], true);
    assert_eq!(download.wait_for("done "), nginx.small.hex());
    download.end();
    assert!(qdiscs().contains("clsact"));
    assert_eq!(filters().matches("crafter_").count(), 0, "{}", filters());
    assert!(filters().contains("pref 1 bpf"), "{}", filters());
    shown(&["qdisc", "del", "dev", INTERFACE, "clsact"]);
}

/// An answer longer than the MTU arrives in fragments and is reassembled.
#[test]
fn fragmented_dns_answer_is_reassembled() {
    let serial = Serial::begin();
    let lab = lab();
    let _dnsmasq = Dnsmasq::start(lab.server());
    let capture = Capture::start(lab.server(), INTERFACE, Some("ip or ip6"));
    let objects = within(lab.client(), async || {
        let mut objects = BpfObjects::default();
        for (attach, observe) in [
            (Attach::Native, false),
            (Attach::Generic, false),
            (Attach::Tc, false),
            (Attach::Native, true),
            (Attach::Tc, true),
        ] {
            let crafter = open(attach).await;
            for (_, server) in ENDS {
                let lease = crafter.lease(LeaseRequest::udp().observe(observe)).await.unwrap();
                let server = SocketAddr::new(server, 53);
                // Positive control: without EDNS the answer does not fit, and the server truncates it.
                let short = manual::dns(&lease, server, LONG, dns::TXT, None).await;
                assert!(short.truncated && short.data.len() < LONG_RECORDS.0);
                let long = manual::dns(&lease, server, LONG, dns::TXT, Some(8000)).await;
                assert!(!long.truncated);
                let mut records = long.data;
                records.sort();
                let letters = (b'a'..).take(LONG_RECORDS.0);
                let expected: Vec<Vec<u8>> =
                    letters.map(|letter| [vec![LONG_RECORDS.1 as u8], vec![letter; LONG_RECORDS.1]].concat()).collect();
                assert_eq!(records, expected, "{attach:?}, observe {observe}");
            }
            objects = serial.objects();
        }
        objects
    });
    let packets = capture.finish();
    for (client, server) in ENDS {
        let fragments = packets.iter().filter(|packet| packet.fragment && packet.source.ip() == server).count();
        // Five answers of at least three fragments each.
        assert!(fragments >= 15, "only {fragments} fragments from {server}");
        let errors = packets.iter().filter(|packet| {
            packet.source.ip() == client
                && packet.icmp.is_some_and(|(kind, _)| if client.is_ipv4() { kind != 0 } else { kind < 128 })
        });
        assert_eq!(errors.count(), 0, "ICMP errors were sent from {client}");
    }
    serial.finish(&objects, lab.client(), INTERFACE);
}

/// Removes the interface while it is in use: streams and leases get errors, nothing panics, hangs or is left behind.
#[test]
fn interface_removal_ends_streams_and_leases() {
    for attach in [Attach::Native, Attach::Generic, Attach::Tc] {
        let serial = Serial::begin();
        let lab = lab();
        let nginx = Nginx::start(lab.server());
        let objects = within(lab.client(), async || {
            let crafter = open(attach).await;
            let remote = SocketAddr::new(ENDS[0].1, 80);
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            let mut stream = lease.connect(remote, StreamOptions::default()).await.unwrap();
            let idle = crafter.lease(LeaseRequest::udp()).await.unwrap();
            stream.write_all(b"GET /slow/medium HTTP/1.0\r\n\r\n").await.unwrap();
            stream.read_exact(&mut vec![0; 100_000]).await.unwrap();
            let objects = serial.objects();
            ip(&lab, "link delete lab0");

            let read = async {
                while stream.read(&mut vec![0; 1 << 16]).await? > 0 {}
                Ok::<(), std::io::Error>(())
            };
            let began = Instant::now();
            let ended = tokio::time::timeout(allow(Duration::from_secs(20)), read).await.expect("no hang");
            // A task that is not woken would succeed after its timeout, so the time is limited.
            assert!(began.elapsed() < allow(Duration::from_secs(10)), "the stream was not woken");
            let error = ended.expect_err("an incomplete page");
            assert_eq!(error.kind(), std::io::ErrorKind::NetworkDown, "{error}");
            let options = StreamOptions { connect_timeout: Some(Duration::from_secs(1)), ..StreamOptions::default() };
            let again = tokio::time::timeout(allow(Duration::from_secs(20)), lease.connect(remote, options)).await;
            again.expect("no hang").map(drop).expect_err("there is no interface");
            let waited = tokio::time::timeout(allow(Duration::from_secs(20)), idle.recv()).await.expect("no hang");
            assert!(began.elapsed() < allow(Duration::from_secs(10)), "the lease was not woken");
            assert!(matches!(waited, Err(Error::UnknownInterface { .. })), "{waited:?}");
            let sent = idle.send(&frame::udp_ip(idle.local(remote.ip()).await.unwrap_or(remote), remote, b"x")).await;
            sent.expect_err("there is no interface");
            let _ = (crafter.counters(), crafter.stats(), crafter.flows());
            tokio::time::timeout(allow(Duration::from_secs(20)), crafter.lease(LeaseRequest::tcp()))
                .await
                .expect("no hang")
                .ok();
            let missing = Crafter::open(INTERFACE, Options::default()).await.map(drop).expect_err("no interface");
            assert!(matches!(missing, Error::UnknownInterface { .. }), "{missing:?}");
            objects
        });
        assert_eq!(BpfObjects::of(std::process::id()), BpfObjects::default());
        objects.wait_until_freed(REPLY_TIMEOUT);
        drop(nginx);
    }
}

/// A stream that is still closing when its runtime is dropped does not keep the hooks attached, whether the stream is
/// dropped before or after the runtime.
#[test]
fn dropped_runtime_detaches_closing_streams() {
    let serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    for after_runtime in [false, true] {
        let (objects, late) = within(lab.client(), async || {
            let crafter = open(Attach::Auto).await;
            let remote = SocketAddr::new(ENDS[0].1, 80);
            let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, StreamOptions::default()).await;
            // The FIN is lost, so this end stays in FIN-WAIT-1.
            ip(&lab, "link set lab0 down");
            stream.shutdown().await.expect("shut down");
            let objects = serial.objects();
            (objects, after_runtime.then_some(stream))
        });
        drop(late);
        ip(&lab, "link set lab0 up");
        serial.finish(&objects, lab.client(), INTERFACE);
    }
    drop(nginx);
}
