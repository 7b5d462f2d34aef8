//! The seam: what the driver needs of whatever carries its packets. [`kernel`](super::kernel) is the hooks and sockets of
//! this process, [`service`](super::service) the privileged process, and the tests have a fake.

use std::{
    net::IpAddr,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use super::{entry::Meta, service::ServiceBackend, table::Table};
pub(crate) use crate::datapath::tx::{NoRoom, Outgoing, Transmitted};
use crate::{
    datapath::maps::{Counters, Flow, Terms},
    error::Result,
    packet::Transport,
};

/// Carries packets between a table and the network.
pub(crate) trait Backend: Send {
    /// The descriptors that are readable when [`Backend::drain`] has something to hand over.
    fn sources(&self) -> Vec<BorrowedFd<'_>>;

    /// Sends packets in as few system calls as it takes. Nothing is remembered between two calls: with [`NoRoom::Stop`]
    /// the result says which packet was the first without room.
    fn send_batch(&mut self, packets: &[Outgoing<'_>], on_no_room: NoRoom) -> Transmitted;

    /// Hands a batch of waiting deliveries to `table`; how many there were. It takes the table itself and not a closure:
    /// that way a packet costs no virtual call.
    fn drain(&mut self, now: Instant, table: &mut Table) -> usize;

    /// From now on, what comes to these ports is handed over for the lease `id`, as `terms` say. All ports or none.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) where there is no room for more.
    fn own(&mut self, id: u32, ports: &Ports, terms: Terms) -> Result<()>;

    /// Gives the ports of the lease `id` back.
    fn disown(&mut self, id: u32, ports: &Ports);

    /// How long a lease whose packets the kernel sees too has to wait before it gives its ports back: until the kernel has
    /// answered what was handed over already.
    fn disown_delay(&self) -> Duration {
        Duration::ZERO
    }

    /// This host has these addresses now.
    ///
    /// # Errors
    /// [`Error::Bpf`](crate::Error::Bpf) for more than it can hold: the former addresses stay in force.
    fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()>;

    /// Whether an address is this host's.
    fn is_local(&self, address: IpAddr) -> bool;

    /// The interface has another MTU now, in bytes from the IP header on.
    fn set_mtu(&mut self, _mtu: u32) {}

    /// How long [`NoRoom::Refuse`] waits for room, without any progress.
    fn set_patience(&mut self, patience: Duration);

    /// Packets by verdict reason.
    ///
    /// # Errors
    /// [`Error::Bpf`](crate::Error::Bpf) if the kernel refuses.
    fn counters(&self) -> Result<Counters>;

    /// The flows that were seen, where this process can read them.
    fn flows(&self) -> Vec<Flow> {
        Vec::new()
    }

    /// What became of packets so far.
    fn statistics(&self) -> Statistics;

    /// The service, where this is one: for what only a service has, such as leases that are calls to it, and refusals.
    fn as_service(&mut self) -> Option<&mut ServiceBackend> {
        None
    }
}

/// Packets that a backend has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Sent.
    pub(crate) sent: u64,
    /// Not taken.
    pub(crate) not_sent: u64,
    /// Lost on their way in, for want of room.
    pub(crate) lost: u64,
    /// How often a queue had no room for a packet that had passed the egress hook.
    pub(crate) turned_away: u64,
}

/// Ports of one transport on one address, or on all addresses where it is unspecified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) transport: Transport,
    pub(crate) address: IpAddr,
    pub(crate) ports: Vec<u16>,
}

/// What a backend hands to the table.
#[derive(Clone, Copy)]
pub(crate) enum Delivery<'p> {
    /// A packet that came in, from the IP header on.
    Packet(&'p [u8], Meta),
    /// An answer of the kernel, from the IP header on, that was dropped on its way out.
    Suppressed(&'p [u8], Meta),
    /// A frame in which no packet could be found.
    Malformed,
    /// The packet that `quoted` begins was not let out, and nothing like it will be.
    Refused {
        quoted: &'p [u8],
        /// The rule of the policy, counted from 1.
        rule: Option<u32>,
        sentence: &'p str,
    },
    /// The service is gone, and with it all leases.
    Ended {
        /// Its socket.
        path: &'p str,
        reason: &'p str,
    },
}

impl<'p> Delivery<'p> {
    /// What a verdict's reason makes of a packet.
    pub(crate) fn of(ip: &'p [u8], meta: Meta) -> Self {
        if meta.reason.is_ingress() { Self::Packet(ip, meta) } else { Self::Suppressed(ip, meta) }
    }
}
