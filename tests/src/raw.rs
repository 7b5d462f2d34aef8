//! A control connection as a plain byte stream, for clients that violate the protocol of NUL-terminated JSON messages.

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

use crate::service::REPLY_TIMEOUT;

/// A control connection.
#[derive(Debug)]
pub struct Raw {
    stream: UnixStream,
    /// Bytes received after the latest message.
    buffered: Vec<u8>,
}

impl Raw {
    /// Connects with the ids of the calling thread. Reads and writes time out after [`REPLY_TIMEOUT`].
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connect to the service");
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).expect("a timeout");
        stream.set_write_timeout(Some(REPLY_TIMEOUT)).expect("a timeout");
        Self { stream, buffered: Vec::new() }
    }

    /// The socket.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// Errors of the kernel, for example if the service has closed its end.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends raw bytes, and descriptors together with the first of them.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn write_with(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = send_with(self.stream.as_raw_fd(), bytes, descriptors)?;
        self.stream.write_all(&bytes[sent..])
    }

    /// The next message; `None` once the service has closed its end.
    ///
    /// # Panics
    /// If neither happens within the timeout, or if the message is not JSON.
    pub fn answer(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffered.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.buffered.drain(..=end).collect();
                return Some(serde_json::from_slice(&message[..end]).expect("a message in JSON"));
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.buffered.extend(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// Calls a method of the service and returns the complete reply.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.write(&call(method, parameters)).expect("send a call");
        self.answer().expect("an answer")
    }
}

/// Encodes a call.
pub fn call(method: &str, parameters: &Value) -> Vec<u8> {
    let call = json!({ "method": format!("org.crafter.v1.{method}"), "parameters": parameters });
    let mut bytes = serde_json::to_vec(&call).expect("JSON");
    bytes.push(0);
    bytes
}

/// Sends bytes with descriptors on a Unix socket; returns the number of bytes sent.
///
/// # Errors
/// Errors of the kernel.
pub fn send_with(socket: i32, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let numbers: Vec<i32> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let parts = [io::IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket, &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
}
