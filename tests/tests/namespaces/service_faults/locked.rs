//! A service that may lock little memory, and may not raise the limit, as root of a container.

use crafter_tests::{
    leak::Serial,
    service::{ROOT, Service},
    stage::lab,
};
use serde_json::json;

use super::{POLICY, call, lease};

/// The notes of a lease of a service that may lock 64 KiB and has lost these capabilities from the start.
fn notes(lost: &str) -> String {
    let lab = lab();
    // The limit first: to raise it again takes CAP_SYS_RESOURCE, which goes with the second.
    let way = ["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set", lost, "--"];
    let service = Service::launched_by(&way, lab.client(), POLICY);
    let held = lease(&service, ROOT, &call("tcp", None, None)).expect("a lease");
    let notes = json!(held.leased.notes).to_string();
    println!("without {lost}: {notes}");
    notes
}

#[test]
fn memory_that_may_not_be_locked() {
    let _serial = Serial::begin();
    let told = notes("-sys_resource,-ipc_lock");
    assert!(told.contains("No buffer space available") || told.contains("RLIMIT_MEMLOCK"), "{told}");
    let told = notes("-sys_resource");
    assert!(!told.contains("AF_XDP"), "CAP_IPC_LOCK was kept, and nothing counts: {told}");
}
