//! Clients that violate the protocol or exhaust resources, while another client must not be disturbed.

use std::{
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    process::Stdio,
    time::{Duration, Instant},
};

use crafter::{
    Error,
    lab::{CLIENT_V4, INTERFACE, SERVER_V4},
    protocol::{Control, record::Kind, wire::ListLeasesCall},
};
use crafter_tests::{
    frame,
    holder::Holder,
    leak::Serial,
    peer::wait_for,
    raw::{self, Raw},
    service::{NOBODY, REPLY_TIMEOUT, ROOT, Service, drop_to},
    slow::allow,
    testbed::lab,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use serde_json::json;

use super::{Neighbour, POLICY, at_rest, descriptors, lease, lease_call, resident, service};

/// Runs `harm` while a well-behaved client is active; afterwards the service must have as many descriptors as before.
fn under_load(harm: impl FnOnce(&crafter::lab::Lab, &Service)) {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    // Afterwards the service has opened everything that it keeps open.
    drop(lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease"));
    let before = at_rest(&service);
    let neighbour = Neighbour::start(lab.client(), &service.socket);
    harm(&lab, &service);
    // New clients are served, too.
    drop(lease(&service, ROOT, &lease_call("tcp", None, None)).expect("a lease"));
    neighbour.finish().assert_undisturbed();
    assert_eq!(at_rest(&service), before, "descriptors");
    assert!(service.leases().is_empty());
}

fn info(service: &Service) {
    let info = Raw::connect(&service.socket).call("Info", &json!({}));
    assert_eq!(info["parameters"]["pid"], service.pid(), "{info}");
}

#[test]
fn malformed_incomplete_and_endless_messages() {
    under_load(|_, service| {
        let mut half = Raw::connect(&service.socket);
        let whole = raw::call("Info", &json!({}));
        half.write(&whole[..whole.len() / 2]).expect("half a call");

        let deep = [vec![b'['; 50_000], vec![0]].concat();
        let noise: Vec<u8> = (0..20_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let texts: [&[u8]; 12] = [
            b"\0",
            b"\0\0\0\0\0\0\0\0",
            b"GET / HTTP/1.0\r\n\r\n\0",
            b"null\0",
            b"[]\0",
            b"{}\0",
            b"{\"method\":7}\0",
            b"{\"method\":\"\"}\0",
            b"{\"method\":\"org.crafter.v1.Lease\",\"parameters\":[1]}\0",
            b"\xff\xfe{\"method\":\"org.crafter.v1.Info\"}\0",
            &deep,
            &noise,
        ];
        for text in texts {
            let mut client = Raw::connect(&service.socket);
            // The service may close the connection before the last byte.
            let _ = client.write(text);
            // Otherwise the service would wait for the rest of an incomplete message.
            let _ = client.stream().shutdown(std::net::Shutdown::Write);
            let mut answers = 0;
            while let Some(answer) = client.answer() {
                assert!(answer["error"].is_string(), "{answer}");
                answers += 1;
            }
            assert!(answers <= 8);
            info(service);
        }
        // An invalid but complete call gets an error, and the connection stays open.
        let mut client = Raw::connect(&service.socket);
        for (method, parameters, error) in [
            ("Nothing", json!({}), "org.varlink.service.MethodNotFound"),
            ("Lease", json!({}), "org.crafter.v1.Invalid"),
            ("Lease", json!({ "protocol": "tcp", "port": -1 }), "org.crafter.v1.Invalid"),
            ("Lease", json!({ "protocol": "tcp", "interface": "lab0", "port": 65_536 }), "org.crafter.v1.Invalid"),
            ("Lease", json!({ "protocol": "tcp", "interface": "nowhere" }), "org.crafter.v1.UnknownInterface"),
            ("Lease", json!({ "protocol": "tcp", "interface": "../lab0" }), "org.crafter.v1.UnknownInterface"),
            ("Release", json!({ "lease": 1_000_000 }), "org.crafter.v1.NoSuchLease"),
            ("Release", json!({ "lease": 1e300 }), "org.crafter.v1.Invalid"),
            ("Info", json!({ "more": true }), "org.crafter.v1.Invalid"),
            ("Monitor", json!({}), "org.varlink.service.ExpectedMore"),
        ] {
            let mut client = Raw::connect(&service.socket);
            let answer = client.call(method, &parameters);
            assert_eq!(answer["error"], error, "{method} {parameters}: {answer}");
        }
        assert!(client.call("Info", &json!({}))["error"].is_null());

        // The service closes the connection of a call that exceeds its size limit.
        let memory = resident(service.pid());
        let mut endless = Raw::connect(&service.socket);
        let begin = br#"{"method":"org.crafter.v1.Info","parameters":{"a":""#;
        let mut sent = begin.len();
        endless.write(begin).expect("the beginning");
        let error = loop {
            match endless.stream().write(&[b'a'; 4096]) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
            assert!(sent < 1 << 20, "the service read a megabyte");
        };
        println!("closed after {sent} bytes: {error}");
        let more = resident(service.pid()).saturating_sub(memory);
        assert!(more < 4096, "{more} KiB more memory for an endless call");

        // A client that sent half a call earlier can complete it.
        half.write(&whole[whole.len() / 2..]).expect("the other half");
        assert_eq!(half.answer().expect("an answer")["parameters"]["pid"], service.pid());
    });
}

#[test]
fn one_user_holds_a_thousand_leases() {
    // Each lease needs a descriptor; the default limit is 1,024.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a higher limit");
    under_load(|_, service| {
        service.session(ROOT, async |control| {
            let is_one = |port| (20_000..21_000).contains(&port);
            let began = Instant::now();
            let mut sockets = Vec::new();
            for port in 20_000..21_000 {
                let socket =
                    crafter_tests::service::Socket::lease(&control, &lease_call("tcp", Some(port), None)).await;
                sockets.push(socket.unwrap_or_else(|error| panic!("lease {}: {error}", sockets.len())));
            }
            println!("1,000 leases in {:?}, {} KiB resident", began.elapsed(), resident(service.pid()));
            let all = ListLeasesCall { limit: Some(300), ..ListLeasesCall::default() };
            let (mut listed, mut after) = (0, None);
            loop {
                let page = control.call(&ListLeasesCall { after, ..all.clone() }).await.expect("a page");
                listed += page.leases.iter().filter(|lease| lease.first_port.is_some_and(is_one)).count();
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(listed, 1000);
            // Each of them works.
            for (port, socket) in (20_000..).zip(&sockets).step_by(111) {
                let (from, to) = (SocketAddr::new(CLIENT_V4.into(), port), SocketAddr::new(SERVER_V4.into(), 9));
                socket.send(&frame::Tcp::new(frame::SYN, 1, 0).ip(from, to)).expect("send");
                let message = socket.receive(REPLY_TIMEOUT).expect("the lease").expect("a RST");
                assert!(message.packet().is_some(), "{message:?}");
            }
            let began = Instant::now();
            drop(sockets);
            wait_for("the release of the leases", REPLY_TIMEOUT, || {
                service.leases().iter().all(|lease| !lease.first_port.is_some_and(is_one)).then_some(())
            });
            println!("all released after {:?}", began.elapsed());
        });
        // A user with a limit gets exactly that many leases, and as many again after releasing them.
        for _ in 0..2 {
            service.session(NOBODY, async |control| {
                let mut sockets = Vec::new();
                let refused = loop {
                    match crafter_tests::service::Socket::lease(&control, &lease_call("tcp", None, None)).await {
                        Ok(socket) => sockets.push(socket),
                        Err(error) => break error,
                    }
                    assert!(sockets.len() < 100);
                };
                assert_eq!(sockets.len(), 8);
                assert!(matches!(refused, Error::Forbidden { rule: Some(2), .. }), "{refused:?}");
            });
            wait_for("the release of nobody's leases", REPLY_TIMEOUT, || {
                service.leases().iter().all(|lease| lease.user == 0).then_some(())
            });
        }
    });
}

#[test]
fn client_that_never_reads_answers() {
    under_load(|_, service| {
        let memory = resident(service.pid());
        let describe =
            br#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.crafter.v1"}}"#;
        let describe = [&describe[..], b"\0"].concat();
        let not_reading: Vec<Raw> = (0..4).map(|_| call_without_end(service, &describe)).collect();
        // Another client leases without receiving the descriptors.
        let requested = raw::call("Lease", &json!({ "interface": "lab0", "protocol": "udp" }));
        let greedy = call_without_end(service, &requested);
        let held = service.leases().len();
        let more = resident(service.pid()).saturating_sub(memory);
        println!("{held} leases not received, {more} KiB more memory");
        assert!(more < 16 << 10, "{more} KiB more memory for clients that do not read");
        info(service);
        drop((not_reading, greedy));
    });
}

/// Sends calls until the service stops reading them, and reads no answer.
fn call_without_end(service: &Service, call: &[u8]) -> Raw {
    let mut client = Raw::connect(&service.socket);
    client.stream().set_nonblocking(true).expect("a socket that does not block");
    let (mut sent, mut latest) = (0, Instant::now());
    while latest.elapsed() < Duration::from_millis(300) {
        match client.stream().write(&call[sent % call.len()..]) {
            Ok(count) => (sent, latest) = (sent + count, Instant::now()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        assert!(sent < 16 << 20, "the service never stops reading calls");
    }
    client
}

#[test]
fn client_that_never_reads_packets() {
    under_load(|lab, service| {
        let port = 30_000;
        let slow = lease(service, ROOT, &lease_call("udp", Some(port), None)).expect("a lease");
        let quick = lease(service, ROOT, &lease_call("udp", Some(port + 1), None)).expect("a lease");
        let to = |port| SocketAddr::new(CLIENT_V4.into(), port);
        let peer =
            lab.server().run(|| UdpSocket::bind((SERVER_V4, 7000))).expect("enter the server").expect("a socket");
        let mut sent = 0_u64;
        for burst in 0..400 {
            for _ in 0..25 {
                peer.send_to(&[7; 1000], to(port)).expect("flood");
                sent += 1;
            }
            // Another lease of the same user receives each of its packets meanwhile.
            peer.send_to(&[burst as u8], to(port + 1)).expect("a datagram");
            std::thread::sleep(Duration::from_millis(1));
            let message = quick.receive(REPLY_TIMEOUT).expect("the lease").expect("its datagram");
            assert_eq!(
                (message.packet().and_then(|ip| ip.last().copied()), message.header.lost),
                (Some(burst as u8), 0)
            );
        }
        let listed = || {
            let leases = service.leases();
            leases.into_iter().find(|lease| lease.lease == slow.leased.lease).expect("the lease")
        };
        let lease = wait_for("the delivery of the flood", REPLY_TIMEOUT, || {
            Some(listed()).filter(|lease| lease.delivered + lease.lost == sent)
        });
        assert!(lease.lost > 0, "the lease's socket was never full: {lease:?}");
        let mut got = 0;
        while let Some(message) = slow.receive(Duration::from_millis(100)).expect("the lease") {
            got += 1;
            assert_eq!(message.packet().map(<[u8]>::len), Some(1028));
        }
        println!("{sent} sent to it, {got} kept, {} lost", lease.lost);
        assert_eq!(got, lease.delivered);
        assert_eq!(got + lease.lost, sent);
        assert_eq!(listed().lost, lease.lost);
        // The next message reports the number of lost packets.
        peer.send_to(&[9], to(port)).expect("a datagram");
        let next = slow.receive(REPLY_TIMEOUT).expect("the lease").expect("the next message");
        assert!(matches!(next.header.kind, Kind::Packet { .. }));
        assert_eq!(u64::from(next.header.lost), lease.lost);
    });
}

fn client(service: &Service, arguments: &[&str]) -> Holder {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_client"));
    command.arg(&service.socket).args(arguments);
    Holder::start(command.stderr(Stdio::inherit()))
}

/// Waits until `port` can be leased again after its owner has exited; returns how long that took.
fn time_until_free(service: &Service, port: u16) -> Duration {
    let began = Instant::now();
    wait_for("the port", REPLY_TIMEOUT, || match lease(service, ROOT, &lease_call("udp", Some(port), None)) {
        Ok(_) => Some(()),
        Err(Error::PortTaken { .. }) => None,
        Err(error) => panic!("{error}"),
    });
    began.elapsed()
}

/// Asserts that the median is below half a second: a busy machine causes outliers.
fn assert_soon(mut times: [Duration; 5]) {
    times.sort();
    assert!(times[2] < allow(Duration::from_millis(500)), "{times:?}");
}

#[test]
fn client_killed_while_sending() {
    under_load(|_, service| {
        let times = std::array::from_fn(|_| {
            let mut sender = client(service, &["flood"]);
            let port = sender.port;
            wait_for("1,000 sent packets", REPLY_TIMEOUT, || {
                service.leases().iter().any(|lease| lease.sent > 1000).then_some(())
            });
            sender.kill();
            let took = time_until_free(service, port);
            println!("killed: its port is free after {took:?}");
            took
        });
        assert_soon(times);
    });
}

#[test]
fn client_whose_child_keeps_the_descriptor() {
    under_load(|_, service| {
        let times = std::array::from_fn(|_| {
            let mut parent = client(service, &["fork"]);
            let port = parent.port;
            let child: i32 = parent.wait_for("child ").parse().expect("a process id");
            parent.kill();
            std::thread::sleep(Duration::from_millis(200));
            // Its child holds the descriptor, so the lease stays active.
            let taken = lease(service, ROOT, &lease_call("udp", Some(port), None)).map(drop);
            assert!(matches!(taken, Err(Error::PortTaken { .. })), "{taken:?}");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).expect("kill it");
            let took = time_until_free(service, port);
            println!("the last descriptor closed: the port is free after {took:?}");
            took
        });
        assert_soon(times);
    });
}

#[test]
fn clients_that_send_descriptors() {
    // As an unprivileged user: the kernel limits descriptors in flight per user (unix(7), ETOOMANYREFS).
    under_load(|_, service| {
        let before = descriptors(service.pid());
        let held = service.session(NOBODY, async |control| send_descriptors(service, &control).await);
        info(service);
        let more = descriptors(service.pid()).saturating_sub(before);
        assert!(more < 1000, "{more} descriptors of a client are kept");
        drop(held);
    });
}

/// Since Linux 6.16 the service refuses descriptors; before, they end the connection.
async fn send_descriptors(service: &Service, control: &Control) -> Vec<crafter_tests::service::Socket> {
    let null = std::fs::File::open("/dev/null").expect("a file");
    let many = vec![null.as_fd(); 200];
    let refused = |sent: std::io::Result<()>| match sent {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            true
        }
    };
    for _ in 0..100 {
        let mut client = Raw::connect(&service.socket);
        if !refused(client.write_with(&raw::call("Info", &json!({})), &many)) {
            assert!(client.answer().is_none(), "the connection ends");
        }
        // In the middle of a call that is never completed.
        let mut endless = Raw::connect(&service.socket);
        endless.write(b"{\"method\":\"").expect("a beginning");
        if !refused(endless.write_with(b"a", &many)) {
            assert!(endless.answer().is_none(), "the connection ends");
        }
    }
    let mut held = Vec::new();
    for _ in 0..5 {
        let socket = crafter_tests::service::Socket::lease(control, &lease_call("udp", None, None)).await;
        let socket = socket.expect("a lease");
        let port = socket.leased.first_port.expect("a port");
        let (from, to) = (SocketAddr::new(CLIENT_V4.into(), port), SocketAddr::new(SERVER_V4.into(), 9));
        let packet = frame::udp_ip(from, to, b"with descriptors");
        if refused(raw::send_with(socket.fd.as_raw_fd(), &packet, &many).map(drop)) {
            // Without them the lease still works.
            socket.send(&packet).expect("send");
            held.push(socket);
        } else {
            socket.receive(REPLY_TIMEOUT).expect_err("the lease ends");
        }
    }
    held
}

/// The connections of one user do not exhaust those of others.
#[test]
fn client_that_connects_endlessly() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let mut command = std::process::Command::new(service.place(env!("CARGO_BIN_EXE_client").as_ref()));
    command.arg(&service.socket).arg("connect");
    drop_to(&mut command, NOBODY);
    let mut many = Holder::start(&mut command);
    let opened: usize = many.wait_for("open ").parse().expect("a number");
    println!("{opened} connections of one user");
    let neighbour = Neighbour::start(lab.client(), &service.socket).finish();
    neighbour.assert_undisturbed();
    many.kill();
}

/// Closes a lease and at once requests the same port, or the only lease that its policy permits. It gets the lease in
/// whichever order the service sees the two events.
#[test]
fn client_that_closes_and_leases_at_once() {
    let _serial = Serial::begin();
    let lab = lab();
    for (more, port) in [("", 30_000), ("max_leases = 1\n", 30_001)] {
        let policy = format!("[[rule]]\nuser = 0\nprotocols = [\"any\"]\nports = [\"30000-30001\"]\n{more}");
        let service = Service::start(lab.client(), &policy);
        let mut control = Raw::connect(&service.socket);
        let wanted = json!({ "interface": INTERFACE, "protocol": "udp", "port": port });
        for round in 0..20 {
            let held = lease(&service, ROOT, &lease_call("udp", Some(30_000), None)).expect("a lease");
            service.signal(Signal::SIGSTOP);
            // The call is sent before the lease is closed.
            control.write(&raw::call("Lease", &wanted)).expect("send a call");
            drop(held);
            service.signal(Signal::SIGCONT);
            // The descriptor is not received, so the kernel closes it on arrival.
            let answer = control.answer().expect("an answer");
            assert!(answer["error"].is_null(), "round {round}, {more}: {answer}");
        }
    }
}
