//! The service on a kernel without tcx. Filters under clsact stay attached when their owner exits, so a guard process
//! removes them. The service starts the guard before its sandbox forbids starting processes.
//!
//! On kernels with tcx, an environment variable makes the service use clsact.

use std::{
    fs,
    net::UdpSocket,
    process::{Command, Stdio},
    time::Duration,
};

use crafter::{
    lab::{CLIENT_V4, INTERFACE, Lab},
    protocol::wire::ListLeasesCall,
};
use crafter_tests::{
    leak::{BpfObjects, Serial, attached},
    peer::{Process, wait_for},
    service::{KEEP_ATTACHED, REPLY_TIMEOUT, ROOT, Service, Socket, lease_call},
    testbed::{ENDS, lab, run},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const POLICY: &str = "[[rule]]\nuser = 0\nprotocols = [\"any\"]\n";

fn start(service: &Service, lab: &Lab) -> Process {
    let mut command: Command = lab.client().command(&service.binary);
    command
        .env("CRAFTER_CLSACT", "1")
        .args(["serve", "--everybody", KEEP_ATTACHED, "1", "--socket"])
        .arg(&service.socket);
    let process = Process::start(command.arg("--policy").arg(&service.policy).stdout(Stdio::null()));
    service.wait_for_socket();
    process
}

fn lease(service: &Service) -> Socket {
    let call = lease_call("udp", None, None);
    service.session(ROOT, async |control| {
        let lease = Socket::lease(&control, &call).await.expect("a lease");
        assert_eq!(control.call(&ListLeasesCall::default()).await.expect("the leases").leases.len(), 1);
        lease
    })
}

/// Asserts that a datagram to the leased port is delivered to the lease.
fn assert_delivers(lab: &Lab, lease: &Socket) {
    let port = lease.leased.first_port.expect("a port");
    let send = || UdpSocket::bind((ENDS[0].1, 0)).expect("a socket").send_to(b"hello", (CLIENT_V4, port));
    lab.server().run(send).expect("the server").expect("send");
    let message = lease.receive(REPLY_TIMEOUT).expect("the lease").expect("the datagram");
    assert!(message.packet().is_some_and(|packet| packet.ends_with(b"hello")), "{message:?}");
}

fn has_qdisc(lab: &Lab) -> bool {
    run(lab.client().command("tc").args(["qdisc", "show", "dev", INTERFACE])).contains("clsact")
}

/// Child processes of a process: id and name.
fn children(pid: u32) -> Vec<(i32, String)> {
    let of = |stat: procfs::process::Stat| (stat.ppid == pid as i32).then_some((stat.pid, stat.comm));
    let all = procfs::process::all_processes().expect("/proc");
    all.flatten().filter_map(|process| process.stat().ok().and_then(of)).collect()
}

#[track_caller]
fn assert_nothing_left(lab: &Lab, objects: &BpfObjects, guard: i32) {
    wait_for("the removal of the service's filters and the exit of the guard", REPLY_TIMEOUT, || {
        let released = attached(lab.client(), INTERFACE).is_empty() && !has_qdisc(lab);
        (released && fs::read_link(format!("/proc/{guard}/exe")).is_err()).then_some(())
    });
    objects.wait_until_freed(REPLY_TIMEOUT);
}

/// The service's filters are removed after its last lease, and when the service exits for any reason.
#[test]
fn filters_and_guard_are_removed_after_exit_or_sigkill() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT] {
        let mut process = start(&service, &lab);
        let pid = process.id();
        // The service listens before it starts its guard, so the guard may not exist yet.
        let guard = &wait_for("its guard", REPLY_TIMEOUT, || match &children(pid)[..] {
            [(guard, name)] if name != "crafter" => Some(*guard),
            _ => None,
        });
        for _ in 0..2 {
            let held = lease(&service);
            assert_delivers(&lab, &held);
            assert_eq!(attached(lab.client(), INTERFACE).len(), 2, "an ingress and an egress hook");
            assert!(has_qdisc(&lab));
            drop(held);
            // The service detaches one second after its last lease.
            wait_for("the removal of its hooks", REPLY_TIMEOUT, || {
                (attached(lab.client(), INTERFACE).is_empty() && !has_qdisc(&lab)).then_some(())
            });
        }
        let held = lease(&service);
        let objects = BpfObjects::of(pid);
        assert!(!objects.is_empty());
        // A signal to the whole process group must not end the guard before the service.
        for pid in [*guard, pid as i32] {
            if signal != Signal::SIGKILL || pid != *guard {
                kill(Pid::from_raw(pid), signal).expect("signal");
            }
        }
        process.wait_for_exit(REPLY_TIMEOUT);
        assert_nothing_left(&lab, &objects, *guard);
        drop(held);
    }
}

/// Qdiscs and filters that the service did not create stay.
#[test]
fn foreign_qdiscs_and_filters_are_kept() {
    let _serial = Serial::begin();
    let lab = lab();
    let tc = |arguments: &str| run(lab.client().command("tc").args(arguments.split(' ')));
    tc(&format!("qdisc add dev {INTERFACE} clsact"));
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut process = start(&service, &lab);
        let held = lease(&service);
        assert_delivers(&lab, &held);
        kill(Pid::from_raw(process.id() as i32), signal).expect("signal");
        process.wait_for_exit(REPLY_TIMEOUT);
        wait_for("the removal of its hooks", REPLY_TIMEOUT, || {
            attached(lab.client(), INTERFACE).is_empty().then_some(())
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(has_qdisc(&lab), "the foreign qdisc was removed");
        drop(held);
    }
    // A foreign filter added later keeps the qdisc that the service created.
    tc(&format!("qdisc del dev {INTERFACE} clsact"));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut process = start(&service, &lab);
        let held = lease(&service);
        // A classic BPF program that matches nothing ("return 0"): not every kernel has other classifiers.
        let filter = ["filter", "add", "dev", INTERFACE, "ingress", "pref", "7", "bpf", "bytecode", "1,6 0 0 0,"];
        run(lab.client().command("tc").args(filter));
        kill(Pid::from_raw(process.id() as i32), signal).expect("signal");
        process.wait_for_exit(REPLY_TIMEOUT);
        wait_for("the removal of its hooks", REPLY_TIMEOUT, || {
            let left = attached(lab.client(), INTERFACE);
            (!left.iter().any(|one| one.contains("crafter") || one.contains("XDP"))).then_some(())
        });
        let filters = tc(&format!("filter show dev {INTERFACE} ingress"));
        assert!(filters.contains("pref 7 bpf") && has_qdisc(&lab), "{filters}");
        drop(held);
        tc(&format!("qdisc del dev {INTERFACE} clsact"));
    }
}
