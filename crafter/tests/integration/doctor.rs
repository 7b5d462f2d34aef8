//! `crafter doctor` with different capabilities.

use std::process::Command;

use serde_json::Value;

/// Runs doctor through `wrapper` in its own lab, where only `lo` and `lab0` exist.
fn doctor(wrapper: &[&str], arguments: &[&str]) -> (Option<i32>, String) {
    let crafter = env!("CARGO_BIN_EXE_crafter");
    let output = Command::new(crafter)
        .args(["lab", "run", "-q", "--"])
        .args(wrapper)
        .args([crafter, "doctor"])
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

fn interface<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["interfaces"].as_array().unwrap().iter().find(|interface| interface["name"] == name).unwrap()
}

#[test]
fn doctor_succeeds_as_root() {
    let (code, text) = doctor(&[], &["--json"]);
    assert_eq!(code, Some(0), "{text}");
    let report = crate::cli::schema::valid("doctor", &text);
    assert_eq!((&report["works"], &report["direct"], &report["setcap"]), (&true.into(), &true.into(), &Value::Null));
    assert_eq!(report["interfaces"].as_array().unwrap().len(), 2, "{text}");
    let lab0 = interface(&report, "lab0");
    assert_eq!((&lab0["kind"], &lab0["delivery"]), (&"veth".into(), &"AF_XDP".into()), "{text}");
    // Before Linux 6.3, drivers do not report native XDP.
    let is_known = lab0["xdp_features"].is_object();
    assert_eq!(lab0["attach"], if is_known { "native" } else { "generic" }, "{text}");
    assert_eq!(lab0["notes"].as_array().unwrap().is_empty(), is_known, "{text}");
    assert_eq!(interface(&report, "lo")["attach"], "generic");
    assert_eq!(check(&report, "eBPF")["state"], "good");

    let (code, text) = doctor(&[], &[]);
    assert_eq!(code, Some(0));
    assert!(text.ends_with("crafter can work here.\n"), "{text}");
}

#[test]
fn doctor_attaches_nothing() {
    let crafter = env!("CARGO_BIN_EXE_crafter");
    let (code, text) = doctor(&["sh", "-c", &format!("{crafter} doctor >/dev/null; exec \"$@\""), "sh"], &["--json"]);
    assert_eq!(code, Some(0), "{text}");
    let report = crate::cli::schema::valid("doctor", &text);
    for interface in report["interfaces"].as_array().unwrap() {
        assert_eq!(interface["xdp"], Value::Null, "{interface}");
    }
}

#[test]
fn doctor_fails_without_capabilities() {
    let drop_all = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let (code, text) = doctor(&drop_all, &["--json"]);
    assert_eq!(code, Some(1), "{text}");
    let report = crate::cli::schema::valid("doctor", &text);
    assert_eq!((&report["works"], &report["direct"]), (&false.into(), &false.into()));
    let setcap = report["setcap"].as_str().unwrap();
    let all = "sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep /";
    assert!(setcap.starts_with(all) && setcap.ends_with("/crafter"), "{setcap}");
    let capabilities = check(&report, "capabilities");
    assert_eq!(capabilities["state"], "bad");
    for name in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW"] {
        assert!(capabilities["finding"].as_str().unwrap().contains(name), "{capabilities}");
    }
    assert_eq!(interface(&report, "lab0")["attach"], Value::Null);

    let (code, text) = doctor(&drop_all, &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("\n  {setcap}\n")), "{text}");
    assert!(text.contains("\nFAIL  eBPF ") && text.ends_with("crafter cannot work here.\n"), "{text}");
}
