//! Names of hosts in place of addresses.

use std::net::IpAddr;

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
