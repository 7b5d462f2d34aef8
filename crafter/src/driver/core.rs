//! What the lock guards: the kernel half, what receives, what sends, and who gets what.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use crafter_common::{map::SOCKET_ENTRIES, parse, reason::Reason};

use super::{
    Options,
    entry::{Meta, Stats},
    service::Served,
    table::Table,
};
use crate::{
    datapath::{
        interface::Interface,
        maps::{Counters, Flow, OwnerMaps, Terms},
        program::{Kernel, Mode, Report},
        ring::Ring,
        tx::{NoRoom, Outgoing, Sender, Transmitted},
        xsk::{Frames, Lost, Socket},
    },
    error::{Error, Result},
    packet::Transport,
};

/// How long a queue may still be held by a socket that is closed already.
const RELEASE: Duration = Duration::from_millis(250);

/// Opens the socket of one queue. The kernel lets go of a closed one's queue from a work queue
/// (`xp_put_pool()`), so that who comes right behind it is told EBUSY for a moment.
///
/// Where memory that may be locked (`RLIMIT_MEMLOCK`) does not suffice, ENOBUFS, it is asked for less.
fn open_socket(ifindex: u32, queue: u32, frames: &mut Frames) -> Result<Socket> {
    let deadline = Instant::now() + RELEASE;
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

pub(crate) struct Core {
    pub(crate) table: Table,
    pub(crate) side: Side,
    /// The deadline that the driver sleeps for.
    armed: Option<Instant>,
}

/// What packets come from and go to.
pub(crate) enum Side {
    /// The kernel.
    Kernel(Box<KernelSide>),
    /// The service.
    Service(Box<Served>),
}

/// The hooks, held by this process.
pub(crate) struct KernelSide {
    maps: OwnerMaps,
    tx: Sender,
    sockets: Vec<Socket>,
    ring: Ring,
    link_header: usize,
    /// Last, so that ports are filtered as long as anything of the above exists.
    _kernel: Kernel,
}

impl Core {
    /// Loads, attaches, and opens a socket per queue where XDP is had.
    pub(crate) fn open(interface: &Interface, options: &Options) -> Result<(Self, Report)> {
        let planned = Frames::plan(interface.mtu, interface.rx_queues);
        let mut frames = planned;
        let link_header = if interface.ethernet || interface.loopback { 14 } else { 0 };
        let tx = Sender::open(interface, options.load.mark)?;
        let (mut kernel, maps) = Kernel::load(&options.load, link_header, frames.longest())?;
        let ring = Ring::new(kernel.take_ring()?);
        let mut map = kernel.take_sockets()?;
        let mut report = kernel.attach(interface, options.attach)?;
        let mut sockets = Vec::new();
        if report.mode != Mode::Tc {
            for queue in 0..interface.rx_queues.clamp(1, SOCKET_ENTRIES) {
                let opened = open_socket(interface.ifindex, queue, &mut frames).and_then(|socket| {
                    map.set(queue, socket.as_raw_fd(), 0)
                        .map_err(|e| crate::datapath::failure::bpf_error("list an AF_XDP socket", &e))?;
                    Ok(socket)
                });
                match opened {
                    Ok(socket) => sockets.push(socket),
                    // The ring takes what comes in on that queue.
                    Err(e) => {
                        report.notes.push(format!("queue {queue} of {} has no AF_XDP socket: {e}", interface.name))
                    }
                }
            }
        }
        if frames != planned && !sockets.is_empty() {
            let (few, many) = (frames.count(), planned.count());
            let reason = "the memory that may be locked (RLIMIT_MEMLOCK) does not suffice for more";
            report.notes.push(format!("AF_XDP with {few} frames a queue, not {many}: {reason}"));
        }
        report.sockets = sockets.len();
        let table = Table::new(interface.kind.is_some() || interface.loopback);
        let link_header = link_header as usize;
        let side = KernelSide { maps, tx, sockets, ring, link_header, _kernel: kernel };
        Ok((Self { table, side: Side::Kernel(Box::new(side)), armed: None }, report))
    }

    /// On the service's side of an interface.
    pub(crate) fn served(interface: &Interface, served: Served) -> Self {
        let table = Table::new(interface.kind.is_some() || interface.loopback);
        Self { table, side: Side::Service(Box::new(served)), armed: None }
    }

    /// The descriptors that are readable when replies wait.
    pub(crate) fn sources(&self) -> Vec<BorrowedFd<'_>> {
        match &self.side {
            Side::Kernel(side) => {
                side.sockets.iter().map(|s| s.as_fd()).chain(std::iter::once(side.ring.as_fd())).collect()
            }
            Side::Service(side) => vec![side.source()],
        }
    }

    /// Makes a port the owner's.
    pub(crate) fn own(
        &mut self,
        id: u32,
        transport: Transport,
        address: IpAddr,
        port: u16,
        terms: Terms,
    ) -> Result<()> {
        match &mut self.side {
            Side::Kernel(side) => side.maps.own(id, transport, address, port, terms),
            Side::Service(_) => Ok(()),
        }
    }

    /// Forgets the ports of a lease.
    pub(crate) fn disown(&mut self, id: u32, transport: Transport, address: IpAddr, ports: &[u16]) {
        match &mut self.side {
            Side::Kernel(side) => {
                for &port in ports {
                    // It can fail only if the entry is gone already.
                    let _ = side.maps.disown(transport, address, port);
                }
            }
            Side::Service(side) => side.remove(id, transport, ports),
        }
    }

    /// This host has these addresses.
    ///
    /// # Errors
    /// [`Error::Bpf`] for more than the map holds.
    pub(crate) fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()> {
        match &mut self.side {
            Side::Kernel(side) => side.maps.set_local(addresses),
            Side::Service(side) => {
                side.set_local(addresses);
                Ok(())
            }
        }
    }

    /// Whether it is one of them.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        match &self.side {
            Side::Kernel(side) => side.maps.is_local(address),
            Side::Service(side) => side.is_local(address),
        }
    }

    /// Sends packets and frames in as few system calls as it takes; `on` says what to do where there is no room for one.
    pub(crate) fn send<'p>(&mut self, packets: impl IntoIterator<Item = Outgoing<'p>>, on: NoRoom) -> Transmitted {
        let packets: Vec<_> = packets.into_iter().collect();
        self.side.send_batch(&packets, on)
    }

    /// Packets sent, and those that were not taken.
    pub(crate) fn sent(&self) -> (u64, u64) {
        match &self.side {
            Side::Kernel(side) => (side.tx.sent(), side.tx.dropped()),
            Side::Service(side) => (side.sent(), side.dropped()),
        }
    }

    /// How long to wait where the kernel has no room for a packet; where the service has none, as long as it waits.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        match &mut self.side {
            Side::Kernel(side) => side.tx.set_patience(patience),
            Side::Service(side) => side.set_patient(),
        }
    }

    /// Packets by reason.
    pub(crate) fn counters(&self) -> Result<Counters> {
        match &self.side {
            Side::Kernel(side) => side.maps.counters(),
            Side::Service(side) => Ok(side.counters()),
        }
    }

    /// Flows of the kernel half, where it is ours.
    pub(crate) fn flows(&self) -> Vec<Flow> {
        match &self.side {
            Side::Kernel(side) => side.maps.flows(),
            Side::Service(_) => Vec::new(),
        }
    }

    /// Takes a batch of waiting replies to whom they belong, and sends what they call for.
    /// Returns how many there were.
    pub(crate) fn drain(&mut self, now: Instant) -> usize {
        let Self { table, side, .. } = self;
        let count = match side {
            Side::Kernel(side) => side.drain(table, now),
            Side::Service(side) => side.drain(table, now),
        };
        if count > 0 {
            self.transmit(now);
        }
        count
    }

    /// Does what is due.
    pub(crate) fn handle_timeouts(&mut self, now: Instant) {
        self.table.handle_timeouts(now);
        self.transmit(now);
    }

    /// Sends what the streams have to send, and wakes whoever waits for one of them.
    pub(crate) fn transmit(&mut self, now: Instant) {
        let Self { table, side, .. } = self;
        let mut segments = Vec::new();
        table.poll_transmit(now, |route, ip| segments.push((route.clone(), ip.to_vec())));
        if segments.is_empty() {
            return;
        }
        let packets: Vec<_> = segments.iter().map(|(route, ip)| Outgoing::Ip(route, ip)).collect();
        let Transmitted { sent, refused, tried, error } = side.send_batch(&packets, NoRoom::Refuse);
        table.stats.not_sent += (tried as u64).saturating_sub(sent + refused);
        if let Some(e) = error {
            table.handle_fault(now, &e);
        }
    }

    /// This host has these addresses now, and the interface this MTU; without one it is gone.
    pub(crate) fn handle_addresses(&mut self, now: Instant, addresses: &[IpAddr], mtu: Option<u32>) {
        // A full map is the only way to fail, and leaves the former addresses in force.
        if let Err(e) = self.set_local(addresses) {
            log::warn!("{e}");
        }
        self.table.handle_addresses(addresses);
        match (mtu, &mut self.side) {
            (Some(mtu), Side::Kernel(side)) => side.tx.set_mtu(mtu),
            (Some(_), Side::Service(_)) => {}
            (None, _) => {
                self.table.handle_link_gone(now);
                self.transmit(now);
            }
        }
    }

    /// Notes the nearest deadline as the one that the driver sleeps for.
    pub(crate) fn arm(&mut self) -> Option<Instant> {
        self.armed = self.table.poll_timeout();
        self.armed
    }

    /// Whether a deadline came that lies before the one that the driver sleeps for.
    pub(crate) fn nearer_than_armed(&self) -> bool {
        match (self.table.poll_timeout(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let (sent, not_sent) = self.sent();
        let (lost, turned_away) = match &self.side {
            Side::Kernel(side) => (side.lost(), side.tx.turned_away()),
            Side::Service(side) => (side.lost(), 0),
        };
        Stats { lost, sent, not_sent, turned_away, ..self.table.stats }
    }
}

impl Side {
    fn send_batch(&mut self, packets: &[Outgoing<'_>], on_no_room: NoRoom) -> Transmitted {
        match self {
            Self::Kernel(side) => side.tx.send_batch(packets, on_no_room),
            Self::Service(side) => side.send_batch(packets, on_no_room),
        }
    }
}

impl KernelSide {
    /// Takes a batch of waiting replies to `table`; how many there were.
    fn drain(&mut self, table: &mut Table, now: Instant) -> usize {
        let Self { sockets, ring, link_header, .. } = self;
        let mut count = 0;
        for socket in sockets {
            count += socket.drain(|frame| match parse::link(frame, *link_header) {
                Ok((start, _)) => table.handle_packet(now, &frame[start..], Meta::REDIRECTED),
                Err(_) => table.handle_stray(),
            });
        }
        count += ring.drain(|header, packet| {
            let cut = header.captured < header.length;
            let reason = Reason::ALL.get(header.reason as usize).copied().unwrap_or(Reason::Copied);
            let meta = Meta { timestamp: Some(header.timestamp), cut, reason, checksum: None };
            if reason.is_ingress() {
                table.handle_packet(now, packet, meta);
            } else {
                table.handle_suppressed(packet, meta);
            }
        });
        count
    }

    fn lost(&self) -> u64 {
        let lost = self.sockets.iter().map(Socket::lost).fold(Lost::default(), |a, b| Lost {
            ring_full: a.ring_full + b.ring_full,
            no_frame: a.no_frame + b.no_frame,
            other: a.other + b.other,
        });
        lost.total()
    }
}
