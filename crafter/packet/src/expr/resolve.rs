//! Resolution of host names.

use std::net::IpAddr;

/// Resolves host names.
pub trait Resolve {
    /// The addresses of a host in order of preference; `None` if names are not resolved.
    ///
    /// # Errors
    /// An error message.
    fn resolve(&self, name: &str) -> Result<Option<Vec<IpAddr>>, String>;
}

/// Resolves no names: anything but an address is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNames;

impl Resolve for NoNames {
    fn resolve(&self, _: &str) -> Result<Option<Vec<IpAddr>>, String> {
        Ok(None)
    }
}
