//! Reads and sends the packets of clients, by users in turn, however many leases each user has. Between two rounds all
//! other tasks of the thread run: control calls, replies, timers.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::Notify;

use super::{
    fair_queue::FairQueue,
    outgoing::{self, ReadOutcome},
    served_lease::ServedLease,
    state::Service,
};
use crate::mmsg::Inbox;

/// Cost of a packet in addition to its length, in bytes: handling a packet takes about as long as this many bytes.
pub(super) const PACKET_COST: u64 = 1024;

/// Cost, in bytes, that a user may cause in a round, and after which a round ends so that other tasks run: a batch of
/// 64 packets of 1,500 bytes.
const QUANTUM: u64 = Inbox::MOST as u64 * (PACKET_COST + 1500);

/// The queue of leases whose clients have sent packets.
pub(super) struct Dispatcher {
    queue: RefCell<FairQueue<Rc<ServedLease>>>,
    pushed: Notify,
}

/// The state of one lease in the queue.
#[derive(Default)]
pub(super) struct PacketTurn {
    /// Set when no more packets of the lease are to be read for now, with the reason.
    outcome: Cell<Option<ReadOutcome>>,
    ended: Notify,
}

impl PacketTurn {
    fn end(&self, outcome: ReadOutcome) {
        self.outcome.set(Some(outcome));
        self.ended.notify_one();
    }

    /// Waits for the end of the turn.
    pub(super) async fn ended(&self) -> ReadOutcome {
        loop {
            if let Some(outcome) = self.outcome.take() {
                return outcome;
            }
            self.ended.notified().await;
        }
    }
}

impl Default for Dispatcher {
    fn default() -> Self {
        Self { queue: RefCell::new(FairQueue::new(QUANTUM)), pushed: Notify::new() }
    }
}

impl Dispatcher {
    /// Queues a lease whose client has sent packets; [`run`] reads them. [`PacketTurn::ended`] returns after that.
    pub(super) fn push(&self, lease: &Rc<ServedLease>) {
        self.queue.borrow_mut().push(lease.account(), lease.clone());
        self.pushed.notify_one();
    }

    /// Serves one round; `false` if no lease waits any more.
    fn round(&self, service: &Rc<Service>) -> bool {
        let mut spent = 0;
        while spent < QUANTUM {
            let Some(turn) = self.queue.borrow_mut().next() else { return false };
            let lease = turn.member;
            // The lease ended while it was queued; its task ends, too.
            if service.lease(lease.terms.number).is_none() {
                lease.turn.end(ReadOutcome::Closed);
                continue;
            }
            let (outcome, cost) = outgoing::take(service, &lease);
            spent += cost;
            let mut queue = self.queue.borrow_mut();
            queue.charge(turn.user, cost);
            match outcome {
                ReadOutcome::More => queue.push(turn.user, lease),
                outcome => lease.turn.end(outcome),
            }
        }
        !self.queue.borrow().is_empty()
    }
}

/// Serves rounds while leases wait. Never returns.
pub(super) async fn run(service: Rc<Service>) {
    loop {
        service.dispatcher.pushed.notified().await;
        while service.dispatcher.round(&service) {
            // The other tasks run, and the event loop polls the sockets.
            tokio::task::yield_now().await;
        }
    }
}
