//! `crafter flows` and `crafter counters`

use std::process::Stdio;

use crafter_tests::{exit, foreign};
use serde_json::{Value, json};

use super::{command, crafter, crafter_without, eventually, lab};

#[test]
fn maps_show_a_running_get() {
    let lab = lab();
    let mut get = command(&lab, &["get", "-q", "http://192.0.2.1/slow?ms=30000"]);
    let mut get = get.stdout(Stdio::null()).spawn().unwrap();
    let pid = get.id().to_string();
    let look = |command: &str| crafter(&lab, &[command, "--json", "--pid", &pid]).object(command)["sections"].clone();
    // Three sent packets: SYN, ACK and the request.
    let found = eventually(|| {
        let found = look("flows");
        (found[0]["flows"][0]["tx_packets"].as_u64() >= Some(3)).then_some(found)
    });
    let holders = json!([{ "pid": get.id(), "name": "crafter" }]);
    assert_eq!(found[0]["holders"], holders);
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    let flow = &found[0]["flows"][0];
    assert_eq!((&flow["protocol"], &flow["remote"]), (&json!("tcp"), &json!("192.0.2.1:80")), "{flow}");
    assert!(flow["local"].as_str().unwrap().starts_with("192.0.2.2:"), "{flow}");

    let counters = look("counters");
    assert_eq!(counters[0]["holders"], holders);
    let reasons = counters[0]["counters"].as_object().unwrap();
    assert!(reasons["redirected"].as_u64() >= Some(1) && reasons["crafted"].as_u64() >= Some(3), "{counters}");
    let sum: u64 = reasons.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(sum, counters[0]["ingress"].as_u64().unwrap() + counters[0]["egress"].as_u64().unwrap());

    // The text form.
    let table = crafter(&lab, &["flows", "--pid", &pid]);
    table.succeeds();
    let lines: Vec<&str> = table.text().lines().collect();
    assert_eq!(lines[0], format!("crafter (pid {pid})"));
    assert!(lines[1].starts_with("PROTO") && lines[2].starts_with("tcp ") && lines[2].contains(" 192.0.2.1:80 "));
    let table = crafter(&lab, &["counters", "--pid", &pid]);
    table.succeeds();
    for name in reasons.keys() {
        assert!(table.text().contains(&format!(" {name} ")), "no {name}: {table:?}");
    }
    // Other processes on this kernel may own ports, too.
    for command in ["flows", "counters"] {
        let all = crafter(&lab, &[command, "--json"]).object(command)["sections"].clone();
        assert!(all.as_array().unwrap().iter().any(|found| found["holders"] == holders), "{all}");
    }

    get.kill().unwrap();
    get.wait().unwrap();
    for command in ["flows", "counters"] {
        eventually(|| (look(command) == Value::Array(Vec::new())).then_some(()));
        let none = crafter(&lab, &[command, "--pid", &pid]);
        assert_eq!((none.code, none.text()), (0, ""));
        assert_eq!(none.stderr, format!("crafter: no crafter with process id {pid} is running\n"));
    }
}

#[test]
fn maps_of_two_owners_are_separate() {
    let lab = lab();
    let start = |port: &str| {
        let url = "http://192.0.2.1/slow?ms=30000";
        let mut command = command(&lab, &["get", "-q", "--source-port", port, url]);
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let mut pair = ["50001", "50002"].map(|port| (port, start(port)));
    for (port, get) in &pair {
        let pid = get.id().to_string();
        let flow = eventually(|| {
            let found = crafter(&lab, &["flows", "--json", "--pid", &pid]).object("flows")["sections"].clone();
            let flow = found[0]["flows"][0].clone();
            flow.is_object().then_some(flow)
        });
        assert_eq!(flow["local"], json!(format!("192.0.2.2:{port}")));
    }
    for (_, get) in &mut pair {
        get.kill().unwrap();
        get.wait().unwrap();
    }
}

#[test]
fn crafter_of_another_version_is_skipped_and_named() {
    let lab = lab();
    let mut get = command(&lab, &["get", "-q", "http://192.0.2.1/slow?ms=30000"]);
    let mut get = get.stdout(Stdio::null()).spawn().unwrap();
    let theirs = foreign::other_version().unwrap();
    let ours = std::process::id();
    let holds = |entry: &Value, pid: u32| array(&entry["holders"]).iter().any(|holder| holder["pid"] == pid);
    for command in ["flows", "counters"] {
        let done = eventually(|| {
            let done = crafter(&lab, &[command, "--direct", "--json"]);
            done.succeeds();
            array(&done.object(command)["sections"]).iter().any(|section| holds(section, get.id())).then_some(done)
        });
        let report = done.object(command);
        // The maps of the other crafter are shown.
        let read = array(&report["sections"]).iter().find(|section| holds(section, get.id())).unwrap();
        assert!(read[command].is_array() || read[command].is_object(), "{report}");
        let skipped = array(&report["skipped"]).iter().find(|entry| holds(entry, ours)).unwrap();
        assert_eq!(skipped["reason"], "its maps have the layout of another version");
        let done = crafter(&lab, &[command, "--pid", &ours.to_string()]);
        assert_eq!((done.code, done.text()), (0, ""));
        let expected =
            format!("(pid {ours}): its maps have the layout of another version; use the crafter of that version\n");
        assert!(
            done.stderr.starts_with("crafter: skipped a crafter held by ") && done.stderr.ends_with(&expected),
            "{done:?}"
        );
    }
    drop(theirs);
    get.kill().unwrap();
    get.wait().unwrap();
    let done = crafter(&lab, &["flows", "--pid", &ours.to_string()]);
    assert_eq!(done.stderr, format!("crafter: no crafter with process id {ours} is running\n"));
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

#[test]
fn missing_permission_names_the_capability() {
    let lab = lab();
    for command in ["flows", "counters"] {
        crafter_without(&lab, "-sys_admin", &[command]).fails(exit::PERMISSION, "CAP_SYS_ADMIN");
    }
}
