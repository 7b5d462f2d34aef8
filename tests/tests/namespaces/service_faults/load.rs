//! Many clients at once: memory and descriptors stay constant, and every packet is accounted for.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crafter::{
    Crafter, LeaseRequest, StreamOptions,
    lab::{INTERFACE, Lab},
    protocol::{
        Control,
        wire::{Account, AccountCall, CountersCall, InterfaceCounters},
    },
    session::{Session, SessionOptions, SrOptions},
};
use crafter_tests::{
    block_on,
    leak::Serial,
    manual,
    peer::{Nginx, Page, wait_for},
    service::{REPLY_TIMEOUT, ROOT, Service, Socket},
    slow::bytes,
    testbed::{ENDS, lab},
};

use super::{at_rest, descriptors, lease, lease_call, number, packets, resident, service};

const CLIENTS: usize = 24;

/// Completed operations of all clients.
#[derive(Default, Debug)]
struct Done {
    answered: AtomicU64,
    pages: AtomicU64,
    leases: AtomicU64,
}

async fn run_client(number: usize, control: Arc<Control>, stop: &AtomicBool, page: &Page, done: &Done) {
    let remote = SocketAddr::new(ENDS[number / 3 % 2].1, 80);
    match number % 3 {
        0 => {
            let session = Session::new(SessionOptions { service: Some(control), ..SessionOptions::default() });
            let server = if remote.is_ipv4() { "IP(dst=\"192.0.2.1\")" } else { "IPv6(dst=\"2001:db8::1\")" };
            let request = packets(&format!(r#"{server}/TCP(dport=9, flags="S")"#)).remove(0);
            let options = SrOptions { timeout: REPLY_TIMEOUT, ..SrOptions::default() };
            while !stop.load(Ordering::Relaxed) {
                let reply = session.sr1(request.clone(), &options).await.expect("sr1");
                assert!(reply.is_some(), "client {number}: no answer");
                done.answered.fetch_add(1, Ordering::Relaxed);
            }
            session.close().await;
        }
        1 => {
            let crafter = Crafter::via_service(control, INTERFACE).await.expect("the interface");
            while !stop.load(Ordering::Relaxed) {
                let stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, StreamOptions::default());
                let mut stream = stream.await;
                assert_eq!(manual::download(&mut stream, page.path).await, (page.length, page.sha256));
                manual::close(&mut stream).await;
                done.pages.fetch_add(1, Ordering::Relaxed);
            }
            crafter.close(REPLY_TIMEOUT).await;
        }
        _ => {
            while !stop.load(Ordering::Relaxed) {
                let socket = Socket::lease(&control, &lease_call("tcp", None, None)).await.expect("a lease");
                drop(socket);
                done.leases.fetch_add(1, Ordering::Relaxed);
                // Limits the leases to some hundred per second, so that the other clients get CPU time.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

fn counters(service: &Service) -> InterfaceCounters {
    service.session(ROOT, async |control| {
        let counted = control.call(&CountersCall { interface: Some(INTERFACE.to_owned()) }).await;
        counted.expect("the counters").interfaces.remove(0)
    })
}

fn run(lab: &Lab, service: &Service, page: &Page, time: Duration, done: &Done) -> (Vec<Account>, [u64; 2]) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let stop = &stop;
                let work = async move || {
                    let control = Arc::new(Control::connect(&service.socket).await.expect("connect"));
                    run_client(number, control.clone(), stop, page, done).await;
                    // Waits until the counts of a lease that was just closed are final.
                    let mut account = Account::default();
                    loop {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        let now = control.call(&AccountCall {}).await.expect("the account");
                        if now == account {
                            return account;
                        }
                        account = now;
                    }
                };
                scope.spawn(move || lab.client().run(|| block_on(work())).expect("enter the namespace"))
            })
            .collect();
        // Memory is stable after a third of the time.
        std::thread::sleep(time / 3);
        let warm = resident(service.pid());
        std::thread::sleep(time * 2 / 3);
        let late = resident(service.pid());
        stop.store(true, Ordering::Relaxed);
        let accounts = clients.into_iter().map(|client| client.join().expect("a client")).collect();
        (accounts, [warm, late])
    })
}

#[test]
fn every_packet_of_many_clients_is_accounted_for() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let service = service(&lab);
    drop(lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease"));
    let before = at_rest(&service);
    let time = Duration::from_secs(number("CRAFTER_TEST_SECONDS", 15));
    // Stays attached, so that the kernel half counts all packets.
    let held = lease(&service, ROOT, &lease_call("none", None, None)).expect("a lease");
    let began = Instant::now();
    let done = Done::default();
    let (accounts, [warm, late]) = run(&lab, &service, &nginx.small, time, &done);
    println!("{CLIENTS} clients, {:?}: {done:?}; {warm} KiB resident, later {late}", began.elapsed());
    let mut sum = Account::default();
    for account in &accounts {
        sum.sent += account.sent;
        sum.not_sent += account.not_sent;
        sum.refused += account.refused;
        sum.delivered += account.delivered;
        sum.lost += account.lost;
        sum.suppressed += account.suppressed;
    }
    let counted = counters(&service);
    let count = |names: &[&str]| names.iter().map(|name| counted.counters[*name]).sum::<u64>();
    println!("clients {sum:?}\nkernel {:?}", counted.counters);
    // The kernel half's counts equal the sums of the clients' accounts.
    assert_eq!(count(&["crafted"]), sum.sent);
    assert_eq!((sum.refused, sum.not_sent, sum.lost), (0, 0, 0), "{sum:?}");
    assert_eq!(count(&["delivery_full"]), 0);
    let delivered = count(&["redirected", "copied", "observed"]);
    // A packet that arrives while its port is being released is counted by the kernel half but delivered to no client.
    let stray = delivered.checked_sub(sum.delivered).expect("the clients received more than the kernel half delivered");
    println!("{delivered} delivered, {stray} of them to ports released meanwhile");
    assert!(stray * 10_000 <= delivered, "{stray} of {delivered} packets were lost");
    let enough = bytes(100);
    assert!(done.answered.load(Ordering::Relaxed) > enough && done.pages.load(Ordering::Relaxed) > enough, "{done:?}");
    assert!(done.leases.load(Ordering::Relaxed) > enough, "{done:?}");
    assert!(late <= warm + warm / 10 + 512, "memory grows: {warm} KiB, later {late}");
    drop(held);
    wait_for("the release of all leases", REPLY_TIMEOUT, || service.leases().is_empty().then_some(()));
    assert_eq!(at_rest(&service), before, "descriptors");
    println!("at rest {} KiB resident, {} descriptors", resident(service.pid()), descriptors(service.pid()));
}
