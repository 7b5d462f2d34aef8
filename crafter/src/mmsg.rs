//! Sends and receives several messages per system call: sendmmsg(2), recvmmsg(2).
//!
//! nix wraps both calls, but its wrappers cannot replace this module:
//! - `MultiHeaders` points to heap memory. It is either allocated in each call, or kept in a value that is not `Send`.
//! - Destinations are of nix's own types, and only unsafe code makes its `LinkAddr` (`sockaddr_ll`).

use std::{
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd as _},
    ptr,
};

use socket2::SockAddr;

/// A message to send: its bytes in two parts, either of which may be empty, and its destination; `None` for a connected
/// or bound socket.
pub(crate) type Message<'m> = ([&'m [u8]; 2], Option<&'m SockAddr>);

/// Sends at most `MOST` messages by sendmmsg(2), without blocking. Returns how many were sent; the kernel stops at the
/// first one that it refuses.
///
/// # Errors
/// The error of the first message. That of a later one is returned by the next call.
pub(crate) fn send<'m, const MOST: usize>(
    socket: &impl AsFd,
    messages: impl Iterator<Item = Message<'m>>,
) -> io::Result<usize> {
    let mut vectors = [const { [MaybeUninit::<libc::iovec>::uninit(); 2] }; MOST];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut count = 0;
    for ((([first, second], to), [one, two]), header) in messages.zip(&mut vectors).zip(&mut headers) {
        let vectors = one.write(vector(first.as_ptr(), first.len()));
        two.write(vector(second.as_ptr(), second.len()));
        let header = header.write(self::header(vectors, if second.is_empty() { 1 } else { 2 }));
        if let Some(to) = to {
            header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = to.len();
        }
        count += 1;
    }
    let (descriptor, headers) = (socket.as_fd().as_raw_fd(), headers.as_mut_ptr().cast());
    // SAFETY: the first `count` headers (at most MOST) were initialised above; they point to pairs of vectors on this
    // stack and to bytes and addresses that are borrowed for longer than the call, which only reads them.
    let sent = unsafe { libc::sendmmsg(descriptor, headers, count, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn vector(bytes: *const u8, length: usize) -> libc::iovec {
    libc::iovec { iov_base: bytes.cast_mut().cast(), iov_len: length }
}

/// A header with `count` vectors, without an address and control data.
fn header(vectors: *mut libc::iovec, count: usize) -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain data, for which all zeroes is a valid value (no address, no control data).
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_iov = vectors;
    header.msg_hdr.msg_iovlen = count;
    header
}

/// Buffers for messages received by one call.
pub(crate) struct Inbox {
    /// Buffers of `slot` bytes each.
    bytes: Vec<u8>,
    slot: usize,
    /// Length of each received message, and whether it was truncated to its buffer.
    received: Vec<(usize, bool)>,
}

impl Inbox {
    /// Messages received by one call at most.
    pub(crate) const MOST: usize = 64;

    /// Buffers for messages of `longest` bytes. Their pages are allocated on first use.
    pub(crate) fn new(longest: usize) -> Self {
        Self { bytes: vec![0; longest * Self::MOST], slot: longest, received: Vec::with_capacity(Self::MOST) }
    }

    /// Receives messages by recvmmsg(2), without blocking. Returns their number, at most 64, empty ones included;
    /// `None` if the peer has closed the socket. Passed descriptors are closed by the kernel, which may take any time.
    ///
    /// # Errors
    /// Those of recvmmsg(2), `WouldBlock` if the queue is empty.
    pub(crate) fn receive(&mut self, socket: &impl AsFd) -> io::Result<Option<usize>> {
        self.received.clear();
        let mut slots = self.bytes.chunks_exact_mut(self.slot);
        let mut vectors: [libc::iovec; Self::MOST] = std::array::from_fn(|_| {
            let slot = slots.next().unwrap_or_default();
            libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() }
        });
        let mut headers = vectors.each_mut().map(|vector| header(vector, 1));
        let descriptor = socket.as_fd().as_raw_fd();
        let (first, most) = (headers.as_mut_ptr(), Self::MOST as u32);
        // SAFETY: there are MOST headers; they point to vectors on this stack, and these to slots that are borrowed
        // mutably and apart from each other during the call.
        let count = unsafe { libc::recvmmsg(descriptor, first, most, libc::MSG_DONTWAIT, ptr::null_mut()) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let is_cut = |header: &libc::mmsghdr| header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        self.received.extend(headers[..count].iter().map(|header| (header.msg_len as usize, is_cut(header))));
        // A closed socket returns as many empty messages as requested.
        let is_closed = count == Self::MOST && self.received.iter().all(|(length, _)| *length == 0);
        Ok((!is_closed).then_some(count))
    }

    /// Like [`Inbox::receive`], but calls `receive` for each message with its buffer; it returns the length, and
    /// whether the message was truncated.
    ///
    /// # Errors
    /// Those of `receive`, unless it has received messages before `WouldBlock`.
    #[cfg(feature = "service")]
    pub(crate) fn receive_each(
        &mut self,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<(usize, bool)>,
    ) -> io::Result<Option<usize>> {
        self.received.clear();
        for slot in self.bytes.chunks_exact_mut(self.slot) {
            match receive(slot) {
                Ok(received) => self.received.push(received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.received.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        let count = self.received.len();
        let is_closed = count == Self::MOST && self.received.iter().all(|(length, _)| *length == 0);
        Ok((!is_closed).then_some(count))
    }

    /// The received messages in order, each with whether it was truncated.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.received
            .iter()
            .zip(self.bytes.chunks_exact(self.slot))
            .map(|(&(length, cut), slot)| (&slot[..length], cut))
            // After the last message of a closed socket, recvmmsg() fills the remaining slots with empty messages.
            .filter(|(bytes, _)| !bytes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn pair() -> (Socket, Socket) {
        Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap()
    }

    #[test]
    fn messages_keep_their_order_and_boundaries() {
        let (a, b) = pair();
        let mut inbox = Inbox::new(100);
        assert_eq!(inbox.receive(&b).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let long = [7; 101];
        let messages: [[&[u8]; 2]; 5] = [[b"one", b""], [b"", b""], [b"t", b"wo"], [b"", b"three"], [&long, b""]];
        assert_eq!(send::<8>(&a, messages.iter().map(|&parts| (parts, None))).unwrap(), 5);
        assert_eq!(inbox.receive(&b).unwrap(), Some(5));
        let received: Vec<_> = inbox.messages().collect();
        assert_eq!(received, [(&b"one"[..], false), (b"two", false), (b"three", false), (&long[..100], true)]);
    }

    #[test]
    fn send_is_bounded_and_receive_reports_the_end() {
        let (a, b) = pair();
        let mut inbox = Inbox::new(16);
        let many = || std::iter::repeat_n(([&b"x"[..], &[]], None), 100);
        assert_eq!(send::<8>(&a, many()).unwrap(), 8);
        assert_eq!(send::<80>(&a, many()).unwrap(), 80);
        drop(a);
        assert_eq!(inbox.receive(&b).unwrap(), Some(64));
        assert_eq!(inbox.receive(&b).unwrap(), Some(64), "the end is reported behind the messages");
        assert_eq!(inbox.messages().count(), 24);
        assert_eq!(inbox.receive(&b).unwrap(), None);
        assert_eq!(send::<1>(&b, many()).unwrap_err().raw_os_error(), Some(libc::EPIPE), "without SIGPIPE");
    }
}
