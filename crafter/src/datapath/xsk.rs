//! AF_XDP sockets, receive only: frames are read where the kernel put them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use xdp::{
    RingConfigBuilder, Rings, Umem,
    nic::NicIndex,
    slab::{HeapSlab, Slab as _},
    socket::{SocketError, XdpSocket, XdpSocketBuilder},
    umem::{FrameSize, UmemCfgBuilder},
};

use crate::error::{Error, Result};

/// The maximum number of frames that one call of [`Socket::drain`] returns.
pub const BATCH: usize = 256;

/// Bytes that the kernel keeps free before each frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;

/// Bytes of memory for the frames of an interface by default.
pub const FRAME_BYTES: u32 = 16 << 20;

/// The minimum number of frames of a queue. Interrupts of a busy receiver are moderated to some dozens of packets.
const FEWEST: u32 = 64;

/// How the frames of an interface are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Bytes of a chunk: 2,048 or 4,096.
    chunk: u32,
    /// Frames per queue, a power of two.
    count: u32,
}

impl Frames {
    /// Plans the frames of an interface with an MTU of `mtu` bytes and this number of `queues`: within `bytes` over all
    /// queues, but at least 64 frames for each.
    pub fn plan(mtu: u32, queues: u32, bytes: u32) -> Self {
        // The MTU does not include the Ethernet header and two VLAN tags.
        let chunk = if mtu + 22 <= 2048 - HEADROOM { 2048 } else { 4096 };
        let share = bytes / chunk / queues.max(1);
        Self { chunk, count: (share.max(FEWEST) + 1).next_power_of_two() / 2 }
    }

    /// The same layout with half as many frames; `None` if it has 64 frames or fewer.
    pub fn fewer(self) -> Option<Self> {
        (self.count > FEWEST).then_some(Self { count: self.count / 2, ..self })
    }

    /// Frames per queue.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Frames per queue that may wait to be read: a sixteenth less than `count`, because CPUs that receive from one
    /// queue at the same time count without locks.
    pub fn capacity(self) -> u32 {
        self.count - self.count / 16
    }

    /// Longest frame that fits, link-layer header included, in bytes.
    pub fn longest(self) -> u32 {
        self.chunk - HEADROOM
    }
}

/// What the kernel could not deliver to a socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Frames lost because the receive ring was full.
    pub ring_full: u64,
    /// Frames lost because the fill ring had no free frame.
    pub no_frame: u64,
    /// Frames lost for other reasons: too long, or not linear.
    pub other: u64,
}

impl Lost {
    /// All of them.
    pub fn total(self) -> u64 {
        self.ring_full + self.no_frame + self.other
    }
}

/// One AF_XDP socket, bound to one queue of one interface.
pub struct Socket {
    socket: XdpSocket,
    rings: Rings,
    slab: HeapSlab,
    umem: Umem,
}

// SAFETY: the pointers inside (rings and frames) are mappings of the whole process; nothing in
// them is tied to the thread that made them, and `&mut self` guards every access.
unsafe impl Send for Socket {}

impl Socket {
    /// Opens a socket on `queue` of the interface, in whatever mode (copy or zero copy) the driver has.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_NET_RAW; [`Error::Io`] if another socket is bound to the queue (EBUSY).
    pub fn open(ifindex: u32, queue: u32, frames: Frames) -> Result<Self> {
        let action = || format!("open an AF_XDP socket on queue {queue}");
        let failed = |e: SocketError| Error::io(action(), "CAP_NET_RAW", system(e));
        let bad = |e: xdp::error::Error| Error::Io { action: action(), source: io::Error::other(e.to_string()) };

        let config = UmemCfgBuilder {
            frame_size: if frames.chunk == 2048 { FrameSize::TwoK } else { FrameSize::FourK },
            frame_count: frames.count,
            ..UmemCfgBuilder::default()
        };
        let mut umem =
            Umem::map(config.build().map_err(bad)?).map_err(|source| Error::Io { action: action(), source })?;
        let rings =
            RingConfigBuilder { rx_count: frames.count, tx_count: 0, fill_count: frames.count, completion_count: 64 };
        let mut builder = XdpSocketBuilder::new().map_err(failed)?;
        let (mut rings, flags) = builder.build_rings(&umem, rings.build().map_err(bad)?).map_err(failed)?;
        // Before bind: packets may arrive from then on, and an empty fill ring drops them.
        // SAFETY: the frames belong to `umem`, which is in Self like the socket, and is dropped after it.
        unsafe { rings.fill_ring.enqueue(&mut umem, frames.count as usize) };
        let socket = builder.bind(NicIndex::new(ifindex), queue, flags).map_err(failed)?;
        Ok(Self { socket, rings, slab: HeapSlab::with_capacity(BATCH), umem })
    }

    /// Hands up to [`BATCH`] waiting frames, link-layer header included, to `handle`, oldest
    /// first, and gives their memory back to the kernel. Returns how many there were.
    pub fn drain(&mut self, mut handle: impl FnMut(&[u8])) -> usize {
        let Some(ring) = &mut self.rings.rx_ring else {
            return 0;
        };
        // SAFETY: the packets do not leave this function, and so do not outlive the Umem.
        let count = unsafe { ring.recv(&self.umem, &mut self.slab) };
        while let Some(packet) = self.slab.pop_back() {
            handle(&packet);
            self.umem.free_packet(packet);
        }
        if count > 0 {
            // SAFETY: as in `open`.
            unsafe { self.rings.fill_ring.enqueue(&mut self.umem, count) };
        }
        count
    }

    /// What could not be delivered so far.
    pub fn lost(&self) -> Lost {
        self.socket.statistics().map_or(Lost::default(), |s| Lost {
            ring_full: s.rx_ring_full,
            no_frame: s.rx_fill_ring_empty_descs,
            other: s.rx_dropped,
        })
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the borrow of the socket.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

/// The system error in one of the crate's.
fn system(error: SocketError) -> io::Error {
    match error {
        SocketError::SocketCreation(e) | SocketError::Bind(e) => e,
        SocketError::SetSockOpt { inner, .. }
        | SocketError::GetSockOpt { inner, .. }
        | SocketError::RingMap { inner, .. } => inner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_fit_the_mtu_and_the_memory() {
        const BYTES: u32 = FRAME_BYTES;
        assert_eq!(Frames::plan(1500, 1, BYTES), Frames { chunk: 2048, count: 8192 });
        assert_eq!(Frames::plan(1500, 3, BYTES), Frames { chunk: 2048, count: 2048 });
        assert_eq!(Frames::plan(9000, 1, BYTES), Frames { chunk: 4096, count: 4096 });
        assert_eq!(Frames::plan(1500, 256, BYTES).count, 64);
        assert_eq!(Frames::plan(1500, 1, 1 << 20).count, 512);
        assert_eq!(Frames::plan(1500, 4, 0).count, 64);
        assert_eq!(Frames::plan(1770, 1, BYTES).chunk, 2048);
        assert_eq!(Frames::plan(1771, 1, BYTES).chunk, 4096);
    }
}
