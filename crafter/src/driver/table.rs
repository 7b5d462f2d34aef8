//! Finds the lease or stream of a packet: leases by port, streams by flow. Pure: takes bytes and `now`, and returns
//! [`Commands`]. It knows leases and streams by their ids; the core owns their handles.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    commands::Commands,
    entry::{Delivery, LeaseId, LeaseState, Meta, PortOwners, Received, SUPPRESSED, Stats, StreamId, StreamState},
};
use crate::{
    datapath::route::Route,
    engine::{Reassembler, StreamEngine},
    error::{Error, Result},
    packet::{Checksum, Flow, IcmpError, IpPacket, Transport, checksum, flow, icmp_query, quoted_flow, received_flow},
};

/// How long an orphaned stream may take to close: as long as FIN-WAIT-2 in Linux (`tcp_fin_timeout`).
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);

/// Segments to gather before they are sent.
const BATCH: usize = 64;

/// The maximum number of bytes of packets that wait for one lease.
pub(super) const QUEUE_BYTES: usize = 64 << 20;

/// Leases and streams, with indices by port and flow.
pub(crate) struct Table {
    leases: HashMap<LeaseId, LeaseState>,
    by_port: PortOwners,
    streams: HashMap<StreamId, StreamState>,
    by_flow: HashMap<(SocketAddr, SocketAddr), StreamId>,
    deadlines: BTreeSet<(Instant, StreamId)>,
    /// Streams to poll for segments, in the order of their events.
    touched: VecDeque<StreamId>,
    /// Leases with packets since their waiting tasks were last notified.
    arrived: Vec<LeaseId>,
    /// Gathered leases with packets.
    listed: Vec<LeaseId>,
    reassembler: Reassembler,
    /// Whether a checksum may be partial, as on virtual devices.
    accept_partial: bool,
    next: u32,
    /// Finished streams removed since the last [`Commands`].
    released: Vec<StreamId>,
    /// Whether the interface was removed, or the connection to the service ended.
    link_removed: bool,
    /// Whether the next [`Commands`] report the end.
    is_end_new: bool,
    /// Why the connection to the service ended: its socket, and the reason.
    ended: Option<(String, String)>,
    pub(crate) stats: Stats,
}

impl Table {
    pub(crate) fn new(accept_partial: bool) -> Self {
        Self {
            leases: HashMap::new(),
            by_port: PortOwners::default(),
            streams: HashMap::new(),
            by_flow: HashMap::new(),
            deadlines: BTreeSet::new(),
            touched: VecDeque::new(),
            arrived: Vec::new(),
            listed: Vec::new(),
            reassembler: Reassembler::default(),
            accept_partial,
            next: 1,
            released: Vec::new(),
            link_removed: false,
            is_end_new: false,
            ended: None,
            stats: Stats::default(),
        }
    }

    /// An unused number for a lease or a stream.
    fn number(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        number
    }

    /// An unused number for a lease.
    pub(crate) fn next_lease(&mut self) -> LeaseId {
        LeaseId(self.number())
    }

    pub(crate) fn add_lease(&mut self, id: LeaseId, lease: LeaseState) {
        self.by_port.add(&lease.ports, id);
        self.leases.insert(id, lease);
    }

    pub(crate) fn remove_lease(&mut self, id: LeaseId) -> Option<LeaseState> {
        let lease = self.leases.remove(&id)?;
        self.by_port.remove(&lease.ports, id);
        Some(lease)
    }

    pub(crate) fn lease(&mut self, id: LeaseId) -> Option<&mut LeaseState> {
        self.leases.get_mut(&id)
    }

    /// Adds a stream; `None` if that flow already has one.
    pub(crate) fn add_stream(
        &mut self,
        engine: StreamEngine,
        route: Arc<Route>,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<StreamId> {
        if self.by_flow.contains_key(&(local, remote)) {
            return None;
        }
        let id = StreamId(self.number());
        let flow = (local, remote);
        self.by_flow.insert(flow, id);
        self.streams.insert(id, StreamState::new(engine, route, flow));
        self.touch(id);
        Some(id)
    }

    pub(crate) fn stream(&mut self, id: StreamId) -> Option<&mut StreamState> {
        self.streams.get_mut(&id)
    }

    /// Marks a stream to be polled for segments.
    pub(crate) fn touch(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.touched, true)
        {
            self.touched.push_back(id);
        }
    }

    /// Calls `act` with a stream's engine for an event that may concern its waiting tasks.
    fn stir(&mut self, id: StreamId, act: impl FnOnce(&mut StreamEngine)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            act(&mut stream.engine);
            stream.stirred = true;
            self.touch(id);
        }
    }

    /// Marks a stream whose handle was dropped: it is removed when it is finished, at the latest after
    /// [`ORPHAN_TIMEOUT`].
    pub(crate) fn release_stream(&mut self, now: Instant, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.is_orphan = true;
            stream.given_up_at = Some(now + ORPHAN_TIMEOUT);
            self.touch(id);
        }
    }

    /// Removes the streams that close in the background, without sending anything.
    pub(crate) fn give_up_orphans(&mut self) {
        let orphans: Vec<StreamId> = self.streams.iter().filter(|(_, s)| s.is_orphan).map(|(&id, _)| id).collect();
        for id in orphans {
            self.remove_stream(id);
        }
    }

    /// Handles a delivery of the backend.
    pub(crate) fn handle_delivery(&mut self, now: Instant, delivery: Delivery<'_>) {
        match delivery {
            Delivery::Packet(ip, meta) => self.handle_packet(now, ip, meta),
            Delivery::Suppressed(ip, meta) => self.handle_suppressed(ip, meta),
            Delivery::Malformed => self.handle_stray(),
            Delivery::Refused { quoted, rule, sentence } => self.handle_refusal(now, quoted, rule, sentence),
            Delivery::Ended { path, reason } => {
                self.ended.get_or_insert_with(|| (path.to_owned(), reason.to_owned()));
                self.handle_link_removed(now);
            }
        }
    }

    /// Handles a received packet, from the IP header on.
    fn handle_packet(&mut self, now: Instant, ip: &[u8], meta: Meta) {
        let Ok(packet) = IpPacket::read(ip) else {
            return self.handle_stray();
        };
        if packet.fragment.is_none() {
            return self.handle_whole(now, ip, received_flow(&packet), meta);
        }
        self.stats.fragments += 1;
        if let Some(whole) = self.reassembler.handle(now, ip) {
            self.stats.reassembled += 1;
            let flow = IpPacket::read(&whole).ok().and_then(|packet| received_flow(&packet));
            self.handle_whole(now, &whole, flow, Meta { checksum: None, ..meta });
        }
    }

    /// Handles a packet that is not a fragment. `flow` is `None` if it cannot belong to a lease or a stream.
    fn handle_whole(&mut self, now: Instant, ip: &[u8], flow: Option<Flow>, meta: Meta) {
        let Some(flow) = flow else {
            return self.handle_stray();
        };
        match flow.protocol {
            Transport::Tcp => {
                let ends = (flow.destination, flow.source);
                if let Some(&id) = self.by_flow.get(&ends) {
                    return self.handle_segment(now, id, ip, meta);
                }
                self.deliver(Transport::Tcp, flow.destination, ip, meta);
            }
            Transport::Udp => self.deliver(Transport::Udp, flow.destination, ip, meta),
            Transport::Icmp => self.handle_icmp(now, ip, meta),
        }
    }

    fn handle_segment(&mut self, now: Instant, id: StreamId, ip: &[u8], meta: Meta) {
        let checksum = meta.checksum.unwrap_or_else(|| checksum::verify(ip, self.accept_partial));
        if checksum == Checksum::Invalid {
            self.stats.bad_checksum += 1;
            return;
        }
        self.stats.delivered += 1;
        self.stir(id, |engine| {
            engine.handle_packet(now, ip);
        });
    }

    /// Queues an answer of the kernel to a packet for an owned port; the answer was dropped at egress.
    fn handle_suppressed(&mut self, ip: &[u8], meta: Meta) {
        let (transport, local) = match flow(ip) {
            Some(Flow { protocol: Transport::Tcp, source, .. }) => (Transport::Tcp, source),
            // A port-unreachable quotes the datagram that it answers.
            _ => match IcmpError::parse(ip) {
                Ok(error) => (Transport::Udp, error.quoted.destination),
                Err(_) => return self.handle_stray(),
            },
        };
        let Some(id) = self.by_port.find(transport, local.ip(), local.port()) else { return };
        if let Some(lease) = self.leases.get_mut(&id)
            && lease.suppressed.len() < SUPPRESSED
        {
            lease.suppressed.push_back(Received {
                ip: ip.to_vec(),
                // The kernel's checksum.
                checksum: Checksum::Valid,
                timestamp_ns: meta.timestamp,
                cut: meta.cut,
                reason: meta.reason,
            });
            lease.note_arrival(id, &mut self.listed, &mut self.arrived);
        }
    }

    /// Delivers an ICMP error to the sender of the packet that it quotes, and a reply to the owner of its identifier.
    fn handle_icmp(&mut self, now: Instant, ip: &[u8], meta: Meta) {
        if let Some(local) = icmp_query(ip) {
            return self.deliver(Transport::Icmp, local, ip, meta);
        }
        let Ok(error) = IcmpError::parse(ip) else {
            return self.handle_stray();
        };
        let quoted = error.quoted;
        let transport = match quoted.protocol {
            crafter_common::TCP => Transport::Tcp,
            crafter_common::UDP => Transport::Udp,
            _ => return self.handle_stray(),
        };
        let stream =
            (transport == Transport::Tcp).then(|| self.by_flow.get(&(quoted.source, quoted.destination))).flatten();
        match stream {
            Some(&id) => {
                self.stats.delivered += 1;
                self.stir(id, |engine| {
                    engine.handle_icmp(now, &error);
                });
            }
            None => self.deliver(transport, quoted.source, ip, meta),
        }
    }

    /// Moves the packets of gathered leases to `sink`, lease by lease, each with the lease's number: packets, then
    /// suppressed answers of the kernel.
    pub(crate) fn gather(&mut self, sink: &mut Vec<(LeaseId, Received)>) {
        for id in self.listed.drain(..) {
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.listed = false;
                lease.queued = 0;
                sink.extend(lease.queue.drain(..).map(|received| (id, received)));
                sink.extend(lease.suppressed.drain(..).map(|received| (id, received)));
            }
        }
    }

    /// Whether a lease has `port` on `address`, or on any address if either is unspecified.
    pub(crate) fn is_leased(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        self.by_port.is_owned(transport, address, port)
    }

    /// Queues a packet for the lease that owns `local`.
    fn deliver(&mut self, transport: Transport, local: SocketAddr, ip: &[u8], meta: Meta) {
        let accept_partial = self.accept_partial;
        let owner = self.by_port.find(transport, local.ip(), local.port());
        let Some((id, lease)) = owner.and_then(|id| Some((id, self.leases.get_mut(&id)?))) else {
            return self.handle_stray();
        };
        if lease.queued + ip.len() > QUEUE_BYTES {
            self.stats.overflow += 1;
            lease.overflow += 1;
            return;
        }
        lease.queued += ip.len();
        lease.queue.push_back(Received {
            ip: ip.to_vec(),
            checksum: meta.checksum.unwrap_or_else(|| checksum::verify(ip, accept_partial)),
            timestamp_ns: meta.timestamp,
            cut: meta.cut,
            reason: meta.reason,
        });
        lease.note_arrival(id, &mut self.listed, &mut self.arrived);
        self.stats.delivered += 1;
    }

    fn handle_stray(&mut self) {
        self.stats.stray += 1;
    }

    /// Handles a failure to send: the packet counts as lost in the network, unless the interface was removed.
    pub(crate) fn handle_fault(&mut self, now: Instant, error: &Error) {
        log::warn!("sending failed: {error}");
        if matches!(error, Error::UnknownInterface { .. }) {
            self.handle_link_removed(now);
        }
    }

    /// Handles the end of the interface or the service: all streams fail, and tasks that wait for a lease are notified.
    pub(crate) fn handle_link_removed(&mut self, now: Instant) {
        if std::mem::replace(&mut self.link_removed, true) {
            return;
        }
        self.is_end_new = true;
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in streams {
            self.stir(id, |engine| engine.handle_link_removed(now));
        }
    }

    /// Ends the stream of a packet that the service refused; `quoted` is its beginning.
    fn handle_refusal(&mut self, now: Instant, quoted: &[u8], rule: Option<u32>, sentence: &str) {
        if let Some(flow) = quoted_flow(quoted)
            && flow.protocol == Transport::Tcp
            && let Some(&id) = self.by_flow.get(&(flow.source, flow.destination))
        {
            self.stir(id, |engine| engine.handle_refusal(now, rule, sentence));
        }
    }

    /// Whether the interface was removed, or the connection to the service ended.
    pub(crate) fn is_over(&self) -> bool {
        self.link_removed
    }

    /// `Err` after the interface was removed, or after the connection to the service ended.
    pub(crate) fn check_alive(&self, interface: &str) -> Result<()> {
        match &self.ended {
            Some((path, reason)) => Err(Error::Service { path: path.clone(), reason: reason.clone() }),
            None if self.link_removed => Err(Error::UnknownInterface { name: interface.to_owned() }),
            None => Ok(()),
        }
    }

    /// Handles expired deadlines.
    pub(crate) fn handle_timeouts(&mut self, now: Instant) {
        self.reassembler.handle_timeout(now);
        while let Some(&(due, id)) = self.deadlines.first() {
            if due > now {
                break;
            }
            self.deadlines.pop_first();
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.due = None;
            let is_given_up = stream.given_up_at.take_if(|until| *until <= now).is_some();
            self.stir(id, |engine| {
                engine.handle_timeout(now);
                if is_given_up {
                    engine.abort(now);
                }
            });
        }
    }

    /// Polls streams for segments until `commands` holds a batch. `true` if more streams are to be polled.
    pub(crate) fn poll_commands(&mut self, now: Instant, commands: &mut Commands) -> bool {
        commands.end |= std::mem::take(&mut self.is_end_new);
        for id in self.arrived.drain(..) {
            if let Some(lease) = self.leases.get_mut(&id) {
                commands.arrived.push((id, std::mem::take(&mut lease.arrived)));
            }
        }
        while commands.outbox.len() < BATCH
            && let Some(id) = self.touched.pop_front()
        {
            self.poll_stream(now, id, commands);
        }
        commands.release.append(&mut self.released);
        !self.touched.is_empty()
    }

    fn poll_stream(&mut self, now: Instant, id: StreamId, commands: &mut Commands) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.touched = false;
        let StreamState { engine, route, .. } = stream;
        engine.poll_transmit(now, &mut |ip: &[u8]| commands.outbox.push(route, ip));
        let due = [stream.engine.poll_timeout(now), stream.given_up_at].into_iter().flatten().min();
        if due != stream.due {
            if let Some(old) = stream.due {
                self.deadlines.remove(&(old, id));
            }
            if let Some(new) = due {
                self.deadlines.insert((new, id));
            }
            stream.due = due;
        }
        if std::mem::take(&mut stream.stirred) {
            commands.wake.extend(stream.take_wakers());
        }
        if stream.is_orphan && stream.engine.is_finished() {
            self.remove_stream(id);
        }
    }

    /// When to call [`Table::handle_timeouts`] next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let streams = self.deadlines.first().map(|&(due, _)| due);
        [streams, self.reassembler.poll_timeout()].into_iter().flatten().min()
    }

    fn remove_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.by_flow.remove(&stream.flow);
        if let Some(due) = stream.due {
            self.deadlines.remove(&(due, id));
        }
        self.released.push(id);
    }
}
