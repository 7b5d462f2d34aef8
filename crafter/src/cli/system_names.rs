//! Host names, resolved by the system.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv6Addr, ToSocketAddrs as _},
};

use crafter::{
    Error, Result,
    expr::{PacketSet, Resolve},
};

use super::print;

/// Resolves names with `getaddrinfo`, which may block on the network.
#[derive(Debug, Clone, Default)]
pub struct SystemNames {
    /// The first name that was not found, and the error of the resolver.
    failed: RefCell<Option<(String, String)>>,
}

impl SystemNames {
    /// The packets of an expression.
    ///
    /// # Errors
    /// [`Error::UnknownHost`] if a name of the expression is not found; those of the expression.
    pub fn parse(expression: &str) -> Result<PacketSet> {
        let names = Self::default();
        PacketSet::parse_with(expression, &names).map_err(|error| match names.failed.into_inner() {
            Some((name, reason)) => Error::UnknownHost { name, reason },
            None => error.into(),
        })
    }
}

impl Resolve for SystemNames {
    fn resolve(&self, name: &str) -> std::result::Result<Option<Vec<IpAddr>>, String> {
        if let Some((address, zone)) = name.split_once('%').filter(|(address, _)| address.parse::<Ipv6Addr>().is_ok()) {
            return Err(format!(
                "a packet has no room for the zone of '{name}'; write \"{address}\", and name the interface: -i {zone}"
            ));
        }
        match (name, 0).to_socket_addrs() {
            Ok(found) => Ok(Some(found.map(|address| address.ip()).collect())),
            Err(reason) => {
                let failed = || (name.to_owned(), print::resolver(&reason));
                self.failed.borrow_mut().get_or_insert_with(failed);
                Err(format!("'{name}' is not an address, and looking it up as a host name failed: {reason}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn localhost_resolves_and_unknown_name_fails() {
        let found = SystemNames::default().resolve("localhost").unwrap().unwrap();
        assert!(found.contains(&Ipv4Addr::LOCALHOST.into()), "{found:?}");
        let expression = r#"IP(dst="no such host")/TCP()"#;
        assert!(
            matches!(SystemNames::parse(expression), Err(Error::UnknownHost { name, .. }) if name == "no such host")
        );
        assert!(
            SystemNames::default().resolve("no such host").unwrap_err().starts_with("'no such host' is not an address")
        );
    }
}
