//! Parses the parameters of a `Lease` call.

use std::{net::IpAddr, ops::RangeInclusive};

use crate::{
    Error, Result, datapath::peers::Peers, packet::Transport, policy::RequestedLease, protocol::wire::LeaseCall,
};

/// The parsed parameters of a `Lease` call.
pub(super) struct ServedRequest {
    pub(super) interface: Option<String>,
    pub(super) destination: Option<IpAddr>,
    pub(super) protocol: &'static str,
    pub(super) transport: Option<Transport>,
    pub(super) address: Option<IpAddr>,
    pub(super) ports: Ports,
    pub(super) frames: bool,
    pub(super) observe: bool,
    pub(super) suppress: bool,
    pub(super) report: bool,
    pub(super) coalesce: bool,
    pub(super) peers: Option<Peers>,
}

/// The requested ports.
pub(super) enum Ports {
    /// No ports.
    None,
    /// This number of consecutive free ports.
    Free(u16),
    These(RangeInclusive<u16>),
}

impl ServedRequest {
    /// Parses a call.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the invalid parameter.
    pub(super) fn read(call: &LeaseCall) -> Result<Self> {
        let (protocol, transport) = match call.protocol.as_str() {
            "tcp" => ("tcp", Some(Transport::Tcp)),
            "udp" => ("udp", Some(Transport::Udp)),
            "icmp" => ("icmp", Some(Transport::Icmp)),
            "none" => ("none", None),
            other => {
                return Err(Error::invalid(
                    "protocol",
                    format_args!("'{other}' is not a protocol; use tcp, udp, icmp or none"),
                ));
            }
        };
        let ports = match (transport, call.port, call.last_port) {
            (None, None, None) => Ports::None,
            (None, ..) => {
                return Err(Error::invalid(
                    "port",
                    "protocol none has no ports; remove port, or choose another protocol",
                ));
            }
            (_, None, None) => Ports::Free(call.count.map_or(Ok(1), |count| port("count", count, 1..=u16::MAX))?),
            _ if call.count.is_some() => {
                return Err(Error::invalid("count", "count asks for free ports; remove count or port"));
            }
            (_, None, Some(_)) => {
                return Err(Error::invalid("port", "last_port needs port, the first port of the range"));
            }
            (Some(transport), Some(first), last) => {
                let possible = || transport.ports();
                Ports::These(port("port", first, possible())?..=port("last_port", last.unwrap_or(first), possible())?)
            }
        };
        if let Ports::These(range) = &ports
            && range.is_empty()
        {
            return Err(Error::invalid("last_port", "last_port must not be lower than port"));
        }
        let request = Self {
            interface: call.interface.clone(),
            destination: call.destination.as_deref().map(|text| address("destination", text)).transpose()?,
            protocol,
            transport,
            address: call.address.as_deref().map(|text| address("address", text)).transpose()?,
            ports,
            frames: call.frames.unwrap_or(false),
            observe: call.observe.unwrap_or(false),
            suppress: call.suppress.unwrap_or(true),
            report: call.report.unwrap_or(false),
            coalesce: call.coalesce.unwrap_or(false),
            peers: call.peers.as_deref().map(str::parse).transpose()?,
        };
        if request.interface.is_none() && request.destination.is_none() {
            return Err(Error::invalid("interface", "name the interface or a destination"));
        }
        Ok(Self { address: request.address.filter(|address| !address.is_unspecified()), ..request })
    }

    /// The request with these ports and this interface, for the policy to decide on.
    pub(super) fn requested(&self, interface: &str, ports: RangeInclusive<u16>) -> RequestedLease {
        RequestedLease {
            interface: interface.to_owned(),
            transport: self.transport,
            address: self.address,
            ports,
            raw_ethernet: self.frames,
            peers: self.peers,
            observe: false,
        }
    }
}

/// Parses an address; an IPv4-mapped one is its IPv4 address.
pub(in crate::service) fn address(field: &str, text: &str) -> Result<IpAddr> {
    let canonical = text.parse().map(|address: IpAddr| address.to_canonical());
    canonical.map_err(|_| Error::invalid(field, format_args!("'{text}' is not an IPv4 or IPv6 address")))
}

/// Checks a port, or an identifier of ICMP queries.
pub(in crate::service) fn port(field: &str, number: u64, possible: RangeInclusive<u16>) -> Result<u16> {
    let port = u16::try_from(number).ok().filter(|port| possible.contains(port));
    let reason = || format!("{number} is out of range; use {} to {}", possible.start(), possible.end());
    port.ok_or_else(|| Error::invalid(field, reason()))
}
