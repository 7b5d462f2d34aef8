//! Zones of IPv6 addresses (RFC 4007, section 11): `fe80::1%eth0`, or the interface's index, `fe80::1%2`.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use crafter::{Error, Result};
use nix::net::if_::if_nametoindex;

/// Parses an IPv6 address with a zone; `None` if the text is anything else. The port of the result is 0.
///
/// # Errors
/// [`Error::UnknownInterface`] if no interface has that name.
pub fn parse(text: &str) -> Result<Option<SocketAddrV6>> {
    let Some((address, zone)) = text.split_once('%') else { return Ok(None) };
    let Ok(address) = address.parse::<Ipv6Addr>() else { return Ok(None) };
    let index = match zone.parse() {
        Ok(index) => index,
        Err(_) => if_nametoindex(zone).map_err(|_| Error::UnknownInterface { name: zone.to_owned() })?,
    };
    Ok(Some(SocketAddrV6::new(address, 0, 0, index)))
}

/// The index of the interface that an address names; `None` without a zone.
pub fn index(address: SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => Some(address.scope_id()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_names_or_indices_of_interfaces() {
        let lo = if_nametoindex("lo").unwrap();
        for text in ["fe80::1%lo", &format!("fe80::1%{lo}")] {
            let address = parse(text).unwrap().unwrap();
            assert_eq!((address.ip().to_string().as_str(), index(address.into())), ("fe80::1", Some(lo)), "{text}");
        }
        for text in ["fe80::1", "192.0.2.1", "host", "a%b", "192.0.2.1%lo"] {
            assert_eq!(parse(text).unwrap(), None, "{text}");
        }
        for zone in ["", "nope0", "-1"] {
            let error = parse(&format!("fe80::1%{zone}")).unwrap_err();
            assert!(matches!(error, Error::UnknownInterface { name } if name == zone), "{zone}");
        }
        assert_eq!(index("[fe80::1]:80".parse().unwrap()), None);
    }
}
