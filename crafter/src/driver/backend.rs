//! The interface between the driver and what carries its packets. [`kernel`](super::kernel) uses the hooks and sockets
//! of this process, [`service`](super::service) the privileged process; the unit tests use a fake.

use std::{
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use super::entry::{Delivery, LeaseId, Ports};
pub(crate) use crate::datapath::tx::{NoRoom, Transmitted, TxPacket};
use crate::{
    datapath::{
        interface::Interface,
        maps::{Counters, Flow, Terms},
        peers::{PeerMap, Peers},
    },
    error::{Error, Result},
    protocol::Control,
};

/// Carries packets between a table and the network.
pub(crate) trait Backend: Send {
    /// Descriptors that become readable when [`Backend::drain`] has deliveries.
    fn sources(&self) -> Vec<BorrowedFd<'_>>;

    /// Sends packets in as few system calls as possible. The backend keeps nothing between two calls: with
    /// [`NoRoom::Stop`], the result contains the index of the first packet without room.
    fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted;

    /// Passes a batch of waiting deliveries to `deliver`, and returns their number.
    fn drain(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) -> usize;

    /// Redirects packets for these ports into this backend, for the lease `id` and on its `terms`. After an error, none
    /// of the ports is owned.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if the map of owned ports is full.
    fn own(&mut self, id: LeaseId, ports: &Ports, terms: Terms) -> Result<()>;

    /// Returns the ports of the lease `id`.
    fn disown(&mut self, id: LeaseId, ports: &Ports);

    /// The peers of a lease whose packets alone are delivered; `None` if those of all are, or if another process decides.
    fn peers(&self, _id: LeaseId, _peers: Peers) -> Option<PeerMap> {
        None
    }

    /// Received packets for the lease `id` that found no room before they reached this backend.
    fn lost(&self, _id: LeaseId) -> u64 {
        0
    }

    /// Delay before a lease returns its ports if the kernel sees its packets too (observe mode): the kernel may still
    /// be answering a packet whose copy was already delivered.
    fn disown_delay(&self) -> Duration {
        Duration::ZERO
    }

    /// Replaces the addresses of this host.
    ///
    /// # Errors
    /// [`Error::Bpf`](crate::Error::Bpf) if the map is full; the previous addresses remain in force.
    fn set_local(&mut self, addresses: &[IpAddr]) -> Result<()>;

    /// Whether this host has `address`.
    fn is_local(&self, address: IpAddr) -> bool;

    /// Changes the interface's MTU: bytes from the IP header on.
    fn set_mtu(&mut self, _mtu: u32) {}

    /// Takes over what has changed of the interface apart from its MTU, such as its Ethernet address.
    fn set_link(&mut self, _interface: &Interface) {}

    /// How long [`NoRoom::Refuse`] waits for room without any progress.
    fn set_room_timeout(&mut self, timeout: Duration);

    /// Packets by verdict reason.
    ///
    /// # Errors
    /// [`Error::Bpf`](crate::Error::Bpf) if the kernel refuses.
    fn counters(&self) -> Result<Counters>;

    /// The flows that the kernel half has seen; empty if this process cannot read them.
    fn flows(&self) -> Vec<Flow> {
        Vec::new()
    }

    /// Reads flows and counters on other threads; `None` if this process cannot read them.
    #[cfg(feature = "service")]
    fn map_reader(&self) -> Option<crate::datapath::maps::MapReader> {
        None
    }

    /// Counters since the backend was opened.
    fn statistics(&self) -> Statistics;

    /// The operations that only the service has; `None` for other backends.
    fn as_service(&mut self) -> Option<&mut dyn ServiceCalls> {
        None
    }
}

/// Operations that only the service has.
pub(crate) trait ServiceCalls {
    /// The connection to the service.
    fn control(&self) -> &Arc<Control>;

    /// Whether Ethernet frames can be sent.
    fn has_frames(&self) -> bool;

    /// Sends Ethernet frames through `socket`, the socket of the lease `id`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the socket cannot be added to the epoll instance.
    fn add_frames(&mut self, id: LeaseId, socket: OwnedFd) -> Result<()>;

    /// Sends and receives the packets of the lease `id` through `socket`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the socket cannot be added to the epoll instance.
    fn add_socket(&mut self, id: LeaseId, socket: OwnedFd) -> Result<()>;

    /// Whether a lease was closed so recently that the service may not have noticed yet.
    fn is_closing(&self) -> bool;

    /// The number of packets refused since the last call, and the first refusal.
    fn take_refusals(&mut self) -> (u64, Option<Error>);
}

/// Counters of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Packets sent.
    pub(crate) sent: u64,
    /// Packets that the kernel or the service did not accept.
    pub(crate) not_sent: u64,
    /// Received packets lost because a queue was full.
    pub(crate) lost: u64,
    /// How often a queue was full for a packet that had passed the egress hook.
    pub(crate) turned_away: u64,
}
