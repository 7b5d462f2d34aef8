//! A call as it comes, and the bounded connection that it comes by.

use std::os::fd::{AsFd, BorrowedFd};

use serde::Deserialize;
use zlink::{
    Connection,
    connection::socket::{ReadHalf, ReadResult, Socket, UnixSocket},
    tokio::unix,
};

use crate::protocol::wire::{Fault, Method};

/// Bytes of a call at most; who sends more without an end is not listened to any longer.
const LONGEST: usize = 64 << 10;

/// A call, its parameters not yet looked at.
#[derive(Debug, Deserialize)]
pub(super) struct AnyCall {
    /// Its full name.
    pub(super) method: String,
    #[serde(default)]
    pub(super) parameters: Option<serde_json::Value>,
}

/// The parameters of a call.
pub(super) fn parameters<M: Method>(call: &AnyCall) -> Result<M, Fault> {
    let value = call.parameters.clone().unwrap_or_else(|| serde_json::json!({}));
    serde_json::from_value(value).map_err(|error| Fault::Invalid {
        field: "parameters".to_owned(),
        message: format!("{error} (see the interface's description)"),
    })
}

/// A control connection.
pub(super) type BoundedConnection = Connection<Bounded>;

/// A Unix stream whose reading end gives up on a call without an end, and takes no descriptors.
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
    /// Bytes read since the latest end of a call, which is a NUL.
    since_end: usize,
}

impl ReadHalf for BoundedRead {
    async fn read(&mut self, buf: &mut [u8]) -> zlink::Result<ReadResult> {
        // Closed at once: kept until their call ends, those of a call without an end would use up all that there are.
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
