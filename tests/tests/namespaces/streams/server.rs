//! The other end: a server on the kernel's TCP that writes and reads at the same time.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use crafter_tests::random::Rng;
use nix::sys::socket::{setsockopt, sockopt};
use sha2::{Digest, Sha256};

use super::{
    peer_timeout,
    rendezvous::Rendezvous,
    rows::{Ending, Row},
};

/// What the server read, and its error.
#[derive(Debug)]
pub struct Received {
    pub length: usize,
    pub sum: [u8; 32],
    pub error: Option<io::Error>,
}

/// `length` pseudo-random bytes that depend on `seed`.
pub fn text(length: usize, seed: u64) -> Vec<u8> {
    Rng::new(seed).bytes(length)
}

/// Listens in the calling thread's namespace.
pub fn listen(row: &Row, address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).expect("listen");
    if let Some(size) = row.server_buffer {
        // Accepted sockets inherit it, and it is set before the window of the SYN-ACK is chosen.
        setsockopt(&listener, sockopt::RcvBuf, &size).expect("SO_RCVBUF");
    }
    listener
}

/// Serves one connection to its end. `moment`: rendezvous of both ends before a simultaneous close, or before
/// the network is cut.
pub fn serve(row: &Row, listener: &TcpListener, down: Vec<u8>, moment: &Arc<Rendezvous>) -> Received {
    let (socket, _) = listener.accept().expect("a connection");
    if row.ending == Ending::Cut {
        moment.arrive();
    }
    // Shorter if the network is cut.
    let timeout = if row.ending == Ending::Cut { Duration::from_secs(8) } else { peer_timeout() };
    socket.set_read_timeout(Some(timeout)).expect("a timeout");
    socket.set_write_timeout(Some(timeout)).expect("a timeout");
    let resets = row.ending == Ending::ServerResets;
    let mut reader = socket.try_clone().expect("a clone of the socket");
    let ending = row.ending;
    let writer = {
        let mut socket = socket.try_clone().expect("a clone of the socket");
        thread::spawn(move || -> io::Result<()> {
            if resets {
                return socket.write_all(&down[..down.len() / 2]);
            }
            socket.write_all(&down)?;
            if ending == Ending::ServerFirst {
                socket.shutdown(Shutdown::Write)?;
            }
            Ok(())
        })
    };
    let mut received = read(row, &mut reader);
    if resets {
        // With this option close() sends a RST.
        let _ = writer.join();
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&socket, sockopt::Linger, &linger).expect("SO_LINGER");
        return received;
    }
    let written = writer.join().expect("the writer");
    received.error = received.error.or(written.err());
    if ending == Ending::Both && received.error.is_none() {
        if !moment.wait(peer_timeout()) {
            received.error = Some(io::ErrorKind::TimedOut.into());
        }
        let _ = socket.shutdown(Shutdown::Write);
        received.error = received.error.or(reader.read(&mut [0; 1]).err());
    }
    received
}

/// Reads to the end of the stream, or as many bytes as the row requires.
fn read(row: &Row, socket: &mut TcpStream) -> Received {
    let (mut hasher, mut length, mut stall) = (Sha256::new(), 0, row.server_stall);
    let mut buffer = vec![0; 1 << 16];
    let most = match row.ending {
        Ending::Both => row.up,
        Ending::ServerResets => row.up / 2,
        _ => usize::MAX,
    };
    let mut error = None;
    while length < most {
        if let Some((_, pause)) = stall.take_if(|(after, _)| length >= *after) {
            thread::sleep(pause);
        }
        let room = (most - length).min(buffer.len());
        match socket.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                length += count;
            }
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    Received { length, sum: hasher.finalize().into(), error }
}
