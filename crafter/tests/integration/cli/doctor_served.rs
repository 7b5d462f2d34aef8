//! `crafter doctor` as an unprivileged user on a host with a running service.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use crafter_tests::executable;
use serde_json::{Value, json};

use super::{
    run,
    served::{NOBODY, POLICY, Served},
};

fn state<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    &checks.iter().find(|check| check["name"] == name).unwrap()["state"]
}

#[test]
fn unprivileged_user_works_through_the_service() {
    let served = Served::new();
    let done = served.nobody(&["doctor", "--json"]);
    done.succeeds();
    let report = done.object("doctor");
    assert_eq!((&report["works"], &report["direct"]), (&json!(true), &json!(false)), "{report}");
    assert_eq!(state(&report, "capabilities"), "bad", "{report}");
    let service = &report["service"];
    let expected = json!({
        "works": true,
        "finding": format!("crafter {0} at {1} allows nobody tcp (rule 2)", env!("CARGO_PKG_VERSION"), served.socket.display()),
        "socket": served.socket.to_str().unwrap(),
        "version": env!("CARGO_PKG_VERSION"),
        "abi": 1,
        "user": NOBODY,
        "rule": 2,
    });
    assert_eq!(*service, expected);
    let text = served.nobody(&["doctor"]);
    text.succeeds();
    assert!(text.text().starts_with("through the service: works: crafter "), "{text:?}");
    assert!(!text.text().contains("FAIL"), "{text:?}");
    assert!(text.text().ends_with("\ncrafter can work here, through the service.\n"), "{text:?}");
    // Root does not need the service.
    let root = served.root(&["doctor", "--json"]).object("doctor");
    assert_eq!(
        (&root["service"]["works"], &root["direct"], &root["setcap"]),
        (&json!(true), &json!(true), &Value::Null)
    );
}

#[test]
fn doctor_says_why_the_service_refuses_a_user() {
    let mut served = Served::new();
    let refuses = |served: &Served, why: &str| {
        let done = served.nobody(&["doctor", "--json"]);
        assert_eq!(done.code, 1, "{done:?}");
        let report = done.object("doctor");
        let finding = report["service"]["finding"].as_str().unwrap();
        assert!(finding.contains(why), "{finding}");
        assert_eq!((&report["works"], &report["service"]["works"]), (&json!(false), &json!(false)), "{report}");
        let text = served.nobody(&["doctor"]);
        assert_eq!(text.code, 1);
        assert!(text.text().starts_with(&format!("through the service: does not work: {finding}\n")), "{text:?}");
        assert!(text.text().ends_with("\ncrafter cannot work here.\n"), "{text:?}");
    };
    fs::write(&served.policy, POLICY.split("[[rule]]\nuser = 65534").next().unwrap()).unwrap();
    served.root(&["policy", "reload"]).succeeds();
    refuses(
        &served,
        "allows nobody nothing: no rule names this user or its groups in its policy; ask the administrator",
    );
    fs::write(&served.policy, "[[rule]]\nuser = 65534\nrefuse = true\n").unwrap();
    served.root(&["policy", "reload"]).succeeds();
    refuses(&served, "rule 1 refuses everything");
    fs::set_permissions(&served.socket, fs::Permissions::from_mode(0o660)).unwrap();
    refuses(&served, "join its group and log in again: sudo usermod -aG root nobody");
    served.stop();
    let _ = fs::remove_file(&served.socket);
    refuses(&served, "start it with `sudo systemctl enable --now crafter.socket`");
}

/// The printed setcap command, run unchanged, lets every user work without the service.
#[test]
fn printed_setcap_command_suffices() {
    let mut served = Served::new();
    served.stop();
    let get = ["get", "-q", "--direct", "192.0.2.1/bytes/4"];
    // A copy, because setcap on a hard link would change the built program.
    let binary = served.directory.path().join("crafter-with-capabilities");
    executable::copy(env!("CARGO_BIN_EXE_crafter").as_ref(), &binary).unwrap();
    let nobody = |args: &[&str]| {
        let mut command = served.lab.command("setpriv");
        command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()]);
        command.arg(&binary).args(args).env_remove("CRAFTER_SOCKET").current_dir("/");
        run(command)
    };
    let before = nobody(&get);
    assert_eq!(before.code, 3, "{before:?}");
    let report = nobody(&["doctor", "--json"]).object("doctor");
    let line = report["setcap"].as_str().unwrap();
    let text = nobody(&["doctor"]);
    assert!(text.text().contains(&format!("\n  {line}\n")), "{text:?}");
    let done = run({
        let mut command = Command::new("sh");
        command.args(["-c", line.strip_prefix("sudo ").unwrap()]);
        command
    });
    done.succeeds();
    let after = nobody(&get);
    assert_eq!((after.code, after.stdout.len()), (0, 4), "{after:?}");
    let report = nobody(&["doctor", "--json"]).object("doctor");
    assert_eq!((&report["direct"], &report["setcap"]), (&json!(true), &Value::Null), "{report}");
}
