//! Leases a port in a process of its own, for tests that need two processes or kill one.
//!
//! ```text
//! holder INTERFACE ATTACH lease tcp|udp PORT      prints "ready PORT REPORT", waits for the end of its input
//! holder INTERFACE ATTACH get ADDRESS:PORT PATH   prints "ready PORT REPORT", "bytes N" repeatedly, "done SHA256"
//! ```

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::ExitCode,
};

use crafter::{Crafter, LeaseRequest, Options, StreamOptions, packet::Transport};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match crafter_tests::block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holder: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), Failure> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [interface, attach, ref job @ ..] = arguments[..] else {
        return Err("INTERFACE ATTACH and a job are needed".into());
    };
    let crafter = Crafter::open(interface, Options { attach: attach.parse()?, ..Options::default() }).await?;
    match *job {
        ["lease", transport, port] => lease(&crafter, transport, port.parse()?).await,
        ["get", remote, path] => get(&crafter, remote.parse()?, path).await,
        _ => Err("the job is: lease tcp|udp PORT, or: get ADDRESS:PORT PATH".into()),
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The reader may have closed the pipe.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn ready(crafter: &Crafter, port: u16) {
    say(&format!("ready {port} {}; {}", crafter.report(), crafter.report().notes.join("; ")));
}

async fn lease(crafter: &Crafter, transport: &str, port: u16) -> Result<(), Failure> {
    let transport = if transport == "udp" { Transport::Udp } else { Transport::Tcp };
    let lease = crafter.lease(LeaseRequest::new(transport).port(port)).await?;
    ready(crafter, lease.port());
    let wait = || std::io::stdin().lock().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await??;
    Ok(())
}

async fn get(crafter: &Crafter, remote: SocketAddr, path: &str) -> Result<(), Failure> {
    let lease = crafter.lease(LeaseRequest::tcp()).await?;
    ready(crafter, lease.port());
    let mut stream = lease.connect(remote, StreamOptions::default()).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut buffer = vec![0; 1 << 18];
    let (mut head, mut total, mut hasher) = (Vec::new(), 0, Sha256::new());
    let mut in_body = false;
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        total += count;
        if in_body {
            hasher.update(&buffer[..count]);
        } else {
            head.extend_from_slice(&buffer[..count]);
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                hasher.update(&head[end + 4..]);
                in_body = true;
            }
        }
        say(&format!("bytes {total}"));
    }
    stream.shutdown().await?;
    say(&format!("done {}", hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()));
    Ok(())
}
