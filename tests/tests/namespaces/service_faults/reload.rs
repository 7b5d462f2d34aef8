//! The policy changes while leases are active.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
};

use crafter::{
    Crafter, Error, LeaseRequest,
    lab::{CLIENT_V4, INTERFACE, NetNs, SERVER_V4},
    protocol::record::{Code, Kind},
};
use crafter_tests::{
    frame,
    leak::Serial,
    peer::{Process, wait_for},
    raw::Raw,
    service::{NOBODY, REPLY_TIMEOUT, ROOT, Service, Socket},
    testbed::lab,
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{POLICY, lease, lease_call};

/// Permits ports 20000 to 29999 only.
const STRICTER: &str = r#"
[[rule]]
everybody = true
protocols = ["tcp", "udp"]
ports = ["20000-29999"]
packets_per_second = "unlimited"
"#;

/// Invalid in its second and third line.
const BROKEN: &str = "[[rule]]\neverybody = 7\nports = [\"x\"]\n";

/// Asserts that a SYN is sent and answered with a RST from a closed port.
fn assert_works(socket: &Socket) {
    let from = SocketAddr::new(CLIENT_V4.into(), socket.leased.first_port.expect("a port"));
    socket.send(&frame::Tcp::new(frame::SYN, 1, 0).ip(from, SocketAddr::new(SERVER_V4.into(), 9))).expect("send");
    let message = socket.receive(REPLY_TIMEOUT).expect("the lease").expect("a RST");
    assert!(message.packet().is_some(), "{message:?}");
}

/// Asserts that the lease has ended, and that its client gets the reason.
fn assert_ended(socket: &Socket, expected: Code, word: &str) {
    let message = socket.receive(REPLY_TIMEOUT).expect("a message before the close").expect("an end message");
    let Kind::End { code } = message.header.kind else { panic!("{message:?}") };
    let (sentence, _) = message.header.sentence(&message.rest);
    assert_eq!(code, expected, "{sentence}");
    assert!(sentence.contains(word), "{sentence}");
    println!("end: {sentence}");
    socket.receive(REPLY_TIMEOUT).expect_err("a closed socket");
}

/// Lines of a service's standard error.
fn log_lines(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = channel();
    let stderr = child.stderr.take().expect("its log");
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            println!("service: {line}");
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// Starts the service again as a process whose log is read.
fn start_with_log(service: &Service, namespace: &NetNs) -> (Process, Receiver<String>) {
    let mut command: Command = namespace.command(&service.binary);
    command.args(["serve", "--everybody", "--socket"]).arg(&service.socket).arg("--policy").arg(&service.policy);
    let mut process = Process(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("crafter serve"));
    let lines = log_lines(&mut process.0);
    service.wait_for_socket();
    (process, lines)
}

#[test]
fn invalid_policy_is_rejected_and_the_old_one_stays() {
    let _serial = Serial::begin();
    let lab = lab();
    let mut service = Service::start(lab.client(), POLICY);
    assert_eq!(service.stop(), Some(0));
    let (process, lines) = start_with_log(&service, lab.client());
    let own = lease(&service, ROOT, &lease_call("tcp", Some(40_000), None)).expect("a lease");
    assert_works(&own);
    for broken in [BROKEN, "[[rule]\n", "[[rule]]\neverybody = true\nports = [70000]\n", ""] {
        // An empty file is a valid policy that permits nothing, so the empty case removes the file.
        if broken.is_empty() {
            std::fs::remove_file(&service.policy).expect("remove the policy");
        } else {
            service.write_policy(broken);
        }
        let reply = Raw::connect(&service.socket).call("Reload", &json!({}));
        let error = reply["error"].as_str().unwrap_or_default();
        if broken.is_empty() {
            assert_eq!(error, "org.crafter.v1.Failed", "{reply}");
        } else {
            assert_eq!(error, "org.crafter.v1.BadPolicy", "{reply}");
            let problems = reply["parameters"]["problems"].as_array().expect("problems");
            assert!(!problems.is_empty() && problems.iter().all(Value::is_string), "{reply}");
        }
        println!("Reload: {reply}");
        kill(nix::unistd::Pid::from_raw(process.id() as i32), Signal::SIGHUP).expect("SIGHUP");
        wait_for("the log line about SIGHUP", REPLY_TIMEOUT, || {
            lines.try_iter().any(|line| line.contains("the previous policy remains in force")).then_some(())
        });
        // The old policy still applies: leases stay, and new ones are granted.
        assert_works(&own);
        assert_works(&lease(&service, NOBODY, &lease_call("tcp", Some(50_000), None)).expect("a lease"));
    }
    let refused = Raw::connect(&service.socket).call("Info", &json!({}));
    assert!(refused["error"].is_null(), "{refused}");
    drop(process);
}

#[test]
fn stricter_policy_ends_leases_that_it_refuses() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = Service::start(lab.client(), POLICY);
    for by_signal in [false, true] {
        let [inside, outside] =
            [20_000, 40_000].map(|port| lease(&service, ROOT, &lease_call("tcp", Some(port), None)).expect("a lease"));
        let theirs = lease(&service, NOBODY, &lease_call("tcp", Some(40_001), None)).expect("a lease");
        service.session(ROOT, async |control| {
            let crafter = Crafter::via_service(control.into(), INTERFACE).await.expect("the interface");
            let lost = crafter.lease(LeaseRequest::tcp().port(41_000)).await.expect("a lease");
            service.write_policy(STRICTER);
            if by_signal {
                service.signal(Signal::SIGHUP);
            } else {
                let reply = Raw::connect(&service.socket).call("Reload", &json!({}));
                let ended = reply["parameters"]["ended"].as_array().expect("the leases that end");
                for socket in [&outside, &theirs] {
                    assert!(ended.contains(&json!(socket.leased.lease)), "{reply}");
                }
                assert!(!ended.contains(&json!(inside.leased.lease)), "{reply}");
                assert_eq!(reply["parameters"]["rules"], 1);
            }
            for socket in [&outside, &theirs] {
                assert_ended(socket, Code::Policy, "port");
            }
            // The library returns an error with the reason.
            let error = tokio::time::timeout(REPLY_TIMEOUT, lost.recv()).await.expect("an error in time").map(drop);
            println!("error: {error:?}");
            assert!(matches!(&error, Err(Error::Service { reason, .. }) if reason.contains("rule")), "{error:?}");
        });
        assert_works(&inside);
        let refused = lease(&service, ROOT, &lease_call("tcp", Some(40_000), None)).map(drop);
        assert!(matches!(refused, Err(Error::Forbidden { rule: Some(1), .. })), "{refused:?}");
        // Restores the first policy.
        service.write_policy(POLICY);
        let reply = Raw::connect(&service.socket).call("Reload", &json!({}));
        assert_eq!(reply["parameters"]["ended"], json!([]), "{reply}");
        assert_works(&inside);
        drop(inside);
        wait_for("the release of the lease", REPLY_TIMEOUT, || service.leases().is_empty().then_some(()));
    }
    // Only root and the service's own user may reload the policy.
    service.session(NOBODY, async |control| {
        let refused = control.call(&crafter::protocol::wire::ReloadCall {}).await;
        assert!(matches!(refused, Err(Error::Forbidden { rule: None, .. })), "{refused:?}");
    });
}
