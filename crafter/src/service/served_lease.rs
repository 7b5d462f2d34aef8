//! A lease of a client: the client's socket, and the driver's lease.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    os::fd::AsRawFd as _,
    rc::Rc,
};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::{
    io::unix::AsyncFd,
    sync::Notify,
    task::{spawn_blocking, spawn_local},
};

use super::{
    attachment::{Attachment, AttachmentGuard},
    backlog::{Backlog, Packet},
    clock::Moment,
    coalesce::coalesce,
    dispatch::PacketTurn,
    peer_socket::PeerSocket,
    shares::{Charge, Pool, Share, WaitingBytes},
};
use crate::{
    Lease, Result,
    datapath::{
        maps::Terms,
        peers::{Exchange, Exchanges, monotonic_ns},
    },
    driver::{LeaseId, Received, Transmitted},
    mmsg,
    policy::{Grant, Host, Policy, Subject, Usage},
    protocol::{
        record::{self, Code, DeliveryKind, HEADER, Header, Kind, QUOTED},
        wire,
    },
};

/// Messages per system call.
const BATCH: usize = 64;

/// Counters of packets, of a lease or of a connection.
pub(super) type Tally = RefCell<wire::Account>;

type Counter = fn(&mut wire::Account) -> &mut u64;

/// The most exchanges of a lease, without a limit of the policy.
const EXCHANGES: usize = 65_536;

/// Exchanges that are removed from the kernel's map on this thread when a lease ends.
const REMOVED_HERE: usize = 256;

/// The constant properties of a lease.
pub(super) struct LeaseTerms {
    pub(super) number: u64,
    pub(super) pid: Option<u32>,
    /// `tcp`, `udp`, `icmp`, `none` or `observe`.
    pub(super) protocol: &'static str,
    pub(super) grant: Grant,
    pub(super) address: Option<IpAddr>,
    pub(super) kernel_terms: Terms,
    /// Whether the client receives suppressed answers of the kernel.
    pub(super) report: bool,
    /// Whether consecutive segments are merged.
    pub(super) coalesce: bool,
    /// Counters of all leases of the same connection.
    pub(super) total: Rc<Tally>,
}

/// The most ports that the thread that serves all closes: for more it takes milliseconds.
const MOST_CLOSED_HERE: usize = 256;

/// Leases that have ended, but whose ports are still being closed on other threads: their numbers and accounts.
#[derive(Clone, Default)]
pub(super) struct Closing(Rc<RefCell<HashMap<u64, u32>>>);

impl Closing {
    /// Whether the ports of a lease are being closed.
    pub(super) fn has(&self, lease: u64) -> bool {
        self.0.borrow().contains_key(&lease)
    }

    /// Whether ports of an account are being closed.
    pub(super) fn has_some_of(&self, account: u32) -> bool {
        self.0.borrow().values().any(|other| *other == account)
    }

    /// Lists a lease until the result is dropped.
    fn list(&self, lease: u64, account: u32) -> Listed {
        self.0.borrow_mut().insert(lease, account);
        Listed { closing: self.clone(), lease }
    }
}

/// Lists a lease in [`Closing`] while it exists.
struct Listed {
    closing: Closing,
    lease: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.closing.0.borrow_mut().remove(&self.lease);
    }
}

/// A lease.
pub(super) struct ServedLease {
    pub(super) terms: LeaseTerms,
    /// The grant with the host's addresses of now.
    grant: RefCell<Rc<Grant>>,
    pub(super) attachment: Rc<Attachment>,
    guard: RefCell<Option<AttachmentGuard>>,
    lease: RefCell<Option<Lease>>,
    pub(super) socket: AsyncFd<PeerSocket>,
    charge: RefCell<Option<Charge>>,
    usage: Rc<RefCell<Usage>>,
    account: u32,
    exchanges: RefCell<Exchanges<Share>>,
    began: Moment,
    pub(super) tally: Tally,
    /// How many packets the driver had lost when they were last counted.
    lost_before: Cell<u64>,
    /// Packets that found no room; nothing more is read from the client while there are some.
    pub(super) backlog: RefCell<Backlog>,
    /// Number of packets that wait for a next hop.
    waiting: Cell<usize>,
    kept: Notify,
    /// Whether the backlog waits for its turn on the full link.
    pub(super) is_queued: Cell<bool>,
    /// The lease's turn to have its packets read.
    pub(super) turn: PacketTurn,
    over: Notify,
    ending: RefCell<Option<(Code, String)>>,
}

impl ServedLease {
    pub(super) fn new(
        terms: LeaseTerms,
        guard: AttachmentGuard,
        (lease, exchanges): (Option<Lease>, Exchanges<Share>),
        socket: PeerSocket,
        charge: Charge,
    ) -> Result<Rc<Self>> {
        Ok(Rc::new(Self {
            grant: RefCell::new(Rc::new(terms.grant.clone())),
            terms,
            attachment: guard.attachment.clone(),
            guard: RefCell::new(Some(guard)),
            lease: RefCell::new(lease),
            socket: crate::datapath::watch(socket, "the socket of a lease")?,
            usage: charge.usage().clone(),
            account: charge.account(),
            charge: RefCell::new(Some(charge)),
            exchanges: RefCell::new(exchanges),
            began: Moment::now(),
            tally: Tally::default(),
            lost_before: Cell::new(0),
            backlog: RefCell::default(),
            waiting: Cell::new(0),
            kept: Notify::new(),
            is_queued: Cell::new(false),
            turn: PacketTurn::default(),
            over: Notify::new(),
            ending: RefCell::default(),
        }))
    }

    /// What its packets are compared with: the grant with the host's addresses of now.
    pub(super) fn grant(&self) -> Rc<Grant> {
        self.grant.borrow().clone()
    }

    /// Takes over a change of the host's addresses.
    pub(super) fn renew(&self, policy: &Policy, host: &Host) {
        self.grant.replace(Rc::new(policy.renew(&self.terms.grant, host)));
    }

    /// The owner of the lease.
    pub(super) fn subject(&self) -> &Subject {
        self.terms.grant.subject()
    }

    /// The account of its user, to which resources are charged.
    pub(super) fn account(&self) -> u32 {
        self.account
    }

    /// The resources of its user.
    pub(super) fn usage(&self) -> &Rc<RefCell<Usage>> {
        &self.usage
    }

    /// Adds to the counters of the lease and of its connection.
    fn count(&self, counter: Counter, more: u64) {
        for tally in [&self.tally, &*self.terms.total] {
            *counter(&mut tally.borrow_mut()) += more;
        }
    }

    /// Counts the packets that the kernel half and the driver had no room for since the last call.
    pub(super) fn count_lost(&self) {
        let Some(lost) = self.lease.borrow().as_ref().map(Lease::lost) else { return };
        let before = self.lost_before.replace(lost);
        if lost > before {
            self.count(|tally| &mut tally.lost, lost - before);
            self.count(|tally| &mut tally.queue_full, lost - before);
        }
    }

    /// Whether messages from the client are Ethernet frames.
    pub(super) fn sends_frames(&self) -> bool {
        self.terms.grant.requested().raw_ethernet
    }

    /// Ends the lease; the client receives the reason.
    pub(super) fn end(&self, code: Code, sentence: &str) {
        self.ending.borrow_mut().get_or_insert_with(|| (code, sentence.to_owned()));
        self.over.notify_one();
    }

    /// Waits until the lease is to end.
    pub(super) async fn ended(&self) {
        self.over.notified().await;
    }

    /// Appends packets to the backlog.
    pub(super) fn keep(&self, packets: &[Packet<&[u8]>]) {
        let kept = self.backlog.borrow_mut().add(packets, |bytes| self.wait(bytes));
        self.refuse_unkept(&packets[kept..]);
    }

    /// Inserts packets at the beginning of the backlog.
    pub(super) fn keep_first(&self, packets: &[Packet<&[u8]>]) {
        let kept = self.backlog.borrow_mut().add_first(packets, |bytes| self.wait(bytes));
        self.refuse_unkept(&packets[kept..]);
    }

    fn refuse_unkept(&self, packets: &[Packet<&[u8]>]) {
        let sentence = "too many bytes of your packets wait for room or for next hops already; send more slowly";
        packets.iter().for_each(|packet| self.refuse(Code::NotSent, 0, sentence, packet.bytes()));
        self.kept.notify_one();
    }

    /// Counts a packet of `bytes` that waits for a next hop. `None` if too many bytes of the lease or of its user wait
    /// already.
    pub(super) fn begin_waiting(&self, bytes: usize) -> Option<WaitingBytes> {
        let bytes = self.wait(bytes)?;
        self.waiting.set(self.waiting.get() + 1);
        Some(bytes)
    }

    fn wait(&self, bytes: usize) -> Option<WaitingBytes> {
        self.charge.borrow().as_ref()?.wait(bytes)
    }

    /// Notifies the lease's task that its backlog was sent.
    pub(super) fn notify_sent(&self) {
        self.kept.notify_one();
    }

    /// Counts packets that no longer wait for a next hop.
    pub(super) fn end_waiting(&self, count: usize) {
        self.waiting.set(self.waiting.get().saturating_sub(count));
        self.kept.notify_one();
    }

    /// Whether packets of the client wait for room or for a next hop.
    pub(super) fn has_unsent(&self) -> bool {
        self.waiting.get() > 0 || !self.backlog.borrow().is_empty()
    }

    /// Waits until the backlog has packets or none, or until packets no longer wait for a next hop.
    pub(super) async fn kept(&self) {
        self.kept.notified().await;
    }

    /// Releases the ports and closes the client's socket; returns the reason for the audit log. What takes long is
    /// listed in `closing` until it is done.
    pub(super) fn close(&self, closing: &Closing) -> &'static str {
        self.count_lost();
        let mut reason = "closed";
        if let Some((code, sentence)) = self.ending.take() {
            self.send_message(Kind::End { code }, &sentence, &[]);
            reason = match code {
                Code::Policy => "policy",
                Code::InterfaceRemoved => "interface removed",
                Code::Released => "released",
                Code::Stops => "service stops",
                _ => "failure",
            };
        }
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        if let Some(lease) = self.lease.take() {
            self.attachment.remove_receiver(lease.id());
            let settles = self.terms.kernel_terms.observe && self.terms.kernel_terms.suppress;
            // On another thread if it takes longer. Until then the lease counts: its ports are not free, and its
            // descriptors are open.
            if settles || lease.ports().len() > MOST_CLOSED_HERE {
                let held = (self.charge.take(), self.guard.take(), closing.list(self.terms.number, self.account));
                spawn_local(async move {
                    // Fails only if the drop has panicked.
                    let _ = spawn_blocking(move || lease.close()).await;
                    drop(held);
                });
            }
        }
        let ended = self.exchanges.borrow_mut().end();
        self.usage().borrow_mut().flows -= ended.len() as u32;
        if ended.len() > REMOVED_HERE {
            tokio::task::spawn_blocking(move || drop(ended));
        }
        self.charge.take();
        self.guard.take();
        reason
    }

    /// Reports a packet that was not sent to the client.
    pub(super) fn refuse(&self, code: Code, rule: u16, sentence: &str, packet: &[u8]) {
        let counter: Counter =
            if code == Code::NotSent { |tally| &mut tally.not_sent } else { |tally| &mut tally.refused };
        self.count(counter, 1);
        self.send_message(Kind::Refusal { code, rule }, sentence, &packet[..packet.len().min(QUOTED)]);
    }

    fn send_message(&self, kind: Kind, sentence: &str, quoted: &[u8]) {
        let message = [sentence.as_bytes(), quoted].concat();
        let header = self.header(kind, sentence.len(), monotonic_ns()).encode();
        if mmsg::send::<1>(&self.socket, std::iter::once(([&header[..], &message], None))).is_err() {
            self.count(|tally| &mut tally.lost, 1);
        }
    }

    fn header(&self, kind: Kind, length: usize, time_ns: u64) -> Header {
        // The protocol counts modulo 2^32.
        let lost = self.tally.borrow().lost as u32;
        Header { kind, ifindex: self.attachment.interface().ifindex, time_ns, length: length as u32, lost }
    }

    /// Notes that a packet of an exchange is about to be sent. A new exchange takes a place of the user's: `may_begin`
    /// decides by the usage, and the packets of its peer are the lease's from now on.
    ///
    /// # Errors
    /// Those of `may_begin`; `full` with a sentence if there is no place.
    pub(super) fn exchange<E>(
        &self,
        exchange: &Exchange,
        flows: &Rc<Pool>,
        may_begin: impl Fn(&Usage) -> Result<(), E>,
        full: impl Fn(String) -> E,
    ) -> Result<(), E> {
        let mut exchanges = self.exchanges.borrow_mut();
        let now = monotonic_ns();
        if exchanges.note(exchange, now) {
            return Ok(());
        }
        let mut usage = self.usage().borrow_mut();
        let is_full = || exchanges.len() >= EXCHANGES || flows.room(self.account) == 0;
        if is_full() || may_begin(&usage).is_err() {
            usage.flows -= exchanges.expire(now) as u32;
            may_begin(&usage)?;
        }
        if exchanges.len() >= EXCHANGES {
            let sentence = "the lease has 65536 flows; wait until some are silent, or use another lease";
            return Err(full(sentence.to_owned()));
        }
        let place = flows.take(self.account, 1).ok_or_else(|| {
            full("you have as many flows as the service has room for; wait until some are silent".to_owned())
        })?;
        exchanges.begin(exchange, now, place).map_err(|error| full(error.to_string()))?;
        usage.flows += 1;
        Ok(())
    }

    /// Ends the exchanges that have been silent for too long.
    pub(super) fn end_silent(&self) {
        let ended = self.exchanges.borrow_mut().expire(monotonic_ns());
        self.usage().borrow_mut().flows -= ended as u32;
    }

    /// The number of the driver's lease, if there is one.
    pub(super) fn driver_lease(&self) -> Option<LeaseId> {
        self.lease.borrow().as_ref().map(Lease::id)
    }

    /// Counts sent packets, and reports the others to the client.
    pub(super) fn handle_sent(&self, packets: &[Packet<&[u8]>], sent: &Transmitted) {
        self.count(|tally| &mut tally.sent, sent.sent);
        let bytes: u64 = packets.iter().map(|packet| packet.len() as u64).sum();
        let refused = (packets.len() as u64).saturating_sub(sent.sent);
        self.count(
            |tally| &mut tally.sent_bytes,
            if refused == 0 { bytes } else { bytes * sent.sent / packets.len() as u64 },
        );
        if refused > 0 {
            let reason = sent.error.as_ref().map_or_else(|| "no room in its queue".to_owned(), ToString::to_string);
            for _ in 0..refused {
                self.refuse(Code::NotSent, 0, &format!("the kernel did not accept the packet: {reason}"), &[]);
            }
        }
    }

    /// Sends received packets to the client. Those that its socket has no room for are counted as lost.
    pub(super) fn deliver(&self, packets: &[(LeaseId, Received)]) {
        self.count_lost();
        let mut now = None;
        // Only bursts are merged.
        let whole = (self.terms.coalesce && packets.len() > 1).then(|| coalesce(packets));
        let plain = if whole.is_some() { &[] } else { packets };
        let merged = whole.iter().flatten().map(|(count, received)| (*count, received));
        let packets = merged.chain(plain.iter().map(|(_, received)| (1, received)));
        let mut messages: Vec<([u8; HEADER], &Received, u64)> = Vec::with_capacity(plain.len());
        for (count, received) in packets {
            if !received.reason.is_ingress() {
                self.count(|tally| &mut tally.suppressed, count);
                if !self.terms.report {
                    continue;
                }
            }
            let time = received.timestamp_ns.unwrap_or_else(|| *now.get_or_insert_with(monotonic_ns));
            let cut = if received.cut { record::CUT } else { 0 };
            let flags = record::checksum_flags(received.checksum) | cut;
            let kind = Kind::Packet { delivery: DeliveryKind::of(received.reason), flags };
            messages.push((self.header(kind, received.ip.len(), time).encode(), received, count));
        }
        for batch in messages.chunks(BATCH) {
            let done = self.send(batch.iter().map(|(header, received, _)| (header, &received.ip[..])));
            for (at, (_, received, count)) in batch.iter().enumerate() {
                let counter: Counter = match (at < done, received.reason.is_ingress()) {
                    (true, true) => |tally| &mut tally.delivered,
                    // Counted as suppressed.
                    (true, false) => continue,
                    (false, _) => |tally| &mut tally.lost,
                };
                self.count(counter, *count);
            }
        }
    }

    /// Sends a captured frame to the client.
    pub(super) fn show(&self, bytes: &[u8], length: u32, time_ns: u64, flags: u16) {
        let mut header = self.header(Kind::Packet { delivery: DeliveryKind::Captured, flags }, bytes.len(), time_ns);
        header.length = length;
        let counter: Counter = match self.send([(&header.encode(), bytes)].into_iter()) {
            0 => |tally| &mut tally.lost,
            _ => |tally| &mut tally.delivered,
        };
        self.count(counter, 1);
    }

    /// Sends at most [`BATCH`] messages, and returns how many the client's socket had room for.
    fn send<'m>(&self, messages: impl ExactSizeIterator<Item = (&'m [u8; HEADER], &'m [u8])> + Clone) -> usize {
        let mut done = 0;
        let total = messages.len();
        while done < total {
            let rest = messages.clone().skip(done).map(|(header, bytes)| ([&header[..], bytes], None));
            match mmsg::send::<BATCH>(&self.socket, rest) {
                Ok(0) | Err(_) => break,
                Ok(sent) => done += sent,
            }
        }
        let bytes: usize = messages.take(done).map(|(_, bytes)| bytes.len()).sum();
        self.count(|tally| &mut tally.delivered_bytes, bytes as u64);
        done
    }

    /// The lease as `ListLeases` reports it.
    pub(super) fn describe(&self) -> wire::Lease {
        self.count_lost();
        let requested = self.terms.grant.requested();
        let tally = self.tally.borrow().clone();
        let wire::Account { sent, sent_bytes, not_sent, refused, delivered, .. } = tally;
        let wire::Account { delivered_bytes, lost, queue_full, suppressed, .. } = tally;
        let has_ports = requested.transport.is_some();
        wire::Lease {
            lease: self.terms.number,
            user: self.subject().user,
            pid: self.terms.pid,
            interface: requested.interface.clone(),
            protocol: self.terms.protocol.to_owned(),
            address: self.terms.address.map(|address| address.to_string()),
            first_port: has_ports.then(|| *requested.ports.start()),
            last_port: has_ports.then(|| *requested.ports.end()),
            frames: requested.raw_ethernet,
            observe: self.terms.kernel_terms.observe,
            suppress: self.terms.kernel_terms.suppress,
            began: self.began.since_1970_us(),
            sent,
            sent_bytes,
            not_sent,
            refused,
            delivered,
            delivered_bytes,
            lost,
            queue_full,
            suppressed,
        }
    }
}
