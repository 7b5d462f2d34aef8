//! The other end: the kernel's TCP, and a program that writes and reads at the same time.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use sha2::{Digest, Sha256};

use super::{
    meeting::Meeting,
    patience,
    rows::{Ending, Row},
};

/// What the server has read, and how it ended.
#[derive(Debug)]
pub struct Got {
    pub length: usize,
    pub sum: [u8; 32],
    pub error: Option<io::Error>,
}

/// `length` bytes, different at every place and for every seed.
pub fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Listens in the calling thread's namespace.
pub fn listen(row: &Row, address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).expect("listen");
    if let Some(size) = row.server_buffer {
        // Inherited by what is accepted; before the window of the SYN-ACK is chosen.
        setsockopt(&listener, sockopt::RcvBuf, &size).expect("SO_RCVBUF");
    }
    listener
}

/// Serves one connection to its end. `moment`: where both ends meet before they close.
pub fn serve(row: &Row, listener: &TcpListener, down: Vec<u8>, moment: &Arc<Meeting>) -> Got {
    let (socket, _) = listener.accept().expect("a connection");
    // Unless there is no network any more.
    let timeout = if row.ending == Ending::Cut { Duration::from_secs(8) } else { patience() };
    socket.set_read_timeout(Some(timeout)).expect("a timeout");
    socket.set_write_timeout(Some(timeout)).expect("a timeout");
    let resets = row.ending == Ending::ServerResets;
    let mut reader = socket.try_clone().expect("the socket again");
    let ending = row.ending;
    let writer = {
        let mut socket = socket.try_clone().expect("the socket again");
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
    let mut got = read(row, &mut reader);
    if resets {
        // With unread bytes, or with this option, close() resets.
        let _ = writer.join();
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&socket, sockopt::Linger, &linger).expect("SO_LINGER");
        return got;
    }
    let written = writer.join().expect("the writer");
    got.error = got.error.or(written.err());
    if ending == Ending::Both && got.error.is_none() {
        if !moment.wait(patience()) {
            got.error = Some(io::ErrorKind::TimedOut.into());
        }
        let _ = socket.shutdown(Shutdown::Write);
        got.error = got.error.or(reader.read(&mut [0; 1]).err());
    }
    got
}

/// Reads to the end, or as far as the row has it.
fn read(row: &Row, socket: &mut TcpStream) -> Got {
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
        let place = (most - length).min(buffer.len());
        match socket.read(&mut buffer[..place]) {
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
    Got { length, sum: hasher.finalize().into(), error }
}
