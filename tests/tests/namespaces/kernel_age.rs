//! What crafter says of the kernel that it runs on: it works on those that it is made for, and on older ones everything
//! that asks the kernel refuses, with the reason and an exit code of its own.
//!
//! `cargo xtask vm-test --kernel 5.10` runs this where it refuses.

use std::{net::IpAddr, process::Output};

use crafter::{
    Crafter, Options,
    datapath::{features, program::OLDEST_KERNEL},
    lab::{INTERFACE, Lab, SERVER_V4},
};
use crafter_tests::exit;
use crafter_tests::{leak::Parallel, service, stage, within};
use serde_json::Value;

/// Whether this kernel has what the programs use.
fn old() -> bool {
    features::version(&features::host().expect("the host's facts").kernel) < OLDEST_KERNEL
}

fn crafter(lab: &Lab, arguments: &[&str]) -> Output {
    // What does not refuse may go on for ever.
    let mut command = lab.client().command("timeout");
    command.arg("60").arg(service::built()).args(arguments).env_remove("CRAFTER_SOCKET").output().expect("crafter")
}

/// It names the kernel that it found, and the one that it needs.
fn explains(text: &str) -> bool {
    let release = features::host().expect("the host's facts").kernel;
    text.contains(&release) && text.contains("5.18")
}

#[test]
fn doctor_tells_the_truth() {
    let _parallel = Parallel::begin();
    let lab = stage::lab();
    let output = crafter(&lab, &["doctor", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let kernel = checks.iter().find(|check| check["name"] == "kernel").expect("a word about the kernel");
    assert!(explains(kernel["finding"].as_str().expect("a finding")), "{kernel}");
    assert_eq!(report["works"], !old(), "{text}");
    assert_eq!(kernel["state"] == "bad", old(), "{text}");
    assert_eq!(output.status.code(), Some(i32::from(old())), "{text}");
    let interfaces = report["interfaces"].as_array().expect("interfaces");
    let lab0 = interfaces.iter().find(|interface| interface["name"] == INTERFACE).expect("the lab's interface");
    assert_eq!(lab0["attach"].is_null(), old(), "{lab0}");
}

/// What doctor says of the lab's interface is what one gets there.
#[test]
fn doctor_and_what_is_attached_agree() {
    let _parallel = Parallel::begin();
    let lab = stage::lab();
    let output = crafter(&lab, &["doctor"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let opened = within(lab.client(), || async {
        Crafter::open(INTERFACE, Options::default()).await.map(|crafter| crafter.report().clone())
    });
    match opened {
        Ok(report) => {
            assert!(!old(), "{report}");
            assert!(
                said.lines().any(|line| line.contains("egress filter") && line.contains(report.classifier)),
                "{said}"
            );
        }
        Err(error) => {
            assert!(old(), "{error}");
            assert_eq!(exit::code(&error), exit::KERNEL);
            assert!(explains(&error.to_string()), "{error}");
        }
    }
}

/// Each in its own way: one exchange, a stream, a ping, a service.
#[test]
fn whatever_asks_the_kernel_refuses_on_an_old_one() {
    let _parallel = Parallel::begin();
    if !old() {
        return;
    }
    let lab = stage::lab();
    let server = IpAddr::V4(SERVER_V4).to_string();
    let url = format!("http://{server}/");
    let syn = format!(r#"IP(dst="{server}")/TCP(dport=80, flags="S")"#);
    let socket = format!("{}/crafter-old.sock", std::env::temp_dir().display());
    let commands: [&[&str]; 6] = [
        &["sr1", &syn],
        &["sr", &syn],
        &["get", &url],
        &["ping", "-c", "1", &server],
        &["dns", "a.test", "--server", &server],
        &["serve", "--everybody", "--socket", &socket],
    ];
    for arguments in commands {
        let output = crafter(&lab, arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(exit::KERNEL)), "{arguments:?}: {text}");
        assert!(explains(&text), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
    let build = crafter(&lab, &["build", &syn]);
    assert!(build.status.success(), "what asks no kernel works: {}", String::from_utf8_lossy(&build.stderr));
}
