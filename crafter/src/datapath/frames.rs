//! Sending Ethernet frames as they are, in large batches.
//!
//! One AF_PACKET socket, and sendmmsg over the caller's own buffers: nothing is copied in user space, and each frame is
//! known to be sent or refused. For packets that start at their IP header and need a route, use
//! [`Sender`](super::tx::Sender).

use std::{
    io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    interface::Interface,
    tx::{link_address, wait_for_room},
};
use crate::{
    error::{Error, Result},
    mmsg,
};

/// Frames per sendmmsg. Larger batches are not faster; smaller ones pay for more system calls.
const BATCH: usize = 256;
/// Retries of a frame that the kernel has no room for.
const RETRIES: u32 = 3;
/// How long to wait for room in the transmit queue before a frame counts as refused.
pub(crate) const FRAME_ROOM_TIMEOUT: Duration = Duration::from_millis(20);
/// Bytes of socket buffer. The kernel counts a frame's whole skb, some 1 KiB for a small one.
const SEND_BUFFER: usize = 4 << 20;
const ETHERNET: usize = 14;

/// How frames leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlet {
    /// Straight to the driver (`PACKET_QDISC_BYPASS`): past the queueing discipline, past all programs on the egress
    /// hook, and unseen by taps of this host such as tcpdump. The kernel half's `crafted` counter does not count them.
    Direct,
    /// As the kernel's own traffic, with this socket mark (0: none). crafter's own mark makes the egress program let
    /// them pass and count them.
    Queued {
        /// `SO_MARK`.
        mark: u32,
    },
}

/// Sends frames out of one interface.
///
/// ```no_run
/// # async fn send() -> crafter::Result<()> {
/// use crafter::{datapath::{frames::{FrameSender, Outlet}, interface}, layer::{Ether, Ip, Udp}};
///
/// let link = interface::interface("eth0").await?;
/// let mut sender = FrameSender::open(&link, Outlet::Direct)?;
/// let ports = 1..=1000_u16;
/// let frames: Vec<_> = ports.map(|port| (Ether::new() / Ip::to("192.0.2.2") / Udp::to(port)).build()).collect::<Result<_, _>>()?;
/// let taken = sender.send(&frames)?;
/// assert_eq!(taken as u64 + sender.refused(), 1000);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FrameSender {
    socket: Socket,
    interface: String,
    mtu: u32,
    sent: u64,
    refused: u64,
    /// The previous wait timed out: the next frame is retried without waiting.
    has_timed_out: bool,
}

impl FrameSender {
    /// Opens a socket for `interface`. The socket stays usable when the link goes down and up again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a link whose packets carry no Ethernet header, [`Error::Permission`] (`CAP_NET_RAW`; for
    /// a mark before Linux 5.17 `CAP_NET_ADMIN`), [`Error::UnknownInterface`].
    pub fn open(interface: &Interface, outlet: Outlet) -> Result<Self> {
        let name = &interface.name;
        if !interface.ethernet && !interface.loopback {
            return Err(Error::invalid(
                "interface",
                format_args!("packets of {name} carry no Ethernet header, so it takes IP packets only"),
            ));
        }
        let open = || -> io::Result<Socket> {
            // Protocol 0: it hooks into no receive path.
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            socket.bind(&link_address(interface.ifindex, 0))?;
            if outlet == Outlet::Direct {
                bypass(&socket)?;
            }
            // Beyond net.core.wmem_max only with CAP_NET_ADMIN; what we get instead is enough to work with.
            let _ = socket.set_send_buffer_size(SEND_BUFFER);
            Ok(socket)
        };
        let socket = open().map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Error::UnknownInterface { name: name.clone() },
            _ => Error::io(format!("open a raw socket on {name}"), "CAP_NET_RAW", error),
        })?;
        if let Outlet::Queued { mark } = outlet
            && mark != 0
        {
            socket
                .set_mark(mark)
                .map_err(|error| Error::io("mark crafted packets (SO_MARK)", "CAP_NET_ADMIN", error))?;
        }
        Ok(Self { socket, interface: name.clone(), mtu: interface.mtu, sent: 0, refused: 0, has_timed_out: false })
    }

    /// Sends `frames`, which start at the Ethernet header, in their order. Returns how many the kernel took; every
    /// other one is in [`refused`](Self::refused), and none is tried later.
    ///
    /// If the queue is full, it waits for room. After 20 ms without progress the frame counts as refused; the frames
    /// after it are tried without waiting until the kernel takes one again.
    ///
    /// # Errors
    /// The first error: [`Error::UnknownInterface`] if the interface no longer exists, or [`Error::Io`] if it is down;
    /// the remaining frames are then not tried. [`Error::Invalid`] for a frame that is too short or too long for the
    /// link; the frames after it are still sent. [`sent`](Self::sent) and [`refused`](Self::refused) are correct also
    /// after an error.
    pub fn send<F: AsRef<[u8]>>(&mut self, frames: &[F]) -> Result<usize> {
        let (mut done, mut taken, mut tries) = (0, 0, 0);
        let mut since: Option<Instant> = None;
        let mut failure = None;
        while done < frames.len() {
            let rest = &frames[done..];
            let error = match self.transmit(&rest[..rest.len().min(BATCH)]) {
                // sendmmsg does not return 0 for one frame or more; this only rules out an endless loop.
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(count) => {
                    (done, taken, tries, since) = (done + count, taken + count, 0, None);
                    self.has_timed_out = false;
                    continue;
                }
                Err(error) => error,
            };
            let refused = match error.raw_os_error() {
                Some(libc::EINTR) => 0,
                // No room in the socket's buffer, or in the driver's or the discipline's queue.
                Some(libc::EAGAIN | libc::ENOBUFS) => {
                    tries += 1;
                    let waited = since.get_or_insert_with(Instant::now).elapsed();
                    if tries <= RETRIES {
                        std::thread::yield_now();
                        0
                    } else if !self.has_timed_out && waited < FRAME_ROOM_TIMEOUT {
                        wait_for_room(&self.socket, &error);
                        0
                    } else {
                        self.has_timed_out = true;
                        1
                    }
                }
                // No other frame can leave by a link that is down or does not exist.
                Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN) => {
                    failure.get_or_insert(self.failed(rest[0].as_ref().len(), error));
                    rest.len()
                }
                _ => {
                    failure.get_or_insert(self.failed(rest[0].as_ref().len(), error));
                    1
                }
            };
            if refused > 0 {
                (done, tries, since) = (done + refused, 0, None);
                self.refused += refused as u64;
            }
        }
        self.sent += taken as u64;
        failure.map_or(Ok(taken), Err)
    }

    /// Frames that the kernel took since the sender was opened.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames that it did not take.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// One system call; how many of `frames` (at most [`BATCH`]) the kernel took.
    fn transmit<F: AsRef<[u8]>>(&self, frames: &[F]) -> io::Result<usize> {
        mmsg::send::<BATCH>(&self.socket, frames.iter().map(|frame| ([frame.as_ref(), &[]], None)))
    }

    fn failed(&self, length: usize, error: io::Error) -> Error {
        let name = &self.interface;
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                let fits = self.mtu as usize + ETHERNET;
                Error::invalid("frame", format_args!("{length} bytes exceed the longest frame of {name} ({fits})"))
            }
            Some(libc::EINVAL) if length < ETHERNET => {
                let reason = format_args!("{length} bytes are less than an Ethernet header, which has {ETHERNET}");
                Error::invalid("frame", reason)
            }
            Some(libc::ENODEV | libc::ENXIO) => Error::UnknownInterface { name: name.clone() },
            _ => Error::Io { action: format!("send through {name}"), source: error },
        }
    }
}

fn bypass(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option takes an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, (&raw const on).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
