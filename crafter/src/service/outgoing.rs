//! Packets from clients: compares each with its lease and the policy, and sends or refuses it.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{task::yield_now, time::sleep};

use super::{backlog::Packet, dispatch::PACKET_COST, records, served_lease::ServedLease, state::Service};
use crate::{
    datapath::peers::Exchange,
    mmsg::Inbox,
    packet::{Framed, Transport, framed},
    policy::{Decision, PacketInfo, Policy, Usage, Verdict},
    protocol::record::Code,
};

/// The result of reading a lease's socket.
pub(super) enum ReadOutcome {
    /// A full batch; more packets may wait.
    More,
    /// Packets found no room; nothing more is to be read until they do.
    NoRoom,
    /// No further packets wait.
    WouldBlock,
    /// The client closed the socket.
    Closed,
}

/// Sends the packets of a lease's client until the client closes its socket or the lease is ended. While packets wait
/// for room, nothing more is read: the client's socket fills, which holds the client back. Packets that were sent
/// before the socket was closed are still sent.
pub(super) async fn run(service: Rc<Service>, lease: Rc<ServedLease>) {
    let mut is_closed = false;
    loop {
        if is_closed && !lease.has_unsent() {
            break;
        }
        if is_closed || !lease.backlog.borrow().is_empty() {
            tokio::select! {
                biased;
                () = lease.ended() => break,
                () = lease.kept() => continue,
            }
        }
        let mut guard = tokio::select! {
            biased;
            () = lease.ended() => break,
            () = lease.kept() => continue,
            ready = lease.socket.readable() => match ready {
                Ok(guard) => guard,
                Err(_) => break,
            },
        };
        service.dispatcher.push(&lease);
        tokio::select! {
            biased;
            () = lease.ended() => break,
            outcome = lease.turn.ended() => match outcome {
                ReadOutcome::WouldBlock => guard.clear_ready(),
                ReadOutcome::Closed => is_closed = true,
                ReadOutcome::More | ReadOutcome::NoRoom => {}
            },
        }
    }
    service.forget(&lease);
}

/// Leases whose clients have closed their sockets.
pub(super) enum Closed {
    /// At least one was ended.
    Ended,
    /// None was ended, but at least one of the account ends as soon as its last packets are sent, or its ports closed.
    Draining,
    /// No client of the account has closed the socket of a lease.
    None,
}

/// Ends the leases whose clients have closed their sockets, before their own tasks do; sends their remaining packets
/// first.
pub(super) fn end_closed(service: &Rc<Service>, account: u32) -> Closed {
    let leases: Vec<_> = service.leases.borrow().values().cloned().collect();
    end_closed_of(service, &leases, account)
}

/// Like [`end_closed`], for some leases.
fn end_closed_of(service: &Rc<Service>, leases: &[Rc<ServedLease>], account: u32) -> Closed {
    let mut sockets: Vec<_> =
        leases.iter().map(|lease| PollFd::new(lease.socket.get_ref().as_fd(), PollFlags::empty())).collect();
    // One system call for all: a client that is refused in a loop must not slow down the others.
    if poll(&mut sockets, PollTimeout::ZERO).is_err() {
        return Closed::None;
    }
    let is_closed = |socket: &PollFd<'_>| socket.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
    let closed = leases.iter().zip(&sockets).filter(|(_, socket)| is_closed(socket));
    // Its ports will soon be free.
    let mut outcome = if service.closing.has_some_of(account) { Closed::Draining } else { Closed::None };
    for (lease, _) in closed {
        // A batch, and the end: a client cannot keep the caller here.
        let mut read = take_batch(service, lease, &ClosedFlows::of_closed()).0;
        if matches!(read, ReadOutcome::More) {
            read = take_batch(service, lease, &ClosedFlows::of_closed()).0;
        }
        // Otherwise its own task ends the lease after its packets are sent.
        if matches!(read, ReadOutcome::Closed) && !lease.has_unsent() {
            service.forget(lease);
            outcome = Closed::Ended;
        } else if lease.account() == account && matches!(outcome, Closed::None) {
            outcome = Closed::Draining;
        }
    }
    outcome
}

/// Flows of leases whose clients have closed them count against `max_flows` until the service notices. When a packet
/// is refused for that limit, the user's closed leases are ended, once in a batch.
#[derive(Default)]
struct ClosedFlows {
    is_done: Cell<bool>,
    /// What it cost, in bytes.
    cost: Cell<u64>,
}

impl ClosedFlows {
    /// Of a batch of a closed lease, which waits for no other one.
    fn of_closed() -> Self {
        Self { is_done: Cell::new(true), cost: Cell::new(0) }
    }

    /// Ends the closed leases of a user; `false` if there are none.
    fn end(&self, service: &Rc<Service>, account: u32) -> bool {
        if self.is_done.replace(true) {
            return false;
        }
        let own = |lease: &&Rc<ServedLease>| lease.account() == account;
        let leases: Vec<_> = service.leases.borrow().values().filter(own).cloned().collect();
        self.cost.set(PACKET_COST * leases.len() as u64);
        matches!(end_closed_of(service, &leases, account), Closed::Ended)
    }
}

/// Reads and sends at most a batch. Returns what it cost, in bytes: a refused packet at least as much as a sent one.
pub(super) fn take(service: &Rc<Service>, lease: &Rc<ServedLease>) -> (ReadOutcome, u64) {
    let closed = ClosedFlows::default();
    let (outcome, cost) = take_batch(service, lease, &closed);
    (outcome, cost + closed.cost.get())
}

fn take_batch(service: &Rc<Service>, lease: &Rc<ServedLease>, closed: &ClosedFlows) -> (ReadOutcome, u64) {
    // Packets are sent in their order.
    if !lease.backlog.borrow().is_empty() {
        return (ReadOutcome::NoRoom, PACKET_COST);
    }
    let mut inbox = service.take_inbox();
    let taken = take_into(service, lease, closed, &mut inbox);
    service.inbox.replace(Some(inbox));
    taken
}

fn take_into(
    service: &Rc<Service>,
    lease: &Rc<ServedLease>,
    closed: &ClosedFlows,
    inbox: &mut Inbox,
) -> (ReadOutcome, u64) {
    let is_all = match lease.socket.get_ref().receive_messages(inbox) {
        Ok(None) => return (ReadOutcome::Closed, PACKET_COST),
        Ok(Some(count)) => count < Inbox::MOST,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (ReadOutcome::WouldBlock, PACKET_COST),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return (ReadOutcome::More, PACKET_COST),
        Err(_) => return (ReadOutcome::Closed, PACKET_COST),
    };
    let mut cost = PACKET_COST;
    let policy = service.policy();
    let now = Instant::now();
    let mut packets = Vec::with_capacity(64);
    for (bytes, cut) in inbox.messages() {
        cost += PACKET_COST + bytes.len() as u64;
        match check_packet(service, &policy, lease, closed, bytes, (cut, now)) {
            Err(Refusal { code, decision, sentence }) => {
                // The message to the client.
                cost += PACKET_COST;
                let rule = decision.and_then(|decision| decision.rule).map_or(0, |rule| rule as u16);
                lease.refuse(code, rule, &sentence, bytes);
                if let Some(decision) = decision {
                    let read = if lease.sends_frames() { PacketInfo::read_frame } else { PacketInfo::read };
                    records::refused_packet(&service.audit, lease, decision, read(bytes).as_ref());
                }
            }
            Ok(None) => packets.push(Packet::Frame(bytes)),
            Ok(Some(outgoing)) => {
                // The kernel finds no route from an address that is not the host's.
                let own = lease.grant().sources().binary_search(&outgoing.source.to_canonical()).is_ok();
                let source = own.then_some(outgoing.source);
                packets.push(Packet::Unrouted((outgoing.destination, source), bytes));
            }
        }
    }
    if !packets.is_empty() {
        service.transmitter.transmit(lease, &packets);
    }
    service.note_activity();
    let outcome = match is_all {
        _ if !lease.backlog.borrow().is_empty() => ReadOutcome::NoRoom,
        // New packets make the socket readable again.
        true => ReadOutcome::WouldBlock,
        false => ReadOutcome::More,
    };
    (outcome, cost)
}

struct Refusal {
    code: Code,
    /// The policy's decision, if the policy refused.
    decision: Option<Decision>,
    sentence: String,
}

impl From<Decision> for Refusal {
    fn from(decision: Decision) -> Self {
        let code = if decision.verdict == Verdict::Rate { Code::Rate } else { Code::Policy };
        Self { code, decision: Some(decision), sentence: decision.to_string() }
    }
}

/// Decides whether a message may be sent. `None` for a frame, otherwise the fields of the packet.
fn check_packet(
    service: &Rc<Service>,
    policy: &Policy,
    lease: &Rc<ServedLease>,
    closed: &ClosedFlows,
    bytes: &[u8],
    (cut, now): (bool, Instant),
) -> Result<Option<PacketInfo>, Refusal> {
    let grant = lease.grant();
    let mut usage = lease.usage().borrow_mut();
    // Packets that are refused before the policy is asked count towards the rate, too.
    let malformed = |usage: &mut Usage, sentence: &str| {
        let decision = policy.charge(&grant, usage, now);
        allowed(decision).err().unwrap_or(Refusal {
            code: Code::Malformed,
            decision: None,
            sentence: sentence.to_owned(),
        })
    };
    if cut {
        return Err(malformed(&mut usage, "the packet is longer than 65535 bytes"));
    }
    if lease.terms.protocol == "observe" {
        return Err(malformed(&mut usage, "this lease only observes; use a lease of ports to send"));
    }
    if lease.sends_frames() {
        let outgoing = PacketInfo::read_frame(bytes);
        let owner = outgoing.as_ref().and_then(|outgoing| {
            let local = SocketAddr::new(outgoing.source, outgoing.ports.source()?);
            owner(service, lease, outgoing.transport?, local)
        });
        let of_owner = owner.map(|owner| owner.grant().for_frames());
        let decision = policy.frame(of_owner.as_ref().unwrap_or(&grant), bytes, &mut usage, now);
        drop(usage);
        allowed(decision)?;
        if let Framed::Ip(packet) = framed(bytes) {
            begin_exchanges(service, policy, lease, closed, packet)?;
        }
        return Ok(None);
    }
    let Some(outgoing) = PacketInfo::read(bytes) else {
        return Err(malformed(&mut usage, "the packet's IP header and ports cannot be read"));
    };
    let decision = policy.packet(&grant, &outgoing, &mut usage, now);
    drop(usage);
    allowed(decision)?;
    begin_exchanges(service, policy, lease, closed, bytes)?;
    Ok(Some(outgoing))
}

fn allowed(decision: Decision) -> Result<(), Refusal> {
    match decision.is_allowed() {
        true => Ok(()),
        false => Err(decision.into()),
    }
}

/// The user's lease that owns the source port of a packet, and so receives the answers.
fn owner(service: &Service, lease: &ServedLease, transport: Transport, local: SocketAddr) -> Option<Rc<ServedLease>> {
    let owns = |other: &&Rc<ServedLease>| {
        let requested = other.terms.grant.requested();
        other.subject().user == lease.subject().user
            && Rc::ptr_eq(&other.attachment, &lease.attachment)
            && requested.transport == Some(transport)
            && requested.ports.contains(&local.port())
            && other.terms.address.is_none_or(|address| address == local.ip())
    };
    service.leases.borrow().values().find(owns).cloned()
}

/// Makes the peers that a packet is sent to those of the lease that owns its source port, before it is sent.
fn begin_exchanges(
    service: &Rc<Service>,
    policy: &Policy,
    lease: &Rc<ServedLease>,
    closed: &ClosedFlows,
    packet: &[u8],
) -> Result<(), Refusal> {
    for exchange in Exchange::of_packet(packet) {
        let owner = if lease.terms.grant.requested().transport == Some(exchange.transport) {
            None
        } else {
            owner(service, lease, exchange.transport, exchange.local)
        };
        let full = |sentence| Refusal { code: Code::NotSent, decision: None, sentence };
        let may_begin = |usage: &Usage| allowed(policy.flow(&lease.terms.grant, usage));
        let begin = || owner.as_ref().unwrap_or(lease).exchange(&exchange, &service.users.pools.flows, may_begin, full);
        match begin() {
            Err(Refusal { decision: Some(Decision { verdict: Verdict::Flows, .. }), .. })
                if closed.end(service, lease.account()) =>
            {
                begin()?;
            }
            begun => begun?,
        }
    }
    Ok(())
}

/// How often silent exchanges are ended.
const SILENCE_INTERVAL: Duration = Duration::from_secs(10);

/// Ends exchanges that have been silent for too long. Never returns.
pub(super) async fn end_silent_exchanges(service: Rc<Service>) {
    loop {
        sleep(SILENCE_INTERVAL).await;
        let leases: Vec<_> = service.leases.borrow().values().cloned().collect();
        for lease in leases {
            lease.end_silent();
            // Packets of clients are served between two leases.
            yield_now().await;
        }
    }
}
