//! Clients that send to, or look up, neighbours that do not exist: the kernel's neighbour table, the service's memory
//! and descriptors, and the lookups of other users are not affected.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crafter::{
    lab::{CLIENT_V6, INTERFACE, NetNs},
    policy::Verdict,
    protocol::{record::Code, wire::ListLeasesCall},
};
use crafter_tests::{
    frame::icmp_query,
    leak::Serial,
    peer::wait_for,
    raw::Raw,
    service::{Credentials, NOBODY, REPLY_TIMEOUT, ROOT, Service},
    testbed::{self, lab},
};
use serde_json::{Value, json};

use super::{Neighbour, POLICY, at_rest, lease, lease_call, resident, service};

/// Entries of the kernel's neighbour tables that the service creates at most: half of the default of `gc_thresh1`.
const MOST_ENTRIES: usize = 64;

/// The addresses in the neighbour tables of a namespace, whatever the state of their entries.
fn neighbours(namespace: &NetNs) -> BTreeSet<String> {
    let list = |version| testbed::run(namespace.command("ip").args([version, "neigh", "show", "nud", "all"]));
    let text = [list("-4"), list("-6")].concat();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// An absent neighbour on the lab's network.
fn absent(number: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0xdead, number).into()
}

/// The entries of [`absent`] neighbours and of the groups to which solicitations for them are sent, and of IPv4
/// neighbours that do not exist.
fn absent_ones(namespace: &NetNs) -> Vec<String> {
    let prefixes = ["2001:db8::dead:", "ff02::1:ffad:", "192.0.2.77", "192.0.2.2"];
    let is_absent = |known: &String| prefixes.iter().any(|prefix| known.starts_with(prefix)) && known != "192.0.2.2";
    neighbours(namespace).into_iter().filter(is_absent).collect()
}

/// Number of netlink sockets of a process.
fn netlink_sockets(pid: u32) -> usize {
    let table = fs::read_to_string(format!("/proc/{pid}/net/netlink")).expect("the netlink sockets of its namespace");
    let inodes: BTreeSet<&str> = table.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let own = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
    let links = own.filter_map(|entry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok());
    links
        .filter(|link| link.strip_prefix("socket:[").is_some_and(|end| inodes.contains(end.trim_end_matches(']'))))
        .count()
}

/// Watches, until the returned closure is called, the largest number of neighbour entries and of netlink sockets.
fn watch(namespace: &NetNs, pid: u32) -> impl FnOnce() -> [usize; 2] + use<> {
    let namespace = namespace.try_clone().expect("the namespace");
    let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicUsize::new(0) }; 2]));
    let (until, seen) = (stop.clone(), most.clone());
    let thread = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            seen[0].fetch_max(neighbours(&namespace).len(), Ordering::Relaxed);
            seen[1].fetch_max(netlink_sockets(pid), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    move || {
        stop.store(true, Ordering::Relaxed);
        thread.join().expect("the watch");
        [0, 1].map(|at| most[at].load(Ordering::Relaxed))
    }
}

/// Sends echoes to thousands of absent neighbours: they cost a bounded number of entries and descriptors and a bounded
/// amount of memory, each is reported to the client, and another user is not disturbed.
#[test]
fn echoes_to_absent_neighbours_cost_little() {
    const ECHOES: u16 = 4000;
    let _serial = Serial::begin();
    let lab = lab();
    let unlimited = "max_leases = 8\npackets_per_second = \"unlimited\"\nmax_flows = \"unlimited\"";
    let service = Service::start(lab.client(), &POLICY.replacen("max_leases = 8", unlimited, 1));
    let before = (at_rest(&service), neighbours(lab.client()));
    let neighbour = Neighbour::start(lab.client(), &service.socket);
    let sender = lease(&service, NOBODY, &lease_call("icmp", Some(7), None)).expect("a lease");
    let finish = watch(lab.client(), service.pid());
    let (open, memory) = (netlink_sockets(service.pid()), resident(service.pid()));
    let mut most = memory;
    for number in 0..ECHOES {
        sender.send(&icmp_query(CLIENT_V6.into(), absent(number), 128, 7, &[0, 1])).expect("send");
        if number % 100 == 0 {
            most = most.max(resident(service.pid()));
        }
    }
    let mut refused = 0;
    while refused < ECHOES {
        let (code, _, sentence) = sender.refusal();
        match code {
            Code::NoNeighbour => {
                assert!(sentence.contains("does not answer") || sentence.contains("already wait"), "{sentence}");
            }
            Code::NotSent => assert!(sentence.contains("too many lookups"), "{sentence}"),
            other => panic!("{other:?}: {sentence}"),
        }
        refused += 1;
        most = most.max(resident(service.pid()));
    }
    let leases = service.session(ROOT, async |control| control.call(&ListLeasesCall::default()).await.expect("list"));
    let listed = leases.leases.into_iter().find(|listed| listed.lease == sender.leased.lease).expect("the lease");
    assert_eq!((listed.sent, listed.refused + listed.not_sent), (0, u64::from(ECHOES)), "{listed:?}");
    let [entries, sockets] = finish();
    println!("{entries} entries, {open} to {sockets} netlink sockets, {memory} to {most} KiB");
    assert!(entries <= MOST_ENTRIES + before.1.len() + 2, "{entries} entries of the kernel's table");
    assert!(sockets <= open + 8, "{sockets} netlink sockets, {open} before");
    assert!(most <= memory + 16 * 1024, "{most} KiB, {memory} before");
    drop(sender);
    neighbour.finish().assert_undisturbed();
    assert_eq!(at_rest(&service), before.0, "descriptors");
    let left = || absent_ones(lab.client()).len();
    wait_for("the removal of the entries", REPLY_TIMEOUT, || (left() == 0).then_some(()));
}

/// The same neighbour is not asked again at once, and a packet to it is refused without a request.
#[test]
fn absent_neighbour_is_remembered() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let sender = lease(&service, ROOT, &lease_call("icmp", Some(7), None)).expect("a lease");
    let echo = icmp_query(CLIENT_V6.into(), absent(1), 128, 7, &[0, 1]);
    sender.send(&echo).expect("send");
    assert_eq!(sender.refusal().0, Code::NoNeighbour);
    let requests = || absent_ones(lab.client()).len();
    assert_eq!(requests(), 0, "the entry of the absent neighbour is removed");
    for _ in 0..100 {
        sender.send(&echo).expect("send");
        assert_eq!(sender.refusal().0, Code::NoNeighbour);
        assert_eq!(requests(), 0, "no request is sent for a packet that is refused at once");
    }
}

/// One user's lookups of absent neighbours leave turns for those of others.
#[test]
fn lookups_of_another_user_do_not_wait() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let sender = lease(&service, NOBODY, &lease_call("icmp", Some(7), None)).expect("a lease");
    // The burst of the policy, all of which wait for neighbours.
    for number in 0..100 {
        sender.send(&icmp_query(CLIENT_V6.into(), absent(number), 128, 7, &[0, 1])).expect("send");
    }
    wait_for("requests to absent neighbours", REPLY_TIMEOUT, || (absent_ones(lab.client()).len() >= 4).then_some(()));
    let other = Credentials { user: 70_001, group: 54_321 };
    let route = route(&service, other, json!({ "destination": "192.0.2.1" }));
    assert!(route["parameters"]["mac"].is_string(), "{route}");
    // A refusal of the first user's would show that the call waited for one to fail.
    let refused = sender.receive(Duration::ZERO).expect("the lease");
    assert_eq!(refused, None, "the lookup waited for another user's");
    drop(sender);
    at_rest(&service);
}

fn route(service: &Service, credentials: Credentials, parameters: Value) -> Value {
    service.session(credentials, async |_| Raw::connect(&service.socket).call("Route", &parameters))
}

/// `Route` is refused where the policy denies the destination, the source or the interface; it sends no request then.
#[test]
fn route_of_a_denied_destination_is_refused() {
    let _serial = Serial::begin();
    let lab = lab();
    let policy = "[[rule]]\nuser = 65534\ndeny = [\"192.0.2.128/25\", \"2001:db8::dead:0/112\"]\npackets_per_second = 1\n\
                  burst = 20\n[[rule]]\nuser = 70001\ninterfaces = [\"eth*\"]\n[[rule]]\nuser = 70002\nrefuse = true\n";
    let service = Service::start(lab.client(), policy);
    let verdict = |reply: &Value| reply["parameters"]["verdict"].as_str().map(str::to_owned);
    let [denied, interface, refuse] = [NOBODY.user, 70_001, 70_002].map(|user| Credentials { user, group: 54_321 });
    let unknown = Credentials { user: 70_003, group: 54_321 };
    let other = json!({ "destination": "192.0.2.77" });
    for (who, parameters, wanted) in [
        (denied, json!({ "destination": "192.0.2.200" }), "denied"),
        (denied, json!({ "destination": "2001:db8::dead:7" }), "denied"),
        (denied, json!({ "destination": "::ffff:192.0.2.200" }), "denied"),
        (denied, json!({ "destination": "192.0.2.255" }), "broadcast"),
        (denied, json!({ "destination": "ff02::1", "interface": INTERFACE }), "multicast"),
        (denied, json!({ "destination": "192.0.2.77", "source": "203.0.113.1" }), "foreign-source"),
        (interface, other.clone(), "interface"),
        (refuse, other.clone(), "refused"),
        (unknown, other, "no-rule"),
    ] {
        let reply = route(&service, who, parameters.clone());
        assert_eq!(verdict(&reply).as_deref(), Some(wanted), "{parameters}: {reply}");
    }
    assert_eq!(absent_ones(lab.client()), Vec::<String>::new(), "a refused lookup made the kernel ask");
    // Refused ones count towards the rate, too.
    let mut answered = 0;
    let last = loop {
        let reply = route(&service, denied, json!({ "destination": "192.0.2.1" }));
        match verdict(&reply) {
            None => answered += 1,
            Some(verdict) => break verdict,
        }
        assert!(answered < 30, "the rate is not enforced");
    };
    assert_eq!(last, Verdict::Rate.name());
    assert!((14..=14 + 4).contains(&answered), "{answered} of a burst of 20 after 6 refused ones");
    let log = service.log();
    let records = log.lines().filter(|line| line.contains("of=route")).count();
    assert!(records >= 9, "{records} records of refused lookups:\n{log}");
}
