//! What the kernel half's hooks have counted, and what was lost between them and the lease.

use crafter::{
    Crafter,
    lab::INTERFACE,
    protocol::{
        Control,
        wire::{CountersCall, ListLeasesCall},
    },
};
use crafter_common::reason::Reason;

/// Packets.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Crafted ones that passed the egress hook.
    pub crafted: u64,
    /// Of these, the times that a queue behind it had no room, and they were sent again.
    pub turned_away: u64,
    /// Handed to user space at ingress.
    pub handed: u64,
    /// Dropped because the ring buffer to user space was full.
    pub delivery_full: u64,
    /// Lost in the AF_XDP sockets.
    pub lost: u64,
    /// Lost in the lease's socket, as the client did not read in time.
    pub lost_later: u64,
    /// The kernel's RSTs that were dropped.
    pub rst_suppressed: u64,
    /// Whether this process has the hooks.
    pub is_ours: bool,
}

impl Hooks {
    fn read(get: impl Fn(Reason) -> u64) -> Self {
        Self {
            crafted: get(Reason::Crafted),
            turned_away: 0,
            handed: get(Reason::Redirected) + get(Reason::Copied),
            delivery_full: get(Reason::DeliveryFull),
            lost: 0,
            lost_later: 0,
            rst_suppressed: get(Reason::RstSuppressed),
            is_ours: true,
        }
    }

    /// Those of this process.
    pub fn ours(crafter: &Crafter) -> Self {
        let counters = crafter.counters().expect("the counters");
        let stats = crafter.stats();
        Self { turned_away: stats.turned_away, lost: stats.lost, ..Self::read(|reason| counters.get(reason)) }
    }

    /// Those of a service with one lease. It tells neither how often a packet was turned away nor what its sockets lost:
    /// that follows from what it sent and delivered.
    pub async fn of_the_service(control: &Control) -> Self {
        let call = CountersCall { interface: Some(INTERFACE.to_owned()) };
        let counters = control.call(&call).await.expect("the counters").interfaces;
        let leases = control.call(&ListLeasesCall::default()).await.expect("the leases").leases;
        let sum = |of: fn(&crafter::protocol::wire::Lease) -> u64| leases.iter().map(of).sum::<u64>();
        let all = Self::read(|reason| counters[0].counters[reason.name()]);
        let lost = all.handed - sum(|lease| lease.delivered);
        let turned_away = all.crafted - sum(|lease| lease.sent);
        Self { turned_away, lost, lost_later: sum(|lease| lease.lost), is_ours: false, ..all }
    }

    /// What was counted since.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            crafted: self.crafted - before.crafted,
            turned_away: self.turned_away - before.turned_away,
            handed: self.handed - before.handed,
            delivery_full: self.delivery_full - before.delivery_full,
            lost: self.lost - before.lost,
            lost_later: self.lost_later - before.lost_later,
            rst_suppressed: self.rst_suppressed - before.rst_suppressed,
            is_ours: self.is_ours,
        }
    }
}
