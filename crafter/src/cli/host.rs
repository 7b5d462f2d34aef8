//! Whom `ping` and `traceroute` ask: a name or an address.

use std::net::IpAddr;

use crafter::{Error, Result};

/// A host, and of which IP version its address is to be.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// A name or an address
    #[arg(value_name = "HOST")]
    pub host: String,
    /// Use the name's IPv4 address
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use the name's IPv6 address
    #[arg(short = '6', long)]
    ipv6: bool,
}

impl Args {
    /// The host's address: the first one that the system's resolver knows, of the IP version asked for, or that of
    /// `source`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is not known, or has no such address.
    pub async fn address(&self, source: Option<IpAddr>) -> Result<IpAddr> {
        let wanted = match (self.ipv4, self.ipv6, source) {
            (true, ..) => Some(true),
            (_, true, _) => Some(false),
            (.., source) => source.map(|source| source.is_ipv4()),
        };
        let bare = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host);
        let found: Vec<IpAddr> = match bare.parse() {
            Ok(address) => vec![address],
            Err(_) => match tokio::net::lookup_host((bare, 0)).await {
                Ok(found) => found.map(|address| address.ip()).collect(),
                Err(error) => return Err(Error::invalid(format!("host '{}'", self.host), error)),
            },
        };
        found.into_iter().find(|address| wanted.is_none_or(|v4| address.is_ipv4() == v4)).ok_or_else(|| {
            let version = if wanted == Some(true) { "IPv4" } else { "IPv6" };
            Error::invalid(format!("host '{}'", self.host), format_args!("it has no {version} address"))
        })
    }

    /// The host as given, with its address where that is something else.
    pub fn with(&self, address: IpAddr) -> String {
        match self.host == address.to_string() {
            true => self.host.clone(),
            false => format!("{} ({address})", self.host),
        }
    }
}
