//! crafter works on supported kernels; on older ones every command that uses the kernel fails with the reason and a
//! distinct exit code.
//!
//! `cargo xtask vm-test --kernel 5.10` runs these tests on an unsupported kernel.

use std::{net::IpAddr, process::Output};

use crafter::{
    Crafter, Options,
    datapath::{features, program::OLDEST_KERNEL},
    lab::{INTERFACE, Lab, SERVER_V4},
};
use crafter_tests::exit;
use crafter_tests::{leak::Parallel, service, testbed, within};
use serde_json::Value;

/// Whether this kernel is older than the oldest supported one.
fn old() -> bool {
    features::version(&features::host().expect("the host's facts").kernel) < OLDEST_KERNEL
}

fn crafter(lab: &Lab, arguments: &[&str]) -> Output {
    // A command that does not fail may run forever.
    let mut command = lab.client().command("timeout");
    command.arg("60").arg(service::built()).args(arguments).env_remove("CRAFTER_SOCKET").output().expect("crafter")
}

/// Whether a text names both this kernel and the oldest supported one.
fn explains(text: &str) -> bool {
    let release = features::host().expect("the host's facts").kernel;
    text.contains(&release) && text.contains("5.18")
}

#[test]
fn doctor_reports_whether_the_kernel_is_supported() {
    let _parallel = Parallel::begin();
    let lab = testbed::lab();
    let output = crafter(&lab, &["doctor", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let kernel = checks.iter().find(|check| check["name"] == "kernel").expect("a check of the kernel");
    assert!(explains(kernel["finding"].as_str().expect("a finding")), "{kernel}");
    assert_eq!(report["works"], !old(), "{text}");
    assert_eq!(kernel["state"] == "bad", old(), "{text}");
    assert_eq!(output.status.code(), Some(i32::from(old())), "{text}");
    let interfaces = report["interfaces"].as_array().expect("interfaces");
    let lab0 = interfaces.iter().find(|interface| interface["name"] == INTERFACE).expect("the lab's interface");
    assert_eq!(lab0["attach"].is_null(), old(), "{lab0}");
}

/// The attach mechanism that doctor reports for the lab's interface is the one used there.
#[test]
fn doctor_reports_the_mechanism_that_attaches() {
    let _parallel = Parallel::begin();
    let lab = testbed::lab();
    let output = crafter(&lab, &["doctor"]);
    let report_text = String::from_utf8_lossy(&output.stdout).into_owned();
    let opened = within(lab.client(), || async {
        Crafter::open(INTERFACE, Options::default()).await.map(|crafter| crafter.report().clone())
    });
    match opened {
        Ok(report) => {
            assert!(!old(), "{report}");
            assert!(
                report_text.lines().any(|line| line.contains("egress filter") && line.contains(report.classifier)),
                "{report_text}"
            );
        }
        Err(error) => {
            assert!(old(), "{error}");
            assert_eq!(exit::code(&error), exit::KERNEL);
            assert!(explains(&error.to_string()), "{error}");
        }
    }
}

/// Exchange, stream, ping and service fail on an old kernel; commands that do not use it succeed.
#[test]
fn commands_fail_on_an_old_kernel() {
    let _parallel = Parallel::begin();
    if !old() {
        return;
    }
    let lab = testbed::lab();
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
    assert!(build.status.success(), "build does not use the kernel: {}", String::from_utf8_lossy(&build.stderr));
}
