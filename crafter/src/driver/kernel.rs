//! The kernel as a backend: the hooks, maps and sockets of this process.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use crafter_common::{
    map::SOCKET_ENTRIES,
    parse::{self, Bytes as _},
    reason::Reason,
    share::{RING_POOL, queue_pool, record_class, record_units},
};
use smallvec::SmallVec;

use super::{
    Options,
    backend::{Backend, NoRoom, Statistics, Transmitted, TxPacket},
    entry::{Delivery, LeaseId, Meta, Ports},
};
use crate::{
    datapath::{
        accepted::Accepted,
        interface::Interface,
        maps::{Counters, Flow, OwnerMaps, Terms},
        peers::{PeerMap, Peers},
        program::{Kernel, Mode, Report},
        ring::Ring,
        tx::Sender,
        xsk::{Frames, Socket},
    },
    error::{Error, Result},
    scoped,
};

/// How long the kernel may hold the queue of a closed AF_XDP socket.
const QUEUE_RELEASE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the kernel may take to answer a packet whose copy was already delivered.
const KERNEL_ANSWER_DELAY: Duration = Duration::from_millis(5);

/// The hooks, maps and sockets of one interface.
pub(crate) struct KernelBackend {
    tx: Sender,
    /// AF_XDP sockets, each with the number of its pool in the shares.
    sockets: Vec<(u32, Socket)>,
    ring: Ring,
    link_header: usize,
    kernel: Kernel,
    /// Dropped last: the shares of unread packets are released after the programs have counted their last packet.
    maps: OwnerMaps,
}

impl KernelBackend {
    /// Loads and attaches the programs, and opens an AF_XDP socket per queue if XDP is available.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Attach`], [`Error::KernelTooOld`], [`Error::Bpf`].
    pub(crate) fn open(interface: &Interface, options: &Options) -> Result<(Self, Report)> {
        let planned = Frames::plan(interface.mtu, interface.rx_queues, options.load.frame_bytes);
        let mut frames = planned;
        let link_header = if interface.ethernet || interface.loopback { 14 } else { 0 };
        let tx = Sender::open(interface, options.load.mark)?;
        let (mut kernel, mut maps) = Kernel::open(interface, &options.load, link_header, frames.longest())?;
        let (mut report, ring) = kernel.attach(interface, options.attach)?;
        let ring = Ring::new(ring);
        let mut sockets = Vec::new();
        if report.mode != Mode::Tc {
            for queue in 0..interface.rx_queues.clamp(1, SOCKET_ENTRIES) {
                let opened = open_socket(interface.ifindex, queue, &mut frames).and_then(|socket| {
                    kernel.set_socket(queue, socket.as_raw_fd())?;
                    Ok(socket)
                });
                match opened {
                    Ok(socket) => sockets.push((queue_pool(queue), socket)),
                    // The ring receives the packets of that queue.
                    Err(e) => {
                        report.notes.push(format!("queue {queue} of {} has no AF_XDP socket: {e}", interface.name))
                    }
                }
            }
        }
        if frames != planned && !sockets.is_empty() {
            let (few, many) = (frames.count(), planned.count());
            let reason = "RLIMIT_MEMLOCK does not allow more locked memory";
            report.notes.push(format!("AF_XDP with {few} frames a queue, not {many}: {reason}"));
        }
        report.sockets = sockets.len();
        maps.limit(interface.rx_queues, frames.capacity(), options.load.ring_bytes)?;
        let link_header = link_header as usize;
        Ok((Self { tx, sockets, ring, link_header, kernel, maps }, report))
    }
}

impl Drop for KernelBackend {
    /// Closes sockets and attachments in parallel: each waits for RCU grace periods of several milliseconds. All leases
    /// have ended, so that the order does not matter.
    fn drop(&mut self) {
        let (packet, xdp) = (self.tx.take_sockets(), std::mem::take(&mut self.sockets));
        thread::scope(|scope| {
            // Without a thread, this one closes them.
            let _ = scoped::spawn(scope, move || drop(packet));
            let _ = scoped::spawn(scope, move || drop(xdp));
            self.kernel.detach();
        });
    }
}

impl Backend for KernelBackend {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(|(_, socket)| socket.as_fd()).chain([self.ring.as_fd()]).collect()
    }

    fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted {
        self.tx.send_batch(packets, on_no_room)
    }

    fn drain(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) -> usize {
        let Self { sockets, ring, link_header, maps, .. } = self;
        let mut count = 0;
        for (pool, socket) in sockets {
            let mut read = Released::new(maps, *pool);
            count += socket.drain(|frame| {
                if let Some(mark) = frame.load(0) {
                    read.add(u32::from_ne_bytes(mark), 1);
                }
                let delivery = match parse::link(frame, *link_header) {
                    Ok((start, _)) => Delivery::Packet(&frame[start..], Meta::REDIRECTED),
                    Err(_) => Delivery::Malformed,
                };
                deliver(delivery);
            });
        }
        let mut read = Released::new(maps, RING_POOL);
        count += ring.drain(|header, packet| {
            read.add(header.share, record_units(record_class(header.length)));
            let cut = header.captured < header.length;
            let reason = Reason::ALL.get(header.reason as usize).copied().unwrap_or(Reason::Copied);
            let meta = Meta { timestamp: Some(header.timestamp), cut, reason, checksum: None };
            deliver(Delivery::of(packet, meta));
        });
        count
    }

    fn own(&mut self, id: LeaseId, ports: &Ports, terms: Terms) -> Result<()> {
        let Ports { transport, address, ref ports } = *ports;
        for (done, &port) in ports.iter().enumerate() {
            if let Err(e) = self.maps.own(id.0, transport, address, port, terms) {
                self.disown(id, &Ports { transport, address, ports: ports[..done].to_vec() });
                return Err(e);
            }
        }
        Ok(())
    }

    fn disown(&mut self, id: LeaseId, ports: &Ports) {
        for &port in &ports.ports {
            // Fails only if there is no such entry.
            let _ = self.maps.disown(id.0, ports.transport, ports.address, port);
        }
        self.maps.end(id.0);
    }

    fn peers(&self, id: LeaseId, peers: Peers) -> Option<PeerMap> {
        self.maps.peers(id.0, peers)
    }

    fn lost(&self, id: LeaseId) -> u64 {
        self.maps.lost(id.0)
    }

    fn disown_delay(&self) -> Duration {
        KERNEL_ANSWER_DELAY
    }

    fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.maps.set_local(addresses)
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.maps.is_local(address)
    }

    fn set_mtu(&mut self, mtu: u32) {
        self.tx.set_mtu(mtu);
    }

    fn set_link(&mut self, interface: &Interface) {
        // Fails only if the map is gone; the previous values remain in force then.
        if let Err(e) = self.maps.set_accepted(&Accepted::by_kernel(interface)) {
            log::warn!("{e}");
        }
    }

    fn set_room_timeout(&mut self, timeout: Duration) {
        self.tx.set_room_timeout(timeout);
    }

    fn counters(&self) -> Result<Counters> {
        self.maps.counters()
    }

    fn flows(&self) -> Vec<Flow> {
        self.maps.flows()
    }

    #[cfg(feature = "service")]
    fn map_reader(&self) -> Option<crate::datapath::maps::MapReader> {
        Some(self.maps.reader())
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            sent: self.tx.sent(),
            not_sent: self.tx.dropped(),
            lost: self.sockets.iter().map(|(_, socket)| socket.lost().total()).sum(),
            turned_away: self.tx.turned_away(),
        }
    }
}

/// Packets that were read from a pool. They are released when this is dropped: the kernel has their memory again by
/// then.
struct Released<'m> {
    maps: &'m OwnerMaps,
    pool: u32,
    /// Units of consecutive packets of one lease's share.
    runs: SmallVec<[(u32, u64); 8]>,
}

impl<'m> Released<'m> {
    fn new(maps: &'m OwnerMaps, pool: u32) -> Self {
        Self { maps, pool, runs: SmallVec::new() }
    }

    fn add(&mut self, share: u32, units: u32) {
        match self.runs.last_mut() {
            Some((last, sum)) if *last == share => *sum += u64::from(units),
            _ => self.runs.push((share, u64::from(units))),
        }
    }
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.runs.iter().for_each(|&(share, units)| self.maps.release(self.pool, share, units));
    }
}

/// Opens the socket of one queue. The kernel releases a closed socket's queue in a work item (`xp_put_pool()`), so the
/// call retries on EBUSY. On ENOBUFS (`RLIMIT_MEMLOCK`), it retries with fewer frames.
fn open_socket(ifindex: u32, queue: u32, frames: &mut Frames) -> Result<Socket> {
    let deadline = Instant::now() + QUEUE_RELEASE_TIMEOUT;
    loop {
        match Socket::open(ifindex, queue, *frames) {
            Err(Error::Io { source, .. })
                if source.raw_os_error() == Some(libc::ENOBUFS) && frames.fewer().is_some() =>
            {
                *frames = frames.fewer().unwrap_or(*frames);
            }
            Err(Error::Io { source, .. })
                if source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            opened => return opened,
        }
    }
}
