//! Who gets what: leases by port, streams by flow. Sans-IO but for the sender that it is handed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::entry::{Keep, LeaseState, Meta, Received, SUPPRESSED, Stats, StreamState};
use crate::{
    datapath::route::Route,
    engine::{Reassembler, StreamEngine},
    error::{Error, Result},
    packet::{Checksum, Flow, IcmpError, IpPacket, Protocol, Transport, checksum, flow, icmp_query, received},
};

/// How long a stream that nobody holds any more may take to close: as long as Linux gives FIN-WAIT-2
/// (`tcp_fin_timeout`).
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of replies that wait for one lease at most.
const QUEUE_BYTES: usize = 64 << 20;

/// Leases and streams, and what is found of them by port and flow.
pub(crate) struct Table {
    leases: HashMap<u32, LeaseState>,
    by_port: HashMap<(Transport, u16), Vec<(IpAddr, u32)>>,
    streams: HashMap<u32, StreamState>,
    by_flow: HashMap<(SocketAddr, SocketAddr), u32>,
    deadlines: BTreeSet<(Instant, u32)>,
    /// Streams that something happened to since they were last asked what to send.
    touched: HashSet<u32>,
    /// Gathered leases that something came to.
    listed: Vec<u32>,
    reassembler: Reassembler,
    /// Whether a checksum may be partial: on devices that are not hardware.
    accept_partial: bool,
    next: u32,
    /// What finished streams kept alive: dropping it may want the lock under which the table lies, so
    /// whoever holds that drops this behind it.
    pub(crate) released: Vec<Keep>,
    /// Set for good once the interface is gone.
    pub(crate) link_gone: bool,
    /// Notified of that, whether or not something is leased.
    pub(crate) watcher: Option<Arc<Notify>>,
    /// Why the service is of no use any more: its socket, and the reason.
    over: Option<(String, String)>,
    pub(crate) stats: Stats,
}

impl Table {
    pub(crate) fn new(accept_partial: bool) -> Self {
        Self {
            leases: HashMap::new(),
            by_port: HashMap::new(),
            streams: HashMap::new(),
            by_flow: HashMap::new(),
            deadlines: BTreeSet::new(),
            touched: HashSet::new(),
            listed: Vec::new(),
            reassembler: Reassembler::default(),
            accept_partial,
            next: 1,
            released: Vec::new(),
            link_gone: false,
            watcher: None,
            over: None,
            stats: Stats::default(),
        }
    }

    /// A number that no lease and no stream has.
    pub(crate) fn number(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        number
    }

    pub(crate) fn add_lease(&mut self, id: u32, lease: LeaseState) {
        for &port in &lease.ports {
            self.by_port.entry((lease.transport, port)).or_default().push((lease.address, id));
        }
        self.leases.insert(id, lease);
    }

    pub(crate) fn remove_lease(&mut self, id: u32) -> Option<LeaseState> {
        let lease = self.leases.remove(&id)?;
        for &port in &lease.ports {
            let key = (lease.transport, port);
            if let Some(owners) = self.by_port.get_mut(&key) {
                owners.retain(|&(_, owner)| owner != id);
                if owners.is_empty() {
                    self.by_port.remove(&key);
                }
            }
        }
        Some(lease)
    }

    /// This host has these addresses now: reservations on any address extend to them.
    pub(crate) fn handle_addresses(&mut self, addresses: &[IpAddr]) {
        for reservation in self.leases.values_mut().flat_map(|lease| &mut lease.reservations) {
            for &address in addresses {
                if let Err(e) = reservation.cover(address) {
                    log::warn!("a new address is not covered by a lease: {e}");
                }
            }
        }
    }

    pub(crate) fn lease(&mut self, id: u32) -> Option<&mut LeaseState> {
        self.leases.get_mut(&id)
    }

    /// Adds a stream; `None` where there is one of that flow already.
    pub(crate) fn add_stream(
        &mut self,
        engine: StreamEngine,
        route: Arc<Route>,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<u32> {
        if self.by_flow.contains_key(&(local, remote)) {
            return None;
        }
        let id = self.number();
        let flow = (local, remote);
        self.by_flow.insert(flow, id);
        self.streams.insert(
            id,
            StreamState {
                engine,
                route,
                flow,
                reader: None,
                writer: None,
                stirred: false,
                due: None,
                orphan: None,
                patience: None,
            },
        );
        self.touched.insert(id);
        Some(id)
    }

    pub(crate) fn stream(&mut self, id: u32) -> Option<&mut StreamState> {
        self.streams.get_mut(&id)
    }

    /// Marks a stream as one to ask what it has to send.
    pub(crate) fn touch(&mut self, id: u32) {
        self.touched.insert(id);
    }

    /// Nobody holds the stream any more: it goes when it is finished, and keeps `lease` until then.
    pub(crate) fn release_stream(&mut self, now: Instant, id: u32, lease: Keep) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.orphan = Some(lease);
            stream.patience = Some(now + PATIENCE);
            self.touched.insert(id);
        }
    }

    /// Nobody drives the streams any more: those that were left to the driver end here, without a word.
    pub(crate) fn give_up_orphans(&mut self) {
        let orphans: Vec<u32> = self.streams.iter().filter(|(_, s)| s.orphan.is_some()).map(|(&id, _)| id).collect();
        for id in orphans {
            self.remove_stream(id);
        }
    }

    /// A packet that came in, from the IP header on.
    pub(crate) fn handle_packet(&mut self, now: Instant, ip: &[u8], meta: Meta) {
        if is_fragment(ip) {
            self.stats.fragments += 1;
            if let Some(whole) = self.reassembler.handle(now, ip) {
                self.stats.reassembled += 1;
                self.handle_whole(now, &whole, Meta { checksum: None, ..meta });
            }
        } else {
            self.handle_whole(now, ip, meta);
        }
    }

    fn handle_whole(&mut self, now: Instant, ip: &[u8], meta: Meta) {
        let Some(flow) = received(ip) else {
            return self.handle_stray();
        };
        match flow.protocol {
            Protocol::Tcp => {
                let ends = (flow.destination, flow.source);
                if let Some(&id) = self.by_flow.get(&ends) {
                    return self.handle_segment(now, id, ip, meta);
                }
                self.deliver(Transport::Tcp, flow.destination, ip, meta);
            }
            Protocol::Udp => self.deliver(Transport::Udp, flow.destination, ip, meta),
            Protocol::Icmp => self.handle_icmp(now, ip, meta),
        }
    }

    fn handle_segment(&mut self, now: Instant, id: u32, ip: &[u8], meta: Meta) {
        let checksum = meta.checksum.unwrap_or_else(|| checksum::verify(ip, self.accept_partial));
        if checksum == Checksum::Invalid {
            self.stats.bad_checksum += 1;
            return;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.engine.handle_packet(now, ip);
            stream.stirred = true;
            self.stats.delivered += 1;
            self.touched.insert(id);
        }
    }

    /// The kernel's answer to what came to an owned port, dropped on its way out.
    pub(crate) fn handle_suppressed(&mut self, ip: &[u8], meta: Meta) {
        let (transport, local) = match flow(ip) {
            Some(Flow { protocol: Protocol::Tcp, source, .. }) => (Transport::Tcp, source),
            // A port-unreachable quotes the datagram that it answers.
            _ => match IcmpError::parse(ip) {
                Ok(error) => (Transport::Udp, error.quoted.destination),
                Err(_) => return self.handle_stray(),
            },
        };
        // Who leased may have gone meanwhile.
        if let Some(lease) = self.owner(transport, local)
            && lease.suppressed.len() < SUPPRESSED
        {
            lease.suppressed.push_back(Received {
                ip: ip.to_vec(),
                // The kernel's own.
                checksum: Checksum::Valid,
                timestamp_ns: meta.timestamp,
                cut: meta.cut,
                reason: meta.reason,
            });
            lease.arrived.notify_one();
        }
    }

    /// An ICMP error goes to whoever sent what it quotes, a reply to whoever owns its identifier.
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
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.engine.handle_icmp(now, &error);
                    stream.stirred = true;
                    self.stats.delivered += 1;
                    self.touched.insert(id);
                }
            }
            None => self.deliver(transport, quoted.source, ip, meta),
        }
    }

    /// The lease that owns `local`, and is about to get something.
    fn owner(&mut self, transport: Transport, local: SocketAddr) -> Option<&mut LeaseState> {
        let owners = self.by_port.get(&(transport, local.port()))?;
        let (_, id) = owners
            .iter()
            .find(|(address, _)| *address == local.ip())
            .or_else(|| owners.iter().find(|(address, _)| address.is_unspecified()))?;
        let lease = self.leases.get_mut(id)?;
        if lease.gathered && !std::mem::replace(&mut lease.listed, true) {
            self.listed.push(*id);
        }
        Some(lease)
    }

    /// Moves what has come to gathered leases to `sink`, lease by lease, each with the lease's number: packets, then
    /// answers of the kernel that were dropped.
    pub(crate) fn gather(&mut self, sink: &mut Vec<(u32, Received)>) {
        for id in self.listed.drain(..) {
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.listed = false;
                lease.queued = 0;
                sink.extend(lease.queue.drain(..).map(|received| (id, received)));
                sink.extend(lease.suppressed.drain(..).map(|received| (id, received)));
            }
        }
    }

    /// Whether a lease has `port` on `address`, or on any where either is unspecified.
    pub(crate) fn is_leased(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        let owners = self.by_port.get(&(transport, port)).map_or(&[][..], Vec::as_slice);
        owners.iter().any(|(owned, _)| *owned == address || owned.is_unspecified() || address.is_unspecified())
    }

    /// Puts a packet into the queue of the lease that owns `local`.
    fn deliver(&mut self, transport: Transport, local: SocketAddr, ip: &[u8], meta: Meta) {
        let accept_partial = self.accept_partial;
        let Some(lease) = self.owner(transport, local) else {
            return self.handle_stray();
        };
        if lease.queued + ip.len() > QUEUE_BYTES {
            self.stats.overflow += 1;
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
        lease.arrived.notify_one();
        self.stats.delivered += 1;
    }

    pub(crate) fn handle_stray(&mut self) {
        self.stats.stray += 1;
    }

    /// Sending failed: what could not go counts as lost on the way, unless the interface is gone.
    pub(crate) fn handle_fault(&mut self, now: Instant, error: &Error) {
        log::warn!("sending failed: {error}");
        if matches!(error, Error::UnknownInterface { .. }) {
            self.handle_link_gone(now);
        }
    }

    /// The interface is gone, and with it all streams; leases tell whoever waits.
    pub(crate) fn handle_link_gone(&mut self, now: Instant) {
        if std::mem::replace(&mut self.link_gone, true) {
            return;
        }
        for (&id, stream) in &mut self.streams {
            stream.engine.handle_link_gone(now);
            stream.stirred = true;
            self.touched.insert(id);
        }
        for lease in self.leases.values() {
            lease.arrived.notify_waiters();
            lease.arrived.notify_one();
        }
        if let Some(watcher) = &self.watcher {
            watcher.notify_one();
        }
    }

    /// The service does not serve any more.
    pub(crate) fn handle_over(&mut self, now: Instant, path: String, reason: String) {
        self.over.get_or_insert((path, reason));
        self.handle_link_gone(now);
    }

    /// What `quoted` begins was not let out, and nothing like it will be: its stream is over.
    pub(crate) fn handle_refusal(&mut self, now: Instant, quoted: &[u8], rule: Option<u32>, sentence: &str) {
        if let Some(flow) = flow(quoted)
            && flow.protocol == Protocol::Tcp
            && let Some(&id) = self.by_flow.get(&(flow.source, flow.destination))
            && let Some(stream) = self.streams.get_mut(&id)
        {
            stream.engine.handle_refusal(now, rule, sentence);
            stream.stirred = true;
            self.touched.insert(id);
        }
    }

    /// Why nothing comes any more, if that is so.
    pub(crate) fn fate(&self, interface: &str) -> Result<()> {
        match &self.over {
            Some((path, reason)) => Err(Error::Service { path: path.clone(), reason: reason.clone() }),
            None if self.link_gone => Err(Error::UnknownInterface { name: interface.to_owned() }),
            None => Ok(()),
        }
    }

    /// Does what is due.
    pub(crate) fn handle_timeouts(&mut self, now: Instant) {
        self.reassembler.handle_timeout(now);
        while let Some(&(due, id)) = self.deadlines.first() {
            if due > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.due = None;
                stream.engine.handle_timeout(now);
                if stream.patience.is_some_and(|until| until <= now) {
                    stream.patience = None;
                    stream.engine.abort(now);
                }
                stream.stirred = true;
                self.touched.insert(id);
            }
        }
    }

    /// Asks each touched stream what it has to send, and wakes whoever waits for it.
    pub(crate) fn poll_transmit(&mut self, now: Instant, mut push: impl FnMut(&Route, &[u8]) -> Result<()>) {
        if self.touched.is_empty() {
            return;
        }
        let mut finished = Vec::new();
        for id in self.touched.drain() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let route = &stream.route;
            let mut fault = None;
            stream.engine.poll_transmit(now, &mut |ip: &[u8]| {
                if let Err(e) = push(route, ip) {
                    fault = Some(e);
                }
            });
            if let Some(e) = fault {
                log::warn!("sending failed: {e}");
                self.stats.not_sent += 1;
            }
            let due = [stream.engine.poll_timeout(now), stream.patience].into_iter().flatten().min();
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
                stream.wake();
            }
            if stream.orphan.is_some() && stream.engine.is_finished() {
                finished.push(id);
            }
        }
        for id in finished {
            self.remove_stream(id);
        }
    }

    /// When to call [`Table::handle_timeouts`] next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let streams = self.deadlines.first().map(|&(due, _)| due);
        [streams, self.reassembler.poll_timeout()].into_iter().flatten().min()
    }

    fn remove_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.by_flow.remove(&stream.flow);
        if let Some(due) = stream.due {
            self.deadlines.remove(&(due, id));
        }
        self.released.extend(stream.orphan);
    }
}

/// Whether `ip` is one of several fragments; the first holds ports, so that it is not told by its flow.
fn is_fragment(ip: &[u8]) -> bool {
    IpPacket::read(ip).is_ok_and(|packet| packet.fragment.is_some())
}
