//! The state behind the driver's lock: the table, and the backend. The core executes the table's commands.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    task::{Poll, Waker},
    time::Instant,
};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::{
    backend::{Backend, NoRoom, ServiceCalls, Transmitted, TxPacket},
    commands::Commands,
    entry::{LeaseId, LeaseState, Ports, Received, Stats, StreamId, Waiter},
    table::Table,
};
use crate::{
    datapath::{maps::Terms, reserve::Reservation},
    engine::{StreamEngine, StreamState},
    error::Result,
};

/// An object that is kept alive until a stream ends.
pub(crate) type KeepAlive = Arc<dyn Send + Sync>;

pub(crate) struct Core {
    pub(crate) table: Table,
    pub(super) backend: Box<dyn Backend>,
    /// Handles of each lease, which the table does not need.
    leases: HashMap<LeaseId, LeaseHandles>,
    /// The leases of streams without an owner.
    orphans: HashMap<StreamId, KeepAlive>,
    /// Leases of finished streams. Dropping one may take the driver's lock, so the holder drops them after unlocking.
    released: Vec<KeepAlive>,
    /// Notified when the interface is removed, even if nothing is leased.
    watcher: Option<Arc<Notify>>,
    /// Empty between two calls, and kept for its memory.
    commands: Commands,
    /// The deadline that the driver task sleeps for.
    armed: Option<Instant>,
}

/// Whom to notify of packets for a lease, and what reserves its ports.
pub(crate) struct LeaseHandles {
    /// Notified of each packet.
    pub(crate) arrived: Arc<Notify>,
    /// Packets are gathered together with those of other leases.
    pub(crate) gathered: bool,
    /// Empty if the service holds the ports.
    pub(crate) reservations: Vec<Reservation>,
}

impl Core {
    /// Makes a core without leases. With `accept_partial`, checksums may be partial, as on virtual devices.
    pub(crate) fn new(backend: impl Backend + 'static, accept_partial: bool) -> Self {
        Self {
            table: Table::new(accept_partial),
            backend: Box::new(backend),
            leases: HashMap::new(),
            orphans: HashMap::new(),
            released: Vec::new(),
            watcher: None,
            commands: Commands::default(),
            armed: None,
        }
    }

    /// The operations of the service, if the backend is one.
    pub(crate) fn service(&mut self) -> Option<&mut dyn ServiceCalls> {
        self.backend.as_service()
    }

    /// Adds a lease: packets for its ports are queued from now on.
    ///
    /// # Errors
    /// Those of [`Backend::own`].
    #[cfg(test)]
    pub(crate) fn add_lease(&mut self, id: LeaseId, ports: Ports, terms: Terms, handles: LeaseHandles) -> Result<()> {
        self.own(id, &ports, terms)?;
        self.list_lease(id, ports, handles);
        Ok(())
    }

    /// Lists a lease, so that no other lease gets its ports. Its packets are queued after [`own`](Self::own).
    pub(crate) fn list_lease(&mut self, id: LeaseId, ports: Ports, handles: LeaseHandles) {
        self.table.add_lease(id, LeaseState::new(ports, handles.gathered));
        self.leases.insert(id, handles);
    }

    /// Queues packets for these ports of a lease from now on.
    ///
    /// # Errors
    /// Those of [`Backend::own`]; none of these ports is owned then.
    pub(crate) fn own(&mut self, id: LeaseId, ports: &Ports, terms: Terms) -> Result<()> {
        self.backend.own(id, ports, terms)
    }

    /// Returns these ports of a lease to the backend.
    pub(crate) fn disown(&mut self, id: LeaseId, ports: &Ports) {
        self.backend.disown(id, ports);
    }

    /// Removes a lease from the list, after its ports were returned in the backend. The caller unlocks the core and
    /// then drops the result, which frees the ports.
    pub(crate) fn unlist_lease(&mut self, id: LeaseId) -> Option<LeaseHandles> {
        self.table.remove_lease(id);
        self.leases.remove(&id)
    }

    /// Removes a lease, and returns its ports: first in the backend, then the reservations.
    #[cfg(test)]
    pub(crate) fn remove_lease(&mut self, id: LeaseId) {
        if let Some(ports) = self.table.lease(id).map(|lease| lease.ports.clone()) {
            self.disown(id, &ports);
        }
        self.unlist_lease(id);
    }

    /// Received packets for a lease that it does not get, because its share of a queue was full.
    pub(crate) fn lost(&mut self, id: LeaseId) -> u64 {
        let overflow = self.table.lease(id).map_or(0, |lease| lease.overflow);
        self.backend.lost(id) + overflow
    }

    /// The next packet of a lease, if there is one.
    pub(crate) fn receive(&mut self, now: Instant, id: LeaseId) -> Option<Received> {
        if let Some(received) = self.table.lease(id)?.pop() {
            return Some(received);
        }
        // The reply to a packet just sent has arrived already on most paths.
        self.drain(now);
        self.table.lease(id)?.pop()
    }

    /// Calls `act` with a stream's engine, sends the resulting segments, and registers the waker if `act` is pending.
    pub(crate) fn poll_stream<T>(
        &mut self,
        now: Instant,
        id: StreamId,
        waiter: Waiter,
        waker: &Waker,
        act: impl FnOnce(&mut StreamEngine) -> Poll<T>,
    ) -> Poll<T> {
        // Segments that arrived meanwhile are acknowledged first.
        self.drain(now);
        let Some(stream) = self.table.stream(id) else {
            return Poll::Pending;
        };
        // The task is awake.
        *stream.waiter(waiter) = None;
        let done = act(&mut stream.engine);
        // A waiting reader must be notified when the writer closes the connection.
        stream.stirred |= waiter == Waiter::Writer && done.is_ready();
        self.table.touch(id);
        self.execute(now);
        if done.is_pending()
            && let Some(stream) = self.table.stream(id)
        {
            *stream.waiter(waiter) = Some(waker.clone());
        }
        done
    }

    /// Releases a stream whose handle was dropped. It closes in the background, or is reset if it was not shut down,
    /// and keeps `lease` until it is finished.
    pub(crate) fn release_stream(&mut self, now: Instant, id: StreamId, lease: KeepAlive) {
        let Some(stream) = self.table.stream(id) else { return };
        if !matches!(stream.engine.state(), StreamState::Closing | StreamState::TimeWait | StreamState::Closed) {
            stream.engine.abort(now);
        }
        self.orphans.insert(id, lease);
        self.table.release_stream(now, id);
        self.execute(now);
    }

    /// Removes the streams that close in the background: the driver task has ended. Sends nothing.
    pub(crate) fn give_up_orphans(&mut self) {
        self.table.give_up_orphans();
        self.released.extend(self.orphans.drain().map(|(_, lease)| lease));
    }

    /// Leases of finished streams, to be dropped after unlocking.
    pub(crate) fn take_released(&mut self) -> Vec<KeepAlive> {
        std::mem::take(&mut self.released)
    }

    /// Notifies `watcher` when the interface is removed.
    pub(crate) fn watch(&mut self, watcher: Arc<Notify>) {
        if self.table.is_over() {
            watcher.notify_one();
        }
        self.watcher = Some(watcher);
    }

    /// Passes a batch of replies to their leases and streams, sends the resulting segments, and returns the number of
    /// replies.
    pub(crate) fn drain(&mut self, now: Instant) -> usize {
        let Self { backend, table, .. } = self;
        let count = backend.drain(&mut |delivery| table.handle_delivery(now, delivery));
        if count > 0 {
            self.execute(now);
        }
        count
    }

    /// Handles expired deadlines.
    pub(crate) fn handle_timeouts(&mut self, now: Instant) {
        self.table.handle_timeouts(now);
        self.execute(now);
    }

    /// Handles a change of addresses and of the interface's MTU; `None`: the interface was removed.
    pub(crate) fn handle_addresses(&mut self, now: Instant, addresses: &[IpAddr], mtu: Option<u32>) {
        // Fails only if the map is full; the previous addresses remain in force then.
        if let Err(e) = self.backend.set_local(addresses) {
            log::warn!("{e}");
        }
        match mtu {
            Some(mtu) => self.backend.set_mtu(mtu),
            None => {
                self.table.handle_link_removed(now);
                self.execute(now);
            }
        }
    }

    /// Executes the table's commands: sends segments, wakes and notifies waiting tasks, and releases finished streams.
    pub(crate) fn execute(&mut self, now: Instant) {
        loop {
            let more = self.table.poll_commands(now, &mut self.commands);
            self.notify();
            let released = self.commands.release.drain(..).filter_map(|id| self.orphans.remove(&id));
            self.released.extend(released);
            // A failure may end the streams.
            if !self.transmit(now) && !more {
                break;
            }
        }
    }

    fn notify(&mut self) {
        let Commands { wake, arrived, end, .. } = &mut self.commands;
        wake.drain(..).for_each(Waker::wake);
        for (id, count) in arrived.drain(..) {
            if let Some(lease) = self.leases.get(&id) {
                // Several tasks may wait; each takes one packet.
                (0..count).for_each(|_| lease.arrived.notify_one());
            }
        }
        if std::mem::take(end) {
            for lease in self.leases.values() {
                lease.arrived.notify_waiters();
                lease.arrived.notify_one();
            }
            if let Some(watcher) = &self.watcher {
                watcher.notify_one();
            }
        }
    }

    /// Sends the segments of the streams; `true` if that failed. A segment that could not be sent counts as lost in the
    /// network, unless the interface was removed.
    fn transmit(&mut self, now: Instant) -> bool {
        let outbox = &mut self.commands.outbox;
        if outbox.len() == 0 {
            return false;
        }
        let packets: SmallVec<[TxPacket<'_>; 8]> = outbox.iter().collect();
        let Transmitted { sent, refused, tried, error } = self.backend.send_batch(&packets, NoRoom::Refuse);
        drop(packets);
        outbox.clear();
        // The backend does not count invalid packets.
        self.table.stats.not_sent += (tried as u64).saturating_sub(sent + refused);
        let Some(error) = error else { return false };
        self.table.handle_fault(now, &error);
        true
    }

    /// Stores and returns the nearest deadline, which the driver task sleeps for.
    pub(crate) fn arm(&mut self) -> Option<Instant> {
        self.armed = self.table.poll_timeout();
        self.armed
    }

    /// Whether a deadline precedes the one that the driver task sleeps for.
    pub(crate) fn nearer_than_armed(&self) -> bool {
        match (self.table.poll_timeout(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let counted = self.backend.statistics();
        let mut stats = self.table.stats;
        stats.sent = counted.sent;
        stats.not_sent += counted.not_sent;
        stats.lost = counted.lost;
        stats.turned_away = counted.turned_away;
        stats
    }
}
