//! The seam: what the driver needs of whatever carries its packets. [`kernel`](super::kernel) is the hooks and sockets of
//! this process, [`service`](super::service) the privileged process, and the tests have a fake.

use std::{
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use super::entry::{Delivery, LeaseId, Ports};
pub(crate) use crate::datapath::tx::{NoRoom, Transmitted, TxPacket};
use crate::{
    datapath::maps::{Counters, Flow, Terms},
    error::{Error, Result},
    protocol::Control,
};

/// Carries packets between a table and the network.
pub(crate) trait Backend: Send {
    /// The descriptors that are readable when [`Backend::drain`] has something to hand over.
    fn sources(&self) -> Vec<BorrowedFd<'_>>;

    /// Sends packets in as few system calls as it takes. Nothing is remembered between two calls: with [`NoRoom::Stop`]
    /// the result says which packet was the first without room.
    fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted;

    /// Hands a batch of waiting deliveries to `deliver`; how many there were.
    fn drain(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) -> usize;

    /// Redirects packets to these ports into this backend, for the lease `id` and on its `terms`. All ports or none.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) where there is no room for more.
    fn own(&mut self, id: LeaseId, ports: &Ports, terms: Terms) -> Result<()>;

    /// Gives the ports of the lease `id` back.
    fn disown(&mut self, id: LeaseId, ports: &Ports);

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
    fn as_service(&mut self) -> Option<&mut dyn ServiceCalls> {
        None
    }
}

/// What only a service has.
pub(crate) trait ServiceCalls {
    /// The connection to it.
    fn control(&self) -> &Arc<Control>;

    /// Whether frames can be sent.
    fn has_frames(&self) -> bool;

    /// Has frames sent by the socket of the lease `id`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the socket cannot be watched.
    fn add_frames(&mut self, id: LeaseId, socket: OwnedFd) -> Result<()>;

    /// Has the packets of the lease `id` sent and received by `socket`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the socket cannot be watched.
    fn add_socket(&mut self, id: LeaseId, socket: OwnedFd) -> Result<()>;

    /// Whether a lease was closed so lately that the service may not know it yet.
    fn is_closing(&self) -> bool;

    /// How many packets it refused since this was asked last, and why the first of them.
    fn take_refusals(&mut self) -> (u64, Option<Error>);
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
