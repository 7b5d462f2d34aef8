//! Clients that do harm, and one beside them that must not notice.

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
    service::{NOBODY, PATIENCE, ROOT, Service, drop_to},
    slow::allow,
    stage::lab,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use serde_json::json;

use super::{Neighbour, POLICY, at_rest, call, descriptors, lease, resident, service};

/// Does `harm` beside a client that behaves well; afterwards the service has what it had before.
fn beside(harm: impl FnOnce(&crafter::lab::Lab, &Service)) {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    // What is opened once and kept is open then.
    drop(lease(&service, ROOT, &call("udp", None, None)).expect("a lease"));
    let before = at_rest(&service);
    let neighbour = Neighbour::start(lab.client(), &service.socket);
    harm(&lab, &service);
    // It is served still, also by who comes now.
    drop(lease(&service, ROOT, &call("tcp", None, None)).expect("a lease"));
    neighbour.finish().assert_undisturbed();
    assert_eq!(at_rest(&service), before, "descriptors");
    assert!(service.leases().is_empty());
}

fn info(service: &Service) {
    let told = Raw::connect(&service.socket).call("Info", &json!({}));
    assert_eq!(told["parameters"]["pid"], service.pid(), "{told}");
}

#[test]
fn garbage_half_messages_and_calls_without_an_end() {
    beside(|_, service| {
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
            // It may be closed before the last byte.
            let _ = client.write(text);
            // What would be left open, as it may be the beginning of something.
            let _ = client.stream().shutdown(std::net::Shutdown::Write);
            let mut answers = 0;
            while let Some(answer) = client.answer() {
                assert!(answer["error"].is_string(), "{answer}");
                answers += 1;
            }
            assert!(answers <= 8);
            info(service);
        }
        // What is wrong with a whole call is told, and the connection stays.
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

        // A call of a megabyte that does not end: nobody listens to all of that.
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
            assert!(sent < 1 << 20, "it took a megabyte");
        };
        println!("closed after {sent} bytes: {error}");
        let more = resident(service.pid()).saturating_sub(memory);
        assert!(more < 4096, "{more} KiB more for a call without an end");

        // Who was slow is answered all the same.
        half.write(&whole[whole.len() / 2..]).expect("the other half");
        assert_eq!(half.answer().expect("an answer")["parameters"]["pid"], service.pid());
    });
}

#[test]
fn a_thousand_leases() {
    // A descriptor for each, of which a session has 1024 unless it asks for more.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a higher limit");
    beside(|_, service| {
        service.session(ROOT, async |control| {
            let is_one = |port| (20_000..21_000).contains(&port);
            let began = Instant::now();
            let mut sockets = Vec::new();
            for port in 20_000..21_000 {
                let socket = crafter_tests::service::Socket::lease(&control, &call("tcp", Some(port), None)).await;
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
                let message = socket.receive(PATIENCE).expect("the lease").expect("a RST");
                assert!(message.packet().is_some(), "{message:?}");
            }
            let began = Instant::now();
            drop(sockets);
            wait_for("the end of the leases", PATIENCE, || {
                service.leases().iter().all(|lease| !lease.first_port.is_some_and(is_one)).then_some(())
            });
            println!("all given back after {:?}", began.elapsed());
        });
        // Whom the policy limits gets what it says, and no more; what was given back can be had again.
        for _ in 0..2 {
            service.session(NOBODY, async |control| {
                let mut sockets = Vec::new();
                let refused = loop {
                    match crafter_tests::service::Socket::lease(&control, &call("tcp", None, None)).await {
                        Ok(socket) => sockets.push(socket),
                        Err(error) => break error,
                    }
                    assert!(sockets.len() < 100);
                };
                assert_eq!(sockets.len(), 8);
                assert!(matches!(refused, Error::Forbidden { rule: Some(2), .. }), "{refused:?}");
            });
            wait_for("the end of nobody's leases", PATIENCE, || {
                service.leases().iter().all(|lease| lease.user == 0).then_some(())
            });
        }
    });
}

#[test]
fn one_that_never_reads_what_it_is_answered() {
    beside(|_, service| {
        let memory = resident(service.pid());
        let describe =
            br#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.crafter.v1"}}"#;
        let describe = [&describe[..], b"\0"].concat();
        let deaf: Vec<Raw> = (0..4).map(|_| call_without_end(service, &describe)).collect();
        // And one that leases without ever taking its descriptors out.
        let wish = raw::call("Lease", &json!({ "interface": "lab0", "protocol": "udp" }));
        let greedy = call_without_end(service, &wish);
        let held = service.leases().len();
        let more = resident(service.pid()).saturating_sub(memory);
        println!("{held} leases that nobody takes, {more} KiB more");
        assert!(more < 16 << 10, "{more} KiB more for who does not read");
        info(service);
        drop((deaf, greedy));
    });
}

/// Calls until nobody takes it any more, and reads nothing.
fn call_without_end(service: &Service, call: &[u8]) -> Raw {
    let mut client = Raw::connect(&service.socket);
    client.stream().set_nonblocking(true).expect("a socket that does not block");
    let (mut sent, mut latest) = (0, Instant::now());
    while latest.elapsed() < Duration::from_millis(300) {
        match client.stream().write(&call[sent % call.len()..]) {
            Ok(count) => (sent, latest) = (sent + count, Instant::now()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        assert!(sent < 16 << 20, "its calls are read on and on");
    }
    client
}

#[test]
fn one_that_never_reads_its_packets() {
    beside(|lab, service| {
        let port = 30_000;
        let slow = lease(service, ROOT, &call("udp", Some(port), None)).expect("a lease");
        let quick = lease(service, ROOT, &call("udp", Some(port + 1), None)).expect("a lease");
        let to = |port| SocketAddr::new(CLIENT_V4.into(), port);
        let peer = lab.server().run(|| UdpSocket::bind((SERVER_V4, 7000))).expect("enter it").expect("a socket");
        let mut sent = 0_u64;
        for burst in 0..400 {
            for _ in 0..25 {
                peer.send_to(&[7; 1000], to(port)).expect("flood");
                sent += 1;
            }
            // The other lease of the same user gets each of its packets meanwhile.
            peer.send_to(&[burst as u8], to(port + 1)).expect("a datagram");
            std::thread::sleep(Duration::from_millis(1));
            let message = quick.receive(PATIENCE).expect("the lease").expect("its datagram");
            assert_eq!(
                (message.packet().and_then(|ip| ip.last().copied()), message.header.lost),
                (Some(burst as u8), 0)
            );
        }
        let listed = || {
            let leases = service.leases();
            leases.into_iter().find(|lease| lease.lease == slow.leased.lease).expect("the lease")
        };
        let told = wait_for("the end of the flood", PATIENCE, || Some(listed()).filter(|told| told.delivered == sent));
        assert!(told.lost > 0, "it has room for everything: {told:?}");
        let mut got = 0;
        while let Some(message) = slow.receive(Duration::from_millis(100)).expect("the lease") {
            got += 1;
            assert_eq!(message.packet().map(<[u8]>::len), Some(1028));
        }
        println!("{sent} sent to it, {got} kept, {} lost", told.lost);
        assert_eq!(got + told.lost, sent);
        assert_eq!(listed().lost, told.lost);
        // The next message says how many are missing.
        peer.send_to(&[9], to(port)).expect("a datagram");
        let next = slow.receive(PATIENCE).expect("the lease").expect("one more");
        assert!(matches!(next.header.kind, Kind::Packet { .. }));
        assert_eq!(u64::from(next.header.lost), told.lost);
    });
}

fn client(service: &Service, arguments: &[&str]) -> Holder {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_client"));
    command.arg(&service.socket).args(arguments);
    Holder::start(command.stderr(Stdio::inherit()))
}

/// How long until `port` can be leased again; the client whose it was has ended just now.
fn free_again(service: &Service, port: u16) -> Duration {
    let began = Instant::now();
    wait_for("the port", PATIENCE, || match lease(service, ROOT, &call("udp", Some(port), None)) {
        Ok(_) => Some(()),
        Err(Error::PortTaken { .. }) => None,
        Err(error) => panic!("{error}"),
    });
    began.elapsed()
}

/// Most of the times: a busy machine is late now and then.
fn assert_soon(mut times: [Duration; 5]) {
    times.sort();
    assert!(times[2] < allow(Duration::from_millis(500)), "{times:?}");
}

#[test]
fn one_that_dies_while_it_sends() {
    beside(|_, service| {
        let times = std::array::from_fn(|_| {
            let mut sender = client(service, &["flood"]);
            let port = sender.port;
            wait_for("its packets", PATIENCE, || service.leases().iter().any(|lease| lease.sent > 1000).then_some(()));
            sender.kill();
            let took = free_again(service, port);
            println!("killed: its port is free after {took:?}");
            took
        });
        assert_soon(times);
    });
}

#[test]
fn one_that_forks_and_keeps_the_descriptor() {
    beside(|_, service| {
        let times = std::array::from_fn(|_| {
            let mut parent = client(service, &["fork"]);
            let port = parent.port;
            let child: i32 = parent.wait_for("child ").parse().expect("a process id");
            parent.kill();
            std::thread::sleep(Duration::from_millis(200));
            // Its child has the descriptor, and so the lease: that goes on.
            let taken = lease(service, ROOT, &call("udp", Some(port), None)).map(drop);
            assert!(matches!(taken, Err(Error::PortTaken { .. })), "{taken:?}");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).expect("kill it");
            let took = free_again(service, port);
            println!("the last descriptor closed: the port is free after {took:?}");
            took
        });
        assert_soon(times);
    });
}

#[test]
fn ones_that_send_descriptors() {
    // As another user than the service's: the kernel counts descriptors under way by user (unix(7), ETOOMANYREFS).
    beside(|_, service| {
        let before = descriptors(service.pid());
        let held = service.session(NOBODY, async |control| send_descriptors(service, &control).await);
        info(service);
        let more = descriptors(service.pid()).saturating_sub(before);
        assert!(more < 1000, "{more} descriptors of a client are kept");
        drop(held);
    });
}

async fn send_descriptors(service: &Service, control: &Control) -> (Raw, crafter_tests::service::Socket) {
    let null = std::fs::File::open("/dev/null").expect("a file");
    let many = vec![null.as_fd(); 200];
    let mut client = Raw::connect(&service.socket);
    for _ in 0..100 {
        client.write_with(&raw::call("Info", &json!({})), &many).expect("a call with descriptors");
        assert!(client.answer().expect("an answer")["error"].is_null());
    }
    // In the middle of a call that does not end.
    let mut endless = Raw::connect(&service.socket);
    endless.write(b"{\"method\":\"").expect("a beginning");
    for _ in 0..500 {
        wait_for("room for descriptors", PATIENCE, || endless.write_with(b"a", &many).ok());
    }
    let socket = crafter_tests::service::Socket::lease(control, &call("udp", None, None)).await.expect("a lease");
    let port = socket.leased.first_port.expect("a port");
    let (from, to) = (SocketAddr::new(CLIENT_V4.into(), port), SocketAddr::new(SERVER_V4.into(), 9));
    let packet = frame::udp_ip(from, to, b"with descriptors");
    for _ in 0..100 {
        wait_for("room for descriptors", PATIENCE, || raw::send_with(socket.fd.as_raw_fd(), &packet, &many).ok());
    }
    let began = Instant::now();
    while control.call(&ListLeasesCall::default()).await.expect("the leases").leases.iter().all(|one| one.sent < 100) {
        assert!(began.elapsed() < PATIENCE, "the packets are not sent");
    }
    (endless, socket)
}

/// One user's connections are not all that there are.
#[test]
fn one_that_connects_without_end() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let mut command = std::process::Command::new(service.place(env!("CARGO_BIN_EXE_client").as_ref()));
    command.arg(&service.socket).arg("connect");
    drop_to(&mut command, NOBODY);
    let mut many = Holder::start(&mut command);
    let opened: usize = many.wait_for("open ").parse().expect("a number");
    println!("{opened} connections of one user");
    let told = Neighbour::start(lab.client(), &service.socket).finish();
    told.assert_undisturbed();
    many.kill();
}

/// Closes a lease and asks for another in the same breath: for the same port, or as the only one that the policy lets it
/// have. It has that, whichever of the two the service sees first.
#[test]
fn one_that_closes_and_takes_at_once() {
    let _serial = Serial::begin();
    let lab = lab();
    for (more, port) in [("", 30_000), ("max_leases = 1\n", 30_001)] {
        let policy = format!("[[rule]]\nuser = 0\nprotocols = [\"any\"]\nports = [\"30000-30001\"]\n{more}");
        let service = Service::start(lab.client(), &policy);
        let mut control = Raw::connect(&service.socket);
        let wanted = json!({ "interface": INTERFACE, "protocol": "udp", "port": port });
        for round in 0..20 {
            let held = lease(&service, ROOT, &call("udp", Some(30_000), None)).expect("a lease");
            service.signal(Signal::SIGSTOP);
            // The call first, which is seen first.
            control.write(&raw::call("Lease", &wanted)).expect("send a call");
            drop(held);
            service.signal(Signal::SIGCONT);
            // Its descriptor is not taken, and so closed as soon as it comes.
            let answer = control.answer().expect("an answer");
            assert!(answer["error"].is_null(), "round {round}, {more}: {answer}");
        }
    }
}
