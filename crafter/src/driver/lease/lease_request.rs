//! What to lease.

use std::{net::IpAddr, ops::RangeInclusive};

use crate::{datapath::maps::Terms, packet::Transport};

/// Which ports to lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// A free one from 49152 to 65535.
    Free,
    /// So many free ones in a row, from the same range.
    FreeRange(u16),
    /// This one.
    Exact(u16),
    /// All of these.
    Range(RangeInclusive<u16>),
}

/// What to lease.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// TCP, UDP or ICMP.
    pub transport: Transport,
    /// The local address; `None`: any address of this host.
    pub address: Option<IpAddr>,
    /// The local port, or the identifier of ICMP queries.
    pub port: PortChoice,
    /// What happens to replies and to the kernel's own answers.
    pub terms: Terms,
    /// Through the service: consecutive segments of a TCP flow may come as one of up to 64 KiB, as behind the kernel's
    /// GRO. For streams, which care for the bytes alone.
    pub coalesce: bool,
}

impl LeaseRequest {
    /// A free port on any address, with the default terms.
    pub fn new(transport: Transport) -> Self {
        Self { transport, address: None, port: PortChoice::Free, terms: Terms::default(), coalesce: false }
    }

    /// A free TCP port.
    pub fn tcp() -> Self {
        Self::new(Transport::Tcp)
    }

    /// A free UDP port.
    pub fn udp() -> Self {
        Self::new(Transport::Udp)
    }

    /// A free identifier of ICMP queries, from the same range as a free port.
    pub fn icmp() -> Self {
        Self::new(Transport::Icmp)
    }

    /// On this local address only.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        Self { address: (!address.is_unspecified()).then_some(address), ..self }
    }

    /// This port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port: PortChoice::Exact(port), ..self }
    }

    /// All of these ports.
    #[must_use]
    pub fn ports(self, ports: RangeInclusive<u16>) -> Self {
        Self { port: PortChoice::Range(ports), ..self }
    }

    /// Consecutive segments may come as one; see [`LeaseRequest::coalesce`](field@LeaseRequest::coalesce).
    #[must_use]
    pub fn coalesce(self, coalesce: bool) -> Self {
        Self { coalesce, ..self }
    }

    /// The kernel sees the replies too.
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

    /// Whether those that are dropped come to [`Lease::try_suppressed`].
    #[must_use]
    pub fn report(mut self, report: bool) -> Self {
        self.terms.report = report;
        self
    }
}
