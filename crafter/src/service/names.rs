//! Users, groups and addresses of this host.

use std::{
    ffi::CString,
    io,
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    Error, Result,
    policy::{Names, Subject},
};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// The subject of an [`Error::Invalid`] about a user.
pub const USER: &str = "user";
/// The subject of an [`Error::Invalid`] about a group.
pub const GROUP: &str = "group";

/// The host's name service (`/etc/passwd`, LDAP, ...).
pub struct HostNames;

impl Names for HostNames {
    fn user(&self, name: &str) -> Result<Option<u32>> {
        let user = User::from_name(name).map_err(|errno| failed("user", name, errno))?;
        Ok(user.map(|user| user.uid.as_raw()))
    }

    fn group(&self, name: &str) -> Result<Option<u32>> {
        let group = Group::from_name(name).map_err(|errno| failed("group", name, errno))?;
        Ok(group.map(|group| group.gid.as_raw()))
    }
}

/// A user by name or number, with the groups of a login and `groups`.
///
/// # Errors
/// [`Error::Invalid`] for a name that does not exist; a number need not exist.
pub fn subject(user: &str, groups: &[String]) -> Result<Subject> {
    let found = match user.parse::<u32>() {
        Ok(id) => User::from_uid(Uid::from_raw(id)),
        Err(_) => User::from_name(user),
    };
    let found = found.map_err(|errno| failed("user", user, errno))?;
    let mut subject = match (found, user.parse()) {
        (Some(found), _) => {
            let groups = CString::new(found.name.as_str())
                .map_err(|_| nix::Error::EINVAL)
                .and_then(|name| getgrouplist(&name, found.gid))
                .map_err(|errno| failed("groups of", user, errno))?;
            Subject { user: found.uid.as_raw(), groups: groups.into_iter().map(Gid::as_raw).collect() }
        }
        (None, Ok(id)) => Subject { user: id, groups: Vec::new() },
        (None, Err(_)) => {
            let reason = format_args!("there is no user '{user}' on this host; use an existing name or a number");
            return Err(Error::invalid(USER, reason));
        }
    };
    for group in groups {
        let id = match group.parse() {
            Ok(id) => id,
            Err(_) => HostNames.group(group)?.ok_or_else(|| {
                let reason = format_args!("there is no group '{group}' on this host; use an existing name or a number");
                Error::invalid(GROUP, reason)
            })?,
        };
        subject.groups.push(id);
    }
    Ok(subject)
}

fn failed(what: &str, name: &str, errno: nix::Error) -> Error {
    Error::Io { action: format!("look up {what} '{name}'"), source: io::Error::from(errno) }
}

/// The highest address of the network, if it has more than two (RFC 3021).
fn network_broadcast(address: Ipv4Addr, mask: u32) -> Option<Ipv4Addr> {
    (mask.count_ones() < 31).then(|| Ipv4Addr::from_bits(address.to_bits() | !mask))
}

/// The addresses of this network namespace, and the broadcast addresses of its networks.
///
/// # Errors
/// [`Error::Io`] if the kernel does not list them.
pub fn addresses() -> Result<(Vec<IpAddr>, Vec<Ipv4Addr>)> {
    let failed = |errno| Error::Io { action: "list the addresses".to_owned(), source: io::Error::from(errno) };
    let (mut addresses, mut broadcasts) = (Vec::new(), Vec::new());
    for entry in nix::ifaddrs::getifaddrs().map_err(failed)? {
        let Some(address) = entry.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            addresses.push(v4.ip().into());
            broadcasts.extend(entry.broadcast.and_then(|address| Some(address.as_sockaddr_in()?.ip())));
            // The kernel has a broadcast route for every network, whether or not the address names a broadcast address
            // (`fib_add_ifaddr`).
            let mask = entry.netmask.and_then(|mask| Some(mask.as_sockaddr_in()?.ip().to_bits()));
            broadcasts.extend(mask.and_then(|mask| network_broadcast(v4.ip(), mask)));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            addresses.push(v6.ip().into());
        }
    }
    Ok((addresses, broadcasts))
}
