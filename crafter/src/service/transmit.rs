//! Sends the packets of leases: looks their routes up, and keeps those that find no room.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use tokio::task::spawn_local;

use super::{
    backlog::{Packet, RouteKey},
    served_lease::ServedLease,
    shares::WaitingBytes,
};
use crate::{
    Error,
    driver::{NoRoom, TxPacket},
    protocol::record::Code,
};

/// The most packets that wait for one next hop.
const MAX_WAITING: usize = 256;

/// Sends packets, and holds those whose next hop is being looked up, by interface index and route.
#[derive(Default)]
pub(super) struct Transmitter {
    waiting: RefCell<HashMap<(u32, RouteKey), Vec<Waiting>>>,
}

struct Waiting {
    lease: Rc<ServedLease>,
    packet: Vec<u8>,
    _bytes: WaitingBytes,
}

impl Transmitter {
    /// Sends packets of one lease, and relays at once what arrived meanwhile. The first packet without room and all
    /// behind it go to the lease's backlog.
    pub(super) fn transmit(self: &Rc<Self>, lease: &Rc<ServedLease>, packets: &[Packet<&[u8]>]) {
        let tried = if lease.backlog.borrow().is_empty() { self.send(lease, packets, NoRoom::Stop) } else { 0 };
        if tried < packets.len() {
            lease.keep(&packets[tried..]);
        }
    }

    /// Sends the backlog of a lease again.
    pub(super) fn retry(self: &Rc<Self>, lease: &Rc<ServedLease>, on_no_room: NoRoom) {
        let backlog = lease.backlog.take();
        let tried = self.send(lease, &backlog.packets(), on_no_room);
        lease.backlog.replace(backlog.without(tried));
    }

    /// How many of the packets were tried; all if the interface is being detached.
    fn send(self: &Rc<Self>, lease: &Rc<ServedLease>, packets: &[Packet<&[u8]>], on_no_room: NoRoom) -> usize {
        let attachment = &lease.attachment;
        let Ok(crafter) = attachment.crafter() else { return packets.len() };
        let mut done = 0;
        while let Some(packet) = packets.get(done) {
            let routed: Vec<_> = packets[done..].iter().map_while(|packet| routed(lease, packet)).collect();
            if routed.is_empty() {
                let Packet::Unrouted(key, bytes) = packet else { break };
                match (self.send_later(lease, *key, bytes), on_no_room) {
                    (true, _) => {}
                    (false, NoRoom::Stop) => break,
                    (false, NoRoom::Refuse) => {
                        let sentence =
                            format!("too many packets already wait for next hops; the one to {} did not", key.0);
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
                break;
            }
        }
        drop(crafter);
        attachment.relay();
        done
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
                            let tried = transmitter.send(lease, &packets, NoRoom::Stop);
                            // The client sent them before the packets in the backlog.
                            lease.keep_first(&packets[tried..]);
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
