//! Names of hosts in place of addresses.

use std::net::{IpAddr, ToSocketAddrs as _};

/// Looks up names of hosts.
pub trait Resolve {
    /// The addresses of a host in order of preference; `None`: names are not looked up here.
    ///
    /// # Errors
    /// Why there are none, as a sentence.
    fn resolve(&self, name: &str) -> Result<Option<Vec<IpAddr>>, String>;
}

/// Looks nothing up: what is no address is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNames;

impl Resolve for NoNames {
    fn resolve(&self, _: &str) -> Result<Option<Vec<IpAddr>>, String> {
        Ok(None)
    }
}

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
