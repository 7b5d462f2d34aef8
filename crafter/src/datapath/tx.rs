//! Sending crafted IP packets, in batches.
//!
//! Ethernet links: one AF_PACKET socket with protocol 0, which sends and receives nothing. Others and `lo`: AF_INET
//! and AF_INET6 raw sockets, opened when first needed. All carry our mark, by which the egress program distinguishes
//! crafted packets from the kernel's, and all pass the queueing discipline like any other traffic.

mod batch;
mod socket;

use std::{
    io::{self, IoSlice},
    mem,
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use crafter_common::parse;
use smallvec::SmallVec;
use socket2::{SockAddr, Socket};

pub use self::batch::BATCH;
pub(crate) use self::batch::{NoRoom, Transmitted, TxPacket};
#[cfg_attr(not(feature = "lab"), allow(unused_imports, reason = "the lab uses the address"))]
pub(crate) use self::socket::link_address;
pub(super) use self::socket::wait_for_room;
use self::{
    batch::{ETHERNET, Ready, Run},
    socket::{Path, destination, open},
};
use super::{
    interface::Interface,
    route::{LinkLayer, Route},
};
use crate::{
    error::{Error, Result},
    mmsg,
};

/// Further tries for a packet that the kernel has no room for, before the time of [`Sender::set_room_timeout`] begins.
const RETRIES: u32 = 3;

/// Sends IP packets out of one interface.
///
/// On a link without an Ethernet header, and on `lo`, the kernel changes IPv4 headers: it computes checksum and total
/// length, and fills in the identification and the source address if they are 0 (raw(7)). IPv6 packets, and all
/// packets on Ethernet, are sent unchanged.
#[derive(Debug)]
pub struct Sender {
    interface: String,
    ifindex: u32,
    ethernet: bool,
    loopback: bool,
    mtu: u32,
    mark: u32,
    packet: Option<Socket>,
    raw4: Option<Socket>,
    raw6: Option<Socket>,
    /// Which socket the queued packets leave by.
    path: Path,
    queue: Vec<Queued>,
    /// The first `queued` of `queue` wait; the others are buffers for reuse.
    queued: usize,
    sent: u64,
    dropped: u64,
    turned_away: u64,
    /// How long to wait for room in a full queue.
    room_timeout: Duration,
}

/// A queued packet with its link-layer header, or with the destination for a raw socket.
#[derive(Debug, Default)]
struct Queued {
    bytes: Vec<u8>,
    to: Option<SocketAddr>,
}

impl Sender {
    /// Its sockets, to be closed; nothing can be sent afterwards.
    pub(crate) fn take_sockets(&mut self) -> [Option<Socket>; 3] {
        [self.packet.take(), self.raw4.take(), self.raw6.take()]
    }

    /// Opens the sockets for `interface`; every packet carries `mark` as its SO_MARK.
    ///
    /// # Errors
    /// [`Error::Permission`] (`CAP_NET_RAW`; `CAP_NET_ADMIN` for the mark), [`Error::UnknownInterface`].
    pub fn open(interface: &Interface, mark: u32) -> Result<Self> {
        let mut sender = Self {
            interface: interface.name.clone(),
            ifindex: interface.ifindex,
            ethernet: interface.ethernet,
            loopback: interface.loopback,
            mtu: interface.mtu,
            mark,
            packet: None,
            raw4: None,
            raw6: None,
            path: Path::Ethernet,
            queue: Vec::with_capacity(BATCH),
            queued: 0,
            sent: 0,
            dropped: 0,
            turned_away: 0,
            room_timeout: Duration::ZERO,
        };
        // The other sockets are opened for their first packet, but a missing capability is reported here.
        if interface.ethernet {
            sender.socket(Path::Ethernet)?;
        } else {
            sender.socket(Path::Ip4)?;
        }
        Ok(sender)
    }

    /// Sets the MTU, in bytes from the IP header on.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu;
    }

    /// Sets how long to wait for room in a full queue, without progress, before a packet is dropped. Zero by default,
    /// because the calling thread may have other work.
    pub fn set_room_timeout(&mut self, timeout: Duration) {
        self.room_timeout = timeout;
    }

    /// Queues a packet that starts at its IP header; sends all when [`BATCH`] are queued.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a route out of another interface, and for a packet without an IP header or larger than
    /// the interface's MTU: it is not queued. Those of [`Sender::flush`], which concern packets queued before.
    pub fn push(&mut self, route: &Route, ip_packet: &[u8]) -> Result<()> {
        let (path, ready) = self.ready(TxPacket::Ip(route, ip_packet))?;
        self.queue(path, ready)
    }

    /// Queues a frame that starts at its Ethernet header, and leaves as it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] where packets have no Ethernet header, and for a frame shorter than one or larger than what
    /// the MTU allows with two VLAN tags: it is not queued. Those of [`Sender::flush`], as in [`Sender::push`].
    pub fn push_frame(&mut self, frame: &[u8]) -> Result<()> {
        let (path, ready) = self.ready(TxPacket::Frame(frame))?;
        self.queue(path, ready)
    }

    fn queue(&mut self, path: Path, ready: Ready<'_>) -> Result<()> {
        // One sendmmsg serves one socket; packets of different ones keep their order.
        let flushed = if self.queued > 0 && path != self.path { self.flush().map(drop) } else { Ok(()) };
        self.path = path;
        if self.queued == self.queue.len() {
            let bytes = Vec::with_capacity(ETHERNET + self.mtu.min(9000) as usize);
            self.queue.push(Queued { bytes, to: None });
        }
        let queued = &mut self.queue[self.queued];
        queued.bytes.clear();
        ready.parts().iter().for_each(|part| queued.bytes.extend_from_slice(part));
        queued.to = ready.to;
        self.queued += 1;
        flushed?;
        if self.queued == BATCH { self.flush().map(drop) } else { Ok(()) }
    }

    /// Sends what is queued, without blocking longer than the [timeout](Self::set_room_timeout), and returns how many
    /// packets the kernel took. Nothing stays queued: packets that it had no room for are counted by
    /// [`Sender::dropped`] after a few tries.
    ///
    /// # Errors
    /// The first of: [`Error::UnknownInterface`] if the interface does not exist any more, [`Error::Io`] when it is
    /// down or a firewall rule of this host refuses the packet, [`Error::Invalid`] for a packet larger than the MTU,
    /// [`Error::NoRoute`] from raw sockets. Packets after a refused one are still sent.
    pub fn flush(&mut self) -> Result<usize> {
        let count = mem::take(&mut self.queued);
        if count == 0 {
            return Ok(0);
        }
        let queue = mem::take(&mut self.queue);
        let ready = queue[..count].iter().enumerate().map(|(index, queued)| Ready {
            index,
            header: None,
            bytes: &queued.bytes,
            to: queued.to,
        });
        let run: SmallVec<[Ready<'_>; 1]> = ready.collect();
        let sent = self.send_run(self.path, &run, NoRoom::Refuse);
        drop(run);
        self.queue = queue;
        sent.failure.map_or(Ok(sent.taken), |(_, error)| Err(error))
    }

    /// Sends packets in order, in as few system calls as possible, without blocking longer than the
    /// [timeout](Self::set_room_timeout). Nothing is copied in user space. Packets [pushed](Self::push) before are sent
    /// first.
    ///
    /// Packets after a refused or invalid one are still sent; `on_no_room` says what to do when the queue is full.
    /// The errors are those of [`Sender::push`] and [`Sender::flush`].
    pub(crate) fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted {
        let mut error = self.flush().err();
        let (sent, dropped) = (self.sent, self.dropped);
        let mut tried = packets.len();
        let mut run: SmallVec<[Ready<'_>; 1]> = SmallVec::with_capacity(packets.len().min(BATCH));
        let mut next = 0;
        while next < packets.len() {
            run.clear();
            let (mut path, mut invalid) = (Path::Ethernet, None);
            // One sendmmsg serves one socket; packets of different ones keep their order.
            while run.len() < BATCH
                && let Some(packet) = packets.get(next)
            {
                match self.ready(*packet) {
                    Ok((other, _)) if !run.is_empty() && other != path => break,
                    Ok((its, ready)) => {
                        path = its;
                        run.push(Ready { index: next, ..ready });
                    }
                    Err(error) => {
                        invalid.get_or_insert((next, error));
                    }
                }
                next += 1;
            }
            let Run { stopped, failure, .. } = self.send_run(path, &run, on_no_room);
            tried = stopped.unwrap_or(tried);
            // An error after the index where sending stopped is reported when that packet is tried.
            let first =
                [invalid, failure].into_iter().flatten().filter(|(at, _)| *at < tried).min_by_key(|(at, _)| *at);
            error = error.or(first.map(|(_, error)| error));
            if stopped.is_some() {
                break;
            }
        }
        Transmitted { sent: self.sent - sent, refused: self.dropped - dropped, tried, error }
    }

    /// Sends packets that leave by one socket, at most [`BATCH`] of them.
    fn send_run(&mut self, path: Path, run: &[Ready<'_>], on_no_room: NoRoom) -> Run {
        let mut outcome = Run::default();
        let Some(first) = run.first() else { return outcome };
        if let Err(error) = self.socket(path) {
            self.dropped += run.len() as u64;
            return Run { failure: Some((first.index, error)), ..outcome };
        }
        let (mut done, mut tries) = (0, 0);
        let mut since: Option<Instant> = None;
        while done < run.len() {
            match self.offer(path, &run[done..]) {
                Ok(sent) => {
                    // sendmmsg() stops at a refused packet without reporting its error, usually ENOBUFS.
                    self.turned_away += u64::from(sent < run.len() - done);
                    done += sent;
                    outcome.taken += sent;
                    (tries, since) = (0, None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < RETRIES => tries += 1,
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                    self.turned_away += u64::from(error.raw_os_error() == Some(libc::ENOBUFS));
                    if tries < RETRIES {
                        tries += 1;
                        std::thread::yield_now();
                    } else if on_no_room == NoRoom::Stop {
                        outcome.stopped = Some(run[done].index);
                        break;
                    } else if since.get_or_insert_with(Instant::now).elapsed() < self.room_timeout {
                        self.used(path).iter().for_each(|socket| wait_for_room(socket, &error));
                    } else {
                        self.dropped += 1;
                        done += 1;
                    }
                }
                Err(error) => {
                    let lost = matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN));
                    let refused = self.refused(path, &run[done], error);
                    outcome.failure.get_or_insert((run[done].index, refused));
                    // No other packet can leave by a link that is down or does not exist.
                    let until = if lost { run.len() } else { done + 1 };
                    self.dropped += (until - done) as u64;
                    done = until;
                }
            }
        }
        self.sent += outcome.taken as u64;
        outcome
    }

    /// One system call for `run`; how many packets the kernel took.
    fn offer(&self, path: Path, run: &[Ready<'_>]) -> io::Result<usize> {
        let socket = self.used(path)?;
        if let [one] = run {
            let sent = match (one.parts(), one.to) {
                ([bytes, []], None) => socket.send_with_flags(bytes, libc::MSG_DONTWAIT),
                ([bytes, _], Some(to)) => socket.send_to_with_flags(bytes, &to.into(), libc::MSG_DONTWAIT),
                (parts, None) => socket.send_vectored_with_flags(&parts.map(IoSlice::new), libc::MSG_DONTWAIT),
            };
            return sent.map(|_| 1);
        }
        let to: Vec<SockAddr> = run.iter().filter_map(|ready| ready.to.map(SockAddr::from)).collect();
        let addressed = path != Path::Ethernet;
        let messages = run.iter().enumerate().map(|(at, ready)| (ready.parts(), addressed.then(|| &to[at])));
        mmsg::send::<BATCH>(socket, messages)
    }

    /// The bytes of a packet that the kernel gets, and the path (socket) that it is sent on.
    fn ready<'p>(&self, packet: TxPacket<'p>) -> Result<(Path, Ready<'p>)> {
        match packet {
            TxPacket::Ip(route, ip) => self.ready_ip(route, ip),
            TxPacket::Frame(frame) => self.ready_frame(frame),
        }
    }

    fn ready_ip<'p>(&self, route: &Route, ip: &'p [u8]) -> Result<(Path, Ready<'p>)> {
        if route.ifindex != self.ifindex {
            let reason = format!("is routed over {}, but this sender is for {}", route.interface, self.interface);
            return Err(Error::invalid("route", reason));
        }
        if ip.len() > self.mtu as usize {
            return Err(self.too_large(ip.len()));
        }
        let version = parse::link(ip, 0).map(|(_, v6)| v6);
        let to = match (version, route.link) {
            (Ok(v6), LinkLayer::None) => destination(ip, v6, self.ifindex),
            _ => None,
        };
        let (path, header, to) = match (version, route.link, to) {
            (Ok(v6), LinkLayer::Ethernet { source, destination }, _) => {
                let ethertype = if v6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
                let mut header = [0; ETHERNET];
                header[..6].copy_from_slice(&destination);
                header[6..12].copy_from_slice(&source);
                header[12..].copy_from_slice(&(ethertype as u16).to_be_bytes());
                (Path::Ethernet, Some(header), None)
            }
            (Ok(false), LinkLayer::None, Some(to)) => (Path::Ip4, None, Some(to)),
            (Ok(true), LinkLayer::None, Some(to)) => (Path::Ip6, None, Some(to)),
            _ => {
                let reason = "does not start with an IPv4 or IPv6 header";
                return Err(Error::invalid("packet", reason));
            }
        };
        Ok((path, Ready { index: 0, header, bytes: ip, to }))
    }

    fn ready_frame<'p>(&self, frame: &'p [u8]) -> Result<(Path, Ready<'p>)> {
        if !self.ethernet {
            let reason = format!("packets on {} have no Ethernet header: begin with IP or IPv6", self.interface);
            return Err(Error::invalid("frame", reason));
        }
        let Some(ip) = ip_length(frame) else {
            return Err(Error::invalid("frame", "is shorter than an Ethernet header, 14 bytes"));
        };
        if ip > self.mtu as usize {
            return Err(self.too_large(ip));
        }
        Ok((Path::Ethernet, Ready { index: 0, header: None, bytes: frame, to: None }))
    }

    /// Packets that the kernel took since the sender was opened.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Packets that it did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How often the queueing discipline had no room for a packet, which may have been taken later: it has passed the
    /// egress hook each time.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// The open socket of a path.
    fn used(&self, path: Path) -> io::Result<&Socket> {
        let socket = match path {
            Path::Ethernet => &self.packet,
            Path::Ip4 => &self.raw4,
            Path::Ip6 => &self.raw6,
        };
        Ok(socket.as_ref().ok_or(io::ErrorKind::NotConnected)?)
    }

    fn socket(&mut self, path: Path) -> Result<()> {
        let slot = match path {
            Path::Ethernet => &mut self.packet,
            Path::Ip4 => &mut self.raw4,
            Path::Ip6 => &mut self.raw6,
        };
        if slot.is_some() {
            return Ok(());
        }
        let opened = open(path, self.ifindex, self.loopback).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Error::UnknownInterface { name: self.interface.clone() },
            _ => Error::io(format!("open a raw socket on {}", self.interface), "CAP_NET_RAW", error),
        })?;
        opened
            .set_mark(self.mark)
            .map_err(|error| Error::io("mark crafted packets (SO_MARK)", "CAP_NET_ADMIN", error))?;
        *slot = Some(opened);
        Ok(())
    }

    /// Why the kernel did not take `packet`.
    fn refused(&self, path: Path, packet: &Ready<'_>, error: io::Error) -> Error {
        let action = || format!("send through {}", self.interface);
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                let length: usize = packet.parts().iter().map(|part| part.len()).sum();
                self.too_large(if path == Path::Ethernet { length - ETHERNET } else { length })
            }
            Some(libc::ENODEV | libc::ENXIO) => Error::UnknownInterface { name: self.interface.clone() },
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH) if path != Path::Ethernet => Error::NoRoute {
                destination: packet.to.map_or(Ipv6Addr::UNSPECIFIED.into(), |to| to.ip()),
                reason: format!("the routing table has no entry for it through {}", self.interface),
            },
            // The sockets are open, so this is not about capabilities: nf_hook() answers EPERM for a dropped packet.
            Some(libc::EPERM) => Error::Io {
                action: action(),
                source: io::Error::new(error.kind(), "a firewall rule of this host refuses the packet (EPERM)"),
            },
            _ => Error::Io { action: action(), source: error },
        }
    }

    fn too_large(&self, size: usize) -> Error {
        let (interface, mtu) = (&self.interface, self.mtu);
        // The kernel applies a change before its notification arrives.
        let is = if size > mtu as usize { "is" } else { "is no longer" };
        Error::invalid("packet", format_args!("{size} bytes do not fit the MTU of {interface}, which {is} {mtu} bytes"))
    }
}

/// Length of a frame without its Ethernet header and up to two VLAN tags, which do not count towards the MTU; `None`
/// if the Ethernet header is truncated.
fn ip_length(frame: &[u8]) -> Option<usize> {
    frame.len().checked_sub(ETHERNET)?;
    // A frame that ends within its VLAN tags has no payload.
    Some(parse::ethernet(frame).map_or(0, |(start, _)| frame.len().saturating_sub(start)))
}
