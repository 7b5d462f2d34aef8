//! Leases ports from the service in a process of its own, and checks every packet that it receives.
//!
//! ```text
//! tenant SOCKET INTERFACE tcp|udp FIRST LAST [inherit]
//! ```
//!
//! Prints "ready LEASE"; with `inherit` also "child PID", a process that inherits the lease's descriptor and does
//! nothing. Reads until its input has ended and no packet is pending, then prints "read N crossed N other N lost N".

use std::{
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crafter::protocol::{
    control::Control,
    record::{Header, Kind},
    wire::LeaseCall,
};
use crafter_tests::service::Socket;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Time without a packet, in milliseconds, after which all have been read.
const QUIET: u16 = 300;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match crafter_tests::block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [socket, interface, protocol, first, last, rest @ ..] = arguments else {
        return Err("SOCKET INTERFACE tcp|udp FIRST LAST are needed".into());
    };
    let (first, last): (u16, u16) = (first.parse()?, last.parse()?);
    let call = LeaseCall {
        interface: Some(interface.clone()),
        protocol: protocol.clone(),
        port: Some(first.into()),
        last_port: Some(last.into()),
        ..LeaseCall::default()
    };
    let socket = Socket::lease(&Control::connect(Path::new(socket)).await?, &call).await?;
    println!("ready {}", socket.leased.lease);
    if rest.first().is_some_and(|word| word == "inherit") {
        fcntl(&socket.fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let child = Command::new("sleep").arg("30").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        fcntl(&socket.fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        println!("child {}", child.id());
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let sets = is_over.clone();
    std::thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        sets.store(true, Ordering::Relaxed);
    });
    println!("{}", count(&socket, protocol, first..=last, &is_over)?);
    Ok(())
}

/// Receives and counts packets until `is_over` is set and none is pending.
fn count(
    socket: &Socket,
    protocol: &str,
    ports: std::ops::RangeInclusive<u16>,
    is_over: &AtomicBool,
) -> io::Result<String> {
    let (mut read, mut crossed, mut other, mut lost) = (0_u64, 0_u64, 0_u64, 0_u32);
    let protocol = if protocol == "tcp" { 6 } else { 17 };
    let mut buffer = vec![0; 1 << 17];
    loop {
        // SAFETY: the buffer outlives the call, and its length is right.
        let count =
            unsafe { libc::recv(socket.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        match count {
            0 => break,
            1.. => {
                let message = Header::decode(&buffer[..count as usize]);
                let Some((Header { kind: Kind::Packet { .. }, lost: now, .. }, ip)) = message else {
                    other += 1;
                    continue;
                };
                (read, lost) = (read + 1, now);
                // IPv4 without options, addressed to this client; the payload repeats port and protocol.
                let port = u16::from_be_bytes([ip[22], ip[23]]);
                let payload = &ip[if protocol == 6 { 40 } else { 28 }..];
                let is_ours = ip[0] == 0x45
                    && ip[9] == protocol
                    && ports.contains(&port)
                    && payload.get(..2) == Some(&port.to_be_bytes()[..])
                    && payload.get(2) == Some(&protocol);
                crossed += u64::from(!is_ours);
            }
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => {
                    let ready =
                        poll(&mut [PollFd::new(socket.fd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(QUIET))?;
                    if ready == 0 && is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
                error => return Err(error),
            },
        }
    }
    Ok(format!("read {read} crossed {crossed} other {other} lost {lost}"))
}
