//! Several packets in one system call.

use std::{
    io,
    mem::{self, MaybeUninit},
    os::fd::AsRawFd as _,
};

use socket2::{SockAddr, Socket};

/// Hands packets to the kernel by sendmmsg(2), without blocking: at most `MOST` of them, each with where it goes if the
/// socket does not say. How many the kernel took; those behind them it did not look at.
///
/// # Errors
/// What is wrong with the first packet; of a later one nothing is told but that it was not taken.
pub(super) fn send<'p, const MOST: usize>(
    socket: &Socket,
    packets: impl Iterator<Item = (&'p [u8], Option<&'p SockAddr>)>,
) -> io::Result<usize> {
    let mut vectors = [MaybeUninit::<libc::iovec>::uninit(); MOST];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut count = 0;
    for (((bytes, to), vector), header) in packets.zip(&mut vectors).zip(&mut headers) {
        let vector = vector.write(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        // SAFETY: mmsghdr is plain data, for which all zeroes is a valid value (no name, no control data).
        let header = header.write(unsafe { mem::zeroed() });
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        if let Some(to) = to {
            header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = to.len();
        }
        count += 1;
    }
    let (descriptor, headers) = (socket.as_raw_fd(), headers.as_mut_ptr().cast());
    // SAFETY: the first `count` headers (at most MOST) were initialised above; they point to vectors on this stack and
    // to packets and addresses that are borrowed for longer than the call, which only reads them.
    let sent = unsafe { libc::sendmmsg(descriptor, headers, count, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
