//! A Unix socket whose peer is a client.
//!
//! A client may pass descriptors to the service, which needs none. Since Linux 6.16 the service refuses them
//! (SO_PASSRIGHTS off): the client's sendmsg(2) fails with EPERM. Otherwise descriptors may be queued in the socket at
//! any time, and [`Closer`] closes both: the descriptors that were received, and the socket with those that were not.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    getsockopt_impl, setsockopt_impl, sockopt_impl,
    sys::socket::{Shutdown, getsockopt, setsockopt, shutdown},
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::closer::Closer;
use crate::mmsg::Inbox;

/// The maximum number of descriptors of one message (`SCM_MAX_FD` of the kernel).
const MOST_DESCRIPTORS: usize = 253;

/// `SO_PASSRIGHTS` of asm-generic/socket.h, which all architectures of the service use; not in libc yet.
const SO_PASSRIGHTS: libc::c_int = 83;

sockopt_impl!(
    /// Whether a Unix socket accepts descriptors from its peer (Linux 6.16).
    PassRights,
    Both,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

/// Makes a socket refuse descriptors; sockets that it accepts from then on refuse them, too. `false` if the kernel
/// is older than 6.16.
pub(super) fn refuse_descriptors(socket: &impl AsFd) -> bool {
    setsockopt(socket, PassRights, &false).is_ok()
}

/// The service's end of a connection with a client.
#[derive(Debug)]
pub(super) struct PeerSocket {
    /// `None` only during the drop.
    socket: Option<OwnedFd>,
    /// Set if descriptors may be queued in it: who closes it, and its user.
    closer: Option<(Closer, u32)>,
}

impl PeerSocket {
    /// An end of a new pair, before the client has the other end.
    pub(super) fn of_pair(socket: OwnedFd, closer: &Closer, user: u32) -> Self {
        let closer = (!refuse_descriptors(&socket)).then(|| (closer.clone(), user));
        Self { socket: Some(socket), closer }
    }

    /// An accepted connection. One that was made before the listener refused descriptors may have some in its queue.
    pub(super) fn accepted(socket: OwnedFd, closer: &Closer, user: u32) -> Self {
        let refuses = getsockopt(&socket, PassRights) == Ok(false);
        Self { socket: Some(socket), closer: (!refuses).then(|| (closer.clone(), user)) }
    }

    /// Receives bytes or a message without blocking. Returns their number, and whether a message was truncated.
    ///
    /// # Errors
    /// Those of recvmsg(2), and passed descriptors: nothing needs them.
    pub(super) fn receive(&self, bytes: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = match &self.closer {
            Some(_) => RecvAncillaryBuffer::new(&mut space),
            None => RecvAncillaryBuffer::default(),
        };
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
        let passed: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        match &self.closer {
            Some((closer, user)) if !passed.is_empty() => {
                closer.close(*user, passed);
                Err(io::Error::new(io::ErrorKind::InvalidData, "the client passed descriptors"))
            }
            _ => Ok((received.bytes, received.flags.contains(ReturnFlags::TRUNC))),
        }
    }

    /// Receives messages without blocking, like [`Inbox::receive`].
    ///
    /// # Errors
    /// Those of [`PeerSocket::receive`].
    pub(super) fn receive_messages(&self, inbox: &mut Inbox) -> io::Result<Option<usize>> {
        match &self.closer {
            None => inbox.receive(self),
            Some(_) => inbox.receive_each(|bytes| self.receive(bytes)),
        }
    }

    fn get(&self) -> &OwnedFd {
        self.socket.as_ref().expect("open until it is dropped")
    }
}

impl AsFd for PeerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get().as_fd()
    }
}

impl AsRawFd for PeerSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.get().as_raw_fd()
    }
}

impl Drop for PeerSocket {
    fn drop(&mut self) {
        if let Some((closer, user)) = &self.closer {
            // The close may come late: the client sees the end at once.
            let _ = shutdown(self.as_raw_fd(), Shutdown::Both);
            closer.close(*user, self.socket.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

    use super::*;

    /// A pair as on a kernel without SO_PASSRIGHTS.
    fn old_pair(closer: &Closer) -> (PeerSocket, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK).unwrap();
        (PeerSocket { socket: Some(ours), closer: Some((closer.clone(), 1)) }, theirs)
    }

    #[test]
    fn passed_descriptors_are_closed_and_end_the_connection() {
        let closer = Closer::default();
        let (ours, theirs) = old_pair(&closer);
        let mut inbox = Inbox::new(16);
        nix::unistd::write(&theirs, b"one").unwrap();
        nix::unistd::write(&theirs, &[7; 17]).unwrap();
        assert_eq!(ours.receive_messages(&mut inbox).unwrap(), Some(2));
        assert_eq!(
            inbox.messages().map(|(bytes, cut)| (bytes.len(), cut)).collect::<Vec<_>>(),
            [(3, false), (16, true)]
        );
        let would_block = ours.receive_messages(&mut inbox).unwrap_err();
        assert_eq!(would_block.kind(), io::ErrorKind::WouldBlock);
        let (kept, passed) = UnixStream::pair().unwrap();
        let numbers = [passed.as_raw_fd(); 2];
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(theirs.as_raw_fd(), &[io::IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
        drop(passed);
        assert_eq!(ours.receive_messages(&mut inbox).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // The end of its peer: all copies are closed.
        kept.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!(io::Read::read(&mut &kept, &mut [0]).unwrap(), 0);
        drop(theirs);
        assert_eq!(ours.receive_messages(&mut inbox).unwrap(), None);
    }

    fn pass(from: &impl AsRawFd) -> nix::Result<usize> {
        let numbers = [0];
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(from.as_raw_fd(), &[std::io::IoSlice::new(b"x")], &rights, MsgFlags::MSG_NOSIGNAL, None)
    }

    #[test]
    fn pair_refuses_descriptors_in_one_direction() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = PeerSocket::of_pair(ours.into(), &Closer::default(), 1);
        if ours.closer.is_some() {
            println!("not tested: this kernel has no SO_PASSRIGHTS");
            return;
        }
        assert_eq!(pass(&theirs), Err(nix::errno::Errno::EPERM));
        assert_eq!(pass(&ours), Ok(1), "the service passes descriptors");
    }

    #[test]
    fn accepted_connection_inherits_the_refusal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let early = UnixStream::connect(&path).unwrap();
        if !refuse_descriptors(&listener) {
            println!("not tested: this kernel has no SO_PASSRIGHTS");
            return;
        }
        let late = UnixStream::connect(&path).unwrap();
        assert_eq!((pass(&early), pass(&late)), (Ok(1), Err(nix::errno::Errno::EPERM)));
        let accept = || PeerSocket::accepted(listener.accept().unwrap().0.into(), &Closer::default(), 1);
        assert_eq!([accept(), accept()].map(|socket| socket.closer.is_some()), [true, false]);
    }
}
