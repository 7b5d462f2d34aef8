//! A service with a low limit of locked memory that it may not raise, as for root in a container.

use crafter_tests::{
    leak::Serial,
    service::{ROOT, Service},
    testbed::lab,
};
use serde_json::json;

use super::{POLICY, lease, lease_call};

/// The notes of a lease from a service with a limit of 64 KiB of locked memory and without these capabilities.
fn notes(lost: &str) -> String {
    let lab = lab();
    // Sets the limit first: raising it takes CAP_SYS_RESOURCE, which the second command drops.
    let launcher = ["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set", lost, "--"];
    let service = Service::launched_by(&launcher, lab.client(), POLICY);
    let held = lease(&service, ROOT, &lease_call("tcp", None, None)).expect("a lease");
    let notes = json!(held.leased.notes).to_string();
    println!("without {lost}: {notes}");
    notes
}

#[test]
fn limit_of_locked_memory_is_noted() {
    let _serial = Serial::begin();
    let without_both = notes("-sys_resource,-ipc_lock");
    assert!(
        without_both.contains("No buffer space available") || without_both.contains("RLIMIT_MEMLOCK"),
        "{without_both}"
    );
    let with_ipc_lock = notes("-sys_resource");
    assert!(!with_ipc_lock.contains("AF_XDP"), "the limit must not apply with CAP_IPC_LOCK: {with_ipc_lock}");
}
