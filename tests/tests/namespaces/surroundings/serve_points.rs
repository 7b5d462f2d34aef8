//! The same for `crafter serve`: ended, or failed, at every point of its start, of a lease's life, and of its end.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crafter::{
    lab::INTERFACE,
    protocol::{Control, wire::LeaseCall},
};
use crafter_tests::{
    block_on,
    frame::{SYN, Tcp},
    guarded::GuardedLab,
    leak::{Serial, programs},
    peer::{Process, wait_for},
    service::{Message, PATIENCE, Socket, built},
    slow::allow,
    stage::{ENDS, lab},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::points::{assert_nothing_left, count, points, spread};

/// Calls of the service that get something, or give it back, or by which it speaks with its clients.
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

/// The port that is leased. A SYN from it goes to a port where nobody listens, which is answered by a RST: the kernel
/// limits the rate of ICMP, and not of those.
const PORT: u16 = 30_123;

/// How long a service that was told to end may take until it is told once more.
const AGAIN: Duration = Duration::from_secs(2);

/// What came of one run.
#[derive(Debug)]
struct Outcome {
    status: ExitStatus,
    /// What the client got: a reply on its lease, or why not.
    told: Result<(), String>,
    said: String,
}

/// `crafter serve`, with one client that leases, asks, and leaves, and SIGTERM at the end.
struct Stage {
    lab: GuardedLab,
    directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("policy"), "[[rule]]\nuser = 0\nprotocols = [\"any\"]\nallow = [\"any\"]\n")
            .expect("a policy");
        Self { lab: lab(), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Under strace with these options, to its end by SIGTERM if it came so far.
    fn run(&self, clsact: bool, strace: &[&str]) -> Outcome {
        let mut command = self.lab.client().command("strace");
        // -D: the service is this process's child, and strace its grandchild. All of its threads, each with numbers of
        // its own, but no program that it runs.
        command.args(["-D", "-f", "-b", "execve", "-qq"]).args(strace).arg("--").arg(built());
        // The filter of system calls would see the number that strace puts in their place.
        self.play(command.args(["serve", "--no-seccomp"]), clsact, Signal::SIGTERM, true)
    }

    /// As users have it, to its end by `signal` while its port is leased.
    fn run_plainly(&self, clsact: bool, signal: Signal) -> Outcome {
        self.play(self.lab.client().command(built()).arg("serve"), clsact, signal, false)
    }

    fn play(&self, command: &mut Command, clsact: bool, signal: Signal, is_traced: bool) -> Outcome {
        if clsact {
            command.env("CRAFTER_CLSACT", "1");
        }
        command.arg("--socket").arg(self.path("socket")).arg("--policy").arg(self.path("policy"));
        let log = fs::File::create(self.path("log")).expect("a log");
        let mut process = Process::start(command.stdout(Stdio::null()).stderr(log));
        let told = self.client(&mut process);
        let mut signalled = None;
        let status = wait_for("its end", PATIENCE, || {
            let ended = process.0.try_wait().expect("its state");
            // Once, or once more where the send(2) by which a signal handler wakes the others is what was made to fail.
            let is_due = signalled.is_none_or(|at: Instant| is_traced && at.elapsed() > allow(AGAIN));
            if ended.is_none() && is_due {
                kill(Pid::from_raw(process.id() as i32), signal).expect("a signal");
                signalled = Some(Instant::now());
            }
            ended
        });
        let said = fs::read_to_string(self.path("log")).expect("its log");
        assert!(!said.contains("panicked"), "{command:?}: {said}");
        Outcome { status, told: told.map(drop), said }
    }

    /// The lease, after a reply from the server came by way of it; an error where anything of that failed.
    fn client(&self, process: &mut Process) -> Result<Socket, String> {
        let socket = self.path("socket");
        let listens = wait_for("its socket, or its end", PATIENCE, || {
            let ended = process.0.try_wait().expect("its state").is_some();
            UnixStream::connect(&socket).is_ok().then_some(true).or(ended.then_some(false))
        });
        if !listens {
            return Err("it ended before it listened".to_owned());
        }
        let call = LeaseCall {
            interface: Some(INTERFACE.to_owned()),
            protocol: "tcp".to_owned(),
            port: Some(u64::from(PORT)),
            ..LeaseCall::default()
        };
        let leased = block_on(async {
            let control = Control::connect(&socket).await.map_err(|error| error.to_string())?;
            let leasing = tokio::time::timeout(allow(PATIENCE), Socket::lease(&control, &call));
            leasing.await.expect("the service neither answers nor ends").map_err(|error| error.to_string())
        })?;
        let (client, server) = ENDS[0];
        let question = Tcp::new(SYN, 1, 0).ip(SocketAddr::new(client, PORT), SocketAddr::new(server, 9));
        leased.send(&question).map_err(|error| error.to_string())?;
        // The RST, or that the packet was not sent, or the end.
        match leased.receive(allow(PATIENCE)) {
            Ok(Some(message)) if message.packet().is_some() => Ok(leased),
            Ok(Some(Message { header, .. })) => Err(format!("{:?}", header.kind)),
            Ok(None) => Err("no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How often the thread with most of them makes each call.
    fn counts(&self, clsact: bool) -> Vec<(&'static str, usize)> {
        let trace = self.path("trace");
        let only = format!("trace={}", CALLS.join(","));
        let outcome = self.run(clsact, &["-o", trace.to_str().expect("its path"), "-e", &only]);
        assert!(outcome.status.success() && outcome.told.is_ok(), "{outcome:?}");
        let text = fs::read_to_string(&trace).expect("the trace");
        let mut threads: BTreeMap<&str, String> = BTreeMap::new();
        for (thread, call) in text.lines().filter_map(|line| line.split_once(' ')) {
            *threads.entry(thread).or_default() += &format!("{}\n", call.trim_start());
        }
        let of_threads: Vec<_> = threads.values().map(|trace| count(trace, &CALLS)).collect();
        let most = |call| of_threads.iter().flatten().filter(|(name, _)| *name == call).map(|(_, count)| *count).max();
        CALLS.into_iter().filter_map(|call| Some((call, most(call)?))).collect()
    }

    /// Runs it with `fate` for the call of this name and number.
    fn inject(&self, clsact: bool, (call, number): (&str, usize), fate: &str) -> Outcome {
        let options = [format!("trace={call}"), format!("inject={call}:{fate}:when={number}")];
        self.run(clsact, &["-o", "/dev/null", "-e", &options[0], "-e", &options[1]])
    }
}

/// SIGKILL at many points, with tcx and without: nothing is left, and the next one starts on the same socket.
#[test]
fn killed_anywhere() {
    let _serial = Serial::begin();
    let stage = Stage::new();
    let before = programs();
    for clsact in [false, true] {
        let counts = stage.counts(clsact);
        let points = spread(&counts, points());
        let mut killed = 0;
        for (call, number) in &points {
            let outcome = stage.inject(clsact, (call, *number), "signal=SIGKILL");
            killed += usize::from(outcome.status.signal() == Some(9));
            assert_nothing_left(&stage.lab, &before, &format!("killed at {call} {number}, clsact {clsact}"));
        }
        println!("clsact {clsact}: killed at {killed} of {} points of {counts:?}", points.len());
        // Some calls come only now and then, such as those of a timer.
        assert!(killed * 10 > points.len() * 8, "{killed} of {}", points.len());
        let outcome = stage.run_plainly(clsact, Signal::SIGTERM);
        assert!(outcome.status.success() && outcome.told.is_ok(), "the next one: {outcome:?}");
    }
}

/// Calls that fail: the service goes on, and its client gets what it asks for or a reason; or it ends with a sentence.
#[test]
fn failing_anywhere() {
    let _serial = Serial::begin();
    let stage = Stage::new();
    let before = programs();
    let counts = stage.counts(false);
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
    let (mut unharmed, mut told, mut ended) = (0, 0, 0);
    for (call, errno) in failures {
        let count = counts.iter().find(|(name, _)| *name == call).map_or(0, |(_, count)| *count);
        let numbers = spread(&[(call, count)], points() / 5).into_iter().map(|(_, number)| number);
        // One of them is tokio's, which panics there; so the program looks before whether it can have one.
        let numbers: Vec<_> = if call == "socketpair" { vec![1, count] } else { numbers.collect() };
        for number in numbers {
            let outcome = stage.inject(false, (call, number), &format!("error={errno}"));
            let point = format!("{call} {number} fails by {errno}");
            assert_nothing_left(&stage.lab, &before, &point);
            match (outcome.status.code(), &outcome.told) {
                (Some(0), Ok(())) => unharmed += 1,
                (Some(0), Err(reason)) => {
                    println!("{point}: the client is told: {reason}");
                    assert!(reason.len() > 20, "{point}: {outcome:?}");
                    told += 1;
                }
                // The loader and the allocator, before main() or beside it, end as they like.
                _ if call == "mmap" => ended += 1,
                (Some(1..=100), _) => {
                    ended += 1;
                    let last = outcome.said.lines().last().unwrap_or_default();
                    println!("{point}: {last}");
                    assert!(last.starts_with("crafter: ") && last.len() > 20, "{point}: {outcome:?}");
                }
                _ => panic!("{point}: {outcome:?}"),
            }
        }
    }
    println!("{unharmed} went on, {told} told their client a reason, {ended} ended with a sentence");
    assert!(told > 3 && ended > 3, "nothing was made to fail");
}

/// As it is on kernels before 6.6: the guard of the clsact filters is started before the service gives up the right to
/// start programs, and removes them whatever happens to it.
#[test]
fn with_clsact_and_the_filter_of_system_calls() {
    let _serial = Serial::begin();
    let stage = Stage::new();
    let before = programs();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        let outcome = stage.run_plainly(true, signal);
        assert_eq!(outcome.told, Ok(()), "{outcome:?}");
        assert_eq!(outcome.status.success(), signal == Signal::SIGTERM, "{outcome:?}");
        assert_nothing_left(&stage.lab, &before, &format!("ended by {signal}"));
    }
}

/// Told to end as soon as its socket can be seen: it ends as told, and takes its socket with it.
#[test]
fn told_to_end_as_soon_as_it_listens() {
    let _serial = Serial::begin();
    let stage = Stage::new();
    let socket = stage.path("socket");
    let mut command = stage.lab.client().command("strace");
    // It stays within listen(2) for a second, while its socket takes connections already.
    command.args(["-D", "-qq", "-o", "/dev/null", "-e", "trace=listen", "-e", "inject=listen:delay_exit=1000000"]);
    command.arg("--").arg(built()).args(["serve", "--socket"]).arg(&socket);
    command.arg("--policy").arg(stage.path("policy"));
    let mut process = Process::start(command.stdout(Stdio::null()));
    wait_for("its socket", Duration::from_secs(20), || UnixStream::connect(&socket).ok());
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).expect("SIGTERM");
    let status = wait_for("its end", PATIENCE, || process.0.try_wait().expect("its state"));
    assert!(status.success(), "{status}");
    assert!(!socket.exists(), "its socket is left");
}
