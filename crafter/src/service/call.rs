//! A control connection as calls and replies: JSON objects, each terminated by a NUL (varlink.org).
//!
//! zlink's connection is not used here: it closes passed descriptors on this thread, and encodes a reply once more for
//! every 256 bytes of its length.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

use super::peer_socket::PeerSocket;
use crate::protocol::wire::{Fault, Method};

/// The maximum length of a call in bytes; a client that sends a longer one is disconnected.
const LONGEST: usize = 64 << 10;

/// Bytes to read at once.
const PIECE: usize = 4096;

/// The maximum number of bytes of unfinished calls and unread replies that the service keeps for all connections of one
/// user. Unread replies are those that the socket buffer has no room for.
const MOST_KEPT: usize = 4 << 20;

/// A call whose parameters are not parsed yet.
#[derive(Debug, Deserialize)]
pub(super) struct AnyCall {
    /// Its full name.
    pub(super) method: String,
    #[serde(default)]
    pub(super) parameters: Option<serde_json::Value>,
    #[serde(default)]
    oneway: Option<bool>,
    #[serde(default)]
    more: Option<bool>,
}

impl AnyCall {
    /// Whether the client requests no reply.
    pub(super) fn oneway(&self) -> bool {
        self.oneway == Some(true)
    }

    /// Whether the client accepts several replies.
    pub(super) fn more(&self) -> bool {
        self.more == Some(true)
    }
}

/// Parses the parameters of a call.
pub(super) fn parameters<M: Method>(call: &mut AnyCall) -> Result<M, Fault> {
    let value = call.parameters.take().unwrap_or_else(|| serde_json::json!({}));
    serde_json::from_value(value).map_err(|error| Fault::Invalid {
        field: "parameters".to_owned(),
        message: format!("{error} (see the interface's description)"),
    })
}

/// The bytes that the service keeps for the connections of a user.
pub(super) type KeptBytes = Rc<Cell<usize>>;

/// The bytes that one connection adds to those of its user.
#[derive(Debug)]
struct Share {
    of_user: KeptBytes,
    own: usize,
}

impl Share {
    /// Replaces the number of bytes.
    ///
    /// # Errors
    /// If the user has more than [`MOST_KEPT`], and this connection more than a piece.
    fn set(&mut self, bytes: usize) -> io::Result<()> {
        self.of_user.set(self.of_user.get() - self.own + bytes);
        self.own = bytes;
        if bytes > PIECE && self.of_user.get() > MOST_KEPT {
            return Err(failed(format!("more than {MOST_KEPT} bytes of its user wait")));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of_user.set(self.of_user.get() - self.own);
    }
}

fn failed(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// What [`Channel::receive`] has received.
pub(super) enum Received {
    Call(AnyCall),
    /// A piece of a call that is not complete yet.
    Piece,
    /// The client has closed its end.
    End,
}

/// A control connection.
#[derive(Debug)]
pub(super) struct Channel {
    socket: AsyncFd<PeerSocket>,
    /// Received bytes; those before `start` belong to calls that were returned.
    received: Vec<u8>,
    start: usize,
    /// No NUL is between `start` and here.
    searched: usize,
    share: Share,
}

impl Channel {
    /// A connection over `socket`, which must be in non-blocking mode.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn new(socket: PeerSocket, of_user: KeptBytes) -> crate::Result<Self> {
        let socket = crate::datapath::watch_for(socket, Interest::READABLE | Interest::WRITABLE, "a control socket")?;
        Ok(Self { socket, received: Vec::new(), start: 0, searched: 0, share: Share { of_user, own: 0 } })
    }

    /// The next call, or the next piece of it. Reads at most once. Cancel-safe.
    ///
    /// # Errors
    /// A call that is no JSON object, or is too long; passed descriptors; those of recvmsg(2).
    pub(super) async fn receive(&mut self) -> io::Result<Received> {
        if let Some(call) = self.next_received()? {
            return Ok(Received::Call(call));
        }
        if self.read().await? == 0 {
            return Ok(Received::End);
        }
        Ok(self.next_received()?.map_or(Received::Piece, Received::Call))
    }

    /// Waits until the client has sent something or closed its end. Cancel-safe.
    pub(super) async fn readable(&self) {
        if self.received.is_empty() {
            // The event loop may report what was read already.
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let peek = |socket: &PeerSocket| Ok(recv(socket, &mut [0], flags)?);
            let _ = self.socket.async_io(Interest::READABLE, peek).await;
        }
    }

    /// The next call among the received bytes.
    fn next_received(&mut self) -> io::Result<Option<AnyCall>> {
        let Some(end) = self.received[self.searched..].iter().position(|byte| *byte == 0) else {
            self.searched = self.received.len();
            return Ok(None);
        };
        let end = self.searched + end;
        let call = serde_json::from_slice(&self.received[self.start..end]);
        (self.start, self.searched) = (end + 1, end + 1);
        if self.start == self.received.len() {
            self.received = Vec::new();
            (self.start, self.searched) = (0, 0);
            self.share.set(0)?;
        }
        Ok(Some(call?))
    }

    /// Reads once. Returns how many bytes; 0 at the end.
    async fn read(&mut self) -> io::Result<usize> {
        self.received.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        let before = self.received.len();
        if before > LONGEST {
            return Err(failed(format!("the call is longer than {LONGEST} bytes")));
        }
        let mut piece = [0; PIECE];
        let count = self.socket.async_io(Interest::READABLE, |socket| Ok(socket.receive(&mut piece)?.0)).await?;
        self.received.extend_from_slice(&piece[..count]);
        self.share.set(self.received.len())?;
        Ok(count)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Those of [`Channel::send_bytes`].
    pub(super) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(message)?;
        bytes.push(0);
        self.send_bytes(&bytes, Vec::new()).await
    }

    /// Sends an encoded message with descriptors, and waits for room in the socket buffer.
    ///
    /// # Errors
    /// Those of sendmsg(2), and too many unread bytes of the user.
    pub(super) async fn send_bytes(&mut self, bytes: &[u8], mut descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let received = self.received.len();
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            done += match send(self.socket.get_ref(), rest, &descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.share.set(received + rest.len())?;
                    self.socket.async_io(Interest::WRITABLE, |socket| send(socket, rest, &descriptors)).await?
                }
                sent => sent?,
            };
            descriptors.clear();
        }
        self.share.set(received)
    }
}

/// Sends bytes without blocking; descriptors go with the first one.
fn send(socket: &PeerSocket, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(failed("a reply has at most one descriptor".to_owned()));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixStream};

    use super::*;
    use crate::service::closer::Closer;

    fn channel(of_user: &KeptBytes) -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = PeerSocket::of_pair(ours.into(), &Closer::default(), 1);
        (Channel::new(socket, of_user.clone()).unwrap(), theirs)
    }

    fn name(received: io::Result<Received>) -> String {
        match received {
            Ok(Received::Call(call)) => call.method,
            Ok(Received::Piece) => "a piece".to_owned(),
            Ok(Received::End) => "the end".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn calls_in_pieces_and_several_at_once() {
        let kept = KeptBytes::default();
        let (mut channel, mut client) = channel(&kept);
        client.write_all(b"{\"method\":\"one\"}\0{\"method\":\"two\",\"more\":true}\0{\"meth").unwrap();
        assert_eq!(name(channel.receive().await), "one");
        let Ok(Received::Call(two)) = channel.receive().await else { panic!("no call") };
        assert!(two.more() && !two.oneway() && two.method == "two");
        client.write_all(b"od\":").unwrap();
        // Each read is one turn.
        assert_eq!(name(channel.receive().await), "a piece");
        assert_eq!(kept.get(), 10);
        client.write_all(b"\"three\"}\0\0").unwrap();
        assert_eq!(name(channel.receive().await), "three");
        assert_eq!(kept.get(), 20);
        assert!(channel.receive().await.is_err(), "an empty message");
        drop(client);
        assert_eq!(name(channel.receive().await), "the end");
        assert_eq!(kept.get(), 0);
    }

    #[tokio::test]
    async fn unfinished_calls_of_a_user_are_bounded() {
        let kept = KeptBytes::default();
        let mut channels = Vec::new();
        let refused = loop {
            let (mut channel, mut client) = channel(&kept);
            client.write_all(&[b' '; LONGEST]).unwrap();
            let end = loop {
                match channel.receive().await {
                    Ok(Received::Piece) if channel.received.len() < LONGEST => {}
                    ended => break ended,
                }
            };
            if channels.len() == 1 {
                // The longest call; one byte more is too long.
                client.write_all(b"  ").unwrap();
                assert_eq!(name(channel.receive().await), "a piece");
                assert!(name(channel.receive().await).contains("longer than"));
            }
            channels.push((channel, client));
            if end.is_err() {
                break name(end);
            }
        };
        assert!(refused.contains("bytes of its user wait"), "{refused}");
        assert!((MOST_KEPT / LONGEST - 1..=MOST_KEPT / LONGEST + 1).contains(&channels.len()), "{}", channels.len());
        // A short call is still received.
        let (mut channel, mut client) = channel(&kept);
        client.write_all(b"{\"method\":\"short\"}\0").unwrap();
        assert_eq!(name(channel.receive().await), "short");
        drop((channel, channels));
        assert_eq!(kept.get(), 0);
    }

    #[tokio::test]
    async fn unread_replies_of_a_user_are_bounded() {
        let kept = KeptBytes::default();
        let (mut channel, client) = channel(&kept);
        let send =
            tokio::time::timeout(std::time::Duration::from_millis(50), channel.send_bytes(&[7; 1 << 20], vec![]));
        assert!(send.await.is_err(), "it waits for the client");
        assert!((1 << 19..1 << 20).contains(&kept.get()), "what the socket buffer has no room for");
        let (mut other, _client) = self::channel(&kept);
        let error = other.send_bytes(&vec![7; MOST_KEPT], vec![]).await.unwrap_err();
        assert!(error.to_string().contains("bytes of its user wait"), "{error}");
        drop((channel, other, client));
        assert_eq!(kept.get(), 0);
    }
}
