//! What the lock guards: who gets what, and the backend. Here is the one place that does what the table wants done.

use std::{
    collections::HashMap,
    net::IpAddr,
    os::fd::BorrowedFd,
    sync::Arc,
    task::{Poll, Waker},
    time::{Duration, Instant},
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
    datapath::{
        maps::{Counters, Flow, Terms},
        reserve::Reservation,
    },
    engine::{StreamEngine, StreamState},
    error::Result,
};

/// What is kept alive until something is over.
pub(crate) type KeepAlive = Arc<dyn Send + Sync>;

pub(crate) struct Core {
    pub(crate) table: Table,
    backend: Box<dyn Backend>,
    /// What belongs to each lease besides what the table knows.
    leases: HashMap<LeaseId, LeaseHandles>,
    /// The leases of streams that nobody holds any more.
    orphans: HashMap<StreamId, KeepAlive>,
    /// What finished streams kept alive: dropping it may want the lock under which this lies, so that its holder drops it
    /// behind the lock.
    released: Vec<KeepAlive>,
    /// Notified once the interface is gone, whether or not something is leased.
    watcher: Option<Arc<Notify>>,
    /// Empty between two calls, and kept for its memory.
    commands: Commands,
    /// The deadline that the driver sleeps for.
    armed: Option<Instant>,
}

/// Whom to notify of packets for a lease, and what keeps other programs from its ports.
pub(crate) struct LeaseHandles {
    /// Notified of each packet.
    pub(crate) arrived: Arc<Notify>,
    /// What comes is gathered together with that of other leases.
    pub(crate) gathered: bool,
    /// None, where the service has them.
    pub(crate) reservations: Vec<Reservation>,
}

impl Core {
    /// A core without leases. `accept_partial`: checksums may be partial, as on devices that are not hardware.
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

    /// The service, where it is used.
    pub(crate) fn service(&mut self) -> Option<&mut dyn ServiceCalls> {
        self.backend.as_service()
    }

    /// The descriptors that are readable when replies wait.
    pub(crate) fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.backend.sources()
    }

    /// Takes a lease in: from now on, what comes to its ports is queued for it.
    ///
    /// # Errors
    /// Those of [`Backend::own`].
    pub(crate) fn add_lease(&mut self, id: LeaseId, ports: Ports, terms: Terms, handles: LeaseHandles) -> Result<()> {
        self.backend.own(id, &ports, terms)?;
        self.table.add_lease(id, LeaseState::new(ports, handles.gathered));
        self.leases.insert(id, handles);
        Ok(())
    }

    /// Forgets a lease, and gives its ports back: the reservations after the backend has let go of them.
    pub(crate) fn remove_lease(&mut self, id: LeaseId) {
        let handles = self.leases.remove(&id);
        if let Some(lease) = self.table.remove_lease(id) {
            self.backend.disown(id, &lease.ports);
        }
        drop(handles);
    }

    /// How long a lease that the kernel observes waits before it is removed.
    pub(crate) fn disown_delay(&self) -> Duration {
        self.backend.disown_delay()
    }

    /// The next packet of a lease, if one is there.
    pub(crate) fn receive(&mut self, now: Instant, id: LeaseId) -> Option<Received> {
        if let Some(received) = self.table.lease(id)?.pop() {
            return Some(received);
        }
        // On most paths the reply to what was just sent is there already.
        self.drain(now);
        self.table.lease(id)?.pop()
    }

    /// Lets `act` at a stream's engine; sends what that calls for, and registers the waker if it could not be done yet.
    pub(crate) fn poll_stream<T>(
        &mut self,
        now: Instant,
        id: StreamId,
        waiter: Waiter,
        waker: &Waker,
        act: impl FnOnce(&mut StreamEngine) -> Poll<T>,
    ) -> Poll<T> {
        // What arrived meanwhile first: it is acknowledged before the peer has to wait.
        self.drain(now);
        let Some(stream) = self.table.stream(id) else {
            return Poll::Pending;
        };
        // Its task is awake.
        *stream.waiter(waiter) = None;
        let done = act(&mut stream.engine);
        // A reader has to learn that the connection is closed.
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

    /// Nobody holds a stream any more: it closes by itself, or is reset where it was not shut down, and keeps `lease`
    /// until it is finished.
    pub(crate) fn release_stream(&mut self, now: Instant, id: StreamId, lease: KeepAlive) {
        let Some(stream) = self.table.stream(id) else { return };
        if !matches!(stream.engine.state(), StreamState::Closing | StreamState::TimeWait | StreamState::Closed) {
            stream.engine.abort(now);
        }
        self.orphans.insert(id, lease);
        self.table.release_stream(now, id);
        self.execute(now);
    }

    /// Ends the streams that were left to the driver task, which has ended; nothing is sent.
    pub(crate) fn give_up_orphans(&mut self) {
        self.table.give_up_orphans();
        self.released.extend(self.orphans.drain().map(|(_, lease)| lease));
    }

    /// What finished streams kept alive, to be dropped behind the lock.
    pub(crate) fn take_released(&mut self) -> Vec<KeepAlive> {
        std::mem::take(&mut self.released)
    }

    /// Has `watcher` notified once the interface is gone.
    pub(crate) fn watch(&mut self, watcher: Arc<Notify>) {
        if self.table.is_over() {
            watcher.notify_one();
        }
        self.watcher = Some(watcher);
    }

    /// This host has these addresses.
    ///
    /// # Errors
    /// Those of [`Backend::set_local`].
    pub(crate) fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.backend.set_local(addresses)
    }

    /// Whether it is one of them.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.backend.is_local(address)
    }

    /// How long [`NoRoom::Refuse`] waits for room.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.backend.set_patience(patience);
    }

    /// Sends packets and frames in as few system calls as it takes.
    pub(crate) fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted {
        self.backend.send_batch(packets, on_no_room)
    }

    /// Packets by reason.
    pub(crate) fn counters(&self) -> Result<Counters> {
        self.backend.counters()
    }

    /// Flows of the kernel half, where it is ours.
    pub(crate) fn flows(&self) -> Vec<Flow> {
        self.backend.flows()
    }

    /// Hands a batch of waiting replies to their leases and streams, and sends what they call for. How many there were.
    pub(crate) fn drain(&mut self, now: Instant) -> usize {
        let Self { backend, table, .. } = self;
        let count = backend.drain(&mut |delivery| table.handle_delivery(now, delivery));
        if count > 0 {
            self.execute(now);
        }
        count
    }

    /// Does what is due.
    pub(crate) fn handle_timeouts(&mut self, now: Instant) {
        self.table.handle_timeouts(now);
        self.execute(now);
    }

    /// This host has these addresses now, and the interface this MTU; without one it is gone.
    pub(crate) fn handle_addresses(&mut self, now: Instant, addresses: &[IpAddr], mtu: Option<u32>) {
        // A full map is the only way to fail, and leaves the former addresses in force.
        if let Err(e) = self.set_local(addresses) {
            log::warn!("{e}");
        }
        // Reservations on any address extend to the new ones.
        for reservation in self.leases.values_mut().flat_map(|lease| &mut lease.reservations) {
            for &address in addresses {
                if let Err(e) = reservation.cover(address) {
                    log::warn!("a new address is not covered by a lease: {e}");
                }
            }
        }
        match mtu {
            Some(mtu) => self.backend.set_mtu(mtu),
            None => {
                self.table.handle_link_gone(now);
                self.execute(now);
            }
        }
    }

    /// Does what the table wants done: sends what the streams have to send, wakes and notifies tasks that wait, and lets
    /// go of what is no longer needed.
    pub(crate) fn execute(&mut self, now: Instant) {
        loop {
            let more = self.table.poll_commands(now, &mut self.commands);
            self.notify();
            let released = self.commands.release.drain(..).filter_map(|id| self.orphans.remove(&id));
            self.released.extend(released);
            // What fails may end the streams.
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
                // Several tasks may wait, and each takes one packet.
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

    /// Sends the segments of the streams; `true` if that failed. A segment that could not be sent counts as lost on its
    /// path, unless the interface is gone.
    fn transmit(&mut self, now: Instant) -> bool {
        let outbox = &mut self.commands.outbox;
        if outbox.len() == 0 {
            return false;
        }
        let packets: SmallVec<[TxPacket<'_>; 8]> = outbox.iter().collect();
        let Transmitted { sent, refused, tried, error } = self.backend.send_batch(&packets, NoRoom::Refuse);
        drop(packets);
        outbox.clear();
        // The backend does not count what is invalid.
        self.table.stats.not_sent += (tried as u64).saturating_sub(sent + refused);
        let Some(error) = error else { return false };
        self.table.handle_fault(now, &error);
        true
    }

    /// Notes the nearest deadline as the one that the driver sleeps for.
    pub(crate) fn arm(&mut self) -> Option<Instant> {
        self.armed = self.table.poll_timeout();
        self.armed
    }

    /// Whether there is a deadline before the one that the driver sleeps for.
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
