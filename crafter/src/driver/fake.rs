//! A backend for tests: delivers what a test queues, and records what is sent.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use super::{
    backend::{Backend, NoRoom, Statistics, Transmitted, TxPacket},
    entry::{Delivery, LeaseId, Meta, Ports},
};
use crate::{
    datapath::maps::{Counters, Terms},
    error::{Error, Result},
};

/// The maximum number of deliveries of one drain.
const BATCH: usize = 64;

/// A queued delivery.
pub(super) enum Arrival {
    Packet(Vec<u8>, Meta),
    Suppressed(Vec<u8>, Meta),
    Malformed,
    Refused { quoted: Vec<u8>, rule: Option<u32>, sentence: &'static str },
    Ended { path: &'static str, reason: &'static str },
}

/// Inputs and records of the backend.
#[derive(Default)]
pub(super) struct Fake {
    /// Deliveries for the next drains.
    pub(super) arrivals: VecDeque<Arrival>,
    /// Packets from their IP header on, or frames, sent since the test last took them.
    pub(super) sent: Vec<Vec<u8>>,
    /// The leases that own ports.
    pub(super) owned: BTreeMap<LeaseId, (Ports, Terms)>,
    /// How many more packets find room; `None`: any number.
    pub(super) room: Option<usize>,
    /// How many leases may own ports; `None`: any number.
    pub(super) places: Option<usize>,
    /// The largest packet, where there is a limit.
    pub(super) mtu: Option<u32>,
    /// The interface was removed.
    pub(super) is_removed: bool,
    pub(super) statistics: Statistics,
    local: Vec<IpAddr>,
}

/// The backend. Clones share its state, so that a test keeps one.
#[derive(Clone, Default)]
pub(super) struct FakeBackend(Arc<Mutex<Fake>>);

impl FakeBackend {
    pub(super) fn lock(&self) -> MutexGuard<'_, Fake> {
        self.0.lock().unwrap()
    }
}

impl Fake {
    fn send(&mut self, bytes: &[u8]) -> Result<bool> {
        if self.mtu.is_some_and(|mtu| bytes.len() > mtu as usize) {
            return Err(Error::invalid("packet", "larger than the MTU"));
        }
        if self.is_removed {
            self.statistics.not_sent += 1;
            return Err(Error::UnknownInterface { name: "fake0".into() });
        }
        match &mut self.room {
            Some(0) => return Ok(false),
            Some(room) => *room -= 1,
            None => {}
        }
        self.statistics.sent += 1;
        self.sent.push(bytes.to_vec());
        Ok(true)
    }
}

impl Backend for FakeBackend {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted {
        let mut fake = self.lock();
        let before = fake.statistics;
        let (mut tried, mut error) = (packets.len(), None);
        for (index, packet) in packets.iter().enumerate() {
            let (TxPacket::Ip(_, bytes) | TxPacket::Frame(bytes)) = packet;
            match (fake.send(bytes), on_no_room) {
                (Ok(true), _) => {}
                (Ok(false), NoRoom::Refuse) => fake.statistics.not_sent += 1,
                (Ok(false), NoRoom::Stop) => {
                    tried = index;
                    break;
                }
                (Err(failed), _) => {
                    error.get_or_insert(failed);
                }
            }
        }
        let (sent, not_sent) = (fake.statistics.sent, fake.statistics.not_sent);
        Transmitted { sent: sent - before.sent, refused: not_sent - before.not_sent, tried, error }
    }

    fn drain(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) -> usize {
        let count = self.lock().arrivals.len().min(BATCH);
        let arrivals: Vec<Arrival> = self.lock().arrivals.drain(..count).collect();
        for arrival in &arrivals {
            let delivery = match arrival {
                Arrival::Packet(ip, meta) => Delivery::Packet(ip, *meta),
                Arrival::Suppressed(ip, meta) => Delivery::Suppressed(ip, *meta),
                Arrival::Malformed => Delivery::Malformed,
                Arrival::Refused { quoted, rule, sentence } => Delivery::Refused { quoted, rule: *rule, sentence },
                Arrival::Ended { path, reason } => Delivery::Ended { path, reason },
            };
            deliver(delivery);
        }
        count
    }

    fn own(&mut self, id: LeaseId, ports: &Ports, terms: Terms) -> Result<()> {
        let mut fake = self.lock();
        if fake.places.is_some_and(|places| fake.owned.len() >= places) {
            return Err(Error::invalid("port", "no room for more"));
        }
        fake.owned.insert(id, (ports.clone(), terms));
        Ok(())
    }

    fn disown(&mut self, id: LeaseId, ports: &Ports) {
        let owned = self.lock().owned.remove(&id);
        assert_eq!(owned.map(|(owned, _)| owned).as_ref(), Some(ports), "the owned ports are returned");
    }

    fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.lock().local = addresses.to_vec();
        Ok(())
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.lock().local.contains(&address)
    }

    fn set_mtu(&mut self, mtu: u32) {
        self.lock().mtu = Some(mtu);
    }

    fn set_room_timeout(&mut self, _timeout: Duration) {}

    fn counters(&self) -> Result<Counters> {
        Ok(Counters(Vec::new()))
    }

    fn statistics(&self) -> Statistics {
        self.lock().statistics
    }
}
