//! Writes records to the journal as datagrams of its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), or as lines
//! of logfmt. The crates for this protocol block while the journal is slow, or contain a logging framework.

use std::{
    fmt::Write as _,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::record::Fields;

/// The longest line: a pipe with room accepts `PIPE_BUF` bytes at once, without blocking or splitting.
const LINE: usize = 4096;

#[derive(Debug)]
pub struct Sink {
    socket: UnixDatagram,
    journal: PathBuf,
    otherwise: OwnedFd,
}

impl Sink {
    pub fn new(journal: PathBuf, otherwise: OwnedFd) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, journal, otherwise })
    }

    /// Writes a record; `false` if it was not accepted. `unwritten`: the number of lost records before it.
    pub fn write(&self, fields: &Fields, unwritten: u64) -> bool {
        // By name each time: a restarted journal has another socket.
        match self.socket.send_to(&datagram(fields, unwritten), &self.journal) {
            Ok(_) => true,
            // The journal has no room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => self.write_line(&line(fields, unwritten)),
        }
    }

    fn write_line(&self, line: &str) -> bool {
        // Not O_NONBLOCK, which would apply to all processes that share the descriptor.
        let mut ready = [PollFd::new(self.otherwise.as_fd(), PollFlags::POLLOUT)];
        let room = poll(&mut ready, PollTimeout::ZERO) == Ok(1)
            && ready[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT));
        // A stream socket, which journald gives services as stderr, may have room for a part of the line only.
        room && {
            let bytes = line.as_bytes();
            let fd = self.otherwise.as_raw_fd();
            // SAFETY: `bytes` is valid for its length, and the descriptor is open as long as self.
            let sent =
                unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if sent == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTSOCK) {
                nix::unistd::write(&self.otherwise, bytes) == Ok(bytes.len())
            } else {
                usize::try_from(sent) == Ok(bytes.len())
            }
        }
    }
}

/// `NAME=value` and a newline. A value with newlines: the name, a newline, the length in 8 bytes (little-endian), the
/// value, a newline.
fn datagram(fields: &Fields, unwritten: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    let mut add = |prefix: &str, name: &str, value: &str| {
        bytes.extend_from_slice(prefix.as_bytes());
        bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            bytes.push(b'\n');
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            bytes.push(b'=');
        }
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(b'\n');
    };
    add("", "MESSAGE", &fields.message);
    add("", "PRIORITY", &fields.priority.to_string());
    add("", "SYSLOG_IDENTIFIER", "crafter");
    for (name, value) in &fields.own {
        add("CRAFTER_", name, value);
    }
    if unwritten > 0 {
        add("CRAFTER_", "UNWRITTEN", &unwritten.to_string());
    }
    bytes
}

/// `crafter: event=refusal user=1000 ... message="..."`
fn line(fields: &Fields, unwritten: u64) -> String {
    let mut line = "crafter:".to_owned();
    for (name, value) in &fields.own {
        let _ = write!(line, " {}=", name.to_ascii_lowercase());
        quote(&mut line, value);
    }
    if unwritten > 0 {
        let _ = write!(line, " unwritten={unwritten}");
    }
    line.push_str(" message=");
    quote(&mut line, &fields.message);
    line.truncate(line.floor_char_boundary(LINE - 1));
    line.push('\n');
    line
}

fn quote(line: &mut String, value: &str) {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=' | '\\');
    if !value.is_empty() && value.chars().all(plain) {
        line.push_str(value);
    } else {
        // Rust's escapes: \" \\ \n \t \u{1b}.
        let _ = write!(line, "{value:?}");
    }
}
