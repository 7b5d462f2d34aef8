//! `crafter serve` is killed, or fails, at every system call of its start, of a lease, and of its exit.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crafter::protocol::Control;
use crafter_tests::{
    block_on,
    frame::{SYN, Tcp},
    guarded::GuardedLab,
    leak::{Serial, unheld_programs},
    messages::has_panicked,
    peer::{Process, wait_for},
    service::{Message, REPLY_TIMEOUT, Socket, built, lease_call},
    slow::allow,
    testbed::{ENDS, lab},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::failpoints::{assert_nothing_left, count, points, spread};

/// System calls of the service that acquire or release a resource, or communicate with clients.
const CALLS: [&str; 17] = [
    "bpf",
    "socket",
    "socketpair",
    "bind",
    "listen",
    "setsockopt",
    "mmap",
    "sendto",
    "sendmsg",
    "recvmsg",
    "accept4",
    "epoll_ctl",
    "close",
    "munmap",
    "openat",
    "prctl",
    "rt_sigaction",
];

/// The leased port. The SYN sent from it to a closed port is answered with a RST, whose rate the kernel does not limit,
/// unlike ICMP errors.
const PORT: u16 = 30_123;

/// Time after which the signal is sent again.
const SIGNAL_INTERVAL: Duration = Duration::from_secs(2);

/// Result of a run.
#[derive(Debug)]
struct Outcome {
    status: ExitStatus,
    /// Whether the client got a reply on its lease, or the reason why not.
    client: Result<(), String>,
    messages: String,
}

/// Runs `crafter serve` with one client that acquires a lease, exchanges packets and disconnects, then sends a signal.
struct Setup {
    lab: GuardedLab,
    directory: TempDir,
}

impl Setup {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("policy"), "[[rule]]\nuser = 0\nprotocols = [\"any\"]\nallow = [\"any\"]\n")
            .expect("a policy");
        Self { lab: lab(), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs it under strace with these options, until it exits by SIGTERM or earlier.
    fn run(&self, clsact: bool, strace: &[&str]) -> Outcome {
        let mut command = self.lab.client().command("strace");
        // -D makes the service the direct child of this process. All of its threads are traced, each with its own count of
        // calls, but no child process.
        command.args(["-D", "-f", "-b", "execve", "-qq"]).args(strace).arg("--").arg(built());
        // strace replaces the number of an injected call, which the seccomp filter would reject.
        self.execute(command.args(["serve", "--no-seccomp"]), clsact, Signal::SIGTERM, true)
    }

    /// Runs it without strace, until it exits by `signal` while its port is leased.
    fn run_untraced(&self, clsact: bool, signal: Signal) -> Outcome {
        self.execute(self.lab.client().command(built()).arg("serve"), clsact, signal, false)
    }

    fn execute(&self, command: &mut Command, clsact: bool, signal: Signal, is_traced: bool) -> Outcome {
        if clsact {
            command.env("CRAFTER_CLSACT", "1");
        }
        command.arg("--socket").arg(self.path("socket")).arg("--policy").arg(self.path("policy"));
        let log = fs::File::create(self.path("log")).expect("a log");
        let mut process = Process::start(command.stdout(Stdio::null()).stderr(log));
        let client = self.client(&mut process);
        let mut signalled = None;
        let status = wait_for("its exit", REPLY_TIMEOUT, || {
            let ended = process.0.try_wait().expect("its state");
            // Sent again under strace if the injected failure affected the send(2) of the signal handler.
            let is_due = signalled.is_none_or(|at: Instant| is_traced && at.elapsed() > allow(SIGNAL_INTERVAL));
            if ended.is_none() && is_due {
                kill(Pid::from_raw(process.id() as i32), signal).expect("a signal");
                signalled = Some(Instant::now());
            }
            ended
        });
        let messages = fs::read_to_string(self.path("log")).expect("its log");
        assert!(!has_panicked(&messages), "{command:?}: {messages}");
        Outcome { status, client: client.map(drop), messages }
    }

    /// Acquires a lease and exchanges a packet; returns the lease, or the first error.
    fn client(&self, process: &mut Process) -> Result<Socket, String> {
        let socket = self.path("socket");
        let listens = wait_for("its socket or its exit", REPLY_TIMEOUT, || {
            let ended = process.0.try_wait().expect("its state").is_some();
            UnixStream::connect(&socket).is_ok().then_some(true).or(ended.then_some(false))
        });
        if !listens {
            return Err("the service exited before it listened".to_owned());
        }
        let call = lease_call("tcp", Some(PORT), None);
        let leased = block_on(async {
            let control = Control::connect(&socket).await.map_err(|error| error.to_string())?;
            let leasing = tokio::time::timeout(allow(REPLY_TIMEOUT), Socket::lease(&control, &call));
            leasing.await.expect("the service neither answers nor exits").map_err(|error| error.to_string())
        })?;
        let (client, server) = ENDS[0];
        let request = Tcp::new(SYN, 1, 0).ip(SocketAddr::new(client, PORT), SocketAddr::new(server, 9));
        leased.send(&request).map_err(|error| error.to_string())?;
        // Receives the RST, a refusal, or the end of the lease.
        match leased.receive(allow(REPLY_TIMEOUT)) {
            Ok(Some(message)) if message.packet().is_some() => Ok(leased),
            Ok(Some(Message { header, .. })) => Err(format!("{:?}", header.kind)),
            Ok(None) => Err("no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Number of calls by name, for each name of the thread with the most.
    fn counts(&self, clsact: bool) -> Vec<(&'static str, usize)> {
        let trace = self.path("trace");
        let only = format!("trace={}", CALLS.join(","));
        let outcome = self.run(clsact, &["-o", trace.to_str().expect("its path"), "-e", &only]);
        assert!(outcome.status.success() && outcome.client.is_ok(), "{outcome:?}");
        let text = fs::read_to_string(&trace).expect("the trace");
        let mut threads: BTreeMap<&str, String> = BTreeMap::new();
        for (thread, call) in text.lines().filter_map(|line| line.split_once(' ')) {
            *threads.entry(thread).or_default() += &format!("{}\n", call.trim_start());
        }
        let of_threads: Vec<_> = threads.values().map(|trace| count(trace, &CALLS)).collect();
        let most = |call| of_threads.iter().flatten().filter(|(name, _)| *name == call).map(|(_, count)| *count).max();
        CALLS.into_iter().filter_map(|call| Some((call, most(call)?))).collect()
    }

    /// Runs it with an injection, in strace's syntax, for the call of this name and number.
    fn inject(&self, clsact: bool, (call, number): (&str, usize), injection: &str) -> Outcome {
        let options = [format!("trace={call}"), format!("inject={call}:{injection}:when={number}")];
        self.run(clsact, &["-o", "/dev/null", "-e", &options[0], "-e", &options[1]])
    }
}

/// SIGKILL at many system calls, with tcx and with clsact: nothing is left, and a new service starts on the same
/// socket.
#[test]
fn sigkill_of_the_service_at_any_system_call_leaves_nothing() {
    let _serial = Serial::begin();
    let setup = Setup::new();
    let before = unheld_programs();
    for clsact in [false, true] {
        let counts = setup.counts(clsact);
        let points = spread(&counts, points());
        let mut killed = 0;
        for (call, number) in &points {
            let outcome = setup.inject(clsact, (call, *number), "signal=SIGKILL");
            killed += usize::from(outcome.status.signal() == Some(9));
            assert_nothing_left(&setup.lab, &before, &format!("killed at {call} {number}, clsact {clsact}"));
        }
        println!("clsact {clsact}: killed at {killed} of {} points of {counts:?}", points.len());
        // Some calls, such as those of timers, do not occur in every run.
        assert!(killed * 10 > points.len() * 8, "killed only {killed} of {} times", points.len());
        let outcome = setup.run_untraced(clsact, Signal::SIGTERM);
        assert!(outcome.status.success() && outcome.client.is_ok(), "the next service: {outcome:?}");
    }
}

/// Failing system calls: the service keeps working and its client gets a lease or a reason, or it exits with an error
/// message.
#[test]
fn failure_of_any_system_call_of_the_service_is_reported() {
    let _serial = Serial::begin();
    let setup = Setup::new();
    let before = unheld_programs();
    let counts = setup.counts(false);
    let failures = [
        ("bpf", "ENOMEM"),
        ("bpf", "EPERM"),
        ("socket", "EMFILE"),
        ("socketpair", "EMFILE"),
        ("bind", "ENOBUFS"),
        ("listen", "EADDRINUSE"),
        ("setsockopt", "ENOBUFS"),
        ("accept4", "EMFILE"),
        ("sendmsg", "ENOBUFS"),
        ("recvmsg", "ECONNRESET"),
        ("sendto", "ENOBUFS"),
        ("epoll_ctl", "ENOSPC"),
        ("openat", "ENFILE"),
        ("prctl", "EPERM"),
        ("mmap", "ENOMEM"),
    ];
    let (mut unharmed, mut client_errors, mut ended) = (0, 0, 0);
    for (call, errno) in failures {
        let count = counts.iter().find(|(name, _)| *name == call).map_or(0, |(_, count)| *count);
        let numbers = spread(&[(call, count)], points() / 5).into_iter().map(|(_, number)| number);
        // One socketpair belongs to tokio, which panics if it fails; the program tests before whether it can have one.
        let numbers: Vec<_> = if call == "socketpair" { vec![1, count] } else { numbers.collect() };
        for number in numbers {
            let outcome = setup.inject(false, (call, number), &format!("error={errno}"));
            let point = format!("{call} {number} fails by {errno}");
            assert_nothing_left(&setup.lab, &before, &point);
            match (outcome.status.code(), &outcome.client) {
                (Some(0), Ok(())) => unharmed += 1,
                (Some(0), Err(reason)) => {
                    println!("{point}: error of the client: {reason}");
                    assert!(reason.len() > 20, "{point}: {outcome:?}");
                    client_errors += 1;
                }
                // The loader and the allocator may fail in their own manner.
                _ if call == "mmap" => ended += 1,
                (Some(1..=100), _) => {
                    ended += 1;
                    let last = outcome.messages.lines().last().unwrap_or_default();
                    println!("{point}: {last}");
                    assert!(last.starts_with("crafter: ") && last.len() > 20, "{point}: {outcome:?}");
                }
                _ => panic!("{point}: {outcome:?}"),
            }
        }
    }
    println!("{unharmed} without effect, {client_errors} reported to the client, {ended} exited with an error message");
    assert!(client_errors > 3 && ended > 3, "too few calls failed");
}

/// As on kernels before 6.6: the guard process of the clsact filters is started before the seccomp filter forbids it,
/// and removes the filters however the service exits.
#[test]
fn clsact_guard_works_under_seccomp() {
    let _serial = Serial::begin();
    let setup = Setup::new();
    let before = unheld_programs();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        let outcome = setup.run_untraced(true, signal);
        assert_eq!(outcome.client, Ok(()), "{outcome:?}");
        assert_eq!(outcome.status.success(), signal == Signal::SIGTERM, "{outcome:?}");
        assert_nothing_left(&setup.lab, &before, &format!("ended by {signal}"));
    }
}

/// SIGTERM as soon as its socket exists: the service exits in order, and removes its socket.
#[test]
fn sigterm_while_it_begins_to_listen_exits_in_order() {
    let _serial = Serial::begin();
    let setup = Setup::new();
    let socket = setup.path("socket");
    let mut command = setup.lab.client().command("strace");
    // Delays the return of listen(2) by one second, while the socket accepts connections already.
    command.args(["-D", "-qq", "-o", "/dev/null", "-e", "trace=listen", "-e", "inject=listen:delay_exit=1000000"]);
    command.arg("--").arg(built()).args(["serve", "--socket"]).arg(&socket);
    command.arg("--policy").arg(setup.path("policy"));
    let mut process = Process::start(command.stdout(Stdio::null()));
    wait_for("its socket", Duration::from_secs(20), || UnixStream::connect(&socket).ok());
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).expect("SIGTERM");
    let status = process.wait_for_exit(REPLY_TIMEOUT);
    assert!(status.success(), "{status}");
    assert!(!socket.exists(), "its socket was not removed");
}
