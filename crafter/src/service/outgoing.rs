//! Packets from clients: compares each with its lease and the policy, and sends or refuses it.

use std::{io, os::fd::AsFd as _, rc::Rc, time::Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{backlog::Packet, records, served_lease::ServedLease, state::Service};
use crate::{
    mmsg::Inbox,
    packet::PacketPorts,
    policy::{Decision, Grant, PacketInfo, Policy, Verdict},
    protocol::record::Code,
};

/// The result of reading a lease's socket.
enum ReadOutcome {
    /// A full batch; more packets may wait.
    More,
    /// No further packets wait.
    WouldBlock,
    /// The client closed the socket.
    Closed,
}

/// Sends the packets of a lease's client until the client closes its socket or the lease is ended. While packets wait
/// for room, nothing more is read: the client's socket fills, which holds the client back. Packets that were sent before
/// the socket was closed are still sent.
pub(super) async fn run(service: Rc<Service>, lease: Rc<ServedLease>) {
    let mut is_closed = false;
    loop {
        let (no_room, delay) = (lease.backlog.borrow().no_room(), lease.backlog.borrow().retry_delay());
        if let Some(no_room) = no_room {
            tokio::select! {
                biased;
                () = lease.ended() => break,
                () = tokio::time::sleep(delay) => service.transmitter.retry(&lease, no_room),
            }
            service.note_activity();
            continue;
        }
        if is_closed {
            if !lease.has_unsent() {
                break;
            }
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
        match take(&service, &lease) {
            ReadOutcome::More => {}
            ReadOutcome::WouldBlock => guard.clear_ready(),
            ReadOutcome::Closed => is_closed = true,
        }
        drop(guard);
        // Other tasks run.
        tokio::task::yield_now().await;
    }
    service.forget(&lease);
}

/// Leases whose clients have closed their sockets.
pub(super) enum Closed {
    /// At least one was ended.
    Ended,
    /// None was ended, but at least one of the user ends as soon as its last packets are sent.
    Draining,
    /// There is none.
    None,
}

/// Ends the leases whose clients have closed their sockets, before their own tasks do; sends their remaining packets
/// first.
pub(super) fn end_closed(service: &Rc<Service>, user: u32) -> Closed {
    let leases: Vec<_> = service.leases.borrow().values().cloned().collect();
    let mut sockets: Vec<_> =
        leases.iter().map(|lease| PollFd::new(lease.socket.get_ref().as_fd(), PollFlags::empty())).collect();
    // One system call for all: a client that is refused in a loop must not slow down the others.
    if poll(&mut sockets, PollTimeout::ZERO).is_err() {
        return Closed::None;
    }
    let is_closed = |socket: &PollFd<'_>| socket.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
    let closed = leases.iter().zip(&sockets).filter(|(_, socket)| is_closed(socket));
    let mut outcome = Closed::None;
    for (lease, _) in closed {
        while matches!(take(service, lease), ReadOutcome::More) {}
        // Otherwise its own task ends the lease after its packets are sent.
        if !lease.has_unsent() {
            service.forget(lease);
            outcome = Closed::Ended;
        } else if lease.subject().user == user && matches!(outcome, Closed::None) {
            outcome = Closed::Draining;
        }
    }
    outcome
}

/// Reads and sends at most a batch.
fn take(service: &Rc<Service>, lease: &Rc<ServedLease>) -> ReadOutcome {
    let mut inbox = service.inbox.borrow_mut();
    let is_all = match lease.socket.get_ref().receive_messages(&mut inbox) {
        Ok(None) => return ReadOutcome::Closed,
        Ok(Some(count)) => count < Inbox::MOST,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return ReadOutcome::WouldBlock,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return ReadOutcome::More,
        Err(_) => return ReadOutcome::Closed,
    };
    let policy = service.policy();
    let now = Instant::now();
    let mut packets = Vec::with_capacity(64);
    for (bytes, cut) in inbox.messages() {
        match check_packet(service, &policy, lease, bytes, cut, now) {
            Err(Refusal { code, decision, sentence }) => {
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
                let own = lease.terms.grant.sources().binary_search(&outgoing.source.to_canonical()).is_ok();
                let source = own.then_some(outgoing.source);
                packets.push(Packet::Unrouted((outgoing.destination, source), bytes));
            }
        }
    }
    if !packets.is_empty() {
        service.transmitter.transmit(lease, &packets);
    }
    service.note_activity();
    // New packets make the socket readable again.
    if is_all { ReadOutcome::WouldBlock } else { ReadOutcome::More }
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
    service: &Service,
    policy: &Policy,
    lease: &Rc<ServedLease>,
    bytes: &[u8],
    cut: bool,
    now: Instant,
) -> Result<Option<PacketInfo>, Refusal> {
    let malformed = |sentence: String| Refusal { code: Code::Malformed, decision: None, sentence };
    if cut {
        return Err(malformed("the packet is longer than 65535 bytes".to_owned()));
    }
    if lease.terms.protocol == "observe" {
        return Err(malformed("this lease only observes; use a lease of ports to send".to_owned()));
    }
    let mut usage = lease.usage().borrow_mut();
    if lease.sends_frames() {
        let outgoing = PacketInfo::read_frame(bytes);
        let grant = outgoing.as_ref().and_then(|outgoing| borrowed(service, lease, outgoing));
        let decision = policy.frame(grant.as_ref().unwrap_or(&lease.terms.grant), bytes, &mut usage, now);
        drop(usage);
        allowed(decision)?;
        if let Some(outgoing) = &outgoing {
            flow(policy, lease, outgoing, now)?;
        }
        return Ok(None);
    }
    let Some(outgoing) = PacketInfo::read(bytes) else {
        return Err(malformed("the packet's IP header and ports cannot be read".to_owned()));
    };
    let decision = policy.packet(&lease.terms.grant, &outgoing, &mut usage, now);
    drop(usage);
    allowed(decision)?;
    flow(policy, lease, &outgoing, now)?;
    Ok(Some(outgoing))
}

fn allowed(decision: Decision) -> Result<(), Refusal> {
    match decision.is_allowed() {
        true => Ok(()),
        false => Err(decision.into()),
    }
}

/// The grant of the user's lease that owns the source port of a frame, extended to frames.
fn borrowed(service: &Service, lease: &ServedLease, outgoing: &PacketInfo) -> Option<Grant> {
    let transport = outgoing.transport?;
    let port = outgoing.ports.source()?;
    let owns = |other: &&Rc<ServedLease>| {
        let requested = other.terms.grant.requested();
        other.subject().user == lease.subject().user
            && Rc::ptr_eq(&other.attachment, &lease.attachment)
            && requested.transport == Some(transport)
            && requested.ports.contains(&port)
            && other.terms.address.is_none_or(|address| address == outgoing.source)
    };
    Some(service.leases.borrow().values().find(owns)?.terms.grant.for_frames())
}

/// Counts the packet's flow, if it has ports.
fn flow(policy: &Policy, lease: &ServedLease, outgoing: &PacketInfo, now: Instant) -> Result<(), Refusal> {
    let PacketPorts::Both { source, destination } = outgoing.ports else { return Ok(()) };
    lease
        .flow((outgoing.destination, destination, source), now, |usage| allowed(policy.flow(&lease.terms.grant, usage)))
}
