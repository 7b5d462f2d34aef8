//! The parameters of a lease.

use std::{net::IpAddr, ops::RangeInclusive};

use crate::{
    datapath::{maps::Terms, peers::Peers},
    packet::Transport,
};

/// Which ports to lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// A free port from 49152 to 65535.
    Free,
    /// This number of consecutive free ports from the same range.
    FreeRange(u16),
    /// This port.
    Exact(u16),
    /// All ports of this range.
    Range(RangeInclusive<u16>),
}

/// The parameters of a lease.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// TCP, UDP or ICMP.
    pub transport: Transport,
    /// The local address; `None`: any address of this host.
    pub address: Option<IpAddr>,
    /// The local ports, or identifiers of ICMP queries.
    pub port: PortChoice,
    /// How the kernel half treats replies and the kernel's own answers.
    pub terms: Terms,
    /// Through the service: consecutive segments of a TCP flow may be delivered as one of up to 64 KiB, as by the
    /// kernel's GRO. For streams, which use only the bytes.
    pub coalesce: bool,
    /// Whose packets the lease receives. `None`: through the service, what the policy allows; in process,
    /// [`Peers::Any`].
    pub peers: Option<Peers>,
}

impl LeaseRequest {
    /// Leases a free port on any address, with the default terms.
    pub fn new(transport: Transport) -> Self {
        Self { transport, address: None, port: PortChoice::Free, terms: Terms::default(), coalesce: false, peers: None }
    }

    /// Leases a free TCP port.
    pub fn tcp() -> Self {
        Self::new(Transport::Tcp)
    }

    /// Leases a free UDP port.
    pub fn udp() -> Self {
        Self::new(Transport::Udp)
    }

    /// Leases a free identifier of ICMP queries, from the same range as a free port.
    pub fn icmp() -> Self {
        Self::new(Transport::Icmp)
    }

    /// Only on this local address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        Self { address: (!address.is_unspecified()).then_some(address), ..self }
    }

    /// Only this port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port: PortChoice::Exact(port), ..self }
    }

    /// All ports of this range.
    #[must_use]
    pub fn ports(self, ports: RangeInclusive<u16>) -> Self {
        Self { port: PortChoice::Range(ports), ..self }
    }

    /// Allows to merge consecutive segments; see [`LeaseRequest::coalesce`](field@LeaseRequest::coalesce).
    #[must_use]
    pub fn coalesce(self, coalesce: bool) -> Self {
        Self { coalesce, ..self }
    }

    /// Whose packets the lease receives; see [`LeaseRequest::peers`](field@LeaseRequest::peers).
    #[must_use]
    pub fn peers(self, peers: Peers) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// Whether the kernel sees the replies too.
    #[must_use]
    pub fn observe(mut self, observe: bool) -> Self {
        self.terms.observe = observe;
        self
    }

    /// Whether the kernel's RSTs and port-unreachables are dropped.
    #[must_use]
    pub fn suppress(mut self, suppress: bool) -> Self {
        self.terms.suppress = suppress;
        self
    }

    /// Whether dropped answers are delivered to [`Lease::try_suppressed`](crate::Lease::try_suppressed).
    #[must_use]
    pub fn report(mut self, report: bool) -> Self {
        self.terms.report = report;
        self
    }
}
