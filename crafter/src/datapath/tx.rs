//! Sending crafted IP packets, in batches.
//!
//! Ethernet links: one AF_PACKET socket with protocol 0, which sends and receives nothing. Others and `lo`: AF_INET
//! and AF_INET6 raw sockets, opened when first needed. All carry our mark, by which the egress program tells crafted
//! packets from the kernel's, and all pass the queueing discipline like any other traffic.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    time::{Duration, Instant},
};

use crafter_common::{link, parse};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::{
    frames::wait_for_room,
    interface::Interface,
    route::{LinkLayer, Route},
};
use crate::{
    error::{Error, Result},
    mmsg,
    packet::ip,
};

/// Packets per sendmmsg.
pub const BATCH: usize = 64;
/// Further tries for a packet that the kernel has no room for, before it counts as dropped.
const RETRIES: u32 = 3;
/// Bytes of socket buffer: room for a TCP window of 1 MiB, whose skbs count at about twice their payload.
const SEND_BUFFER: usize = 4 << 20;
const ETHERNET: usize = link::ETHERNET_HEADER;

/// Sends IP packets out of one interface.
///
/// On a link without an Ethernet header, and on `lo`, an IPv4 header is not quite sacred: the kernel computes its
/// checksum and total length, and fills in an identification or a source address of 0 (raw(7)). IPv6 packets and all
/// packets on Ethernet leave as they are.
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
    /// Which socket the queued packets are for.
    path: Path,
    queue: Vec<Queued>,
    /// The first `queued` of `queue` wait; the others are buffers for reuse.
    queued: usize,
    sent: u64,
    dropped: u64,
    turned_away: u64,
    /// How long a full queue is waited for.
    patience: Duration,
    /// The number of the next packet, where the sender stops at a full queue.
    number: Option<usize>,
    /// The number of the first packet that there was no room for.
    held: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Ethernet,
    Ip4,
    Ip6,
}

/// A packet with what goes before it, and where raw sockets send it.
#[derive(Debug)]
struct Queued {
    bytes: Vec<u8>,
    to: SockAddr,
    number: Option<usize>,
}

impl Sender {
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
            patience: Duration::ZERO,
            number: None,
            held: None,
        };
        // The other sockets wait for their first packet, but a missing capability should show here.
        if interface.ethernet {
            sender.socket(Path::Ethernet)?;
        } else {
            sender.socket(Path::Ip4)?;
        }
        Ok(sender)
    }

    /// The interface has another MTU now, in bytes from the IP header on.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu;
    }

    /// How long to wait where the kernel has no room, without any progress, before a packet is dropped: by default
    /// not at all, as others may be waiting for who sends.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The packet that is pushed next has this number, and until [`Sender::finish`] a full queue drops nothing: it stops
    /// the sender, and what is pushed behind the first packet without room is not even looked at. For callers that keep
    /// their packets until they were tried; they number all that they push, upwards.
    pub fn number(&mut self, number: usize) {
        self.number = Some(number);
    }

    /// The number of the first packet that there was no room for: it and all behind it are the caller's to push again.
    /// To be called with nothing queued, behind a [`Sender::flush`].
    pub fn finish(&mut self) -> Option<usize> {
        self.number = None;
        self.held.take()
    }

    /// Queues a packet that starts at its IP header; sends all when [`BATCH`] are queued.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a route out of another interface, and for a packet without an IP header or larger than
    /// the interface's MTU: it is not queued. Those of [`Sender::flush`], which concern packets queued before.
    pub fn push(&mut self, route: &Route, ip_packet: &[u8]) -> Result<()> {
        if self.held.is_some() {
            return Ok(());
        }
        if route.ifindex != self.ifindex {
            let reason = format!("leaves by {}, but this sender is for {}", route.interface, self.interface);
            return Err(Error::invalid("route", reason));
        }
        if ip_packet.len() > self.mtu as usize {
            return Err(self.too_large(ip_packet.len()));
        }
        let version = parse::link(ip_packet, 0).map(|(_, v6)| v6);
        let to = match (version, route.link) {
            (Ok(v6), LinkLayer::None) => destination(ip_packet, v6, self.ifindex),
            _ => None,
        };
        let (path, ethertype, to) = match (version, route.link, to) {
            (Ok(false), LinkLayer::Ethernet { .. }, _) => (Path::Ethernet, libc::ETH_P_IP, None),
            (Ok(true), LinkLayer::Ethernet { .. }, _) => (Path::Ethernet, libc::ETH_P_IPV6, None),
            (Ok(false), LinkLayer::None, Some(to)) => (Path::Ip4, 0, Some(to)),
            (Ok(true), LinkLayer::None, Some(to)) => (Path::Ip6, 0, Some(to)),
            _ => {
                let reason = "does not start with an IPv4 or IPv6 header";
                return Err(Error::invalid("packet", reason));
            }
        };
        let (queued, flushed) = self.next(path);
        if let LinkLayer::Ethernet { source, destination } = route.link {
            queued.bytes.extend_from_slice(&destination);
            queued.bytes.extend_from_slice(&source);
            queued.bytes.extend_from_slice(&(ethertype as u16).to_be_bytes());
        }
        queued.bytes.extend_from_slice(ip_packet);
        if let Some(to) = to {
            queued.to = to.into();
        }
        self.queued(flushed)
    }

    /// Queues a frame that starts at its Ethernet header, and leaves as it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] where packets have no Ethernet header, and for a frame shorter than one or larger than what
    /// the MTU allows with two VLAN tags: it is not queued. Those of [`Sender::flush`], as in [`Sender::push`].
    pub fn push_frame(&mut self, frame: &[u8]) -> Result<()> {
        if self.held.is_some() {
            return Ok(());
        }
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
        let (queued, flushed) = self.next(Path::Ethernet);
        queued.bytes.extend_from_slice(frame);
        self.queued(flushed)
    }

    /// The next place in the queue for this path, empty, and what became of those before it.
    fn next(&mut self, path: Path) -> (&mut Queued, Result<()>) {
        // One sendmmsg serves one socket; packets of different ones keep their order.
        let flushed = if self.queued > 0 && path != self.path { self.flush().map(drop) } else { Ok(()) };
        self.path = path;
        if self.queued == self.queue.len() {
            let to = SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
            self.queue.push(Queued {
                bytes: Vec::with_capacity(ETHERNET + self.mtu.min(9000) as usize),
                to,
                number: None,
            });
        }
        let queued = &mut self.queue[self.queued];
        queued.bytes.clear();
        queued.number = self.number;
        (queued, flushed)
    }

    /// That place is filled.
    fn queued(&mut self, flushed: Result<()>) -> Result<()> {
        self.queued += 1;
        flushed?;
        if self.queued == BATCH { self.flush().map(drop) } else { Ok(()) }
    }

    /// Sends what is queued, without blocking longer than the [patience](Self::set_patience), and returns how many
    /// packets the kernel took. Nothing stays queued: packets that it had no room for are counted by
    /// [`Sender::dropped`] after a few tries, unless [`Sender::finish`] tells of them.
    ///
    /// # Errors
    /// The first of: [`Error::UnknownInterface`] when the interface is gone, [`Error::Io`] when it is down or a
    /// firewall rule of this host refuses the packet, [`Error::Invalid`] for a packet larger than the MTU,
    /// [`Error::NoRoute`] from raw sockets. Packets behind a refused one are sent all the same.
    pub fn flush(&mut self) -> Result<usize> {
        let count = mem::take(&mut self.queued);
        if count == 0 {
            return Ok(0);
        }
        self.socket(self.path)?;
        let (mut done, mut taken, mut tries) = (0, 0, 0);
        let mut since: Option<Instant> = None;
        let mut failure = None;
        while done < count {
            match self.transmit(done, count) {
                Ok(sent) => {
                    // sendmmsg() stops at a packet that was refused and keeps the reason to itself: as a rule, the
                    // queue had no room.
                    self.turned_away += u64::from(sent < count - done);
                    done += sent;
                    taken += sent;
                    (tries, since) = (0, None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < RETRIES => tries += 1,
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                    self.turned_away += u64::from(error.raw_os_error() == Some(libc::ENOBUFS));
                    if tries < RETRIES {
                        tries += 1;
                        std::thread::yield_now();
                    } else if let Some(number) = self.queue[done].number {
                        self.held = Some(number);
                        break;
                    } else if since.get_or_insert_with(Instant::now).elapsed() < self.patience {
                        self.used().iter().for_each(|socket| wait_for_room(socket, &error));
                    } else {
                        self.dropped += 1;
                        done += 1;
                    }
                }
                Err(error) => {
                    let lost = matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN));
                    let refused = self.refused(done, error);
                    failure.get_or_insert(refused);
                    // Nothing else can leave by a link that is gone or down.
                    let until = if lost { count } else { done + 1 };
                    self.dropped += (until - done) as u64;
                    done = until;
                }
            }
        }
        self.sent += taken as u64;
        failure.map_or(Ok(taken), Err)
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

    /// One system call for the packets `from..to` of the queue; how many the kernel took.
    fn transmit(&self, from: usize, to: usize) -> io::Result<usize> {
        let socket = self.used()?;
        let addressed = self.path != Path::Ethernet;
        let queue = &self.queue[from..to];
        if let [one] = queue {
            let sent = match addressed {
                false => socket.send_with_flags(&one.bytes, libc::MSG_DONTWAIT),
                true => socket.send_to_with_flags(&one.bytes, &one.to, libc::MSG_DONTWAIT),
            };
            return sent.map(|_| 1);
        }
        let packets = queue.iter().map(|queued| ([&*queued.bytes, &[]], addressed.then_some(&queued.to)));
        mmsg::send::<BATCH>(socket, packets)
    }

    /// The socket that the queued packets are for.
    fn used(&self) -> io::Result<&Socket> {
        let socket = match self.path {
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

    fn refused(&self, index: usize, error: io::Error) -> Error {
        let queued = &self.queue[index];
        let action = || format!("send through {}", self.interface);
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                let header = if self.path == Path::Ethernet { ETHERNET } else { 0 };
                self.too_large(queued.bytes.len() - header)
            }
            Some(libc::ENODEV | libc::ENXIO) => Error::UnknownInterface { name: self.interface.clone() },
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH) if self.path != Path::Ethernet => Error::NoRoute {
                destination: queued.to.as_socket().map_or(Ipv6Addr::UNSPECIFIED.into(), |to| to.ip()),
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
        // The kernel knows of a change before word of it comes.
        let is = if size > mtu as usize { "is" } else { "is no longer" };
        Error::invalid("packet", format_args!("{size} bytes do not fit the MTU of {interface}, which {is} {mtu} bytes"))
    }
}

/// Bytes behind the Ethernet header and up to two VLAN tags, which do not count for the MTU; `None` where the header
/// is cut short.
fn ip_length(frame: &[u8]) -> Option<usize> {
    frame.len().checked_sub(ETHERNET)?;
    // What ends within its tags has nothing behind them.
    Some(parse::ethernet(frame).map_or(0, |(start, _)| frame.len().saturating_sub(start)))
}

fn open(path: Path, ifindex: u32, loopback: bool) -> io::Result<Socket> {
    // 255: the header is ours (IP_HDRINCL and IPV6_HDRINCL are implied), nothing is received.
    let raw = Some(Protocol::from(libc::IPPROTO_RAW));
    let index = std::num::NonZeroU32::new(ifindex);
    let socket = match path {
        Path::Ethernet => {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            socket.bind(&link_address(ifindex))?;
            socket
        }
        Path::Ip4 => {
            let socket = Socket::new(Domain::IPV4, Type::RAW, raw)?;
            socket.set_header_included_v4(true)?;
            socket.bind_device_by_index_v4(index)?;
            socket
        }
        Path::Ip6 => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, raw)?;
            socket.set_header_included_v6(true)?;
            // The local routes of IPv6 addresses belong to their links: bound to `lo`, none would be found, whereas
            // unbound they lead to `lo` anyway.
            if !loopback {
                socket.bind_device_by_index_v6(index)?;
            }
            socket
        }
    };
    // Beyond net.core.wmem_max only with CAP_NET_ADMIN; what we get instead is enough to work with.
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    Ok(socket)
}

/// `sockaddr_ll` with protocol 0: the socket hooks into no receive path, and packet_parse_headers() takes the
/// protocol of each packet from its Ethernet header.
pub(super) fn link_address(ifindex: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a socket address type, which sockaddr_storage has room and alignment for, and any
    // bit pattern is a valid one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex as i32;
    // SAFETY: the storage holds a sockaddr_ll of that length, written above.
    unsafe { SockAddr::new(storage, mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Where a raw socket is to send an IP packet; `None` where the packet ends before its addresses.
fn destination(packet: &[u8], v6: bool, ifindex: u32) -> Option<SocketAddr> {
    let (_, address) = parse::addresses(packet, 0, v6)?;
    Some(match ip::address(address, v6) {
        IpAddr::V4(address) => SocketAddrV4::new(address, 0).into(),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() || address.is_multicast() { ifindex } else { 0 };
            SocketAddrV6::new(address, 0, 0, scope).into()
        }
    })
}
