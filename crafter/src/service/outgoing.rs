//! What clients send: each packet compared with its lease and the policy, then sent or refused.

use std::{io, os::fd::AsFd as _, rc::Rc, time::Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{backlog::Packet, records, served_lease::ServedLease, state::Service};
use crate::{
    mmsg::Inbox,
    packet::PacketPorts,
    policy::{Decision, Grant, PacketInfo, Policy, Verdict},
    protocol::record::Code,
};

/// What came of looking at a lease's socket.
enum ReadOutcome {
    /// So many packets; more may be there.
    More,
    /// Nothing more is there for now.
    WouldBlock,
    /// The client has closed it.
    Closed,
}

/// Sends what the client of `lease` sends, until it closes its end or the lease is ended. What the kernel has no room for
/// goes first; meanwhile the client's socket fills, and the client is held back in its turn.
pub(super) async fn run(service: Rc<Service>, lease: Rc<ServedLease>) {
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
            ReadOutcome::Closed => break,
        }
        drop(guard);
        // Others get their turn.
        tokio::task::yield_now().await;
    }
    service.forget(&lease);
}

/// Ends the leases whose clients have closed them, which their own tasks are about to notice; what was sent before is
/// still sent. Whether there was one.
pub(super) fn end_closed(service: &Rc<Service>) -> bool {
    let leases: Vec<_> = service.leases.borrow().values().cloned().collect();
    let mut sockets: Vec<_> =
        leases.iter().map(|lease| PollFd::new(lease.socket.get_ref().as_fd(), PollFlags::empty())).collect();
    // One call for all: whoever is refused in a loop must not cost the others much.
    if poll(&mut sockets, PollTimeout::ZERO).is_err() {
        return false;
    }
    let is_closed = |socket: &PollFd<'_>| socket.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
    let closed = leases.iter().zip(&sockets).filter(|(_, socket)| is_closed(socket));
    let mut has_ended = false;
    for (lease, _) in closed {
        while matches!(take(service, lease), ReadOutcome::More) {}
        // Otherwise its own task ends it, once all is sent.
        if lease.backlog.borrow().is_empty() {
            service.forget(lease);
            has_ended = true;
        }
    }
    has_ended
}

/// Takes what is there, at most a batch.
fn take(service: &Rc<Service>, lease: &Rc<ServedLease>) -> ReadOutcome {
    let mut inbox = service.inbox.borrow_mut();
    let is_all = match inbox.receive(lease.socket.get_ref()) {
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
        match judge(service, &policy, lease, bytes, cut, now) {
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
                // A route asked for with an address that is not the host's would be none.
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
    // What comes from now on makes the socket ready anew.
    if is_all { ReadOutcome::WouldBlock } else { ReadOutcome::More }
}

struct Refusal {
    code: Code,
    /// The policy's, if it is that which refuses.
    decision: Option<Decision>,
    sentence: String,
}

impl From<Decision> for Refusal {
    fn from(decision: Decision) -> Self {
        let code = if decision.verdict == Verdict::Rate { Code::Rate } else { Code::Policy };
        Self { code, decision: Some(decision), sentence: decision.to_string() }
    }
}

/// Whether a message may be sent; what it is, if it is an IP packet.
fn judge(
    service: &Service,
    policy: &Policy,
    lease: &Rc<ServedLease>,
    bytes: &[u8],
    cut: bool,
    now: Instant,
) -> Result<Option<PacketInfo>, Refusal> {
    let malformed = |sentence: String| Refusal { code: Code::Malformed, decision: None, sentence };
    if cut {
        return Err(malformed("it is longer than any packet".to_owned()));
    }
    if lease.terms.protocol == "observe" {
        return Err(malformed("nothing is sent where packets are observed".to_owned()));
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
        return Err(malformed("its IP header and ports cannot be read".to_owned()));
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

/// Frames of TCP, UDP and ICMP come from ports of other leases of the same user: their grant, for frames.
fn borrowed(service: &Service, lease: &ServedLease, outgoing: &PacketInfo) -> Option<Grant> {
    let transport = outgoing.transport?;
    let port = outgoing.ports.source()?;
    let owns = |other: &&Rc<ServedLease>| {
        let wish = other.terms.grant.wish();
        other.subject().user == lease.subject().user
            && Rc::ptr_eq(&other.attachment, &lease.attachment)
            && wish.transport == Some(transport)
            && wish.ports.contains(&port)
            && other.terms.address.is_none_or(|address| address == outgoing.source)
    };
    Some(service.leases.borrow().values().find(owns)?.terms.grant.for_frames())
}

/// Counts the packet's flow, if it is one.
fn flow(policy: &Policy, lease: &ServedLease, outgoing: &PacketInfo, now: Instant) -> Result<(), Refusal> {
    let PacketPorts::Both { source, destination } = outgoing.ports else { return Ok(()) };
    lease
        .flow((outgoing.destination, destination, source), now, |usage| allowed(policy.flow(&lease.terms.grant, usage)))
}
