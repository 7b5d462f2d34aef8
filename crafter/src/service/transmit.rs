//! Sends the packets of leases: looks their routes up, and keeps those that find no room.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use tokio::{
    task::{spawn_local, yield_now},
    time::sleep,
};

use super::{
    backlog::{Packet, RouteKey},
    dispatch::PACKET_COST,
    fair_queue::{FairQueue, Turn},
    served_lease::ServedLease,
    shares::WaitingBytes,
};
use crate::{
    Error,
    driver::{NoRoom, ROOM_RETRY_DELAY, TxPacket},
    protocol::record::Code,
};

/// The maximum number of packets that wait for one next hop.
const MAX_WAITING: usize = 256;

/// Cost that a user may cause in a round on a full link, in bytes with [`PACKET_COST`]: about two packets, so that
/// shares of a slow link are fair within a few packets.
const LINK_QUANTUM: u64 = 2 * (PACKET_COST + 1500);

/// Cost, in bytes, after which a round of retries ends so that other tasks run.
const MAX_ROUND: u64 = 64 * LINK_QUANTUM;

/// Packets of one lease that are retried in one turn.
const RETRIED: usize = 8;

/// Leases with a backlog on one interface.
struct Backlogged {
    queue: FairQueue<Rc<ServedLease>>,
    /// Whether the link had no room for the latest packet. Otherwise, packets wait for next hops only, which delays no
    /// other lease.
    is_link_full: bool,
}

/// Sends packets, and holds those whose next hop is being looked up, by interface index and route.
#[derive(Default)]
pub(super) struct Transmitter {
    /// The leases with a backlog, by interface index.
    backlogged: RefCell<HashMap<u32, Backlogged>>,
    waiting: RefCell<HashMap<(u32, RouteKey), Vec<Waiting>>>,
}

struct Waiting {
    lease: Rc<ServedLease>,
    packet: Vec<u8>,
    _bytes: WaitingBytes,
}

impl Transmitter {
    /// Sends packets of one lease, and relays replies that have arrived. If the transmit queue is full, the first
    /// packet without room and all packets after it are added to the lease's backlog. While leases with a backlog wait
    /// for a full link, all packets are added to the backlog, so that these leases are not overtaken.
    pub(super) fn transmit(self: &Rc<Self>, lease: &Rc<ServedLease>, packets: &[Packet<&[u8]>]) {
        let is_free = lease.backlog.borrow().is_empty() && !self.is_full(lease);
        let (tried, is_link_full) = if is_free { self.send(lease, packets, NoRoom::Stop) } else { (0, false) };
        if tried < packets.len() {
            lease.keep(&packets[tried..]);
            self.retry_later(lease, is_link_full);
        }
    }

    fn is_full(&self, lease: &ServedLease) -> bool {
        let link = lease.attachment.interface().ifindex;
        self.backlogged.borrow().get(&link).is_some_and(|backlogged| backlogged.is_link_full)
    }

    /// Sends the backlog of a lease that ends; packets without room are refused and not retried.
    pub(super) fn give_up(self: &Rc<Self>, lease: &Rc<ServedLease>) {
        let backlog = lease.backlog.take();
        self.send(lease, &backlog.packets(), NoRoom::Refuse);
    }

    /// Schedules the backlog of a lease to be sent, in turn with others on the same interface.
    fn retry_later(self: &Rc<Self>, lease: &Rc<ServedLease>, is_link_full: bool) {
        if lease.backlog.borrow().is_empty() || lease.is_queued.replace(true) {
            return;
        }
        let link = lease.attachment.interface().ifindex;
        let mut all = self.backlogged.borrow_mut();
        let is_new = !all.contains_key(&link);
        let none = || Backlogged { queue: FairQueue::new(LINK_QUANTUM), is_link_full: false };
        let backlogged = all.entry(link).or_insert_with(none);
        backlogged.queue.push(lease.account(), lease.clone());
        backlogged.is_link_full |= is_link_full;
        drop(all);
        if is_new {
            let transmitter = self.clone();
            spawn_local(async move {
                let mut delay = ROOM_RETRY_DELAY;
                loop {
                    if delay.is_zero() {
                        yield_now().await;
                    } else {
                        sleep(delay).await;
                    }
                    match transmitter.retry_round(link) {
                        Some(next) => delay = next,
                        None => break,
                    }
                }
            });
        }
    }

    /// Sends backlogs of one interface in turn, until its link is full again. Returns the delay until the next round;
    /// `None` when there are no more.
    fn retry_round(self: &Rc<Self>, link: u32) -> Option<Duration> {
        let mut delay = ROOM_RETRY_DELAY;
        // Leases that wait for a next hop are put back after the round, so that each is tried once.
        let mut set_aside = Vec::new();
        let (mut spent, mut is_full) = (0, false);
        loop {
            let turn = self.backlogged.borrow_mut().get_mut(&link).and_then(|backlogged| backlogged.queue.next());
            let Some(Turn { user, member: lease }) = turn else { break };
            delay = lease.backlog.borrow().retry_delay();
            let (cost, is_link_full) = self.retry(&lease);
            spent += cost;
            is_full = is_link_full;
            if let Some(backlogged) = self.backlogged.borrow_mut().get_mut(&link) {
                backlogged.queue.charge(user, cost);
            }
            if lease.backlog.borrow().is_empty() {
                lease.is_queued.set(false);
                lease.notify_sent();
                continue;
            }
            let is_stuck = cost == 0 && !is_link_full;
            if is_stuck {
                set_aside.push(lease);
            } else if let Some(backlogged) = self.backlogged.borrow_mut().get_mut(&link) {
                backlogged.queue.push(user, lease);
            }
            if is_link_full {
                break;
            }
            if spent > MAX_ROUND {
                // `is_full`, although the link has room: new packets must not overtake the leases in the queue.
                (delay, is_full) = (Duration::ZERO, true);
                break;
            }
        }
        let mut all = self.backlogged.borrow_mut();
        let backlogged = all.get_mut(&link)?;
        backlogged.is_link_full = is_full;
        set_aside.into_iter().for_each(|lease| backlogged.queue.push(lease.account(), lease));
        if backlogged.queue.is_empty() {
            all.remove(&link);
            return None;
        }
        Some(delay)
    }

    /// Sends a few packets of a backlog. Returns what they cost, and whether the link is full.
    fn retry(self: &Rc<Self>, lease: &Rc<ServedLease>) -> (u64, bool) {
        let backlog = lease.backlog.take();
        let Some(on_no_room) = backlog.no_room() else { return (0, false) };
        let packets = backlog.packets();
        let few = &packets[..packets.len().min(RETRIED)];
        let (tried, is_link_full) = self.send(lease, few, on_no_room);
        let cost = packets[..tried].iter().map(|packet| PACKET_COST + packet.len() as u64).sum();
        drop(packets);
        let rest = backlog.without(tried);
        // Packets that were added to the backlog during the retry were sent by the client later.
        let kept = lease.backlog.replace(rest);
        lease.backlog.borrow_mut().append(kept);
        (cost, is_link_full)
    }

    /// Returns how many packets were tried (all, if the interface is being detached), and whether the link has no room
    /// for the next one.
    fn send(self: &Rc<Self>, lease: &Rc<ServedLease>, packets: &[Packet<&[u8]>], on_no_room: NoRoom) -> (usize, bool) {
        let attachment = &lease.attachment;
        let Ok(crafter) = attachment.crafter() else { return (packets.len(), false) };
        let (mut done, mut is_link_full) = (0, false);
        while let Some(packet) = packets.get(done) {
            let routed: Vec<_> = packets[done..].iter().map_while(|packet| routed(lease, packet)).collect();
            if routed.is_empty() {
                let Packet::Unrouted(key, bytes) = packet else { break };
                match (self.send_later(lease, *key, bytes), on_no_room) {
                    (true, _) => {}
                    (false, NoRoom::Stop) => break,
                    (false, NoRoom::Refuse) => {
                        let sentence =
                            format!("too many packets already wait for next hops; send to {} more slowly", key.0);
                        lease.refuse(Code::NoNeighbour, 0, &sentence, bytes);
                    }
                }
                done += 1;
                continue;
            }
            let outgoing = routed.iter().filter_map(|packet| match packet {
                Packet::Routed(route, bytes) => Some(TxPacket::Ip(route, bytes)),
                Packet::Frame(bytes) => Some(TxPacket::Frame(bytes)),
                Packet::Unrouted(..) => None,
            });
            let sent = crafter.transmit_or(outgoing, on_no_room);
            lease.handle_sent(&routed[..sent.tried], &sent);
            done += sent.tried;
            if sent.tried < routed.len() {
                is_link_full = true;
                break;
            }
        }
        drop(crafter);
        attachment.relay();
        (done, is_link_full)
    }

    /// Looks up the route of a packet, and sends the packet then. `false` if too many packets wait for the route already.
    fn send_later(self: &Rc<Self>, lease: &Rc<ServedLease>, key: RouteKey, packet: &[u8]) -> bool {
        let attachment = &lease.attachment;
        let place = (attachment.interface().ifindex, key);
        if !self.waiting.borrow().contains_key(&place) && !attachment.can_look_up(lease.account()) {
            return false;
        }
        let Some(bytes) = lease.begin_waiting(packet.len()) else { return false };
        let mut waiting = self.waiting.borrow_mut();
        let is_new = !waiting.contains_key(&place);
        let queue = waiting.entry(place).or_default();
        if queue.len() >= MAX_WAITING {
            lease.end_waiting(1);
            return false;
        }
        queue.push(Waiting { lease: lease.clone(), packet: packet.to_vec(), _bytes: bytes });
        drop(waiting);
        if is_new {
            let (transmitter, attachment, user) = (self.clone(), attachment.clone(), lease.account());
            spawn_local(async move {
                let found = attachment.find_route(user, key).await;
                let mut queue = transmitter.waiting.borrow_mut().remove(&place).unwrap_or_default();
                // One run per lease; the sort is stable, so each keeps its order.
                queue.sort_by_key(|waiting| Rc::as_ptr(&waiting.lease));
                for run in queue.chunk_by(|a, b| Rc::ptr_eq(&a.lease, &b.lease)) {
                    let lease = &run[0].lease;
                    let packets = run.iter().map(|waiting| &waiting.packet[..]);
                    match &found {
                        Ok(route) => {
                            let packets: Vec<_> = packets.map(|bytes| Packet::Routed(route.clone(), bytes)).collect();
                            let is_free = !transmitter.is_full(lease);
                            let (tried, is_link_full) =
                                if is_free { transmitter.send(lease, &packets, NoRoom::Stop) } else { (0, false) };
                            // The client sent them before the packets in the backlog.
                            lease.keep_first(&packets[tried..]);
                            transmitter.retry_later(lease, is_link_full);
                        }
                        Err(error) => {
                            let sentence = error.to_string();
                            packets.for_each(|packet| lease.refuse(code(error), 0, &sentence, packet));
                        }
                    }
                    lease.end_waiting(run.len());
                }
            });
        }
        true
    }
}

/// The packet with its route, if that is cached.
fn routed<'p>(lease: &ServedLease, packet: &Packet<&'p [u8]>) -> Option<Packet<&'p [u8]>> {
    Some(match packet {
        Packet::Unrouted(key, bytes) => Packet::Routed(lease.attachment.known_route(lease.account(), *key)?, bytes),
        Packet::Routed(route, bytes) => Packet::Routed(route.clone(), bytes),
        Packet::Frame(bytes) => Packet::Frame(bytes),
    })
}

/// The code of a refusal for a route that was not found.
fn code(error: &Error) -> Code {
    match error {
        Error::NoNeighbour { .. } => Code::NoNeighbour,
        Error::UnknownInterface { .. } => Code::InterfaceRemoved,
        Error::NoRoute { .. } | Error::Invalid { .. } => Code::NoRoute,
        _ => Code::NotSent,
    }
}
