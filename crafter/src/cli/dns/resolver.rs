//! The name servers of this host.

use std::net::{IpAddr, SocketAddr};

use crafter::{Error, Result};

use crate::cli::zone;

/// See resolv.conf(5).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The servers of [`RESOLV_CONF`], in its order.
///
/// # Errors
/// [`Error::Invalid`] if it names none.
pub fn servers() -> Result<Vec<SocketAddr>> {
    let none = |reason: &dyn std::fmt::Display| {
        let reason = format!("none is given, and {RESOLV_CONF} has none ({reason}); give one, e.g. @192.0.2.53");
        Error::invalid("server", reason)
    };
    let text = std::fs::read(RESOLV_CONF).map_err(|error| none(&error))?;
    let servers = parse(&String::from_utf8_lossy(&text));
    match servers.is_empty() {
        true => Err(none(&"no line `nameserver ADDRESS`")),
        false => Ok(servers),
    }
}

/// Addresses after `nameserver`, also with a zone (fe80::1%eth0), whose interface must exist.
fn parse(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.strip_prefix("nameserver")?.strip_prefix([' ', '\t'])?.split_ascii_whitespace();
        let word = words.next()?;
        let server = match (word.parse::<IpAddr>(), zone::parse(word)) {
            (Ok(address), _) => Some(SocketAddr::new(address, 0)),
            (_, scoped) => scoped.ok().flatten().map(SocketAddr::V6),
        };
        if server.is_none() {
            log::warn!("ignored the server {word} of {RESOLV_CONF}: not an address, or its interface does not exist");
        }
        server
    });
    addresses
        .map(|mut server| {
            server.set_port(53);
            server
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nsearch lab.test\nnameserver 127.0.0.53\nnameserver\t2001:db8::1 # comment\n\
                    nameserver fe80::1%nope0\nnameserver fe80::1%lo\nnameservers 192.0.2.8\nnameserver\noptions edns0\nnameserver 192.0.2.1";
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let scoped = format!("[fe80::1%{lo}]:53");
        let expected = ["127.0.0.53:53", "[2001:db8::1]:53", &scoped, "192.0.2.1:53"];
        let expected = expected.map(|address| address.parse().unwrap());
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), []);
    }
}
