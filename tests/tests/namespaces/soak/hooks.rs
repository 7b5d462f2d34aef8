//! Counters of the kernel half, and packets lost between its hooks and the lease.

use crafter::{
    Crafter,
    lab::INTERFACE,
    protocol::{
        Control,
        wire::{CountersCall, ListLeasesCall},
    },
};
use crafter_common::reason::Reason;

/// Numbers of packets.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Crafted packets that passed the egress hook.
    pub crafted: u64,
    /// Of these, packets that were sent again because a queue after the hook was full.
    pub turned_away: u64,
    /// Packets delivered to user space at ingress.
    pub delivered: u64,
    /// Packets dropped because the ring buffer was full.
    pub delivery_full: u64,
    /// Packets lost in the AF_XDP sockets.
    pub lost: u64,
    /// Packets lost in the lease's socket, because the client did not read in time.
    pub lost_in_lease_socket: u64,
    /// RSTs of the kernel that were suppressed.
    pub rst_suppressed: u64,
    /// Whether this process owns the hooks, rather than the service.
    pub is_ours: bool,
}

impl Hooks {
    fn read(get: impl Fn(Reason) -> u64) -> Self {
        Self {
            crafted: get(Reason::Crafted),
            turned_away: 0,
            delivered: get(Reason::Redirected) + get(Reason::Copied),
            delivery_full: get(Reason::DeliveryFull),
            lost: 0,
            lost_in_lease_socket: 0,
            rst_suppressed: get(Reason::RstSuppressed),
            is_ours: true,
        }
    }

    /// Counters of this process's hooks.
    pub fn ours(crafter: &Crafter) -> Self {
        let counters = crafter.counters().expect("the counters");
        let stats = crafter.stats();
        Self { turned_away: stats.turned_away, lost: stats.lost, ..Self::read(|reason| counters.get(reason)) }
    }

    /// Counters of a service with one lease. It reports neither retried packets nor losses of its AF_XDP sockets; both
    /// follow from the packets sent and delivered.
    pub async fn of_the_service(control: &Control) -> Self {
        let call = CountersCall { interface: Some(INTERFACE.to_owned()) };
        let counters = control.call(&call).await.expect("the counters").interfaces;
        let leases = control.call(&ListLeasesCall::default()).await.expect("the leases").leases;
        let sum = |of: fn(&crafter::protocol::wire::Lease) -> u64| leases.iter().map(of).sum::<u64>();
        let all = Self::read(|reason| counters[0].counters[reason.name()]);
        let lost = all.delivered - sum(|lease| lease.delivered);
        let turned_away = all.crafted - sum(|lease| lease.sent);
        Self { turned_away, lost, lost_in_lease_socket: sum(|lease| lease.lost), is_ours: false, ..all }
    }

    /// The difference to an earlier state.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            crafted: self.crafted - before.crafted,
            turned_away: self.turned_away - before.turned_away,
            delivered: self.delivered - before.delivered,
            delivery_full: self.delivery_full - before.delivery_full,
            lost: self.lost - before.lost,
            lost_in_lease_socket: self.lost_in_lease_socket - before.lost_in_lease_socket,
            rst_suppressed: self.rst_suppressed - before.rst_suppressed,
            is_ours: self.is_ours,
        }
    }
}
