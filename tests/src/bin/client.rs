//! A misbehaving client of the service, run as a process of its own.
//!
//! ```text
//! client SOCKET flood     prints "ready PORT leased", then sends as fast as it can
//! client SOCKET fork      prints "ready PORT leased", forks a child that inherits the descriptor, prints "child PID", waits
//! client SOCKET connect   prints "ready 0 connecting", connects until it cannot, prints "open N", waits
//! ```

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use crafter::{
    lab::{CLIENT_V4, SERVER_V4},
    protocol::Control,
};
use crafter_tests::{
    frame,
    service::{Socket, lease_call},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

type Failure = Box<dyn std::error::Error>;

/// Maximum lifetime of flood and of the child.
const LIFETIME: Duration = Duration::from_secs(60);

/// Limit of connections, more than any service accepts.
const CONNECTIONS: usize = 6000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match &arguments[..] {
        [socket, job] => run(Path::new(socket), job),
        _ => Err("SOCKET and a job are needed".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(socket: &Path, job: &str) -> Result<(), Failure> {
    match job {
        "flood" => flood(&lease(socket)?),
        "fork" => fork(&lease(socket)?),
        "connect" => connect(socket),
        _ => Err("the job is flood, fork or connect".into()),
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The reader may have closed the pipe.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn lease(path: &Path) -> Result<Socket, Failure> {
    let call = lease_call("udp", None, None);
    let socket = crafter_tests::block_on(async { Socket::lease(&Control::connect(path).await?, &call).await })?;
    say(&format!("ready {} leased", socket.leased.first_port.unwrap_or(0)));
    Ok(socket)
}

fn flood(socket: &Socket) -> Result<(), Failure> {
    let from = SocketAddr::new(CLIENT_V4.into(), socket.leased.first_port.unwrap_or(0));
    let packet = frame::udp_ip(from, SocketAddr::new(SERVER_V4.into(), 9), &[7; 200]);
    let began = Instant::now();
    while began.elapsed() < LIFETIME {
        socket.send(&packet)?;
    }
    Ok(())
}

fn fork(socket: &Socket) -> Result<(), Failure> {
    // A child keeps its standard input over exec.
    let copy = socket.fd.as_fd().try_clone_to_owned()?;
    let mut command = Command::new("sleep");
    let child = command.arg(LIFETIME.as_secs().to_string()).stdin(Stdio::from(copy)).stdout(Stdio::null()).spawn()?;
    say(&format!("child {}", child.id()));
    wait()
}

fn connect(path: &Path) -> Result<(), Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    say("ready 0 connecting");
    let mut open = Vec::new();
    while let Some(stream) = UnixStream::connect(path).ok().filter(|_| open.len() < CONNECTIONS) {
        open.push(stream);
    }
    say(&format!("open {}", open.len()));
    wait()
}

/// Waits for the end of the input.
fn wait() -> Result<(), Failure> {
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}
