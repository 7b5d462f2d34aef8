//! What a user's interfaces and unread leases cost, and that nothing remains when they end.

use std::{fs, os::fd::AsRawFd as _};

use crafter::{lab::NetNs, protocol::wire::LeaseCall};
use crafter_tests::{
    leak::{BpfObjects, Serial, descriptors, more},
    peer::wait_for,
    service::{NOBODY, REPLY_TIMEOUT, ROOT, Service, Socket, lease_call},
    slow,
    testbed::{self, lab},
};

use super::{POLICY, at_rest, resident};

/// Kernel memory of the maps that a process holds, in KiB (`memlock` of /proc/PID/fdinfo).
fn map_memory(pid: u32) -> u64 {
    let mut maps = std::collections::BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("its descriptors").flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum::<u64>() / 1024
}

fn add_interfaces(namespace: &NetNs, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("many{number}")).collect();
    for name in &names {
        let peer = format!("{name}p");
        let add = ["link", "add", name, "type", "veth", "peer", "name", &peer];
        testbed::run(namespace.command("ip").args(add));
        testbed::run(namespace.command("ip").args(["link", "set", name, "up"]));
        testbed::run(namespace.command("ip").args(["link", "set", &peer, "up"]));
    }
    names
}

/// A user without a limit of interfaces attaches many: each one costs less than the one before, and all that they cost
/// is returned.
#[test]
fn many_interfaces_share_a_budget() {
    const INTERFACES: usize = 12;
    let _serial = Serial::begin();
    let lab = lab();
    let service =
        Service::start(lab.client(), &POLICY.replacen("user = 0", "user = 0\nmax_interfaces = \"unlimited\"", 1));
    let names = add_interfaces(lab.client(), INTERFACES);
    let before = (at_rest(&service), descriptors(service.pid()), resident(service.pid()));
    let (maps, memory) = service.session(ROOT, async |control| {
        let mut leases = Vec::new();
        for name in &names {
            let call = LeaseCall { interface: Some(name.clone()), ..lease_call("none", None, None) };
            leases.push(Socket::lease(&control, &call).await.expect("a lease"));
        }
        (map_memory(service.pid()), resident(service.pid()))
    });
    println!("{INTERFACES} interfaces: {maps} KiB of maps, {} KiB resident", memory - before.2);
    // Without a budget: 12 times 16 MiB of frames, and 12 ring buffers of 8 MiB.
    assert!(maps <= 64 * 1024, "{maps} KiB of maps");
    // Frames, and both mappings of the ring buffers.
    assert!(memory <= before.2 + 160 * 1024, "{memory} KiB resident, {} before", before.2);
    assert_eq!(at_rest(&service), before.0);
    let mut left = Vec::new();
    let clean = slow::wait_until(REPLY_TIMEOUT, || {
        left = more(&descriptors(service.pid()), &before.1);
        left.is_empty()
    });
    assert!(clean, "{left:?}");
    assert!(BpfObjects::of(service.pid()).maps.is_empty());
    let after = resident(service.pid());
    assert!(after <= before.2 + 8 * 1024, "{after} KiB resident, {} before", before.2);
}

/// A member gets no further interface beyond `max_interfaces`, gets one for each that is given back, and does not keep
/// others from attaching.
#[test]
fn interfaces_of_one_user_are_limited() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let names = add_interfaces(lab.client(), 6);
    let call = |name: &str| LeaseCall { interface: Some(name.to_owned()), ..lease_call("none", None, None) };
    let held = service.session(NOBODY, async |control| {
        let mut held = Vec::new();
        for name in &names[..4] {
            held.push(Socket::lease(&control, &call(name)).await.expect("an interface of the default limit"));
        }
        let refused = Socket::lease(&control, &call(&names[4])).await.map(drop).expect_err("a fifth interface");
        assert!(refused.to_string().contains("max_interfaces"), "{refused}");
        Socket::lease(&control, &call(&names[0])).await.map(drop).expect("another lease on the first");
        // An interface without leases is detached later, but at once if the user needs another.
        drop(held.pop());
        Socket::lease(&control, &call(&names[4])).await.map(drop).expect("an interface in place of the fourth");
        held
    });
    service.session(ROOT, async |control| {
        Socket::lease(&control, &call(&names[5])).await.map(drop).expect("an interface for another user");
    });
    drop(held);
    at_rest(&service);
}

/// Unread messages of many leases wait in a bounded number of bytes, as the kernel counts them.
#[test]
fn sockets_of_many_leases_are_small() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let send_buffer = |socket: &Socket| -> u64 {
        let bytes = nix::sys::socket::getsockopt(&socket.fd, nix::sys::socket::sockopt::SndBuf).expect("its size");
        assert!(socket.fd.as_raw_fd() > 0);
        bytes as u64
    };
    service.session(ROOT, async |control| {
        let mut leases = Vec::new();
        for _ in 0..64 {
            leases.push(Socket::lease(&control, &lease_call("udp", None, None)).await.expect("a lease"));
        }
        let sizes: Vec<u64> = leases.iter().map(send_buffer).collect();
        let all: u64 = sizes.iter().sum();
        println!("{} to {} bytes, {all} in all", sizes[0], sizes[63]);
        assert!(sizes[0] >= 4 << 20, "the first lease has room for a burst");
        // Without a budget: 64 times 4 MiB.
        assert!(all <= (32 << 20) + 64 * (128 << 10), "{all}");
        drop(leases.split_off(1));
        wait_for("the end of the other leases", REPLY_TIMEOUT, || (service.leases().len() == 1).then_some(()));
        let next = Socket::lease(&control, &lease_call("udp", None, None)).await.expect("a lease");
        assert!(send_buffer(&next) >= 3 << 20, "released leases return their share");
    });
    at_rest(&service);
}
