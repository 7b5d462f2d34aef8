//! Commands that query the service: `crafter info`, `leases`, `flows`, `counters` and `policy`.

use std::{fs, process::Command};

use crafter::protocol::{
    control::Control,
    wire::{Lease, LeaseCall},
};
use crafter_tests::exit;
use serde_json::{Value, json};

use super::{
    crafter, eventually, lab, run,
    served::{NOBODY, POLICY, Served},
};

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no array: {value}"))
}

#[test]
fn root_sees_all_leases_and_users_their_own() {
    let served = Served::new();
    let none = served.root(&["leases"]);
    none.succeeds();
    assert!(none.text().starts_with("LEASE  USER ") && none.text().ends_with("\nno leases\n"), "{none:?}");
    assert_eq!(served.root(&["leases", "--json"]).object("leases")["leases"].clone(), json!([]));

    let theirs = served.handshake(true, 50_001);
    let request =
        json!({ "interface": "lab0", "protocol": "tcp", "port": 40_000, "last_port": 40_059, "suppress": false });
    let ours = served.lease(false, &request);
    let all = eventually(|| {
        let all = served.root(&["leases", "--json"]).object("leases")["leases"].clone();
        // The copy of the RST may arrive at any time.
        (all[0]["suppressed"].as_u64() >= Some(1)).then_some(all)
    });
    assert_eq!(array(&all).len(), 2);
    let [first, second] = [&all[0], &all[1]];
    let keys = ["lease", "user", "user_name", "pid", "process", "interface", "protocol", "first_port", "last_port"];
    let some = |lease: &Value| keys.map(|key| lease[key].clone());
    let (number, pid) = (json!(theirs.number()), json!(theirs.pid()));
    let expected = json!([number, NOBODY, "nobody", pid, "python3", "lab0", "tcp", 50_001, 50_001]);
    assert_eq!(json!(some(first)), expected);
    assert_eq!((&first["sent"], &first["refused"], &first["lost"]), (&json!(1), &json!(0), &json!(0)), "{first}");
    assert!(first["delivered"].as_u64() >= Some(1) && first["began_ns"].as_u64() > Some(1 << 60), "{first}");
    let (number, pid) = (json!(ours.number()), json!(ours.pid()));
    assert_eq!(json!(some(second)), json!([number, 0, "root", pid, "python3", "lab0", "tcp", 40_000, 40_059]));
    // All keys of the protocol, as the help says.
    let wire = serde_json::to_value(Lease::default()).unwrap();
    for key in wire.as_object().unwrap().keys().map(|key| if key == "began" { "began_ns" } else { key }) {
        assert!(first.get(key).is_some(), "no {key}: {first}");
    }

    let text = served.root(&["leases"]);
    let lines: Vec<Vec<&str>> = text.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[1][1..9],
        ["nobody", &theirs.pid().to_string(), "python3", "lab0", "tcp", "any", "50001", "observe"]
    );
    assert_eq!(lines[2][5..9], ["tcp", "any", "40000-40059", "rst"], "{text:?}");

    // Users without permission to observe see their own leases, as does anybody with --mine.
    let numbers = |done: &super::Done| {
        array(&done.object("leases")["leases"]).iter().map(|lease| lease["lease"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&served.nobody(&["leases", "--json"])), [json!(theirs.number())]);
    assert_eq!(numbers(&served.root(&["leases", "--json", "--mine"])), [json!(ours.number())]);
    assert_eq!(numbers(&served.root(&["leases", "--json", "--interface", "lo"])), [] as [Value; 0]);
    assert_eq!(numbers(&served.root(&["leases", "--json", "--interface", "lab0"])).len(), 2);
    theirs.close();
    eventually(|| (numbers(&served.root(&["leases", "--json"])) == [json!(ours.number())]).then_some(()));
}

#[test]
fn leases_are_listed_over_several_pages() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let served = Served::new();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let leases = runtime.block_on(async {
        let control = Control::connect(&served.socket).await.unwrap();
        let call = LeaseCall { interface: Some("lab0".into()), protocol: "none".into(), ..LeaseCall::default() };
        let mut leases = Vec::new();
        for _ in 0..1003 {
            leases.push(control.call_for_descriptors(&call).await.unwrap());
        }
        leases
    });
    let output = served.root(&["leases", "--json"]).object("leases")["leases"].clone();
    let numbers =
        |leases: &Value| array(leases).iter().map(|lease| lease["lease"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(numbers(&output), leases.iter().map(|(leased, _)| leased.lease).collect::<Vec<_>>());
    drop(leases);
    eventually(|| (served.root(&["leases", "--json"]).object("leases")["leases"].clone() == json!([])).then_some(()));
}

#[test]
fn flows_and_counters_of_the_service() {
    let served = Served::new();
    let nothing = served.root(&["flows", "--json"]);
    assert_eq!(
        (nothing.object("flows"), nothing.stderr.as_str()),
        (json!({ "sections": [], "skipped": [] }), "crafter: the service has no flows\n")
    );
    let nothing = served.root(&["counters"]);
    assert_eq!((nothing.code, nothing.stderr.as_str()), (0, "crafter: the service is attached to no interface\n"));

    let _theirs = served.handshake(true, 50_002);
    let _ours = served.handshake(false, 40_002);
    let holders = json!([{ "pid": served.pid(), "name": "crafter" }]);
    let flows = |done: super::Done| {
        let output = done.object("flows")["sections"].clone();
        assert_eq!(
            (array(&output).len(), &output[0]["interface"], &output[0]["holders"]),
            (1, &json!("lab0"), &holders),
            "{output}"
        );
        assert!(output[0]["map_id"].is_null());
        array(&output[0]["flows"]).clone()
    };
    let ends =
        |flows: &[Value]| flows.iter().map(|flow| flow["local"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    // The flow with the latest packet is first. It may be that of an earlier handshake, since the server retransmits.
    let mut all = flows(served.root(&["flows", "--json"]));
    let seen = |flow: &Value| flow["last_seen_ns"].as_u64().unwrap();
    assert!(seen(&all[0]) >= seen(&all[1]), "{all:?}");
    all.sort_by_key(|flow| flow["local"].to_string());
    assert_eq!(ends(&all), ["192.0.2.2:40002", "192.0.2.2:50002"]);
    assert_eq!((&all[1]["remote"], &all[1]["protocol"]), (&json!("192.0.2.1:80"), &json!("tcp")));
    assert_eq!(ends(&flows(served.nobody(&["flows", "--json"]))), ["192.0.2.2:50002"]);
    assert_eq!(ends(&flows(served.root(&["flows", "--json", "--port", "40002"]))), ["192.0.2.2:40002"]);
    for other in [["--protocol", "udp"], ["--remote", "192.0.2.9"], ["--interface", "lo"], ["--port", "9"]] {
        assert_eq!(
            served.root(&["flows", "--json", other[0], other[1]]).object("flows")["sections"],
            json!([]),
            "{other:?}"
        );
    }
    let table = served.root(&["flows"]);
    let lines: Vec<&str> = table.text().lines().collect();
    assert_eq!(lines[0], format!("lab0, crafter (pid {})", served.pid()));
    assert!(lines[1].starts_with("PROTO") && lines[2].contains(" 192.0.2.1:80 "), "{table:?}");

    let output = served.root(&["counters", "--json"]).object("counters")["sections"].clone();
    assert_eq!(
        (array(&output).len(), &output[0]["interface"], &output[0]["holders"]),
        (1, &json!("lab0"), &holders),
        "{output}"
    );
    let reasons = output[0]["counters"].as_object().unwrap();
    assert!(reasons["crafted"].as_u64() >= Some(2) && reasons["rst_suppressed"].as_u64() >= Some(1), "{output}");
    let sum: u64 = reasons.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(sum, output[0]["ingress"].as_u64().unwrap() + output[0]["egress"].as_u64().unwrap());
    let table = served.root(&["counters", "--interface", "lab0"]);
    assert!(table.text().starts_with(&format!("lab0, crafter (pid {})\nHOOK", served.pid())), "{table:?}");
    for name in reasons.keys() {
        assert!(table.text().contains(&format!(" {name} ")), "no {name}: {table:?}");
    }
    served.root(&["counters", "--interface", "nix9"]).fails(exit::USAGE, "nix9");

    // The same from the maps, which needs privileges.
    let pid = served.pid().to_string();
    let direct = crafter(&served.lab, &["flows", "--json", "--pid", &pid]).object("flows")["sections"].clone();
    assert_eq!(ends(array(&direct[0]["flows"])), ["192.0.2.2:40002", "192.0.2.2:50002"]);
    assert!(direct[0]["map_id"].is_u64() && direct[0]["interface"].is_null(), "{direct}");
    let with_variable = |args: &[&str]| {
        let mut command = super::command(&served.lab, args);
        command.env("CRAFTER_SOCKET", &served.socket);
        run(command).object("flows")["sections"].clone()
    };
    assert_eq!(with_variable(&["flows", "--json"])[0]["interface"], "lab0");
    assert!(array(&with_variable(&["flows", "--json", "--direct"])).iter().all(|found| found["map_id"].is_u64()));
    crafter(&served.lab, &["flows", "--direct", "--interface", "lab0"]).fails(exit::USAGE, "cannot be used with");
}

#[test]
fn missing_service_is_reported() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.sock");
    let path = path.to_str().unwrap();
    for args in [
        &["info"][..],
        &["leases"],
        &["monitor"],
        &["policy", "show"],
        &["policy", "reload"],
        &["flows"],
        &["counters"],
    ] {
        let done = crafter(&lab, &[args, &["--socket", path]].concat());
        done.fails(exit::FAILURE, &format!("no crafter service at {path}"));
        let mut command = super::command(&lab, args);
        command.env("CRAFTER_SOCKET", path);
        run(command).fails(exit::FAILURE, &format!("no crafter service at {path}"));
    }
    // With an empty CRAFTER_SOCKET, these commands read the maps without the service.
    for args in [["flows", "--json"], ["counters", "--json"]] {
        let mut command = super::command(&lab, &args);
        run({
            command.env("CRAFTER_SOCKET", "");
            command
        })
        .succeeds();
    }
}

#[test]
fn info_of_the_service() {
    let served = Served::new();
    let _lease = served.lease(false, &json!({ "interface": "lab0", "protocol": "none" }));
    let output = served.nobody(&["info", "--json"]).object("info");
    let some = ["version", "abi", "pid", "user", "policy", "leases", "socket"].map(|key| output[key].clone());
    let (policy, socket) = (served.policy.to_str().unwrap(), served.socket.to_str().unwrap());
    assert_eq!(json!(some), json!([env!("CARGO_PKG_VERSION"), 1, served.pid(), 0, policy, 1, socket]));
    let links = array(&output["interfaces"]);
    let link =
        |name: &str| links.iter().find(|link| link["name"] == name).unwrap_or_else(|| panic!("no {name}: {output}"));
    assert!(
        link("lab0")["mode"].is_string() && link("lab0")["leases"] == 1 && link("lo")["mode"].is_null(),
        "{output}"
    );
    let text = served.root(&["info"]);
    text.succeeds();
    assert!(text.text().contains(&format!("process {}, user root, up ", served.pid())), "{text:?}");
    assert!(text.text().lines().any(|line| line.starts_with("lab0 ") && line.contains("192.0.2.2")), "{text:?}");
    assert!(!text.text().contains("\nlo "), "{text:?}");
}

#[test]
fn the_policy_of_the_service() {
    let served = Served::new();
    let lease = served.lease(true, &json!({ "interface": "lab0", "protocol": "tcp", "port": 50_003 }));
    let output = served.nobody(&["policy", "show", "--json"]).object("policy-show");
    let rule = &output["rule"];
    assert_eq!(
        (&output["user"], &output["leases"], &output["ports"]),
        (&json!(NOBODY), &json!(1), &json!(1)),
        "{output}"
    );
    assert_eq!(
        (&rule["number"], &rule["max_leases"], &rule["protocols"]),
        (&json!(2), &json!(4), &json!(["tcp"])),
        "{output}"
    );
    let text = served.nobody(&["policy", "show"]);
    text.succeeds();
    for part in [
        "user nobody, groups nogroup\n",
        "allowed by rule 2: tcp\n",
        "1000 packets/s, burst 100",
        "leases 1 of 4",
        "\n  allow = ",
    ] {
        assert!(text.text().contains(part), "no {part}: {text:?}");
    }
    // A user without a rule.
    let done = run(served.command_as_user(12_345, &["policy", "show"]));
    assert_eq!((done.code, done.stderr.as_str()), (i32::from(exit::REFUSED), ""), "{done:?}");
    assert!(done.text().contains("no rule of the policy names this user: nothing is allowed"), "{done:?}");

    served.nobody(&["policy", "reload"]).fails(exit::REFUSED, "only root");
    fs::write(&served.policy, "[[rule]]\nuser = 0\nports = [70000]\n").unwrap();
    served.root(&["policy", "reload"]).fails(exit::USAGE, "line 3");
    assert_eq!(
        served.nobody(&["policy", "show", "--json"]).object("policy-show")["rule"]["number"],
        2,
        "the previous policy is in force"
    );
    // The user nobody may no longer do what the lease does.
    fs::write(&served.policy, POLICY.replace("50000-50099", "50010-50099")).unwrap();
    let done = served.root(&["policy", "reload", "--json"]);
    done.succeeds();
    assert_eq!(done.object("policy-reload"), json!({ "rules": 2, "warnings": [], "ended": [lease.number()] }));
    let done = served.root(&["policy", "reload"]);
    assert_eq!((done.code, done.text()), (0, "the new policy is in force, 2 rules\n"));
}

#[test]
fn service_of_an_untrusted_user_is_refused() {
    // A default socket that this user may not open is ignored; with --socket, the error says why it cannot be opened.
    let served = Served::new();
    let mut chmod = Command::new("chmod");
    chmod.arg("600").arg(&served.socket);
    run(chmod).succeeds();
    served.nobody(&["leases"]).fails(exit::FAILURE, "join the group");
}
