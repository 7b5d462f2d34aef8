//! Isolation of users: exclusive ports, separate packets, and no information about leases of others.

use std::{
    net::SocketAddr,
    sync::mpsc,
    time::{Duration, Instant},
};

use crafter::{
    Error,
    datapath::{
        frames::{FrameSender, Outlet},
        interface::interface,
    },
    lab::{CLIENT_V4, INTERFACE, SERVER_V4},
    protocol::wire::{
        CountersCall, InterfacesCall, LeaseCall, ListFlowsCall, ListLeasesCall, MonitorCall, ReleaseCall, ReloadCall,
    },
};
use crafter_tests::{
    foreign::drop_all,
    frame::{self, ACK, RST, SYN, Tcp},
    leak::Parallel,
    peer::wait_for,
    service::{Credentials, REPLY_TIMEOUT, Service, Socket},
    testbed::lab,
    wire::mac,
    within,
};

use super::{OBSERVER, ONE, POLICY, TWO, Tenant, udp};

#[test]
fn ports_are_exclusive_between_users() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let tenant = Tenant::start(&service, ONE, "udp", 50_010, 50_019, &[]);
    service.session(TWO, async |control| {
        for (first, last) in [(50_010, 50_010), (50_019, 50_019), (50_000, 50_010), (50_019, 50_030), (50_012, 50_013)]
        {
            let call = LeaseCall { last_port: Some(last), ..udp(first) };
            let error = Socket::lease(&control, &call).await.map(drop).expect_err("ports of another user");
            // The error names neither the other user, nor the lease, nor its process.
            let Error::PortTaken { protocol: "UDP", port, holder: None, .. } = &error else {
                panic!("{first}-{last}: {error:?}")
            };
            assert!((50_010..=50_019).contains(port), "{error}");
        }
        // Ports reserved before the refusal of a range are released, and adjacent ports are free.
        for (first, last) in [(50_000, 50_009), (50_020, 50_030)] {
            let call = LeaseCall { last_port: Some(last), ..udp(first) };
            Socket::lease(&control, &call).await.expect("free ports");
        }
        // The same port numbers of another protocol are free.
        let tcp = LeaseCall { protocol: "tcp".to_owned(), last_port: Some(50_019), ..udp(50_010) };
        Socket::lease(&control, &tcp).await.expect("the ports of TCP");
    });
    service.session(ONE, async |control| {
        let error = Socket::lease(&control, &udp(50_010)).await.map(drop).expect_err("a port of another lease");
        let Error::PortTaken { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
        assert_eq!(*holder, format!("your lease {}", tenant.lease));
    });
    assert_eq!(tenant.end(), [0; 4]);
    service.session(TWO, async |control| {
        let deadline = Instant::now() + REPLY_TIMEOUT;
        while let Err(error) = Socket::lease(&control, &udp(50_010)).await {
            assert!(matches!(error, Error::PortTaken { .. }) && Instant::now() < deadline, "{error}");
        }
    });
}

/// The XDP hook is held by a process of root, whom the notes do not name to other users.
#[test]
fn notes_do_not_name_the_holder_of_a_hook() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let foreign = lab.client().run(|| drop_all(INTERFACE)).expect("enter the client").expect("the hook is free");
    let (leased, listed) = service.session(ONE, async |control| {
        let leased = Socket::lease(&control, &udp(50_010)).await.expect("a lease").leased.notes.clone();
        let name = Some(INTERFACE.to_owned());
        let mut found = control.call(&InterfacesCall { name }).await.expect("the interface").interfaces;
        (leased, found.remove(0).notes)
    });
    let expected = format!("native XDP not used: the XDP hook of {INTERFACE} is taken by another program");
    assert!(leased.contains(&expected), "{leased:?}");
    for note in leased.iter().chain(&listed) {
        assert!(!note.contains("pid") && !note.contains("(id"), "{note}");
    }
    drop(foreign);
}

/// Number of packets sent.
const MILLION: u64 = 1_000_000;

/// Maximum number of packets in flight such that no queue of the kernel overflows: half of the frames of the service's
/// AF_XDP sockets. If other programs of root have locked memory, there are fewer frames, as a note says.
pub(super) fn in_flight_limit(service: &Service) -> u64 {
    let notes = service.session(OBSERVER, async |control| {
        let name = Some(INTERFACE.to_owned());
        control.call(&InterfacesCall { name }).await.expect("the interface").interfaces.remove(0).notes
    });
    let frames =
        notes.iter().find_map(|note| note.strip_prefix("AF_XDP with ")?.split(' ').next()?.parse::<u64>().ok());
    println!("{notes:?}");
    frames.unwrap_or(8192) / 2
}

#[test]
fn no_packet_reaches_another_user() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    // Each user owns the ports that the other user owns for the other protocol.
    let tenants = [(ONE, "udp", 50_000), (ONE, "tcp", 50_008), (TWO, "udp", 50_008), (TWO, "tcp", 50_000)];
    let running = tenants
        .map(|(credentials, protocol, first)| Tenant::start(&service, credentials, protocol, first, first + 7, &[]));
    let client = lab.client().run(|| mac(INTERFACE)).expect("enter the client");
    let frames: Vec<Vec<u8>> = (0..4096_u16).map(|number| answer(client, number)).collect();
    let in_flight = in_flight_limit(&service);
    let began = Instant::now();
    let per_lease = || {
        let leases = service.leases();
        running.each_ref().map(|tenant| {
            let lease = leases.iter().find(|lease| lease.lease == tenant.lease).expect("the lease");
            (lease.delivered, lease.lost)
        })
    };
    let per_lease = within(lab.server(), async || {
        let link = interface(INTERFACE).await.expect("the interface");
        let mut sender = FrameSender::open(&link, Outlet::Direct).expect("a sender");
        while sender.sent() < MILLION {
            let from = (sender.sent() % 4096) as usize;
            let count = (4096 - from).min(in_flight as usize / 4).min((MILLION - sender.sent()) as usize);
            sender.send(&frames[from..from + count]).expect("send");
            let until =
                sender.sent().saturating_sub(if sender.sent() < MILLION { in_flight - in_flight / 4 } else { 0 });
            wait_for("the delivery of the sent packets", Duration::from_secs(30), || {
                let arrived: u64 = per_lease().iter().map(|(delivered, lost)| delivered + lost).sum();
                (arrived >= until).then_some(())
            });
        }
        assert_eq!((sender.sent(), sender.refused()), (MILLION, 0));
        per_lease()
    });
    let took = began.elapsed();
    let (hooks, link) = service.session(OBSERVER, async |control| {
        let mut counters = control.call(&CountersCall::default()).await.expect("the counters");
        let name = Some(INTERFACE.to_owned());
        let mut links = control.call(&InterfacesCall { name }).await.expect("the interface");
        (counters.interfaces.remove(0), links.interfaces.remove(0))
    });
    let counter = |name: &str| hooks.counters[name];
    let ends = running.map(Tenant::end);
    println!("{MILLION} packets in {took:?}, {:?}, {:?}: {:?}", link.mode, link.notes, hooks.counters);
    println!("read, crossed, other, lost: {ends:?}");

    for ((delivered, lost), [read, crossed, other, reported_lost]) in per_lease.into_iter().zip(ends) {
        assert_eq!((crossed, other), (0, 0));
        assert_eq!((delivered, lost), (read, reported_lost), "delivered packets are read");
        // Half of the packets of each protocol went to each user.
        assert_eq!(delivered + lost, MILLION / 4);
        assert!(read > 0);
    }
    assert_eq!(counter("redirected") + counter("copied"), MILLION);
    assert_eq!(counter("delivery_full") + counter("rst_suppressed"), 0);
}

/// A datagram or segment from a server to one of 16 ports, with port and protocol repeated in the payload.
fn answer(client: [u8; 6], number: u16) -> Vec<u8> {
    let port = 50_000 + number / 2 % 16;
    let (from, to) = (SocketAddr::new(SERVER_V4.into(), 1000 + number), SocketAddr::new(CLIENT_V4.into(), port));
    let protocol = if number.is_multiple_of(2) { frame::UDP } else { frame::TCP };
    let payload = [&port.to_be_bytes()[..], &[protocol], &number.to_be_bytes()].concat();
    let packet = match protocol {
        frame::UDP => frame::udp_ip(from, to, &payload),
        _ => Tcp::new([SYN | ACK, RST, ACK][usize::from(number % 3)], 1, 1).with(&payload).ip(from, to),
    };
    let mut frame = frame::framed(&packet);
    frame[..6].copy_from_slice(&client);
    frame
}

#[test]
fn user_sees_only_own_leases_and_flows() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let tenants = [(ONE, 50_000), (TWO, 50_001)]
        .map(|(credentials, port)| (credentials, Tenant::start(&service, credentials, "udp", port, port, &[])));
    let client = lab.client().run(|| mac(INTERFACE)).expect("enter the client");
    let frames = [0, 2].map(|number| answer(client, number));
    within(lab.server(), async || {
        let link = interface(INTERFACE).await.expect("the interface");
        FrameSender::open(&link, Outlet::Direct).expect("a sender").send(&frames).expect("send");
    });
    wait_for("both packets", REPLY_TIMEOUT, || {
        let leases = service.leases();
        (leases.iter().map(|lease| lease.delivered).sum::<u64>() == 2).then_some(())
    });
    let everything = service.session(OBSERVER, async |control| {
        let leases = control.call(&ListLeasesCall::default()).await.expect("leases").leases;
        let flows = control.call(&ListFlowsCall::default()).await.expect("flows").flows;
        (leases.iter().map(|lease| lease.user).collect::<Vec<_>>(), flows.len())
    });
    assert_eq!(everything, (vec![71_001, 71_002], 2));
    for (at, (credentials, tenant)) in tenants.iter().enumerate() {
        let other = tenants[1 - at].1.lease;
        service.session(*credentials, async |control| {
            // With every combination of parameters.
            for mine in [None, Some(false), Some(true)] {
                for after in [None, Some(0)] {
                    let call = ListLeasesCall { mine, after, ..ListLeasesCall::default() };
                    let leases = control.call(&call).await.expect("leases").leases;
                    assert_eq!(leases.iter().map(|lease| lease.lease).collect::<Vec<_>>(), [tenant.lease]);
                }
            }
            let flows = control.call(&ListFlowsCall::default()).await.expect("flows").flows;
            let local = format!("{CLIENT_V4}:{}", 50_000 + at);
            assert_eq!(flows.iter().map(|flow| flow.local.as_str()).collect::<Vec<_>>(), [local]);
            let port = Some(50_001 - at as u64);
            let theirs = control.call(&ListFlowsCall { port, ..ListFlowsCall::default() }).await.expect("flows").flows;
            assert_eq!(theirs, []);
            // The error does not reveal whether the lease exists.
            let [theirs, none] = [other, 999_999].map(|lease| ReleaseCall { lease });
            let refused = control.call(&theirs).await.expect_err("another's lease").to_string();
            let unknown = control.call(&none).await.expect_err("no lease").to_string();
            assert_eq!(refused.replace(&other.to_string(), "N"), unknown.replace("999999", "N"));
            let error = control.call(&ReloadCall {}).await.expect_err("reload");
            assert!(matches!(error, Error::Forbidden { rule: None, .. }), "{error:?}");
        });
    }
    // The permission to observe does not include other users' leases.
    let error = service.session(OBSERVER, async |control| {
        control.call(&ReleaseCall { lease: tenants[0].1.lease }).await.expect_err("another's lease")
    });
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    assert_eq!(
        service.session(OBSERVER, async |control| control.call(&ListLeasesCall::default()).await.unwrap().leases.len()),
        2
    );
    for (_, tenant) in tenants {
        assert_eq!(tenant.end(), [1, 0, 0, 0]);
    }
}

/// Event names and users that Monitor reports to `credentials` while all users acquire and release leases.
fn monitored(service: &Service, credentials: Credentials) -> Vec<(String, u32)> {
    std::thread::scope(|scope| {
        let (listens, is_listening) = mpsc::channel();
        let watching = scope.spawn(move || {
            service.session(credentials, async |control| {
                let mut events = Vec::new();
                let mut replies = control.subscribe(&MonitorCall { interval_ms: Some(100) }).await.expect("monitor");
                let deadline = tokio::time::Instant::now() + REPLY_TIMEOUT;
                loop {
                    let next = tokio::time::timeout_at(deadline, replies.next()).await.expect("events in time");
                    let _ = listens.send(());
                    for event in next.expect("the service").expect("more events").events {
                        let Some(user) = event.user else { continue };
                        let is_last = event.event == "lease-ended" && event.first_port == Some(50_500);
                        events.push((event.event, user));
                        if is_last {
                            return events;
                        }
                    }
                }
            })
        });
        is_listening.recv_timeout(REPLY_TIMEOUT).expect("a subscription");
        for (credentials, port) in [(ONE, 50_001), (TWO, 50_002), (ONE, 50_003), (TWO, 50_004)] {
            assert_eq!(Tenant::start(service, credentials, "udp", port, port, &[]).end(), [0; 4]);
        }
        // The last lease belongs to the monitoring user.
        assert_eq!(Tenant::start(service, credentials, "udp", 50_500, 50_500, &[]).end(), [0; 4]);
        watching.join().expect("the watcher")
    })
}

#[test]
fn monitor_reports_only_own_events() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    for credentials in [ONE, TWO] {
        let events = monitored(&service, credentials);
        assert_eq!(events.len(), 6, "three own leases begin and end: {events:?}");
        assert!(events.iter().all(|(_, user)| *user == credentials.user), "{events:?}");
    }
    let all = monitored(&service, OBSERVER);
    for credentials in [ONE, TWO, OBSERVER] {
        assert!(all.iter().any(|(_, user)| *user == credentials.user), "{all:?}");
    }
}
