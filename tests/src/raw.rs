//! A control connection byte by byte, for clients that do not behave: JSON and NULs on a Unix socket, or whatever else.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::service::PATIENCE;

/// A control connection.
#[derive(Debug)]
pub struct Raw {
    stream: UnixStream,
    /// What was read behind the latest message.
    behind: Vec<u8>,
}

impl Raw {
    /// Connects with the ids of the calling thread. What takes longer than [`PATIENCE`] is an error.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connect to the service");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream, behind: Vec::new() }
    }

    /// Its stream.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The kernel's, such as that the service has closed its end.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends bytes, and descriptors with the first of them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write_with(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = send_with(self.stream.as_raw_fd(), bytes, descriptors)?;
        self.stream.write_all(&bytes[sent..])
    }

    /// The next message; `None` once the service has closed its end.
    ///
    /// # Panics
    /// If there is neither in time, or the message is no JSON.
    pub fn answer(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.behind.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.behind.drain(..=end).collect();
                return Some(serde_json::from_slice(&message[..end]).expect("a message in JSON"));
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.behind.extend(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// Calls a method of the service, and gives its whole reply.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.write(&call(method, parameters)).expect("send a call");
        self.answer().expect("an answer")
    }
}

/// The bytes of a call.
pub fn call(method: &str, parameters: &Value) -> Vec<u8> {
    let call = json!({ "method": format!("org.crafter.v1.{method}"), "parameters": parameters });
    let mut bytes = serde_json::to_vec(&call).expect("JSON");
    bytes.push(0);
    bytes
}

/// Sends bytes with descriptors on any Unix socket; how many bytes.
///
/// # Errors
/// The kernel's.
pub fn send_with(socket: i32, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let numbers: Vec<i32> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let parts = [io::IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket, &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
}
