//! An interface stays attached after its last lease for as long as the options or the policy say.

use crafter::{lab::INTERFACE, protocol::wire::ListLeasesCall};
use crafter_tests::{
    leak::{BpfObjects, Serial, assert_detached, attached},
    peer::wait_for,
    raw::Raw,
    service::{KEEP_ATTACHED, REPLY_TIMEOUT, ROOT, Service},
    testbed::{lab, run},
};
use serde_json::json;

use super::{POLICY, descriptors, lease, lease_call};

/// Longer than the test.
const LONG: &str = "3600";

/// Takes a lease and returns it.
fn use_once(service: &Service) {
    drop(lease(service, ROOT, &lease_call("udp", None, None)).expect("a lease"));
    wait_for("the end of the lease", REPLY_TIMEOUT, || {
        let left = service.session(ROOT, async |control| control.call(&ListLeasesCall::default()).await);
        left.expect("the leases").leases.is_empty().then_some(())
    });
}

fn reload(service: &Service, policy: &str) {
    service.write_policy(policy);
    let reply = Raw::connect(&service.socket).call("Reload", &json!({}));
    assert!(reply["error"].is_null(), "{reply}");
}

/// The next lease uses the same attachment. A policy with a shorter time applies to it at once, a later one to the
/// next.
#[test]
fn next_lease_uses_the_attachment_of_the_last() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::with(lab.client(), POLICY, &[KEEP_ATTACHED, LONG]);
    assert!(attached(lab.client(), INTERFACE).is_empty());
    use_once(&service);
    let first = (attached(lab.client(), INTERFACE), BpfObjects::of(service.pid()));
    assert!(!first.0.is_empty(), "detached with the last lease");
    use_once(&service);
    assert_eq!((attached(lab.client(), INTERFACE), BpfObjects::of(service.pid())), first, "attached again");
    let reply = Raw::connect(&service.socket).call("Interfaces", &json!({ "name": INTERFACE }));
    let own = &reply["parameters"]["interfaces"][0];
    assert!(own["mode"].is_string() && own["leases"] == 0, "{reply}");

    for shorter in ["1", "0"] {
        let policy = format!("keep_attached = {shorter}\n{POLICY}");
        reload(&service, &policy);
        assert_detached(lab.client(), INTERFACE);
        use_once(&service);
        assert_detached(lab.client(), INTERFACE);
        reload(&service, POLICY);
        use_once(&service);
        assert!(!attached(lab.client(), INTERFACE).is_empty(), "the option does not apply again");
    }
    reload(&service, &format!("keep_attached = 0\n{POLICY}"));
}

/// SIGTERM and SIGKILL while nothing is leased leave nothing attached.
#[test]
fn exit_detaches_an_unused_interface() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::with(lab.client(), POLICY, &[KEEP_ATTACHED, LONG]);
    for round in 0..2 {
        if round > 0 {
            reload(&service, &format!("keep_attached = {LONG}\n{POLICY}"));
        }
        use_once(&service);
        let objects = BpfObjects::of(service.pid());
        assert!(!attached(lab.client(), INTERFACE).is_empty() && !objects.is_empty());
        if round == 0 {
            assert_eq!(service.stop(), Some(0));
        } else {
            service.kill();
        }
        // The process has ended.
        assert_detached(lab.client(), INTERFACE);
        objects.wait_until_freed(REPLY_TIMEOUT);
        service.restart();
    }
}

/// A removed interface is detached at once, though nothing is leased on it.
#[test]
fn removed_interface_is_not_kept() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::with(lab.client(), POLICY, &[KEEP_ATTACHED, LONG]);
    let before = descriptors(service.pid());
    use_once(&service);
    assert!(descriptors(service.pid()) > before);
    let objects = BpfObjects::of(service.pid());
    run(lab.client().command("ip").args(["link", "del", INTERFACE]));
    objects.wait_until_freed(REPLY_TIMEOUT);
}
