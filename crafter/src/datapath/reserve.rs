//! Owning a port towards the other programs of this network namespace.
//!
//! The kernel gives a bound port to nobody else, neither by bind() nor as the ephemeral port of a connect(). The
//! sockets here are bound and nothing more, so that what the kernel answers to packets for the port stays as it was:
//!
//! - TCP: bound, not listening: a SYN still meets a RST (`tcp_v4_rcv()` finds no listener).
//! - UDP: a socket bound to an address would swallow its datagrams and so hide the port-unreachable. Each is
//!   therefore connected to its own address and port: `compute_score()` (net/ipv4/udp.c) passes it over for
//!   datagrams of any other sender, while bind() conflicts (`udp_lib_lport_inuse()`) look at the local end only.
//!   Connecting narrows a wildcard to one address, so "any address" is one socket per address of this host.
//! - ICMP: an identifier is held by a ping socket (`ping_get_port()`), where this user's group may have one
//!   (`net.ipv4.ping_group_range`); elsewhere, and 0 everywhere, by nothing, as raw sockets send what identifiers
//!   they like.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    ops::RangeInclusive,
};

use nix::{
    ifaddrs::getifaddrs,
    sys::resource::{Resource, getrlimit},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::holder;
use crate::{
    error::{Error, Result},
    packet::Transport,
};

/// Ports that no service is registered for (RFC 6335 section 6).
pub const DYNAMIC: RangeInclusive<u16> = 49_152..=65_535;
/// Random picks before a range is searched in order.
const PICKS: usize = 64;

/// A port that no other program of this network namespace can be given. Dropping it frees the port.
#[derive(Debug)]
pub struct Reservation {
    transport: Transport,
    address: IpAddr,
    port: u16,
    ifindex: u32,
    /// Where held: the address of each socket, which is not read but kept open.
    held: Vec<(IpAddr, Socket)>,
}

impl Reservation {
    /// The protocol whose port it is.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The local address; unspecified for all of both families.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The local port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Extends a reservation for any address to one that this host has got since, as
    /// [`AddressWatch`](super::address::AddressWatch) tells. Nothing to do for TCP, for a reservation of one
    /// address, or for an address already held.
    ///
    /// # Errors
    /// [`Error::PortTaken`] if another program was faster on that address.
    pub fn cover(&mut self, address: IpAddr) -> Result<()> {
        if self.transport == Transport::Udp
            && self.address.is_unspecified()
            && !self.held.iter().any(|(held, _)| *held == address)
        {
            // Held only while the host had no address at all; they would conflict with the next one.
            self.held.retain(|(held, _)| !held.is_unspecified());
            let socket = hold(self.transport, address, self.port, self.ifindex)
                .map_err(|error| refused(self.transport, address, self.port, error))?;
            self.held.push((address, socket));
        }
        Ok(())
    }
}

/// Reserves `port` on `address` (unspecified: on every address of both families). `ifindex` is the interface of the
/// lease; it gives IPv6 link-local addresses their scope.
///
/// # Errors
/// [`Error::PortTaken`] naming the holder where it can be found; [`Error::Invalid`] for port 0 of TCP and UDP, or an address that is
/// not of this host; [`Error::Permission`] for a port that needs `CAP_NET_BIND_SERVICE`.
pub fn reserve(transport: Transport, address: IpAddr, port: u16, ifindex: u32) -> Result<Reservation> {
    if !transport.ports().contains(&port) {
        return Err(Error::invalid("port", "0 is no port (for a free one reserve from a range)"));
    }
    hold_all(transport, address, port, ifindex).map_err(|error| refused(transport, address, port, error))
}

/// Reserves a free port of `range`, picked at random (RFC 6056 section 3.1); [`DYNAMIC`] is the usual range.
///
/// # Errors
/// [`Error::PortTaken`] if none is free; otherwise as [`reserve`].
pub fn reserve_free(
    transport: Transport,
    address: IpAddr,
    range: RangeInclusive<u16>,
    ifindex: u32,
) -> Result<Reservation> {
    let (first, last) = bounds(transport, &range)?;
    let size = u32::from(last - first) + 1;
    let random = || getrandom::u32().unwrap_or_else(|_| std::process::id()) % size;
    let start = random();
    let picks = (0..PICKS).map(|_| random());
    let in_order = (0..size).map(|step| (start + step) % size);
    for offset in picks.chain(in_order) {
        let port = first + offset as u16;
        match hold_all(transport, address, port, ifindex) {
            Ok(reservation) => return Ok(reservation),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            // A range that spans privileged ports may still hold others.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && last >= 1024 && port < 1024 => {}
            Err(error) => return Err(refused(transport, address, port, error)),
        }
    }
    Err(Error::PortTaken {
        protocol: transport.name(),
        address,
        port: first,
        holder: Some(format!("another socket, and so is every other port up to {last}")),
    })
}

/// Reserves every port of `range`, or none.
///
/// # Errors
/// As [`reserve`], for the first port that cannot be had; [`Error::Invalid`] for an empty range or one that needs
/// more file descriptors than this process may open.
pub fn reserve_range(
    transport: Transport,
    address: IpAddr,
    range: RangeInclusive<u16>,
    ifindex: u32,
) -> Result<Vec<Reservation>> {
    let (first, last) = bounds(transport, &range)?;
    range
        .map(|port| match hold_all(transport, address, port, ifindex) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
                Err(Error::invalid(
                    format!("port range {first}-{last}"),
                    format!("needs more file descriptors than this process may open, {limit} (raise `ulimit -n`)"),
                ))
            }
            held => held.map_err(|error| refused(transport, address, port, error)),
        })
        .collect()
}

fn bounds(transport: Transport, range: &RangeInclusive<u16>) -> Result<(u16, u16)> {
    let (first, last) = (*range.start(), *range.end());
    if !transport.ports().contains(&first) || first > last {
        return Err(Error::invalid(
            format!("port range {first}-{last}"),
            "must begin at 1 or more and not end before it begins",
        ));
    }
    Ok((first, last))
}

fn hold_all(transport: Transport, address: IpAddr, port: u16, ifindex: u32) -> io::Result<Reservation> {
    let mut held = Vec::new();
    let mut wildcards = Vec::new();
    let addresses = if port == 0 {
        // Of ICMP: to a ping socket 0 means any, so the kernel gives it to none and needs not be asked.
        Vec::new()
    } else if !address.is_unspecified() {
        vec![(address, ifindex)]
    } else if transport != Transport::Udp {
        vec![(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0)]
    } else {
        // The wildcards first, to learn of a holder anywhere, even on an address that is not up yet or on another
        // of 127.0.0.0/8. They would swallow datagrams, so they are closed again below, except on a host without
        // any address, which no datagram can reach.
        for wildcard in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            match bind(transport, wildcard, port, 0) {
                Err(error) if no_family(&error) => {}
                bound => wildcards.push((wildcard, bound?.0)),
            }
        }
        let own = own_addresses()?;
        // A bound wildcard conflicts with the sockets that replace it.
        if !own.is_empty() {
            wildcards.clear();
        }
        own
    };
    let any = address.is_unspecified();
    for (address, scope) in addresses {
        match hold(transport, address, port, scope) {
            Ok(socket) => held.push((address, socket)),
            // IPv6 switched off; or an address that went, or is not usable yet, since it was listed.
            Err(error) if any && (no_family(&error) || error.kind() == io::ErrorKind::AddrNotAvailable) => {}
            Err(error) if transport == Transport::Icmp && error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    held.append(&mut wildcards);
    Ok(Reservation { transport, address, port, ifindex, held })
}

fn no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
        // bind() to [::] with net.ipv6.conf.all.disable_ipv6 set.
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// The addresses of this host, each with the index of its interface.
fn own_addresses() -> io::Result<Vec<(IpAddr, u32)>> {
    let mut addresses: Vec<(IpAddr, u32)> = Vec::new();
    for entry in getifaddrs()? {
        let Some(storage) = entry.address else {
            continue;
        };
        let found = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => (v4.ip().into(), 0),
            (_, Some(v6)) => (v6.ip().into(), v6.scope_id()),
            _ => continue,
        };
        if !addresses.contains(&found) {
            addresses.push(found);
        }
    }
    Ok(addresses)
}

fn hold(transport: Transport, address: IpAddr, port: u16, ifindex: u32) -> io::Result<Socket> {
    let (socket, bound) = bind(transport, address, port, ifindex)?;
    if transport == Transport::Udp {
        socket.connect(&bound.into())?;
    }
    Ok(socket)
}

fn bind(transport: Transport, address: IpAddr, port: u16, ifindex: u32) -> io::Result<(Socket, SocketAddr)> {
    let (domain, bound) = match address {
        IpAddr::V4(_) => (Domain::IPV4, SocketAddr::new(address, port)),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() { ifindex } else { 0 };
            (Domain::IPV6, SocketAddrV6::new(address, port, 0, scope).into())
        }
    };
    let (kind, protocol) = match (transport, domain) {
        (Transport::Tcp, _) => (Type::STREAM, None),
        (Transport::Udp, _) => (Type::DGRAM, None),
        (Transport::Icmp, Domain::IPV4) => (Type::DGRAM, Some(Protocol::ICMPV4)),
        (Transport::Icmp, _) => (Type::DGRAM, Some(Protocol::ICMPV6)),
    };
    let socket = Socket::new(domain, kind, protocol)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    // No SO_REUSEADDR: with it on both sides another program could bind beside us.
    socket.bind(&bound.into())?;
    Ok((socket, bound))
}

fn refused(transport: Transport, address: IpAddr, port: u16, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => Error::PortTaken {
            protocol: transport.name(),
            address,
            port,
            holder: holder::of_port(transport, address, port),
        },
        Some(libc::EADDRNOTAVAIL) => Error::invalid(
            "local address",
            format!("{address} is not an address of this host, or IPv6 is still checking it for duplicates"),
        ),
        _ => Error::io(format!("reserve {transport} port {port} on {address}"), "CAP_NET_BIND_SERVICE", error),
    }
}
