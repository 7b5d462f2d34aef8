//! Host names, resolved by the system.

use std::net::{IpAddr, ToSocketAddrs as _};

use crafter::expr::Resolve;

/// Resolves names with `getaddrinfo`, which may block on the network.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNames;

impl Resolve for SystemNames {
    fn resolve(&self, name: &str) -> Result<Option<Vec<IpAddr>>, String> {
        match (name, 0).to_socket_addrs() {
            Ok(found) => Ok(Some(found.map(|address| address.ip()).collect())),
            Err(reason) => {
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
        let found = SystemNames.resolve("localhost").unwrap().unwrap();
        assert!(found.contains(&Ipv4Addr::LOCALHOST.into()), "{found:?}");
        assert!(SystemNames.resolve("no such host").unwrap_err().starts_with("'no such host' is not an address"));
    }
}
