//! Reserves ports, so that no other program of this network namespace can use them.
//!
//! The kernel does not assign a bound port to another socket, neither by bind() nor as the ephemeral port of a
//! connect(). The sockets here are only bound, so that the kernel's answers to packets for the port do not change:
//!
//! - TCP: bound, not listening: the kernel still answers a SYN with a RST (`tcp_v4_rcv()` finds no listener).
//! - UDP: a bound socket would receive the datagrams, and the kernel would send no port-unreachable. Each socket is
//!   therefore connected to its own address and port: `compute_score()` (net/ipv4/udp.c) skips it for datagrams from
//!   any other sender, while the conflict check of bind() (`udp_lib_lport_inuse()`) compares only the local end.
//!   Connecting narrows a wildcard to one address, so "any address" takes one socket per address of this host.
//! - ICMP: a ping socket (`ping_get_port()`) holds the identifier if `net.ipv4.ping_group_range` includes a group of
//!   this user. Otherwise, and for identifier 0, nothing holds it. Raw sockets can send any identifier in any case.

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
    /// The sockets that hold the port, with the address of each. They are never read, only kept open.
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

    /// Extends a reservation for any address to an address that was added to this host later
    /// ([`AddressWatch`](super::address::AddressWatch) reports it). Does nothing for TCP, for a reservation of one
    /// address, or for an address that is already held.
    ///
    /// # Errors
    /// [`Error::PortTaken`] if another program was faster on that address.
    pub fn cover(&mut self, address: IpAddr) -> Result<()> {
        if self.transport == Transport::Udp
            && self.address.is_unspecified()
            && !self.held.iter().any(|(held, _)| *held == address)
        {
            // Wildcards are held only while the host has no address; they would conflict with the new socket.
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
/// [`Error::PortTaken`] with the holder's name if it is known; [`Error::Invalid`] for TCP or UDP port 0, or for an
/// address that this host does not have; [`Error::Permission`] for a port that needs `CAP_NET_BIND_SERVICE`.
pub fn reserve(transport: Transport, address: IpAddr, port: u16, ifindex: u32) -> Result<Reservation> {
    if !transport.ports().contains(&port) {
        return Err(Error::invalid("port", "port 0 cannot be reserved; reserve a range to get a free port"));
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
/// As [`reserve`], for the first port that cannot be reserved; [`Error::Invalid`] for an empty range, or for a range
/// that needs more file descriptors than this process may open.
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
        // ICMP identifier 0: bind() of a ping socket takes 0 to mean "any free identifier", so no socket can hold 0.
        Vec::new()
    } else if !address.is_unspecified() {
        vec![(address, ifindex)]
    } else if transport != Transport::Udp {
        vec![(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0)]
    } else {
        // The wildcards first, to detect a holder on any address, also on a tentative one or on another address of
        // 127.0.0.0/8. They would receive the datagrams, so they are closed below, except on a host without any
        // address, which no datagram can reach.
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
            // IPv6 is disabled; or the address was removed since it was listed, or is still tentative.
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
    // No SO_REUSEADDR: if both sockets had it, another program could bind the same port.
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
