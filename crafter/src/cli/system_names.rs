//! Names of hosts as the system knows them.

use std::net::{IpAddr, ToSocketAddrs as _};

use crafter::expr::Resolve;

/// Asks the system, as all its programs do (`getaddrinfo`); this may wait for the network.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNames;

impl Resolve for SystemNames {
    fn resolve(&self, name: &str) -> Result<Option<Vec<IpAddr>>, String> {
        match (name, 0).to_socket_addrs() {
            Ok(found) => Ok(Some(found.map(|address| address.ip()).collect())),
            Err(reason) => Err(format!("'{name}' is no address, and as a host's name: {reason}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn names_and_addresses_of_this_host() {
        let found = SystemNames.resolve("localhost").unwrap().unwrap();
        assert!(found.contains(&Ipv4Addr::LOCALHOST.into()), "{found:?}");
        assert!(SystemNames.resolve("no such host").unwrap_err().starts_with("'no such host' is no address"));
    }
}
