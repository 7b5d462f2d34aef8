//! `crafter policy`. Needs no privileges.

use std::{
    io::Write as _,
    process::{Command, Output},
};

use tempfile::NamedTempFile;

const MINE: &str = "\
[[rule]]
user = 12345
allow = [\"any\"]
deny = [\"10.0.0.0/8\"]

[[rule]]
group = 54321
refuse = true
";

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Runs `crafter policy ARGS FILE`.
fn policy(args: &[&str], file: &NamedTempFile) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    let Output { status, stdout, stderr } = command.arg("policy").args(args).arg(file.path()).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn check_reports_all_errors_or_none() {
    let (code, out, err) = policy(&["check"], &file(MINE));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.ends_with(": valid, 2 rules\n"), "{out}");

    let wrong = file("[[rule]]\nuser = 1\nports = [70000]\nallows = [\"any\"]\n");
    let (code, out, _) = policy(&["check", "--json"], &wrong);
    let output = crate::cli::schema::valid("policy-check", &out);
    assert_eq!((code, output["ok"].as_bool(), output["errors"][1]["line"].as_u64()), (2, Some(false), Some(4)));

    let odd = file("[[rule]]\nuser = \"nobody-has-this-name\"\n");
    let (code, out, err) = policy(&["check"], &odd);
    assert_eq!(code, 0);
    assert!(out.ends_with(": valid, 1 rule\n") && err.contains("warning: line 2, column 8"), "{out}{err}");

    let shipped = file(crafter::policy::SHIPPED);
    let output = policy(&["check", "--json"], &shipped).1;
    assert!(output.contains("\"ok\":true,\"rules\":2,\"errors\":[]"), "{output}");
}

#[test]
fn explain_names_the_deciding_rule() {
    let mine = file(MINE);
    let (code, out, err) = policy(&["explain", "--user", "12345", "--dst", "192.0.2.1", "--port", "80"], &mine);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("allowed: TCP to 192.0.2.1 port 80: rule 1 (line 1, user 12345) allows it"), "{out}");
    assert!(out.contains("\n  deny = [\"10.0.0.0/8\"]\n"), "{out}");

    let args = ["explain", "--json", "--user", "12345", "--dst", "10.0.0.1", "--protocol", "icmp"];
    let (code, out, _) = policy(&args, &mine);
    let output = crate::cli::schema::valid("policy-explain", &out);
    assert_eq!((code, output["verdict"].as_str(), output["rule"].as_u64()), (4, Some("denied"), Some(1)));
    assert_eq!(output["destination_line"].as_u64(), Some(4));

    let (code, out, _) = policy(&["explain", "--user", "23456", "--group", "54321", "--dst", "192.0.2.1"], &mine);
    assert_eq!(code, 4);
    assert!(out.contains("rule 2 (line 6, group 54321): it refuses everything"), "{out}");
    let (code, out, _) = policy(&["explain", "--user", "23456", "--dst", "192.0.2.1"], &mine);
    assert_eq!(code, 4);
    assert!(out.contains("no rule names the user"), "{out}");

    // An address of the host, and another one.
    let source = |source| policy(&["explain", "--user", "12345", "--dst", "192.0.2.1", "--source", source], &mine);
    assert_eq!(source("127.0.0.1").0, 0);
    let (code, out, _) = source("203.0.113.77");
    assert!(code == 4 && out.contains("foreign_sources"), "{out}");

    let (code, _, err) = policy(&["explain", "--user", "nobody-has-this-name", "--dst", "192.0.2.1"], &mine);
    assert!(code == 2 && err.contains("--user: there is no user 'nobody-has-this-name'"), "{err}");
    let (code, _, err) = policy(&["explain", "--user", "1", "--dst", "192.0.2.1"], &file("x = 1"));
    assert!(code == 2 && err.contains("there is no key 'x' here"), "{err}");
}

#[test]
fn default_policy_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_crafter")).args(["policy", "check"]).output().unwrap();
    let out = String::from_utf8(output.stdout.clone()).unwrap();
    match std::fs::exists("/etc/crafter/crafter.toml").unwrap() {
        true => assert!(out.starts_with("/etc/crafter/crafter.toml") || !output.status.success(), "{out}"),
        false => {
            assert!(output.status.success(), "{output:?}");
            assert!(out.starts_with("the shipped policy (/etc/crafter/crafter.toml does not exist): valid"), "{out}");
        }
    }
}
