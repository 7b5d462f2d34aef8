//! The other side of a driver: not the kernel, but the service, by one socket for each lease.

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

use super::{entry::Meta, table::Table};
use crate::{
    datapath::{
        maps::Counters,
        tx::{NoRoom, Outgoing as Packet, Transmitted},
    },
    driver::{LeaseRequest, PortChoice, ROOM_WITHIN},
    error::{Error, Result},
    mmsg::{self, Inbox},
    packet::Transport,
    policy::{Outgoing, PacketPorts},
    protocol::{
        Control,
        record::{CUT, Came, Code, Header, Kind, checksum_of},
        wire::{LeaseCall, Leased},
    },
};

/// Packets per system call.
const BATCH: usize = 64;

/// The longest message: a header and an IP packet.
const LONGEST: usize = 65_535 + 64;

/// How long the service may take to make room where others may wait for who sends.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long to wait until room is asked for again.
const PAUSE: Duration = Duration::from_micros(200);

/// How long the service may take to notice that a lease was closed.
const CLOSING: Duration = Duration::from_millis(100);

/// The service's side of one interface.
pub(crate) struct Served {
    control: Arc<Control>,
    ifindex: u32,
    lanes: HashMap<u32, Lane>,
    by_port: HashMap<(Transport, u16), Vec<(IpAddr, u32)>>,
    /// The lane of packets without a port of ours, and that of frames.
    base: u32,
    frames: Option<u32>,
    epoll: Epoll,
    inbox: Inbox,
    local: HashSet<IpAddr>,
    sent: u64,
    refused: u64,
    lost: u64,
    came: [u64; 6],
    patience: Duration,
    /// The first refusal that nobody has asked for yet, and how many there were.
    refusal: Option<Error>,
    refusals: u64,
    /// When a lease was closed last.
    closed: Option<Instant>,
}

/// The socket of one lease.
struct Lane {
    socket: OwnedFd,
    lost: u32,
}

/// Packets that leave by one lease, each with its index in the batch.
struct Run<'p> {
    number: u32,
    packets: SmallVec<[(usize, &'p [u8]); 4]>,
}

impl Served {
    /// Attaches to an interface by a lease without ports, which packets that have none leave by.
    ///
    /// # Errors
    /// What the service says.
    pub(crate) async fn open(control: Arc<Control>, interface: &str, ifindex: u32) -> Result<(Self, Leased)> {
        let failed = |errno: nix::Error| Error::Io { action: "watch leases".into(), source: errno.into() };
        let call = LeaseCall { interface: Some(interface.to_owned()), protocol: "none".into(), ..LeaseCall::default() };
        let (leased, socket) = lease(&control, &call).await?;
        let mut served = Self {
            control,
            ifindex,
            lanes: HashMap::new(),
            by_port: HashMap::new(),
            base: 0,
            frames: None,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?,
            inbox: Inbox::new(LONGEST),
            local: HashSet::new(),
            sent: 0,
            refused: 0,
            lost: 0,
            came: [0; 6],
            patience: PATIENCE,
            refusal: None,
            refusals: 0,
            closed: None,
        };
        served.add(0, socket)?;
        Ok((served, leased))
    }

    /// The service.
    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Whether frames can be sent: a lease for them is here.
    pub(crate) fn has_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// Takes the lease for frames in.
    pub(crate) fn add_frames(&mut self, number: u32, socket: OwnedFd) -> Result<()> {
        self.add(number, socket)?;
        self.frames = Some(number);
        Ok(())
    }

    /// Takes a lease of ports in.
    pub(crate) fn add_ports(
        &mut self,
        number: u32,
        transport: Transport,
        address: IpAddr,
        ports: &[u16],
        socket: OwnedFd,
    ) -> Result<()> {
        self.add(number, socket)?;
        for &port in ports {
            self.by_port.entry((transport, port)).or_default().push((address, number));
        }
        Ok(())
    }

    fn add(&mut self, number: u32, socket: OwnedFd) -> Result<()> {
        let failed = |source| Error::Io { action: "use the socket of a lease".into(), source };
        SockRef::from(&socket).set_nonblocking(true).map_err(failed)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number.into());
        self.epoll.add(&socket, event).map_err(|errno| failed(errno.into()))?;
        self.lanes.insert(number, Lane { socket, lost: 0 });
        Ok(())
    }

    /// Closes a lease's socket, which gives its ports back.
    pub(crate) fn remove(&mut self, number: u32, transport: Transport, ports: &[u16]) {
        if self.lanes.remove(&number).is_none() {
            return;
        }
        for &port in ports {
            if let Some(owners) = self.by_port.get_mut(&(transport, port)) {
                owners.retain(|&(_, owner)| owner != number);
                if owners.is_empty() {
                    self.by_port.remove(&(transport, port));
                }
            }
        }
        self.closed = Some(Instant::now());
    }

    /// Whether a lease was closed so lately that the service may not know it yet.
    pub(crate) fn is_closing(&self) -> bool {
        self.closed.is_some_and(|closed| closed.elapsed() < CLOSING)
    }

    /// This host's addresses.
    pub(crate) fn set_local(&mut self, addresses: &[IpAddr]) {
        self.local = addresses.iter().copied().collect();
    }

    /// Whether it is one of them.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }

    /// Readable when something has come.
    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Waits for room as long as the service itself does: nobody else waits for who sends.
    pub(crate) fn set_patient(&mut self) {
        self.patience = ROOM_WITHIN;
    }

    /// Sends packets, each by the lease of its source port. Where one that is full stops the others, they keep their order;
    /// else only those of one lease do.
    pub(crate) fn send_batch(&mut self, packets: &[Packet<'_>], on_no_room: NoRoom) -> Transmitted {
        let (sent, refused) = (self.sent, self.refused);
        let mut error = None;
        let mut runs: SmallVec<[Run<'_>; 1]> = SmallVec::new();
        for (index, packet) in packets.iter().enumerate() {
            let (number, bytes) = match self.address(packet) {
                Ok(addressed) => addressed,
                Err(invalid) => {
                    error.get_or_insert((index, invalid));
                    continue;
                }
            };
            // Where it stops must be one place in the order of all.
            let known = match on_no_room {
                NoRoom::Stop => runs.last_mut().filter(|run| run.number == number),
                NoRoom::Refuse => runs.iter_mut().rfind(|run| run.number == number),
            };
            match known {
                Some(run) => run.packets.push((index, bytes)),
                None => runs.push(Run { number, packets: smallvec![(index, bytes)] }),
            }
        }
        let stopped = runs.iter().find_map(|run| self.send_run(run, on_no_room));
        let tried = stopped.unwrap_or(packets.len());
        // What is wrong behind the place where it stopped is said when it is tried.
        let error = error.filter(|(at, _)| *at < tried).map(|(_, error)| error);
        Transmitted { sent: self.sent - sent, refused: self.refused - refused, tried, error }
    }

    /// The lease that a packet leaves by, and its bytes.
    fn address<'p>(&self, packet: &Packet<'p>) -> Result<(u32, &'p [u8])> {
        match *packet {
            Packet::Ip(route, _) if route.ifindex != self.ifindex => {
                let reason = format_args!("it leaves by {}, and this lease is elsewhere", route.interface);
                Err(Error::invalid("route", reason))
            }
            Packet::Ip(_, ip) => {
                let number = Outgoing::read(ip).and_then(|outgoing| self.lane_of(&outgoing));
                Ok((number.unwrap_or(self.base), ip))
            }
            Packet::Frame(frame) => match self.frames {
                Some(number) => Ok((number, frame)),
                None => Err(Error::invalid("frame", "no lease of the service for frames is here")),
            },
        }
    }

    fn lane_of(&self, outgoing: &Outgoing) -> Option<u32> {
        let port = match outgoing.ports {
            PacketPorts::Both { source, .. } => source,
            PacketPorts::Query { identifier } => identifier,
            PacketPorts::Fragment | PacketPorts::None => return None,
        };
        let owners = self.by_port.get(&(outgoing.transport?, port))?;
        let own = owners.iter().find(|(address, _)| *address == outgoing.source);
        own.or_else(|| owners.iter().find(|(address, _)| address.is_unspecified())).map(|&(_, number)| number)
    }

    /// Sends packets by one lease's socket. The index of the first that there was no room for, where that stops the rest.
    fn send_run(&mut self, run: &Run<'_>, on_no_room: NoRoom) -> Option<usize> {
        for some in run.packets.chunks(BATCH) {
            let (mut done, mut progress) = (0, Instant::now());
            while let Some(lane) = self.lanes.get(&run.number)
                && done < some.len()
            {
                let rest = some[done..].iter().map(|(_, bytes)| ([*bytes, &[]], None));
                match mmsg::send::<BATCH>(&lane.socket, rest) {
                    Ok(0) => break,
                    Ok(sent) => {
                        self.sent += sent as u64;
                        (done, progress) = (done + sent, Instant::now());
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        if on_no_room == NoRoom::Stop {
                            return Some(some[done].0);
                        }
                        if progress.elapsed() >= self.patience {
                            break;
                        }
                        // poll() calls it writable no sooner than when three quarters are free (unix_writable()).
                        std::thread::sleep(PAUSE);
                    }
                    // The end of the socket is seen by who reads it.
                    Err(_) => break,
                }
            }
            self.refused += (some.len() - done) as u64;
        }
        None
    }

    /// Packets that the service was given, less those that it refused.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Packets that it refused, or had no room for.
    pub(crate) fn dropped(&self) -> u64 {
        self.refused
    }

    /// Packets that were lost because they were not read in time.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// What came through the service, by reason, and what it was given to send.
    pub(crate) fn counters(&self) -> Counters {
        let mut counters = vec![0; Reason::ALL.len()];
        for (at, count) in self.came.iter().enumerate() {
            if let Some(came) = Came::ALL.get(at) {
                counters[came.reason() as usize] += count;
            }
        }
        counters[Reason::DeliveryFull as usize] = self.lost;
        counters[Reason::Crafted as usize] = self.sent;
        Counters(counters)
    }

    /// How many packets were refused since this was asked last, and why the first of them.
    pub(crate) fn take_refusals(&mut self) -> (u64, Option<Error>) {
        (std::mem::take(&mut self.refusals), self.refusal.take())
    }

    /// Takes what has come to `table`; how many messages.
    pub(crate) fn drain(&mut self, table: &mut Table, now: Instant) -> usize {
        if self.lanes.len() <= 2 {
            let numbers: smallvec::SmallVec<[u32; 2]> = self.lanes.keys().copied().collect();
            return numbers.into_iter().map(|number| self.drain_lane(number, table, now)).sum();
        }
        let mut events = [EpollEvent::empty(); BATCH];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        events[..ready].iter().map(|event| self.drain_lane(event.data() as u32, table, now)).sum()
    }

    fn drain_lane(&mut self, number: u32, table: &mut Table, now: Instant) -> usize {
        let Some(lane) = self.lanes.get_mut(&number) else { return 0 };
        let mut over = None;
        let count = match self.inbox.receive(&lane.socket) {
            Ok(Some(count)) => count,
            Ok(None) => {
                over = Some("it has closed a lease".to_owned());
                0
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => 0,
            Err(error) => {
                over = Some(error.to_string());
                0
            }
        };
        // Frames come to no lease of ours.
        for (message, _) in self.inbox.messages().take(count) {
            let Some((header, rest)) = Header::decode(message) else { continue };
            self.lost += u64::from(header.lost.wrapping_sub(std::mem::replace(&mut lane.lost, header.lost)));
            match header.kind {
                Kind::Packet { came, flags } => {
                    self.came[came as usize] += 1;
                    let reason = came.reason();
                    let meta = Meta {
                        timestamp: Some(header.time_ns),
                        cut: flags & CUT != 0,
                        reason,
                        checksum: Some(checksum_of(flags)),
                    };
                    if reason.is_ingress() {
                        table.handle_packet(now, rest, meta);
                    } else {
                        table.handle_suppressed(rest, meta);
                    }
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
                        table.handle_refusal(now, quoted, rule, &sentence);
                    }
                    self.refusal.get_or_insert(error);
                }
                Kind::End { code } => {
                    let (sentence, _) = header.sentence(rest);
                    if code != Code::Released {
                        over = Some(sentence.into_owned());
                    }
                }
            }
        }
        if let Some(sentence) = over {
            // Its end would be told without end.
            let _ = self.epoll.delete(&lane.socket);
            self.lanes.remove(&number);
            let path = self.control.path().display().to_string();
            table.handle_over(now, path, sentence);
            return count.max(1);
        }
        count
    }
}

/// An error for what the service refused.
fn refusal(code: Code, rule: u16, sentence: &str, quoted: &[u8]) -> Error {
    let destination = Outgoing::read(quoted).map_or(IpAddr::from([0, 0, 0, 0]), |outgoing| outgoing.destination);
    let reason = sentence.to_owned();
    match code {
        Code::Policy | Code::Rate => {
            Error::Forbidden { rule: (rule > 0).then_some(rule.into()), verdict: String::new(), message: reason }
        }
        Code::NoRoute | Code::NoNeighbour => Error::NoRoute { destination, reason },
        _ => Error::Io { action: "send a packet".into(), source: std::io::Error::other(reason) },
    }
}

/// Asks for a lease; what was given, and its socket.
pub(crate) async fn lease(control: &Control, call: &LeaseCall) -> Result<(Leased, OwnedFd)> {
    let (leased, descriptors) = control.call_for_descriptors(call).await?;
    let socket = descriptors.into_iter().nth(leased.socket as usize);
    let none =
        || Error::Service { path: control.path().display().to_string(), reason: "a lease without a socket".into() };
    Ok((leased, socket.ok_or_else(none)?))
}

/// The call for a lease of ports.
pub(crate) fn call(interface: &str, request: &LeaseRequest) -> LeaseCall {
    let LeaseRequest { transport, address, port, terms, coalesce } = request;
    let (first, last) = match port {
        PortChoice::Free | PortChoice::FreeRange(_) => (None, None),
        PortChoice::Exact(port) => (Some(*port), None),
        PortChoice::Range(range) => (Some(*range.start()), Some(*range.end())),
    };
    LeaseCall {
        interface: Some(interface.to_owned()),
        protocol: transport.name().to_ascii_lowercase(),
        address: address.map(|address| address.to_string()),
        port: first.map(u64::from),
        last_port: last.map(u64::from),
        count: if let PortChoice::FreeRange(count) = port { Some(u64::from(*count)) } else { None },
        observe: Some(terms.observe),
        suppress: Some(terms.suppress),
        report: Some(terms.report),
        coalesce: coalesce.then_some(true),
        ..LeaseCall::default()
    }
}
