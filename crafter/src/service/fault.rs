//! Converts errors for the wire.

use crate::{Error, policy::Decision, protocol::wire::Fault};

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::UnknownInterface { name } => Self::UnknownInterface { interface: name, message },
            Error::NoRoute { destination, reason } => {
                Self::NoRoute { destination: destination.to_string(), message: reason }
            }
            Error::NoNeighbour { address, interface, .. } => {
                Self::NoNeighbour { address: address.to_string(), interface, message }
            }
            Error::PortTaken { protocol, address, port, holder } => {
                Self::PortTaken { protocol: protocol.to_owned(), address: address.to_string(), port, holder, message }
            }
            Error::NoFreePorts { protocol, address, count, reason } => Self::NoFreePorts {
                protocol: protocol.to_owned(),
                address: address.to_string(),
                count,
                reason,
                message,
            },
            Error::Invalid { what, reason } => Self::Invalid { field: what, message: reason },
            Error::Policy { problems, .. } => Self::BadPolicy { problems, message },
            Error::Attach { interface, mode, .. } => {
                // The reason may name another user's process.
                log::warn!("{message}");
                let message = format!("cannot attach to {interface} in {mode} mode; the service's log has the reason");
                Self::Failed { message }
            }
            _ => Self::Failed { message },
        }
    }
}

impl From<Decision> for Fault {
    fn from(decision: Decision) -> Self {
        Self::Refused {
            rule: decision.rule.map(|rule| rule as u32),
            verdict: decision.verdict.name().to_owned(),
            message: decision.to_string(),
        }
    }
}
