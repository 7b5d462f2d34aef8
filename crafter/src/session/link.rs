//! An open interface of a session: its leased ports and its tap.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use crafter_common::reason::Reason;
use tokio::sync::Notify;

use super::{account::Reading, sniffer::Sniffer};
use crate::{
    Crafter, Lease, LeaseRequest,
    capture::Direction,
    datapath::{frames::FRAME_ROOM_TIMEOUT, maps::Counters, tap::TapOptions},
    driver::PortChoice,
    error::{Error, Result},
    packet::Transport,
    protocol::wire::{Account, AccountCall},
};

/// Ports chosen by the session that it keeps after use, for late replies.
const MAX_CHOSEN: usize = 256;

/// Ports leased by one call at most: through the service, a call takes as long as a reply.
const MAX_SPARE: u16 = 64;

/// How long the last references to a closed interface may take to be dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A leased port: of a transport, on an address.
pub(super) type PortKey = (Transport, IpAddr, u16);

/// An open interface.
pub(super) struct Link {
    pub(super) crafter: Crafter,
    pub(super) held: HashMap<PortKey, Arc<Lease>>,
    /// The held ports that the session chose, the most recently used last.
    chosen: VecDeque<PortKey>,
    /// Through the service: ports leased ahead of use.
    spare: HashMap<(Transport, IpAddr), SparePorts>,
    /// Receives replies to requests for which no port is leased.
    pub(super) tap: Option<Sniffer>,
}

/// Unused ports of one lease.
struct SparePorts {
    lease: Arc<Lease>,
    ports: Vec<u16>,
    /// Ports to lease by the next call.
    next: u16,
}

impl Link {
    pub(super) fn new(crafter: Crafter) -> Self {
        // No other sender shares this interface: wait for room rather than drop.
        crafter.set_room_timeout(FRAME_ROOM_TIMEOUT);
        Self { crafter, held: HashMap::new(), chosen: VecDeque::new(), spare: HashMap::new(), tap: None }
    }

    /// The interface's name.
    pub(super) fn name(&self) -> &str {
        &self.crafter.interface().name
    }

    /// Leases the port that `request` names, or chooses one. Returns the port, and the least recently used of the
    /// chosen ports if there are more than [`MAX_CHOSEN`]: the caller takes it out of `held`.
    pub(super) async fn lease(
        &mut self,
        request: LeaseRequest,
        address: IpAddr,
        arrived: &Arc<Notify>,
    ) -> Result<(u16, Option<PortKey>)> {
        let transport = request.transport;
        if let PortChoice::Exact(port) = request.port {
            let key = (transport, address, port);
            if !self.held.contains_key(&key) {
                let lease = self.crafter.lease_gathered(request, arrived.clone()).await?;
                self.held.insert(key, Arc::new(lease));
            } else if let Some(place) = self.chosen.iter().position(|chosen| *chosen == key) {
                let used = self.chosen.remove(place);
                self.chosen.extend(used);
            }
            return Ok((port, None));
        }
        let (lease, port) = if self.crafter.control().is_some() {
            self.take_spare(request, address, arrived).await?
        } else {
            let lease = self.crafter.lease_gathered(request, arrived.clone()).await?;
            let port = lease.port();
            (Arc::new(lease), port)
        };
        let key = (transport, address, port);
        self.held.insert(key, lease);
        self.chosen.push_back(key);
        let evicted = if self.chosen.len() > MAX_CHOSEN { self.chosen.pop_front() } else { None };
        Ok((port, evicted))
    }

    /// Takes a port of those leased ahead; leases more if there is none.
    async fn take_spare(
        &mut self,
        request: LeaseRequest,
        address: IpAddr,
        arrived: &Arc<Notify>,
    ) -> Result<(Arc<Lease>, u16)> {
        let key = (request.transport, address);
        let next = self.spare.get(&key).map_or(1, |spare| spare.next);
        if let Some(spare) = self.spare.get_mut(&key)
            && let Some(port) = spare.ports.pop()
        {
            return Ok((spare.lease.clone(), port));
        }
        let range = LeaseRequest { port: PortChoice::FreeRange(next), ..request.clone() };
        let lease = match self.crafter.lease_gathered(range, arrived.clone()).await {
            // More than the policy allows, or than there are consecutive free ones.
            Err(Error::Forbidden { .. } | Error::PortTaken { .. } | Error::NoFreePorts { .. }) if next > 1 => {
                self.crafter.lease_gathered(request, arrived.clone()).await?
            }
            lease => lease?,
        };
        let lease = Arc::new(lease);
        let mut ports = lease.ports().to_vec();
        let port = ports.pop().unwrap_or_else(|| lease.port());
        self.spare.insert(key, SparePorts { lease: lease.clone(), ports, next: (next * 4).min(MAX_SPARE) });
        Ok((lease, port))
    }

    /// Opens the tap, which captures everything received but TCP and UDP.
    pub(super) async fn open_tap(&mut self) -> Result<()> {
        if self.tap.is_none() {
            let filter = Some("not tcp and not udp".to_owned());
            let options = TapOptions { filter, direction: Some(Direction::In), ..TapOptions::default() };
            self.tap = Some(Sniffer::open(self.crafter.control().as_deref(), self.name(), &options).await?);
        }
        Ok(())
    }

    /// Reads the counters: those of the kernel half, or the service's for this user. The service counts all interfaces
    /// together; they are read for the `first` link only, and are 0 for the others.
    pub(super) async fn read_counters(&self, first: bool) -> Result<Reading> {
        let Some(control) = self.crafter.control() else {
            return Ok(Reading { counters: self.crafter.counters()?, stats: self.crafter.stats() });
        };
        let account = if first { control.call(&AccountCall {}).await? } else { Account::default() };
        let mut counted = vec![0; Reason::ALL.len()];
        counted[Reason::Redirected as usize] = account.delivered;
        counted[Reason::Crafted as usize] = account.sent;
        counted[Reason::RstSuppressed as usize] = account.suppressed;
        Ok(Reading { counters: Counters(counted), stats: self.crafter.stats() })
    }

    /// Gives the leases back and detaches.
    pub(super) async fn close(self) {
        let Self { crafter, held, spare, .. } = self;
        drop((held, spare));
        let name = crafter.interface().name.clone();
        if !crafter.close(CLOSE_TIMEOUT).await {
            log::warn!(
                "{name} is still in use {CLOSE_TIMEOUT:?} after the session was closed; its hooks are detached when this \
                 process exits"
            );
        }
    }
}
