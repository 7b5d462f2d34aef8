//! `crafter monitor`

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use crafter_tests::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    eventually,
    schema::valid,
    served::{NOBODY, Served},
    wait,
};

struct Monitor {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Monitor {
    /// Starts it, and returns when it has subscribed.
    fn start(served: &Served, mut command: std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        settles([child.id(), served.pid()]);
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "it ended");
        line.trim_end().to_owned()
    }

    /// Skips to an event of this kind.
    fn event(&mut self, kind: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.line()).unwrap();
            if event["event"] == kind {
                return event;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a process has a socket and both it and the service sleep, so that no message between them is pending.
/// Nothing else shows that it has subscribed. A process that only waits for a processor does not count as sleeping.
fn settles(both: [u32; 2]) {
    let look = || {
        let looks = both.map(|pid| {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            let threads: Vec<_> = threads.filter_map(|thread| sleeping(&thread.path().join("status"))).collect();
            let is_socket =
                |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
            let mut fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(Result::ok);
            (fds.any(is_socket) && threads.iter().all(|(sleeps, _)| *sleeps), threads)
        });
        let [(sleeps, threads), (service_sleeps, _)] = looks;
        (sleeps && service_sleeps, threads)
    };
    let mut before = look();
    eventually(|| {
        std::thread::sleep(Duration::from_millis(300));
        let now = look();
        let is_quiet = now.0 && now == before;
        before = now;
        is_quiet.then_some(())
    });
}

/// Whether a thread sleeps, and the number of times it has done so; `None` if it has ended.
fn sleeping(status: &std::path::Path) -> Option<(bool, String)> {
    let status = fs::read_to_string(status).ok()?;
    let field = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    Some((field("State:").contains("sleeping"), field("voluntary_ctxt_switches:").to_owned()))
}

#[test]
fn events_are_printed_live() {
    let served = Served::new();
    let mut all = Monitor::start(&served, served.command(&["monitor", "--json", "--interval", "0.1"]));
    let mut text = Monitor::start(&served, served.command(&["monitor", "--count", "2"]));
    let mut own = Monitor::start(&served, served.command_as_nobody(&["monitor", "--json", "--interval", "0.1"]));
    assert_eq!(served.root(&["leases", "--json"]).object("leases"), json!({ "leases": [] }));

    let root = served.lease(false, &json!({ "interface": "lab0", "protocol": "tcp", "port": 40_001 }));
    let nobody = served.handshake(true, 50_001);
    assert_eq!(all.event("attached")["interface"], "lab0");
    let begun = all.event("lease-begun");
    let some = ["lease", "user", "interface", "protocol", "first_port", "last_port"].map(|key| begun[key].clone());
    assert_eq!(json!(some), json!([root.number(), 0, "lab0", "tcp", 40_001, 40_001]));
    assert!(begun["time_ns"].as_u64() > Some(1 << 60), "{begun}");
    assert_eq!(all.event("lease-begun")["lease"], json!(nobody.number()));
    let delivered = all.event("delivered");
    assert_eq!((&delivered["lease"], &delivered["user"]), (&json!(nobody.number()), &json!(NOBODY)), "{delivered}");
    assert!(delivered["count"].as_u64() >= Some(1) && delivered["bytes"].as_u64() >= Some(40), "{delivered}");
    let number = nobody.number();
    nobody.close();
    assert_eq!(all.event("lease-ended")["lease"], json!(number));

    // The user nobody gets no events of other users' leases.
    loop {
        let event = valid("monitor", &own.line());
        assert!([json!(NOBODY), Value::Null].contains(&event["user"]), "{event}");
        if event["event"] == "lease-ended" {
            break;
        }
    }
    // The text form, and only the requested events.
    let lines = [text.line(), text.line()].join("\n");
    assert!(lines.contains(&format!(" lease-begun lab0 lease {} user root tcp 40001", root.number())), "{lines}");
    assert_eq!(wait(&mut text.child), 0);

    all.signal(Signal::SIGINT);
    assert_eq!(wait(&mut all.child), 0);
    let last = std::iter::from_fn(|| Some(valid("monitor", &all.line()))).find(|record| record["type"] == "summary");
    assert!(last.unwrap()["events"].as_u64() >= Some(5));
}

#[test]
fn monitor_ends_on_closed_pipe_without_events() {
    let served = Served::new();
    let mut command = served.command(&["monitor"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child), 0);
    // A regular file is always readable.
    let file = std::fs::File::create(served.directory.path().join("events")).unwrap();
    let mut child = served.command(&["monitor", "--count", "1"]).stdout(file).spawn().unwrap();
    settles([child.id(), served.pid()]);
    let _lease = served.lease(false, &json!({ "interface": "lab0", "protocol": "none" }));
    assert_eq!(wait(&mut child), 0);
    assert_eq!(std::fs::read_to_string(served.directory.path().join("events")).unwrap().lines().count(), 1);
}

#[test]
fn only_ctrl_c_without_a_count_ends_with_success() {
    let served = Served::new();
    for (args, signal, code) in [
        (&["monitor", "--json"][..], Signal::SIGINT, 0),
        (&["monitor", "--json"], Signal::SIGTERM, 143),
        (&["monitor", "--json"], Signal::SIGHUP, 129),
        (&["monitor", "--json", "--count", "3"], Signal::SIGINT, 130),
    ] {
        let mut monitor = Monitor::start(&served, served.command(args));
        monitor.signal(signal);
        assert_eq!(wait(&mut monitor.child), code, "{args:?}, {signal}");
        assert_eq!(valid("monitor", &monitor.line()), json!({ "type": "summary", "events": 0 }));
    }
}

#[test]
fn monitor_ends_with_the_service() {
    let mut served = Served::new();
    let mut monitor = Monitor::start(&served, served.command(&["monitor"]));
    assert_eq!(served.stop(), 0);
    assert_eq!(wait(&mut monitor.child), i32::from(exit::FAILURE));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut monitor.child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(
        said.starts_with("crafter: lost connection to the crafter service at ") && said.lines().count() == 1,
        "{said}"
    );
}
