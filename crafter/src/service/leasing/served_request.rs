//! A call's parameters, read.

use std::{net::IpAddr, ops::RangeInclusive};

use crate::{Error, Result, packet::Transport, policy::LeaseWish, protocol::wire::LeaseCall};

/// What a client wants to lease.
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
}

/// The ports that a client wants.
pub(super) enum Ports {
    /// Packets of no port.
    None,
    /// So many in a row.
    Free(u16),
    These(RangeInclusive<u16>),
}

impl ServedRequest {
    /// Reads a call.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the parameter that does not fit.
    pub(super) fn read(call: &LeaseCall) -> Result<Self> {
        let (protocol, transport) = match call.protocol.as_str() {
            "tcp" => ("tcp", Some(Transport::Tcp)),
            "udp" => ("udp", Some(Transport::Udp)),
            "icmp" => ("icmp", Some(Transport::Icmp)),
            "none" => ("none", None),
            other => {
                return Err(Error::invalid("protocol", format_args!("'{other}': tcp, udp, icmp and none are")));
            }
        };
        let ports = match (transport, call.port, call.last_port) {
            (None, None, None) => Ports::None,
            (None, ..) => return Err(Error::invalid("port", "protocol none has no ports")),
            (_, None, None) => Ports::Free(call.count.map_or(Ok(1), |count| port("count", count, 1..=u16::MAX))?),
            _ if call.count.is_some() => return Err(Error::invalid("count", "it is for free ports, without port")),
            (_, None, Some(_)) => return Err(Error::invalid("port", "the first one of the range is missing")),
            (Some(transport), Some(first), last) => {
                let possible = || transport.ports();
                Ports::These(port("port", first, possible())?..=port("last_port", last.unwrap_or(first), possible())?)
            }
        };
        if let Ports::These(range) = &ports
            && range.is_empty()
        {
            return Err(Error::invalid("last_port", "a range goes from a lower to a higher port"));
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
        };
        if request.interface.is_none() && request.destination.is_none() {
            return Err(Error::invalid("interface", "this or destination is needed, to know where to receive"));
        }
        Ok(Self { address: request.address.filter(|address| !address.is_unspecified()), ..request })
    }

    /// What the policy is asked of `ports` on `interface`.
    pub(super) fn wish(&self, interface: &str, ports: RangeInclusive<u16>) -> LeaseWish {
        LeaseWish {
            interface: interface.to_owned(),
            transport: self.transport,
            address: self.address,
            ports,
            raw_ethernet: self.frames,
            observe: false,
        }
    }
}

/// An address.
pub(in crate::service) fn address(field: &str, text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| Error::invalid(field, format_args!("'{text}' is no IPv4 or IPv6 address")))
}

/// A port, or an identifier of ICMP queries.
pub(in crate::service) fn port(field: &str, number: u64, possible: RangeInclusive<u16>) -> Result<u16> {
    let port = u16::try_from(number).ok().filter(|port| possible.contains(port));
    let reason = || format!("{number}: {} to {} are possible", possible.start(), possible.end());
    port.ok_or_else(|| Error::invalid(field, reason()))
}
