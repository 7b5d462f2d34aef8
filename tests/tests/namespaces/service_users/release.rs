//! Release of ports: when a lease is closed, its owner is killed, or a child that inherited the descriptor exits.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::mpsc,
    time::{Duration, Instant},
};

use crafter::lab::NetNs;
use crafter_tests::{
    leak::Parallel,
    service::{REPLY_TIMEOUT, Service, Socket},
    testbed::lab,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{ONE, POLICY, TWO, Tenant, udp};

/// Limit of the median time until a port is free.
const RELEASE_LIMIT: Duration = Duration::from_millis(100);

/// Runs `end`, which releases a leased port, and returns how long it takes until the port can be bound.
fn time_until_free(namespace: &NetNs, port: u16, end: impl FnOnce() + Send) -> Duration {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    let work = || {
        bind().expect_err("it is leased");
        let began = Instant::now();
        end();
        while bind().is_err() {
            assert!(began.elapsed() < REPLY_TIMEOUT, "port {port} was not released");
            std::thread::sleep(Duration::from_micros(200));
        }
        began.elapsed()
    };
    namespace.run(work).expect("enter the namespace")
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("a signal");
}

fn assert_median(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("free again after {what}: median {:?}, longest {:?}", times[times.len() / 2], times[times.len() - 1]);
    // Other programs may occupy the CPUs at times, so only the median is limited.
    assert!(times[times.len() / 2] < RELEASE_LIMIT, "{what}: {times:?}");
}

#[test]
fn ports_are_released_at_once() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let stays = Tenant::start(&service, TWO, "udp", 51_000, 51_000, &[]);

    // The lease is closed while the control connection stays open.
    let (send, receive) = mpsc::channel::<mpsc::Sender<()>>();
    let closed = std::thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let service = &service;
        scope.spawn(move || {
            service.session(ONE, async move |control| {
                for _ in 0..20 {
                    receive.recv().expect("the test").send(()).expect("the test");
                    let socket = Socket::lease(&control, &udp(50_000)).await.expect("a lease");
                    ready.send(()).expect("the test");
                    let done = receive.recv().expect("the test");
                    drop(socket);
                    done.send(()).expect("the test");
                }
            });
        });
        let signal_client = || {
            let (done, is_done) = mpsc::channel();
            send.send(done).expect("the client");
            is_done.recv().expect("the client");
        };
        let close = |_| {
            signal_client();
            is_ready.recv_timeout(REPLY_TIMEOUT).expect("a lease");
            time_until_free(lab.client(), 50_000, signal_client)
        };
        (0..20).map(close).collect()
    });
    assert_median("close", closed);

    let killed = |_| {
        let tenant = Tenant::start(&service, ONE, "udp", 50_000, 50_059, &[]);
        time_until_free(lab.client(), 50_059, || signal(tenant.process.id(), Signal::SIGKILL))
    };
    assert_median("SIGKILL", (0..20).map(killed).collect());

    // A child inherits the descriptor.
    let inherited = |_| {
        let mut tenant = Tenant::start(&service, ONE, "udp", 50_000, 50_000, &["inherit"]);
        let child: u32 = tenant.read_line("child ").parse().expect("a process");
        tenant.process.kill();
        std::thread::sleep(Duration::from_millis(300));
        let held = service.leases();
        assert!(held.iter().any(|lease| lease.lease == tenant.lease), "the child's lease: {held:?}");
        time_until_free(lab.client(), 50_000, || signal(child, Signal::SIGKILL))
    };
    assert_median("the end of a child that inherited it", (0..5).map(inherited).collect());

    let left = service.leases();
    // The lease of the other user is still active.
    assert_eq!(left.iter().map(|lease| lease.lease).collect::<Vec<_>>(), [stays.lease]);
    assert_eq!(stays.end(), [0; 4]);
}
