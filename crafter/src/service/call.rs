//! A call, and the connection that limits the length of calls.

use std::os::fd::{AsFd, BorrowedFd};

use serde::Deserialize;
use zlink::{
    Connection,
    connection::socket::{ReadHalf, ReadResult, Socket, UnixSocket},
    tokio::unix,
};

use crate::protocol::wire::{Fault, Method};

/// The maximum length of a call in bytes; a client that sends a longer one is disconnected.
const LONGEST: usize = 64 << 10;

/// A call whose parameters are not parsed yet.
#[derive(Debug, Deserialize)]
pub(super) struct AnyCall {
    /// Its full name.
    pub(super) method: String,
    #[serde(default)]
    pub(super) parameters: Option<serde_json::Value>,
}

/// Parses the parameters of a call.
pub(super) fn parameters<M: Method>(call: &AnyCall) -> Result<M, Fault> {
    let value = call.parameters.clone().unwrap_or_else(|| serde_json::json!({}));
    serde_json::from_value(value).map_err(|error| Fault::Invalid {
        field: "parameters".to_owned(),
        message: format!("{error} (see the interface's description)"),
    })
}

/// A control connection.
pub(super) type BoundedConnection = Connection<Bounded>;

/// A Unix stream that accepts neither calls longer than [`LONGEST`] nor descriptors.
#[derive(Debug)]
pub(super) struct Bounded(unix::Stream);

impl Bounded {
    pub(super) fn new(stream: unix::Stream) -> Self {
        Self(stream)
    }
}

impl Socket for Bounded {
    type ReadHalf = BoundedRead;
    type WriteHalf = <unix::Stream as Socket>::WriteHalf;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (Self::ReadHalf, Self::WriteHalf) {
        let (inner, write) = self.0.split();
        (BoundedRead { inner, since_end: 0 }, write)
    }
}

#[derive(Debug)]
pub(super) struct BoundedRead {
    inner: <unix::Stream as Socket>::ReadHalf,
    /// Bytes read since the last NUL, which ends a call.
    since_end: usize,
}

impl ReadHalf for BoundedRead {
    async fn read(&mut self, buf: &mut [u8]) -> zlink::Result<ReadResult> {
        // Closed at once: the descriptors of an unfinished call could otherwise use up the process's limit.
        let read = self.inner.read(buf).await?.set_fds(Vec::new());
        let bytes = &buf[..read.bytes_read()];
        self.since_end = match bytes.iter().rposition(|byte| *byte == 0) {
            Some(end) => bytes.len() - end - 1,
            None => self.since_end + bytes.len(),
        };
        if self.since_end > LONGEST { Err(zlink::Error::BufferOverflow) } else { Ok(read) }
    }
}

impl AsFd for BoundedRead {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl UnixSocket for BoundedRead {}
