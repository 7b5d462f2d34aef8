//! Memory limits by a cgroup, from one at which nothing can start to a sufficient one: crafter succeeds, fails with an
//! error message, or is killed by the kernel. It never hangs or panics and leaves nothing behind.
//!
//! These tests need cgroup v2 with its memory controller, which many hosts do not provide. They are therefore ignored;
//! `cargo xtask vm-test --program memory_limit` runs them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use crafter::{
    lab::{INTERFACE, Lab},
    protocol::Control,
};
use crafter_tests::{
    block_on,
    leak::{self, Serial, unheld_programs},
    messages::has_panicked,
    peer::{Nginx, Process, wait_for},
    service::{Socket, built, lease_call, open_directory},
    slow::allow,
    testbed::{self, ENDS, lab},
};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// Limits in KiB, from one that is too small for any process to one that is sufficient for all.
const LIMITS: [u64; 13] = [64, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 32_768, 65_536, 262_144];

/// Limit of leases, more than the service can hold under its last limit.
const MANY: usize = 5000;

/// Timeout of each step, before the factor for emulated CPUs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A cgroup, removed with all of its processes when dropped.
struct Group {
    path: PathBuf,
}

impl Group {
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let path = PathBuf::from(fields.nth(1)?);
            let controllers = fs::read_to_string(path.join("cgroup.controllers")).ok()?;
            (fields.next() == Some("cgroup2") && controllers.split_whitespace().any(|one| one == "memory"))
                .then_some(path)
        });
        let root =
            mount.expect("no cgroup v2 with a memory controller; run `cargo xtask vm-test --program memory_limit`");
        let enabled = root.join("cgroup.subtree_control");
        if !fs::read_to_string(&enabled).expect("its controllers").contains("memory") {
            // On other machines the cgroup hierarchy is not ours to change.
            assert!(
                std::env::var_os("CRAFTER_TEST_MACHINE").is_some(),
                "{} does not enable the memory controller",
                enabled.display()
            );
            fs::write(&enabled, "+memory").expect("enable the memory controller");
        }
        let group = Self { path: root.join(format!("crafter-test-{}-{name}", std::process::id())) };
        fs::create_dir(&group.path).expect("a cgroup");
        // Without a limit of swap, excess memory would be swapped out.
        let swap = group.path.join("memory.swap.max");
        if swap.exists() {
            fs::write(swap, "0").expect("disable swap");
        }
        group
    }

    fn limit(&self, kib: u64) {
        fs::write(self.path.join("memory.max"), (kib * 1024).to_string()).expect("a limit");
    }

    /// `command`, executed in this cgroup from the start.
    fn wrap(&self, lab: &Lab, command: &[&str]) -> Command {
        let mut wrapped = lab.client().command("sh");
        wrapped.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(self.path.join("cgroup.procs")).args(command);
        wrapped.stdin(Stdio::null()).stdout(Stdio::null());
        wrapped
    }

    /// A counter of memory.events: `max` for hits of the limit, `oom_kill` for killed processes.
    fn events(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.events")).expect("its events");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|count| count.parse().ok()).expect("a number")
    }

    /// Current memory in KiB.
    fn current(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.current")).expect("its memory");
        text.trim().parse::<u64>().expect("a number") / 1024
    }

    /// Peak memory in KiB; `None` before Linux 5.19.
    fn peak(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join("memory.peak")).ok()?;
        text.trim().parse::<u64>().ok().map(|bytes| bytes / 1024)
    }

    fn processes(&self) -> String {
        fs::read_to_string(self.path.join("cgroup.procs")).expect("its processes")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for pid in self.processes().lines().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for _ in 0..1000 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("cannot remove {}", self.path.display());
    }
}

/// Outcome of a process.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Success,
    Failed(String),
    Killed,
}

impl End {
    /// # Panics
    /// If the outcome is not permitted.
    fn of(status: ExitStatus, messages: &str, point: &str) -> Self {
        assert!(!has_panicked(messages), "{point}: {messages}");
        let last = messages.lines().last().unwrap_or_default();
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::Success,
            (_, Some(9)) => Self::Killed,
            // An error of the shell, before it executed crafter.
            (Some(code), _) if !last.starts_with("crafter: ") && messages.starts_with("sh: ") => {
                Self::Failed(format!("{code}: {last}"))
            }
            (Some(1..=100), _) => {
                assert!(last.starts_with("crafter: ") && last.len() > 20, "{point}: {messages}");
                Self::Failed(last.to_owned())
            }
            _ => panic!("{point}: {status}: {messages}"),
        }
    }
}

fn assert_nothing_left(lab: &Lab, group: &Group, before: &BTreeSet<u32>, point: &str) {
    let processes = || group.processes().lines().map(|pid| format!("process {pid}")).collect();
    leak::assert_nothing_left((lab.client(), INTERFACE), before, point, processes);
}

/// Runs a command under each limit until one is sufficient.
fn at_every_limit(name: &str, command: &[&str]) {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let before = unheld_programs();
    let mut ends = Vec::new();
    for limit in LIMITS {
        let group = Group::new(&format!("{name}-{limit}"));
        group.limit(limit);
        let point = format!("{name} with {limit} KiB");
        let mut process = Process::start(group.wrap(&lab, command).stderr(Stdio::piped()));
        let status =
            wait_for(&format!("its exit, {point}"), REPLY_TIMEOUT, || process.0.try_wait().expect("its state"));
        let mut messages = String::new();
        std::io::Read::read_to_string(&mut process.0.stderr.take().expect("its errors"), &mut messages).expect("text");
        let end = End::of(status, &messages, &point);
        assert_nothing_left(&lab, &group, &before, &point);
        let (met, killed) = (group.events("max"), group.events("oom_kill"));
        println!("{point}: {end:?}; limit hit {met} times, {killed} killed, peak {:?} KiB", group.peak());
        assert!(end == End::Success || met > 0 || killed > 0, "{point}: {end:?}, but the limit was not hit");
        assert!(end != End::Killed || killed > 0, "{point}: killed, but not because of the limit");
        ends.push(end);
        if ends.last() == Some(&End::Success) {
            break;
        }
    }
    assert_eq!(ends.last(), Some(&End::Success), "no limit is sufficient: {ends:?}");
    assert!(ends.len() > 3, "every limit is sufficient: {ends:?}");
    testbed::assert_curl_works(&lab, ENDS[0].1, &nginx);
}

fn path(crafter: &std::path::Path) -> &str {
    crafter.to_str().expect("a path in UTF-8")
}

#[test]
#[ignore = "takes cgroup v2: `cargo xtask vm-test --program memory_limit`"]
fn get_under_every_limit() {
    at_every_limit("get", &[path(&built()), "get", "--direct", "-q", "-o", "/dev/null", "http://192.0.2.1/small"]);
}

/// Memory is used mostly by the state of each request.
#[test]
#[ignore = "takes cgroup v2: `cargo xtask vm-test --program memory_limit`"]
fn scan_under_every_limit() {
    let packets = r#"IP(dst="192.0.2.1")/TCP(dport=(1,10000), flags="S")"#;
    at_every_limit("sr", &[path(&built()), "sr", "--direct", "--timeout", "1", packets]);
}

/// Acquires a lease from the service at `socket`.
fn lease(lab: &Lab, socket: &std::path::Path) -> crafter::Result<Socket> {
    let work = || {
        block_on(async {
            let control = Control::connect(socket).await?;
            let lease = lease_call("tcp", None, None);
            let timeout = allow(REPLY_TIMEOUT);
            tokio::time::timeout(timeout, Socket::lease(&control, &lease)).await.expect("an answer or an error in time")
        })
    };
    lab.client().run(work).expect("enter the client")
}

/// Runs the service under each limit: it fails to start, refuses or grants a lease, or is killed. Finally it reaches
/// the limit while it holds leases.
#[test]
#[ignore = "takes cgroup v2: `cargo xtask vm-test --program memory_limit`"]
fn serve_under_every_limit() {
    let _serial = Serial::begin();
    let lab = lab();
    let before = unheld_programs();
    let directory = open_directory("crafter-memory-");
    let policy = directory.path().join("crafter.toml");
    let many = "[[rule]]\nuser = 0\nmax_leases = \"unlimited\"\nmax_ports = \"unlimited\"\n";
    fs::write(&policy, many).expect("a policy");
    // Each lease needs a descriptor.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a higher limit");
    let mut granted = 0;
    let mut ends = Vec::new();
    for limit in LIMITS {
        let group = Group::new(&format!("serve-{limit}"));
        group.limit(limit);
        let point = format!("serve with {limit} KiB");
        let socket = directory.path().join(format!("socket-{limit}"));
        let crafter = built();
        let command = [path(&crafter), "serve", "--everybody", "--socket", path(&socket), "--policy", path(&policy)];
        let log = directory.path().join(format!("log-{limit}"));
        let errors = fs::File::create(&log).expect("a log");
        let mut process = Process::start(group.wrap(&lab, &command).stderr(errors));
        let began = wait_for(&format!("its start or exit, {point}"), REPLY_TIMEOUT, || {
            if process.0.try_wait().expect("its state").is_some() {
                return Some(false);
            }
            std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(true)
        });
        let leased = began.then(|| lease(&lab, &socket));
        let what = match &leased {
            None => "it did not start".to_owned(),
            Some(Ok(_)) => "leased".to_owned(),
            Some(Err(error)) => error.to_string(),
        };
        if let Some(Ok(_)) = &leased {
            granted += 1;
            if granted == 2 {
                // Allows a little more memory, and then acquires leases until one fails.
                group.limit(group.current() + 1024);
                let mut held = Vec::new();
                let error = loop {
                    match lease(&lab, &socket) {
                        Ok(lease) => held.push(lease),
                        Err(error) => break error,
                    }
                    assert!(held.len() < MANY, "{point}: the limit has no effect");
                };
                println!("{point}: after {} more leases: {error}", held.len());
            }
        }
        drop(leased);
        let _ = kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM);
        let status =
            wait_for(&format!("its exit, {point}"), REPLY_TIMEOUT, || process.0.try_wait().expect("its state"));
        let messages = fs::read_to_string(&log).expect("its log");
        let end = if status.code() == Some(0) || status.signal() == Some(9) {
            End::of(status, &messages, &point)
        } else if status.signal() == Some(15) {
            // Stopped before it had installed its signal handlers.
            End::Killed
        } else {
            End::of(status, messages.trim_end(), &point)
        };
        assert_nothing_left(&lab, &group, &before, &point);
        let (met, killed) = (group.events("max"), group.events("oom_kill"));
        println!("{point}: {what}; {end:?}; limit hit {met} times, {killed} killed, peak {:?} KiB", group.peak());
        if granted == 0 {
            assert!(met > 0 || killed > 0, "{point}: {what}, but the limit was not hit");
        }
        if granted == 2 {
            assert!(met > 0 || killed > 0, "{point}: it did not end because of the limit: {end:?}");
            ends.push((what, end));
            break;
        }
        ends.push((what, end));
    }
    assert_eq!(granted, 2, "no limit is sufficient: {ends:?}");
    assert!(ends.len() > 4, "every limit is sufficient: {ends:?}");
}
