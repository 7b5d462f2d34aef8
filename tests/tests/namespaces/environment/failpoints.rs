//! `crafter get` is killed, or fails, at every system call of its start and exit. strace injects the signal or the
//! error into a system call of a given name and number, so that the unmodified program is tested.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output},
};

use crafter::lab::{INTERFACE, Lab};
use crafter_tests::{
    guarded::processes_in,
    leak::{self, Serial, unheld_programs},
    messages::has_panicked,
    peer::Nginx,
    service::built,
    testbed::{self, ENDS, lab, run},
};

/// System calls that acquire or release a resource that could be left behind.
const CALLS: [&str; 12] = [
    "bpf",
    "socket",
    "bind",
    "setsockopt",
    "mmap",
    "ioctl",
    "sendto",
    "connect",
    "epoll_ctl",
    "close",
    "munmap",
    "openat",
];

/// Number of system calls per test; `CRAFTER_TEST_POINTS=0`: all.
pub(super) fn points() -> usize {
    std::env::var("CRAFTER_TEST_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

/// `crafter get` of the small page, without a service, under strace with these options.
fn get(lab: &Lab, clsact: bool, strace: &[&str]) -> Command {
    let mut command = lab.client().command("strace");
    if clsact {
        command.env("CRAFTER_CLSACT", "1");
    }
    // Without -f strace follows only the first thread, and no child process.
    command.arg("-qq").args(strace).arg("--").arg(built());
    command.args(["get", "--direct", "-q", "-o", "/dev/null", "http://192.0.2.1/small"]);
    command
}

/// Number of calls by name.
fn counts(lab: &Lab, clsact: bool) -> Vec<(&'static str, usize)> {
    let directory = tempfile::tempdir().expect("a directory");
    let trace = directory.path().join("trace");
    let path = trace.to_str().expect("its path");
    run(&mut get(lab, clsact, &["-o", path, "-e", &format!("trace={}", CALLS.join(","))]));
    count(&fs::read_to_string(&trace).expect("the trace"), &CALLS)
}

/// Number of calls by name in a trace, without calls that do not occur.
pub(super) fn count(trace: &str, calls: &[&'static str]) -> Vec<(&'static str, usize)> {
    let of = |call: &str| {
        let begins = format!("{call}(");
        trace.lines().filter(|line| line.starts_with(&begins)).count()
    };
    calls.iter().map(|call| (*call, of(call))).filter(|(_, count)| *count > 0).collect()
}

/// Selects up to `points` calls, spread evenly over all; each as name and number.
pub(super) fn spread(counts: &[(&'static str, usize)], points: usize) -> Vec<(&'static str, usize)> {
    let all: Vec<_> = counts.iter().flat_map(|(call, count)| (1..=*count).map(move |number| (*call, number))).collect();
    let step = if points == 0 { 1 } else { all.len().div_ceil(points).max(1) };
    all.into_iter().step_by(step).collect()
}

pub(super) fn assert_nothing_left(lab: &Lab, before: &BTreeSet<u32>, point: &str) {
    leak::assert_nothing_left((lab.client(), INTERFACE), before, point, || processes_in(&[lab.client()]));
}

/// Runs it with an injection, in strace's syntax, for the call of this name and number.
fn inject(lab: &Lab, clsact: bool, (call, number): (&str, usize), injection: &str) -> Output {
    let what = format!("{call}:{injection}:when={number}");
    let options = [format!("trace={call}"), format!("inject={what}")];
    let options = ["-o", "/dev/null", "-e", &options[0], "-e", &options[1]];
    let output = get(lab, clsact, &options).output().expect("strace");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(!has_panicked(&messages), "{what}: {messages}");
    output
}

/// SIGKILL at many system calls, with tcx and with clsact: nothing is left, and the host's network works.
#[test]
fn sigkill_at_any_system_call_leaves_nothing() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let before = unheld_programs();
    for clsact in [false, true] {
        let counts = counts(&lab, clsact);
        let points = spread(&counts, points());
        let mut killed = 0;
        for (call, number) in &points {
            let output = inject(&lab, clsact, (call, *number), "signal=SIGKILL");
            killed += usize::from(output.status.signal() == Some(9) || output.status.code() == Some(137));
            assert_nothing_left(&lab, &before, &format!("killed at {call} {number}, clsact {clsact}"));
        }
        println!("clsact {clsact}: killed at {killed} of {} points of {counts:?}", points.len());
        // The number of calls varies between runs, so the last ones may not occur.
        assert!(killed * 10 > points.len() * 8, "killed only {killed} of {} times", points.len());
        testbed::assert_curl_works(&lab, ENDS[0].1, &nginx);
    }
}

/// Failing system calls: the command succeeds by another method, or fails with an error message and an exit code. It
/// never panics, hangs or leaves anything.
#[test]
fn failure_of_any_system_call_is_reported() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let before = unheld_programs();
    let counts = counts(&lab, false);
    let failures = [("bpf", "ENOMEM"), ("bpf", "EPERM"), ("socket", "EMFILE"), ("bind", "ENOBUFS"), ("mmap", "ENOMEM")];
    let (mut succeeded, mut failed) = (0, 0);
    for (call, errno) in failures {
        let count = counts.iter().find(|(name, _)| *name == call).map_or(0, |(_, count)| *count);
        for (_, number) in spread(&[(call, count)], points()).into_iter().step_by(failures.len()) {
            let output = inject(&lab, false, (call, number), &format!("error={errno}"));
            let point = format!("{call} {number} fails by {errno}");
            assert_nothing_left(&lab, &before, &point);
            let messages = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => succeeded += 1,
                // The loader and the allocator may fail in their own manner.
                _ if call == "mmap" => failed += 1,
                Some(1..=100) => {
                    failed += 1;
                    let last = messages.lines().last().unwrap_or_default();
                    assert!(last.starts_with("crafter: ") && last.len() > 20, "{point}: {messages}");
                }
                other => panic!("{point}: {other:?}: {messages}"),
            }
        }
    }
    println!("{succeeded} succeeded by another method, {failed} failed with an error message");
    assert!(failed > 5, "too few calls failed");
    testbed::assert_curl_works(&lab, ENDS[0].1, &nginx);
}
