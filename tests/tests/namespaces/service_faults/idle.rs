//! A service with nothing to do: it costs nothing, and ends where somebody else keeps its socket.

use std::{
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crafter_tests::{
    leak::{BpfObjects, Serial, assert_detached},
    peer::{Process, wait_for},
    raw::Raw,
    service::{PATIENCE, ROOT, Service},
    slow::slowness,
    stage::lab,
};
use serde_json::json;

use super::{POLICY, at_rest, call, lease, resident, ticks};

/// What the idle service may have resident, in KiB.
const RESIDENT: u64 = 25 << 10;

fn end(process: &mut Process, patience: Duration) -> ExitStatus {
    wait_for("the service's end", patience, || process.0.try_wait().expect("its state"))
}

#[test]
fn it_ends_when_it_was_idle_for_long_enough() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let mut command = lab.client().command(&service.binary);
    command.args(["serve", "--idle", "1", "--socket"]).arg(&service.socket).arg("--policy").arg(&service.policy);
    let mut process = Process::start(&mut command);
    let early = wait_for("its socket", PATIENCE, || std::os::unix::net::UnixStream::connect(&service.socket).ok());
    // As long as something is leased, and as long as somebody is connected, there is something to do.
    let held = lease(&service, ROOT, &call("udp", None, None)).expect("a lease");
    drop(early);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(process.0.try_wait().expect("its state").is_none(), "it ended with a lease");
    let mut connected = Raw::connect(&service.socket);
    drop(held);
    std::thread::sleep(Duration::from_millis(3000));
    assert!(connected.call("Info", &json!({}))["error"].is_null());
    let began = Instant::now();
    drop(connected);
    let status = end(&mut process, PATIENCE);
    println!("idle: ended after {:?} with {status}", began.elapsed());
    assert!(status.success());
    assert!(began.elapsed() >= Duration::from_millis(900), "too early: {:?}", began.elapsed());
    assert!(!service.socket.exists());
}

#[test]
fn a_passed_socket_is_served_and_left() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let listener = UnixListener::bind(&service.socket).expect("a socket");
    // sd_listen_fds(3): descriptor 3, and the id of the process that it is for.
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#;
    for round in 0..2 {
        let passed = listener.try_clone().expect("the socket again");
        let mut command = lab.client().command("sh");
        command.args(["-c", script, "sh"]).arg(&service.binary).args(["serve", "--idle", "1", "--policy"]);
        command.arg(&service.policy).stdin(Stdio::from(OwnedFd::from(passed)));
        // It connects before anybody serves, as with systemd.
        let mut early = Raw::connect(&service.socket);
        let mut process = Process(command.spawn().expect("crafter serve"));
        assert_eq!(early.call("Info", &json!({}))["parameters"]["pid"], process.id());
        let socket = lease(&service, ROOT, &call("udp", None, None)).expect("a lease");
        drop(early);
        let objects = BpfObjects::of(process.id());
        assert!(!objects.is_empty());
        drop(socket);
        let began = Instant::now();
        let status = end(&mut process, PATIENCE);
        println!("round {round}: ended {:?} after its last lease", began.elapsed());
        assert!(status.success(), "{status}");
        objects.wait_until_freed(PATIENCE);
        assert_detached(lab.client(), crafter::lab::INTERFACE);
        // The socket is not the service's: it stays for the next one.
        assert!(service.socket.exists());
    }
}

/// It uses no processor time for two seconds. One of five times is enough: a busy
/// machine lets it do only now what it had to do before, and a tick counts for however little was done when it came.
fn assert_no_ticks(pid: u32, what: &str) {
    let used = || {
        let before = ticks(pid);
        std::thread::sleep(Duration::from_secs(2));
        let used = ticks(pid) - before;
        println!("{what}: {} KiB resident, {used} ticks in 2 s", resident(pid));
        used
    };
    // Of an emulated processor a tick is what little was done when it came.
    let most = u64::from(slowness() > 1);
    assert!((0..5).any(|_| used() <= most), "{what}: it uses the processor all the time");
}

#[test]
fn an_idle_service_costs_nothing() {
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
    let held = lease(&service, ROOT, &call("udp", None, None)).expect("a lease");
    std::thread::sleep(Duration::from_millis(200));
    // Its rings and maps are the kernel's memory and the service's, which is told, not judged.
    assert_no_ticks(service.pid(), "with a lease that nobody uses");
    drop(held);
    at_rest(&service);
    idle("after the last lease");
}
