//! Kills the service at random moments under load, many times.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crafter::{
    Crafter, Error, LeaseRequest,
    lab::{CLIENT_V4, INTERFACE, Lab, NetNs},
    protocol::Control,
    session::{Session, SessionOptions, SrOptions},
};
use crafter_tests::{
    block_on,
    leak::{BpfObjects, Serial, attached, has_tcx},
    peer::wait_for,
    random::Rng,
    service::REPLY_TIMEOUT,
    slow::allow,
    testbed::{assert_refuses, lab},
};
use nix::sys::signal::Signal;

use super::{number, packets, service};

/// The source port of the client that sends and receives.
const STEADY: u16 = 30_000;
/// The ports that are leased and released repeatedly.
const CHURNED: [u16; 3] = [31_000, 31_001, 31_002];

/// Runs a client on a thread; returns the thread, which yields the client's final error, and its count of operations.
fn client<F: Future<Output = Error>>(
    lab: &Lab,
    socket: &Path,
    work: impl FnOnce(Arc<Control>, Arc<AtomicU64>) -> F + Send + 'static,
) -> (JoinHandle<(Error, Instant)>, Arc<AtomicU64>) {
    let namespace: NetNs = lab.client().try_clone().expect("the namespace");
    let (socket, done) = (socket.to_owned(), Arc::new(AtomicU64::new(0)));
    let count = done.clone();
    let thread = std::thread::spawn(move || {
        let work = || {
            block_on(async {
                let error = match Control::connect(&socket).await {
                    Ok(control) => work(Arc::new(control), count).await,
                    Err(error) => error,
                };
                (error, Instant::now())
            })
        };
        namespace.run(work).expect("enter the namespace")
    });
    (thread, done)
}

/// Sends and receives until an error occurs.
async fn converse(control: Arc<Control>, done: Arc<AtomicU64>) -> Error {
    let session = Session::new(SessionOptions { service: Some(control), ..SessionOptions::default() });
    let requests = format!(r#"IP(dst="192.0.2.1")/TCP(sport={STEADY}, dport=(1000,1015), flags="S")"#);
    let requests = packets(&requests);
    let options = SrOptions { timeout: Duration::from_secs(2), ..SrOptions::default() };
    loop {
        match session.sr(requests.iter().cloned(), &options).await {
            Ok(exchanged) => done.fetch_add(exchanged.account.answered, Ordering::Relaxed),
            Err(error) => return error,
        };
    }
}

/// Acquires and releases leases until an error occurs.
async fn churn(control: Arc<Control>, done: Arc<AtomicU64>) -> Error {
    let crafter = match Crafter::via_service(control, INTERFACE).await {
        Ok(crafter) => crafter,
        Err(error) => return error,
    };
    loop {
        for port in CHURNED {
            for request in [LeaseRequest::tcp(), LeaseRequest::udp()] {
                match crafter.lease(request.port(port)).await {
                    Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                    Err(error) => return error,
                };
            }
        }
    }
}

/// Whether the kernel's own sockets can bind all the ports.
fn are_free(lab: &Lab) -> bool {
    let is_free = || {
        let mut ports = CHURNED.iter().chain([&STEADY]);
        ports.all(|port| {
            ["0.0.0.0", "::"].iter().all(|any| {
                let at = SocketAddr::new(any.parse().expect("an address"), *port);
                TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok()
            })
        })
    };
    lab.client().run(is_free).expect("enter the namespace")
}

/// Child processes of a process.
fn children(pid: u32) -> Vec<u32> {
    let of = |text: String| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    threads.flat_map(|thread| fs::read_to_string(thread.path().join("children")).map(of).unwrap_or_default()).collect()
}

#[test]
fn sigkill_under_load_releases_everything() {
    let _serial = Serial::begin();
    let lab = lab();
    let kills = number("CRAFTER_TEST_KILLS", 20);
    let began = Instant::now();
    let mut service = service(&lab);
    let (mut slowest, mut answered, mut leased, mut with_objects) = (Duration::ZERO, 0, 0, 0);
    // Seeded by the process id, so that each run has other moments.
    let mut random = Rng::new(std::process::id().into());
    let mut late = 0;
    for round in 0..kills {
        let (conversing, answers) = client(&lab, &service.socket, converse);
        let (churning, leases) = client(&lab, &service.socket, churn);
        // The moment is between before the service attaches and long after it; every second time there is load already.
        if round % 2 == 1 {
            wait_for("load", REPLY_TIMEOUT, || {
                (answers.load(Ordering::Relaxed) > 4 && leases.load(Ordering::Relaxed) > 4).then_some(())
            });
        }
        let moment = allow(Duration::from_millis(random.below(500) as u64));
        std::thread::sleep(moment);
        // Stopped, so that its objects can be listed before it is killed.
        service.signal(Signal::SIGSTOP);
        let objects = BpfObjects::of(service.pid());
        let children = children(service.pid());
        // Without tcx it has a guard process.
        assert!(children.len() <= usize::from(!has_tcx()), "round {round}: {children:?}");
        let pid = service.pid();
        let killed = Instant::now();
        service.kill();
        wait_for("the removal of its hooks", REPLY_TIMEOUT, || {
            attached(lab.client(), INTERFACE).is_empty().then_some(())
        });
        wait_for("the release of its ports", REPLY_TIMEOUT, || are_free(&lab).then_some(()));
        // Positive control: the kernel refuses connections to these ports as usual.
        for port in CHURNED.iter().chain([&STEADY]) {
            assert_refuses(&lab, SocketAddr::new(CLIENT_V4.into(), *port));
        }
        let took = killed.elapsed();
        // A busy machine causes outliers.
        if took >= allow(Duration::from_secs(1)) {
            println!("round {round}, after {moment:?}: released only after {took:?}");
            late += 1;
        }
        objects.wait_until_freed(REPLY_TIMEOUT);
        slowest = slowest.max(killed.elapsed());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        for (client, what) in [(conversing, "conversing"), (churning, "leasing")] {
            let (error, ended) = client.join().expect("a client");
            let delay = ended.saturating_duration_since(killed);
            assert!(delay < allow(Duration::from_secs(10)), "{what}: got the error only after {delay:?}");
            assert!(
                matches!(error, Error::Service { .. } | Error::NoService { .. }),
                "round {round}, {what}: {error:?}"
            );
        }
        answered += answers.load(Ordering::Relaxed);
        leased += leases.load(Ordering::Relaxed);
        with_objects += u64::from(!objects.is_empty());
        // A stale socket of the killed service must not prevent a restart.
        assert!(service.socket.exists(), "no stale socket is left to test");
        service.restart();
        assert!(service.leases().is_empty());
    }
    println!(
        "{kills} kills in {:?}: {answered} answers and {leased} leases before, {with_objects} times attached, all released \
         after {slowest:?} at most",
        began.elapsed()
    );
    assert!(late <= kills / 4, "released later than after a second in {late} of {kills} rounds");
    assert!(answered > kills && leased > kills && with_objects >= kills / 2, "there was no load");
    assert_eq!(service.stop(), Some(0));
    assert!(!service.socket.exists(), "an orderly exit must remove the socket");
}
