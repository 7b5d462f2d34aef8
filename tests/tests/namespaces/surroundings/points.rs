//! Ended, or failed, at every point of its start and its end: strace makes the system call with a given number kill the
//! process, or fail. A failpoint at each place where user space asks the kernel for something, in the very program that
//! users run.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output},
};

use crafter::lab::{INTERFACE, Lab};
use crafter_tests::{
    guarded::processes_in,
    leak::{self, Serial, programs},
    peer::Nginx,
    service::built,
    stage::{self, ENDS, lab, run},
};

/// Calls by which a process gets something that could be left behind, or gives it back.
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

/// Points for each test; `CRAFTER_TEST_POINTS=0`: all.
pub(super) fn points() -> usize {
    std::env::var("CRAFTER_TEST_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

/// `crafter get` of the small page, in this process's own right, under strace with these options.
fn get(lab: &Lab, clsact: bool, strace: &[&str]) -> Command {
    let mut command = lab.client().command("strace");
    if clsact {
        command.env("CRAFTER_CLSACT", "1");
    }
    // Without -f: its first thread alone, and none of the programs that it runs.
    command.arg("-qq").args(strace).arg("--").arg(built());
    command.args(["get", "--direct", "-q", "-o", "/dev/null", "http://192.0.2.1/small"]);
    command
}

/// How often it makes each call.
fn counts(lab: &Lab, clsact: bool) -> Vec<(&'static str, usize)> {
    let directory = tempfile::tempdir().expect("a directory");
    let trace = directory.path().join("trace");
    let path = trace.to_str().expect("its path");
    run(&mut get(lab, clsact, &["-o", path, "-e", &format!("trace={}", CALLS.join(","))]));
    count(&fs::read_to_string(&trace).expect("the trace"), &CALLS)
}

/// How often each of `calls` is in a trace; without those that are not.
pub(super) fn count(trace: &str, calls: &[&'static str]) -> Vec<(&'static str, usize)> {
    let of = |call: &str| {
        let begins = format!("{call}(");
        trace.lines().filter(|line| line.starts_with(&begins)).count()
    };
    calls.iter().map(|call| (*call, of(call))).filter(|(_, count)| *count > 0).collect()
}

/// Points spread over all calls.
pub(super) fn spread(counts: &[(&'static str, usize)], points: usize) -> Vec<(&'static str, usize)> {
    let all: Vec<_> = counts.iter().flat_map(|(call, count)| (1..=*count).map(move |number| (*call, number))).collect();
    let step = if points == 0 { 1 } else { all.len().div_ceil(points).max(1) };
    all.into_iter().step_by(step).collect()
}

pub(super) fn assert_nothing_left(lab: &Lab, before: &BTreeSet<u32>, point: &str) {
    leak::assert_nothing_left((lab.client(), INTERFACE), before, point, || processes_in(&[lab.client()]));
}

/// Runs it with `fate` for the call of this name and number.
fn inject(lab: &Lab, clsact: bool, (call, number): (&str, usize), fate: &str) -> Output {
    let what = format!("{call}:{fate}:when={number}");
    let options = [format!("trace={call}"), format!("inject={what}")];
    let options = ["-o", "/dev/null", "-e", &options[0], "-e", &options[1]];
    let output = get(lab, clsact, &options).output().expect("strace");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{what}: {said}");
    output
}

/// Killed at many points, with tcx and without: nothing is left, and the host is as it was.
#[test]
fn killed_anywhere() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let before = programs();
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
        // Where what a process does differs from run to run, the last calls may not come.
        assert!(killed * 10 > points.len() * 8, "{killed} of {}", points.len());
        stage::assert_curl_works(&lab, ENDS[0].1, &nginx);
    }
}

/// Calls that fail: a success all the same (another way was found), or a sentence and its exit code; never a panic, a
/// hang, or something left.
#[test]
fn failing_anywhere() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let before = programs();
    let counts = counts(&lab, false);
    let failures = [("bpf", "ENOMEM"), ("bpf", "EPERM"), ("socket", "EMFILE"), ("bind", "ENOBUFS"), ("mmap", "ENOMEM")];
    let (mut succeeded, mut failed) = (0, 0);
    for (call, errno) in failures {
        let count = counts.iter().find(|(name, _)| *name == call).map_or(0, |(_, count)| *count);
        for (_, number) in spread(&[(call, count)], points()).into_iter().step_by(failures.len()) {
            let output = inject(&lab, false, (call, number), &format!("error={errno}"));
            let point = format!("{call} {number} fails by {errno}");
            assert_nothing_left(&lab, &before, &point);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => succeeded += 1,
                // The loader and the allocator, before main() or beside it, end as they like.
                _ if call == "mmap" => failed += 1,
                Some(1..=100) => {
                    failed += 1;
                    let last = said.lines().last().unwrap_or_default();
                    assert!(last.starts_with("crafter: ") && last.len() > 20, "{point}: {said}");
                }
                other => panic!("{point}: {other:?}: {said}"),
            }
        }
    }
    println!("{succeeded} found another way, {failed} failed with a sentence");
    assert!(failed > 5, "nothing was made to fail");
    stage::assert_curl_works(&lab, ENDS[0].1, &nginx);
}
