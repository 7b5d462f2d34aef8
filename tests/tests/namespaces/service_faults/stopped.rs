//! A service that is stopped by SIGSTOP: calls time out, and work again once it is continued.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use crafter::{
    Error,
    protocol::{
        control::CALL_TIMEOUT,
        wire::{InfoCall, Method as _},
    },
    session::{Outcome, Session, SessionOptions, SrOptions},
};
use crafter_tests::{
    leak::Serial,
    peer::wait_for,
    service::{NOBODY, ROOT},
    slow::allow,
    testbed::{ENDS, lab},
};
use nix::sys::signal::Signal;

use super::{packets, service};

/// What closing a session may take beyond the call that times out.
const CLOSE_TIME: Duration = Duration::from_secs(8);

#[test]
fn call_to_a_stopped_service_times_out_and_works_after_sigcont() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    service.session(ROOT, async |control| {
        control.call(&InfoCall {}).await.expect("a reply");
        service.signal(Signal::SIGSTOP);
        let began = Instant::now();
        let error = control.call(&InfoCall {}).await.expect_err("the service is stopped");
        let took = began.elapsed();
        service.signal(Signal::SIGCONT);
        assert!((CALL_TIMEOUT..CALL_TIMEOUT + allow(Duration::from_secs(2))).contains(&took), "{took:?}");
        let expected = format!("no reply to {} within 15s", InfoCall::NAME);
        assert!(matches!(&error, Error::Service { reason, .. } if reason.contains(&expected)), "{error}");
        // The late reply is skipped.
        control.call(&InfoCall {}).await.expect("a reply of the continued service");
    });
}

#[test]
fn exchange_ends_with_an_error_if_the_service_is_stopped_during_it() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let syns = packets(r#"IP(dst="192.0.2.1")/TCP(dport=(1000,1031), flags="S")"#);
    service.session(ROOT, async |control| {
        let options = SessionOptions { service: Some(Arc::new(control)), ..SessionOptions::default() };
        let session = Session::new(options);
        let began = Instant::now();
        let mut stop_at_first_reply = |event: &crafter::session::Event<'_>| {
            if matches!(event.outcome, Outcome::Matched { request: 0, .. }) {
                service.signal(Signal::SIGSTOP);
            }
        };
        let error = session.sr_with(syns, &SrOptions::default(), &mut stop_at_first_reply).await.expect_err("stopped");
        assert!(matches!(&error, Error::Service { reason, .. } if reason.contains("no reply to")), "{error}");
        session.close().await;
        let took = began.elapsed();
        service.signal(Signal::SIGCONT);
        assert!(took < allow(SrOptions::default().timeout + CALL_TIMEOUT + CLOSE_TIME), "{took:?}");
    });
}

#[test]
fn commands_end_with_an_error_if_the_service_is_stopped_before_them() {
    let _serial = Serial::begin();
    let lab = lab();
    let service = service(&lab);
    let syn = format!(r#"IP(dst="{}")/TCP(dport=9, flags="S")"#, ENDS[0].1);
    let host = ENDS[0].1.to_string();
    service.signal(Signal::SIGSTOP);
    // At once, as each takes as long as the call.
    let commands = [&["sr1", &syn][..], &["sr", &syn], &["send", &syn], &["ping", "-c", "1", &host]].map(|arguments| {
        let mut command = service.command(NOBODY, arguments);
        (arguments[0], command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("crafter"))
    });
    for (name, mut child) in commands {
        wait_for(name, allow(CALL_TIMEOUT + CLOSE_TIME), || child.try_wait().expect("its state"));
        let output = child.wait_with_output().expect("its output");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert!(stderr.contains("no reply to org.crafter.v1."), "{name}: {stderr}");
    }
    service.signal(Signal::SIGCONT);
}
