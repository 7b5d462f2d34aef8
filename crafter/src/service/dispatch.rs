//! Serves the packets of clients in turn: a user's, then another user's, however many leases each has. Between two
//! rounds all other tasks run: control calls, replies, timers.

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

/// What a packet costs in addition to its bytes, in bytes: a small packet takes about as long as this many more.
pub(super) const PACKET_COST: u64 = 1024;

/// What a user may spend in a round, and how much a round may cost before other tasks run: a batch of 64 packets of
/// 1,500 bytes.
const QUANTUM: u64 = Inbox::MOST as u64 * (PACKET_COST + 1500);

/// Leases whose clients have sent packets.
pub(super) struct Dispatcher {
    queue: RefCell<FairQueue<Rc<ServedLease>>>,
    pushed: Notify,
}

/// The turn of one lease.
#[derive(Default)]
pub(super) struct PacketTurn {
    /// Set when the lease has nothing more to read, or must not read more.
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
    /// Has the packets of a lease read in turn. [`PacketTurn::ended`] returns when they are.
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
            // A lease that has ended meanwhile: its task ends, too.
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
