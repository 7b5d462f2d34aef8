//! The idle service: it uses no CPU, and exits after its idle timeout if another process holds its socket.

use std::{
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::Stdio,
    time::{Duration, Instant},
};

use crafter_tests::{
    leak::{BpfObjects, Serial, assert_detached},
    peer::Process,
    raw::Raw,
    service::{REPLY_TIMEOUT, ROOT, Service},
    slow::slowness,
    testbed::lab,
};
use serde_json::json;

use super::{POLICY, at_rest, lease, lease_call, resident, ticks};

/// Limit of the idle service's resident memory, in KiB. Without optimization its code is larger: 27 to 29 MiB.
const RESIDENT: u64 = if cfg!(debug_assertions) { 32 << 10 } else { 25 << 10 };

#[test]
fn exits_after_idle_timeout() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let mut command = lab.client().command(&service.binary);
    command.args(["serve", "--idle", "1", "--socket"]).arg(&service.socket).arg("--policy").arg(&service.policy);
    let mut process = Process::start(&mut command);
    let early = service.wait_for_socket();
    // A lease or a connection keeps it running.
    let held = lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease");
    drop(early);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(process.0.try_wait().expect("its state").is_none(), "it exited despite a lease");
    let mut connected = Raw::connect(&service.socket);
    drop(held);
    std::thread::sleep(Duration::from_millis(3000));
    assert!(connected.call("Info", &json!({}))["error"].is_null());
    let began = Instant::now();
    drop(connected);
    let status = process.wait_for_exit(REPLY_TIMEOUT);
    println!("idle: exited after {:?} with {status}", began.elapsed());
    assert!(status.success());
    assert!(began.elapsed() >= Duration::from_millis(900), "too early: {:?}", began.elapsed());
    assert!(!service.socket.exists());
}

#[test]
fn passed_socket_is_served_and_kept() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let listener = UnixListener::bind(&service.socket).expect("a socket");
    // sd_listen_fds(3): descriptor 3, and the id of the process for which it is.
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#;
    for round in 0..2 {
        let passed = listener.try_clone().expect("a clone of the socket");
        let mut command = lab.client().command("sh");
        command.args(["-c", script, "sh"]).arg(&service.binary).args(["serve", "--idle", "1", "--policy"]);
        command.arg(&service.policy).stdin(Stdio::from(OwnedFd::from(passed)));
        // The client connects before the service runs, as with systemd.
        let mut early = Raw::connect(&service.socket);
        let mut process = Process(command.spawn().expect("crafter serve"));
        assert_eq!(early.call("Info", &json!({}))["parameters"]["pid"], process.id());
        let socket = lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease");
        drop(early);
        let objects = BpfObjects::of(process.id());
        assert!(!objects.is_empty());
        drop(socket);
        let began = Instant::now();
        let status = process.wait_for_exit(REPLY_TIMEOUT);
        println!("round {round}: exited {:?} after its last lease", began.elapsed());
        assert!(status.success(), "{status}");
        objects.wait_until_freed(REPLY_TIMEOUT);
        assert_detached(lab.client(), crafter::lab::INTERFACE);
        // The service does not remove a socket that it did not create.
        assert!(service.socket.exists());
    }
}

/// Asserts that it uses no CPU time in at least one of five intervals of two seconds. On a busy machine earlier work
/// may be finished late, and a tick is charged to whichever process runs at that moment.
fn assert_no_ticks(pid: u32, what: &str) {
    let used = || {
        let before = ticks(pid);
        std::thread::sleep(Duration::from_secs(2));
        let used = ticks(pid) - before;
        println!("{what}: {} KiB resident, {used} ticks in 2 s", resident(pid));
        used
    };
    // On an emulated CPU one tick may be charged for very little work.
    let most = u64::from(slowness() > 1);
    assert!((0..5).any(|_| used() <= most), "{what}: it uses CPU time in every interval");
}

#[test]
fn idle_service_uses_no_cpu_time() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    let idle = |what: &str| {
        assert_no_ticks(service.pid(), what);
        let resident = resident(service.pid());
        assert!(resident <= RESIDENT, "{what}: {resident} KiB resident");
    };
    std::thread::sleep(Duration::from_millis(200));
    idle("just started");
    let held = lease(&service, ROOT, &lease_call("udp", None, None)).expect("a lease");
    std::thread::sleep(Duration::from_millis(200));
    // With a lease, rings and maps add to its memory, which is printed but not limited.
    assert_no_ticks(service.pid(), "with an unused lease");
    drop(held);
    at_rest(&service);
    idle("after the last lease");
}
