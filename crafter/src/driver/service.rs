//! The service as a backend: one socket for each lease.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use crafter_common::reason::Reason;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use smallvec::{SmallVec, smallvec};
use socket2::SockRef;

use super::{
    ROOM_TIMEOUT,
    backend::{Backend, NoRoom, ServiceCalls, Statistics, Transmitted, TxPacket},
    entry::{Delivery, LeaseId, Meta, PortOwners, Ports},
};
use crate::{
    datapath::maps::{Counters, Terms},
    error::{Error, Result},
    mmsg::{self, Inbox},
    packet::{IpPacket, PacketPorts},
    protocol::{
        Control,
        record::{CUT, Code, DeliveryKind, Header, Kind, checksum_of},
        wire::{LeaseCall, Leased},
    },
};

/// Packets per system call.
const BATCH: usize = 64;

/// The longest message: a header and an IP packet.
const LONGEST: usize = 65_535 + 64;

/// How long to wait for room in a socket if other tasks may wait for the sender.
const SERVICE_ROOM_TIMEOUT: Duration = Duration::from_millis(20);

/// Retry delay for a full socket.
const ROOM_RETRY_DELAY: Duration = Duration::from_micros(200);

/// How long the service may take to notice that a lease was closed.
const CLOSE_NOTICE_TIMEOUT: Duration = Duration::from_millis(100);

/// One interface, through the service.
pub(crate) struct ServiceBackend {
    control: Arc<Control>,
    ifindex: u32,
    sockets: HashMap<LeaseId, LeaseSocket>,
    by_port: PortOwners,
    /// The lease that sends packets without a leased port; and the one for frames.
    base: LeaseId,
    frames: Option<LeaseId>,
    epoll: Epoll,
    inbox: Inbox,
    local: HashSet<IpAddr>,
    sent: u64,
    refused: u64,
    lost: u64,
    /// Packets by [`DeliveryKind`].
    delivered: [u64; 6],
    room_timeout: Duration,
    /// The first refusal that was not reported yet, and the number of refusals.
    refusal: Option<Error>,
    refusals: u64,
    /// When a lease was last closed.
    closed: Option<Instant>,
}

/// The socket of one lease.
struct LeaseSocket {
    socket: OwnedFd,
    /// The service's count of lost messages in the last header.
    lost: u32,
}

/// Packets of one lease, each with its index in the batch.
struct Run<'p> {
    id: LeaseId,
    packets: SmallVec<[(usize, &'p [u8]); 4]>,
}

impl ServiceBackend {
    /// Attaches to an interface with a lease without ports, which sends the packets that have no leased port.
    ///
    /// # Errors
    /// Errors of the service.
    pub(crate) async fn open(control: Arc<Control>, interface: &str, ifindex: u32) -> Result<(Self, Leased)> {
        let call = LeaseCall { interface: Some(interface.to_owned()), protocol: "none".into(), ..LeaseCall::default() };
        let (leased, socket) = lease(&control, &call).await?;
        Ok((Self::new(control, ifindex, socket)?, leased))
    }

    /// `socket` belongs to the lease that sends packets without a leased port.
    pub(super) fn new(control: Arc<Control>, ifindex: u32, socket: OwnedFd) -> Result<Self> {
        let failed = |errno: nix::Error| Error::Io { action: "watch leases".into(), source: errno.into() };
        let mut service = Self {
            control,
            ifindex,
            sockets: HashMap::new(),
            by_port: PortOwners::default(),
            base: LeaseId(0),
            frames: None,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?,
            inbox: Inbox::new(LONGEST),
            local: HashSet::new(),
            sent: 0,
            refused: 0,
            lost: 0,
            delivered: [0; 6],
            room_timeout: SERVICE_ROOM_TIMEOUT,
            refusal: None,
            refusals: 0,
            closed: None,
        };
        service.add_socket(LeaseId(0), socket)?;
        Ok(service)
    }

    /// The lease that sends a packet, and the packet's bytes.
    fn address<'p>(&self, packet: &TxPacket<'p>) -> Result<(LeaseId, &'p [u8])> {
        match *packet {
            TxPacket::Ip(route, _) if route.ifindex != self.ifindex => {
                let reason = format_args!(
                    "the packet is routed over {}, but the lease is on another interface",
                    route.interface
                );
                Err(Error::invalid("route", reason))
            }
            TxPacket::Ip(_, ip) => Ok((self.owner(ip).unwrap_or(self.base), ip)),
            TxPacket::Frame(frame) => match self.frames {
                Some(id) => Ok((id, frame)),
                None => Err(Error::invalid(
                    "frame",
                    "there is no lease for Ethernet frames; the policy must allow raw_ethernet",
                )),
            },
        }
    }

    /// The lease that owns the source port of a packet.
    fn owner(&self, ip: &[u8]) -> Option<LeaseId> {
        let packet = IpPacket::read(ip).ok()?;
        let (transport, ports) = PacketPorts::read(&packet)?;
        self.by_port.find(transport?, packet.source, ports.source()?)
    }

    /// Sends packets through one lease's socket. Returns the index of the first packet without room if that stops the
    /// batch.
    fn send_run(&mut self, run: &Run<'_>, on_no_room: NoRoom) -> Option<usize> {
        for some in run.packets.chunks(BATCH) {
            let (mut done, mut progress) = (0, Instant::now());
            while let Some(LeaseSocket { socket, .. }) = self.sockets.get(&run.id)
                && done < some.len()
            {
                let rest = some[done..].iter().map(|(_, bytes)| ([*bytes, &[]], None));
                match mmsg::send::<BATCH>(socket, rest) {
                    Ok(0) => break,
                    Ok(sent) => {
                        self.sent += sent as u64;
                        (done, progress) = (done + sent, Instant::now());
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        if on_no_room == NoRoom::Stop {
                            return Some(some[done].0);
                        }
                        if progress.elapsed() >= self.room_timeout {
                            break;
                        }
                        // poll() reports a Unix socket as writable only if three quarters of its buffer are free
                        // (`unix_writable()`).
                        std::thread::sleep(ROOM_RETRY_DELAY);
                    }
                    // The receive side reports why a socket ended.
                    Err(_) => break,
                }
            }
            self.refused += (some.len() - done) as u64;
        }
        None
    }

    /// Reads the messages of one lease's socket, and returns their number.
    fn drain_socket(&mut self, id: LeaseId, deliver: &mut dyn FnMut(Delivery<'_>)) -> usize {
        let Some(lease) = self.sockets.get_mut(&id) else { return 0 };
        let mut end = None;
        let count = match self.inbox.receive(&lease.socket) {
            Ok(Some(count)) => count,
            Ok(None) => {
                end = Some("it closed a lease".to_owned());
                0
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => 0,
            Err(error) => {
                end = Some(error.to_string());
                0
            }
        };
        // The lease for frames receives no packets.
        for (message, _) in self.inbox.messages().take(count) {
            let Some((header, rest)) = Header::decode(message) else { continue };
            self.lost += u64::from(header.lost.wrapping_sub(std::mem::replace(&mut lease.lost, header.lost)));
            match header.kind {
                Kind::Packet { delivery, flags } => {
                    self.delivered[delivery as usize] += 1;
                    let (timestamp, checksum) = (Some(header.time_ns), Some(checksum_of(flags)));
                    let meta = Meta { timestamp, cut: flags & CUT != 0, reason: delivery.reason(), checksum };
                    deliver(Delivery::of(rest, meta));
                }
                Kind::Refusal { code, rule } => {
                    let (sentence, quoted) = header.sentence(rest);
                    let error = refusal(code, rule, &sentence, quoted);
                    log::debug!("{error}");
                    self.sent = self.sent.saturating_sub(1);
                    self.refused += 1;
                    self.refusals += 1;
                    if matches!(code, Code::Policy | Code::NoRoute | Code::NoNeighbour) {
                        let rule = (rule > 0).then_some(u32::from(rule));
                        deliver(Delivery::Refused { quoted, rule, sentence: &sentence });
                    }
                    self.refusal.get_or_insert(error);
                }
                Kind::End { code } => {
                    let (sentence, _) = header.sentence(rest);
                    if code != Code::Released {
                        end = Some(sentence.into_owned());
                    }
                }
            }
        }
        if let Some(reason) = end {
            // Otherwise epoll keeps reporting the hang-up.
            let _ = self.epoll.delete(&lease.socket);
            self.sockets.remove(&id);
            let path = self.control.path().display().to_string();
            deliver(Delivery::Ended { path: &path, reason: &reason });
            return count.max(1);
        }
        count
    }
}

impl Backend for ServiceBackend {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.epoll.0.as_fd()]
    }

    /// Sends each packet through the lease of its source port. With [`NoRoom::Stop`], all packets keep their order, so
    /// that one index says where the batch stopped; otherwise only the packets of each lease do.
    fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted {
        let (sent, refused) = (self.sent, self.refused);
        let mut invalid = None;
        let mut runs: SmallVec<[Run<'_>; 1]> = SmallVec::new();
        for (index, packet) in packets.iter().enumerate() {
            let (id, bytes) = match self.address(packet) {
                Ok(addressed) => addressed,
                Err(error) => {
                    invalid.get_or_insert((index, error));
                    continue;
                }
            };
            let run = match on_no_room {
                NoRoom::Stop => runs.last_mut().filter(|run| run.id == id),
                NoRoom::Refuse => runs.iter_mut().rfind(|run| run.id == id),
            };
            match run {
                Some(run) => run.packets.push((index, bytes)),
                None => runs.push(Run { id, packets: smallvec![(index, bytes)] }),
            }
        }
        let stopped = runs.iter().find_map(|run| self.send_run(run, on_no_room));
        let tried = stopped.unwrap_or(packets.len());
        // An error after the index where the batch stopped is reported when that packet is tried.
        let error = invalid.filter(|(at, _)| *at < tried).map(|(_, error)| error);
        Transmitted { sent: self.sent - sent, refused: self.refused - refused, tried, error }
    }

    fn drain(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) -> usize {
        if self.sockets.len() <= 2 {
            let ids: SmallVec<[LeaseId; 2]> = self.sockets.keys().copied().collect();
            return ids.into_iter().map(|id| self.drain_socket(id, deliver)).sum();
        }
        let mut events = [EpollEvent::empty(); BATCH];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        events[..ready].iter().map(|event| self.drain_socket(LeaseId(event.data() as u32), deliver)).sum()
    }

    /// Routes packets from the ports through the lease's [socket](Self::add_socket). The service itself owns the ports.
    fn own(&mut self, id: LeaseId, ports: &Ports, _terms: Terms) -> Result<()> {
        self.by_port.add(ports, id);
        Ok(())
    }

    /// Closes the lease's socket, which returns its ports.
    fn disown(&mut self, id: LeaseId, ports: &Ports) {
        self.by_port.remove(ports, id);
        if self.sockets.remove(&id).is_some() {
            self.closed = Some(Instant::now());
        }
    }

    fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.local = addresses.iter().copied().collect();
        Ok(())
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }

    /// Waits as long as the service does, whatever `_timeout` is: a caller that sets it has no other task that waits
    /// for the sender.
    fn set_room_timeout(&mut self, _timeout: Duration) {
        self.room_timeout = ROOM_TIMEOUT;
    }

    /// Packets delivered to this process by reason, and as crafted the packets passed to the service.
    fn counters(&self) -> Result<Counters> {
        let mut counters = vec![0; Reason::ALL.len()];
        for (delivery, count) in DeliveryKind::ALL.into_iter().zip(self.delivered) {
            counters[delivery.reason() as usize] += count;
        }
        counters[Reason::DeliveryFull as usize] = self.lost;
        counters[Reason::Crafted as usize] = self.sent;
        Ok(Counters(counters))
    }

    /// `sent` are the packets passed to the service minus its refusals.
    fn statistics(&self) -> Statistics {
        Statistics { sent: self.sent, not_sent: self.refused, lost: self.lost, turned_away: 0 }
    }

    fn as_service(&mut self) -> Option<&mut dyn ServiceCalls> {
        Some(self)
    }
}

impl ServiceCalls for ServiceBackend {
    fn control(&self) -> &Arc<Control> {
        &self.control
    }

    fn has_frames(&self) -> bool {
        self.frames.is_some()
    }

    fn add_frames(&mut self, id: LeaseId, socket: OwnedFd) -> Result<()> {
        self.add_socket(id, socket)?;
        self.frames = Some(id);
        Ok(())
    }

    fn add_socket(&mut self, id: LeaseId, socket: OwnedFd) -> Result<()> {
        let failed = |source| Error::Io { action: "use the socket of a lease".into(), source };
        SockRef::from(&socket).set_nonblocking(true).map_err(failed)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, id.0.into());
        self.epoll.add(&socket, event).map_err(|errno| failed(errno.into()))?;
        self.sockets.insert(id, LeaseSocket { socket, lost: 0 });
        Ok(())
    }

    fn is_closing(&self) -> bool {
        self.closed.is_some_and(|closed| closed.elapsed() < CLOSE_NOTICE_TIMEOUT)
    }

    fn take_refusals(&mut self) -> (u64, Option<Error>) {
        (std::mem::take(&mut self.refusals), self.refusal.take())
    }
}

/// The error for a refusal of the service.
fn refusal(code: Code, rule: u16, sentence: &str, quoted: &[u8]) -> Error {
    let destination = IpPacket::read_quoted(quoted).map_or(IpAddr::from([0, 0, 0, 0]), |packet| packet.destination);
    let reason = sentence.to_owned();
    match code {
        Code::Policy | Code::Rate => {
            Error::Forbidden { rule: (rule > 0).then_some(rule.into()), verdict: String::new(), message: reason }
        }
        Code::NoRoute | Code::NoNeighbour => Error::NoRoute { destination, reason },
        _ => Error::Io { action: "send a packet".into(), source: std::io::Error::other(reason) },
    }
}

/// Leases from the service; returns the reply and the lease's socket.
pub(crate) async fn lease(control: &Control, call: &LeaseCall) -> Result<(Leased, OwnedFd)> {
    control.call_for_descriptor(call, |leased| leased.socket).await
}
