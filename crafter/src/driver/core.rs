//! What the lock guards: the kernel half, what receives, what sends, and who gets what.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use crafter_common::{map::SOCKET_ENTRIES, parse, reason::Reason};

use super::{
    Options,
    table::{Meta, Stats, Table},
};
use crate::{
    datapath::{
        interface::Interface,
        maps::OwnerMaps,
        program::{Kernel, Mode, Report},
        ring::Ring,
        tx::Sender,
        xsk::{Frames, Lost, Socket},
    },
    error::{Error, Result},
};

/// How long a queue may still be held by a socket that is closed already.
const RELEASE: Duration = Duration::from_millis(250);

/// Opens the socket of one queue. The kernel lets go of a closed one's queue from a work queue
/// (`xp_put_pool()`), so that who comes right behind it is told EBUSY for a moment.
fn open_socket(ifindex: u32, queue: u32, frames: Frames) -> Result<Socket> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match Socket::open(ifindex, queue, frames) {
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
    pub(crate) maps: OwnerMaps,
    pub(crate) tx: Sender,
    sockets: Vec<Socket>,
    ring: Ring,
    link_header: usize,
    /// The deadline that the driver sleeps for.
    armed: Option<Instant>,
    /// Last, so that ports are filtered as long as anything of the above exists.
    _kernel: Kernel,
}

impl Core {
    /// Loads, attaches, and opens a socket per queue where XDP is had.
    pub(crate) fn open(interface: &Interface, options: &Options) -> Result<(Self, Report)> {
        let frames = Frames::plan(interface.mtu, interface.rx_queues);
        let link_header = if interface.ethernet || interface.loopback { 14 } else { 0 };
        let tx = Sender::open(interface, options.load.mark)?;
        let (mut kernel, maps) = Kernel::load(&options.load, link_header, frames.longest())?;
        let ring = Ring::new(kernel.take_ring()?);
        let mut map = kernel.take_sockets()?;
        let mut report = kernel.attach(interface, options.attach)?;
        let mut sockets = Vec::new();
        if report.mode != Mode::Tc {
            for queue in 0..interface.rx_queues.clamp(1, SOCKET_ENTRIES) {
                let opened = open_socket(interface.ifindex, queue, frames).and_then(|socket| {
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
        report.sockets = sockets.len();
        let table = Table::new(interface.kind.is_some() || interface.loopback);
        let core =
            Self { table, maps, tx, sockets, ring, link_header: link_header as usize, armed: None, _kernel: kernel };
        Ok((core, report))
    }

    /// The descriptors that are readable when replies wait.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        use std::os::fd::AsFd as _;
        self.sockets.iter().map(|s| s.as_fd()).chain(std::iter::once(self.ring.as_fd()))
    }

    /// Takes a batch of waiting replies to whom they belong, and sends what they call for.
    /// Returns how many there were.
    pub(crate) fn drain(&mut self, now: Instant) -> usize {
        let Self { table, sockets, ring, link_header, .. } = self;
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
            let meta = Meta { timestamp: Some(header.timestamp), cut, reason };
            if reason.is_ingress() {
                table.handle_packet(now, packet, meta);
            } else {
                table.handle_suppressed(packet, meta);
            }
        });
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
        self.table.poll_transmit(now, &mut self.tx);
        if let Err(e) = self.tx.flush() {
            self.table.handle_fault(now, &e);
        }
    }

    /// This host has these addresses now; `present` says whether the interface is still there.
    pub(crate) fn handle_addresses(&mut self, now: Instant, addresses: &[IpAddr], present: bool) {
        // A full map is the only way to fail, and leaves the former addresses in force.
        if let Err(e) = self.maps.set_local(addresses) {
            log::warn!("{e}");
        }
        self.table.handle_addresses(addresses);
        if !present {
            self.table.handle_link_gone(now);
            self.transmit(now);
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
        let lost = self.sockets.iter().map(Socket::lost).fold(Lost::default(), |a, b| Lost {
            ring_full: a.ring_full + b.ring_full,
            no_frame: a.no_frame + b.no_frame,
            other: a.other + b.other,
        });
        Stats {
            lost: lost.total(),
            sent: self.tx.sent(),
            not_sent: self.tx.dropped(),
            turned_away: self.tx.turned_away(),
            ..self.table.stats
        }
    }
}
