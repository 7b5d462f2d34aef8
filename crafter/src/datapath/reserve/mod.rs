//! Reserves ports, so that no other program of this network namespace can use them.
//!
//! The kernel does not assign a bound port to another socket, neither by bind() nor as the ephemeral port of a
//! connect(). One socket for each port holds it, however many addresses the host has. What it excludes is what bind()
//! excludes:
//!
//! - **On any address:** a socket on `[::]` without IPV6_V6ONLY, which conflicts with sockets of both families on every
//!   address, also on those that are added later. On a host without IPv6, a socket on `0.0.0.0`.
//! - **On one address:** a socket on it. It conflicts with sockets on the same address and on the wildcard. Programs on
//!   other addresses are not disturbed. A program that has the wildcard has the port on all addresses, so the port is
//!   taken.
//!
//! The sockets have neither SO_REUSEADDR nor SO_REUSEPORT, so a program that sets one is refused, too. They are only
//! bound, so that the kernel's answers to packets for the port do not change:
//!
//! - TCP: bound, not listening: the kernel still answers a SYN with a RST (`tcp_v4_rcv()` finds no listener).
//! - UDP: a bound socket would receive the datagrams, and the kernel would send no port-unreachable. On one address, the
//!   socket is therefore connected to its own address and port: `compute_score()` (net/ipv4/udp.c) skips it for datagrams
//!   from any other sender, while the conflict check of bind() (`udp_lib_lport_inuse()`) compares only the local end. On
//!   any address, where connecting would narrow the socket to one, the program `crafter_lookup` of the owner's interface
//!   excludes the port from the lookup (`bpf_sk_lookup`); a filter discards the multicasts and broadcasts that are not
//!   looked up.
//! - ICMP: a ping socket (`ping_get_port()`) holds the identifier if `net.ipv4.ping_group_range` includes a group of
//!   this user. Otherwise, and for identifier 0, nothing holds it. Raw sockets can send any identifier in any case.
//!
//! Binding a thousand ports takes milliseconds, so an [`Acquisition`] takes turns, and gives up after a time limit.

mod discard;
mod row;
mod socket;

use std::{
    io,
    net::IpAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit};

use self::{
    row::{RowSearch, Turn},
    socket::{Binder, Held},
};
use super::holder;
use crate::{
    error::{Error, Result},
    packet::Transport,
};

/// Ports that no service is registered for (RFC 6335 section 6).
pub const DYNAMIC: RangeInclusive<u16> = 49_152..=65_535;

/// Duration of a turn of an [`Acquisition`]; other work of the thread waits for its end.
const TURN: Duration = Duration::from_micros(500);

/// Time limit of one search of free ports, over all turns. It applies only after more than twice the requested number
/// of ports was tried, so that a slow machine finds ports that are free.
const SEARCH: Duration = Duration::from_micros(30_000);

/// A port that no other program of this network namespace can be given. Dropping it frees the port.
#[derive(Debug)]
pub struct Reservation {
    transport: Transport,
    address: IpAddr,
    port: u16,
    _held: Held,
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
}

/// A request for ports, processed in turns. Dropping it frees the ports reserved so far.
#[derive(Debug)]
pub struct Acquisition {
    transport: Transport,
    address: IpAddr,
    binder: Binder,
    search: RowSearch<Held>,
    count: u16,
    spent: Duration,
    limit: Option<Duration>,
}

impl Acquisition {
    /// Reserves every port of `range` on `address` (unspecified: on every address of both families), or none. `ifindex`
    /// is the interface of the lease; it gives IPv6 link-local addresses their scope.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty range, or for TCP or UDP port 0.
    pub fn exact(transport: Transport, address: IpAddr, range: RangeInclusive<u16>, ifindex: u32) -> Result<Self> {
        let (first, last) = (*range.start(), *range.end());
        if !transport.ports().contains(&first) || first > last {
            return Err(Error::invalid(
                format!("port range {first}-{last}"),
                "must begin at 1 or more and not end before it begins",
            ));
        }
        let search = RowSearch::exact(range);
        let binder = Binder::new(transport, address, ifindex);
        // Not limited: the work is bounded by the number of ports, which the caller has asked for.
        Ok(Self { transport, address, binder, search, count: last - first, spent: Duration::ZERO, limit: None })
    }

    /// Reserves `count` consecutive free ports of `ranges`, dynamic ones if there are enough, beginning the search at a
    /// random port (RFC 6056, section 3.3.1).
    ///
    /// # Errors
    /// [`Error::NoFreePorts`] if no range has so many ports; [`Error::Io`] without random numbers.
    pub fn free(
        transport: Transport,
        address: IpAddr,
        ranges: &[RangeInclusive<u16>],
        count: u16,
        ifindex: u32,
    ) -> Result<Self> {
        let random = getrandom::u32()
            .map_err(|error| Error::Io { action: "read random bytes".to_owned(), source: error.into() })?;
        let search = RowSearch::free(ranges, count, random).ok_or_else(|| Error::NoFreePorts {
            protocol: transport.name(),
            address,
            count,
            reason: "no range of allowed ports is that long".to_owned(),
        })?;
        let binder = Binder::new(transport, address, ifindex);
        Ok(Self { transport, address, binder, search, count, spent: Duration::ZERO, limit: Some(SEARCH) })
    }

    /// Works for one turn of about 0.5 ms. Returns `None` if more turns are needed. `is_leased`: whether a lease of
    /// this process has the port; such a port counts as taken even if no socket holds it.
    ///
    /// # Errors
    /// [`Error::PortTaken`] for the first port of a range that is taken; [`Error::NoFreePorts`] if there are no such
    /// ports, or the time limit passed; [`Error::Permission`] for a port that needs `CAP_NET_BIND_SERVICE`;
    /// [`Error::Invalid`] if the address is not the host's, or if this process may not open so many descriptors.
    pub fn turn(&mut self, is_leased: impl Fn(u16) -> bool) -> Result<Option<Vec<Reservation>>> {
        let begin = Instant::now();
        self.turn_until(is_leased, || begin.elapsed())
    }

    /// Like [`turn`](Self::turn), with a clock that returns the time since the turn began.
    fn turn_until(
        &mut self,
        is_leased: impl Fn(u16) -> bool,
        elapsed: impl Fn() -> Duration,
    ) -> Result<Option<Vec<Reservation>>> {
        let Self { transport, address, ref mut binder, ref mut search, limit, .. } = *self;
        let bind = |port| {
            if is_leased(port) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            match binder.hold(port) {
                // A range that spans privileged ports may still have others.
                Err(error) if limit.is_some() && port < 1024 && error.kind() == io::ErrorKind::PermissionDenied => {
                    Err(io::ErrorKind::AddrInUse.into())
                }
                held => held,
            }
        };
        let turn = search.turn(bind, || elapsed() >= TURN);
        let unused = search.take_unused();
        if unused.len() > socket::MANY || !matches!(turn, Turn::More) {
            socket::close(unused);
        } else {
            search.keep_unused(unused);
        }
        self.spent += elapsed();
        match turn {
            Turn::Found(first, held) => {
                // With an end: `first..` overflows after port 65,535.
                let reserved = (first..=u16::MAX).zip(held);
                Ok(Some(reserved.map(|(port, held)| Reservation { transport, address, port, _held: held }).collect()))
            }
            // See [`SEARCH`].
            Turn::More if limit.is_some_and(|limit| self.spent >= limit) && self.is_long() => {
                let milliseconds = self.spent.as_millis();
                Err(self.none(&format!("the search was stopped after {milliseconds} ms;")))
            }
            Turn::More => Ok(None),
            Turn::None(Some(port)) => Err(refused(transport, address, port, io::ErrorKind::AddrInUse.into())),
            Turn::None(None) => Err(self.none("")),
            Turn::Failed(_, error) if error.raw_os_error() == Some(libc::EMFILE) => {
                let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
                Err(Error::invalid(
                    format!("{} ports", self.search.count()),
                    format!("they need more file descriptors than this process may open, {limit} (raise `ulimit -n`)"),
                ))
            }
            Turn::Failed(port, error) => Err(refused(transport, address, port, error)),
        }
    }

    /// Whether more than twice the requested number of ports was tried.
    fn is_long(&self) -> bool {
        self.search.tried() > 2 * u64::from(self.count)
    }

    fn none(&self, how: &str) -> Error {
        let (taken, tried) = (self.search.taken(), self.search.tried());
        let reason = format!("{how} {taken} of {tried} ports tried are in use").trim_start().to_owned();
        let (protocol, address, count) = (self.transport.name(), self.address, self.count);
        Error::NoFreePorts { protocol, address, count, reason }
    }

    /// Takes turns until the work is finished.
    fn finish(mut self) -> Result<Vec<Reservation>> {
        loop {
            if let Some(reserved) = self.turn(|_| false)? {
                return Ok(reserved);
            }
        }
    }
}

impl Drop for Acquisition {
    fn drop(&mut self) {
        socket::close(self.search.take_all());
    }
}

/// Frees many ports on another thread, if there is a runtime.
pub(crate) fn release(reservations: Vec<Reservation>) {
    socket::close(reservations.into_iter().map(|reservation| reservation._held).collect());
}

/// Reserves `port` on `address`; see [`Acquisition::exact`].
///
/// # Errors
/// [`Error::PortTaken`] with the holder's name if it is known; otherwise those of [`Acquisition`].
pub fn reserve(transport: Transport, address: IpAddr, port: u16, ifindex: u32) -> Result<Reservation> {
    if !transport.ports().contains(&port) {
        return Err(Error::invalid("port", "port 0 cannot be reserved; reserve a range to get a free port"));
    }
    let mut reserved = reserve_range(transport, address, port..=port, ifindex)?;
    reserved.pop().ok_or_else(|| Error::invalid("port", "no port was requested"))
}

/// Reserves a free port of `range`; see [`Acquisition::free`]. [`DYNAMIC`] is the usual range.
///
/// # Errors
/// [`Error::NoFreePorts`] if none is free; otherwise those of [`Acquisition`].
pub fn reserve_free(
    transport: Transport,
    address: IpAddr,
    range: RangeInclusive<u16>,
    ifindex: u32,
) -> Result<Reservation> {
    let mut reserved = Acquisition::free(transport, address, &[range], 1, ifindex)?.finish()?;
    reserved.pop().ok_or_else(|| Error::invalid("port", "no port was requested"))
}

/// Reserves every port of `range`, or none; see [`Acquisition::exact`].
///
/// # Errors
/// As [`reserve`], for the first port that cannot be reserved.
pub fn reserve_range(
    transport: Transport,
    address: IpAddr,
    range: RangeInclusive<u16>,
    ifindex: u32,
) -> Result<Vec<Reservation>> {
    Acquisition::exact(transport, address, range, ifindex)?.finish().map_err(name_holder)
}

/// Adds the name of the process that holds a taken port, if it is known. Reads the sockets of all processes, so the
/// service, which names no process to its clients, does not call it.
pub(crate) fn name_holder(error: Error) -> Error {
    let Error::PortTaken { protocol, address, port, holder: None } = error else { return error };
    let transport = [Transport::Tcp, Transport::Udp, Transport::Icmp].into_iter().find(|one| one.name() == protocol);
    let holder = transport.and_then(|transport| holder::of_port(transport, address, port));
    Error::PortTaken { protocol, address, port, holder }
}

fn refused(transport: Transport, address: IpAddr, port: u16, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::PortTaken { protocol: transport.name(), address, port, holder: None },
        io::ErrorKind::AddrNotAvailable => Error::invalid(
            "local address",
            format!("{address} is not an address of this host, or IPv6 is still checking it for duplicates"),
        ),
        _ => Error::io(format!("reserve {transport} port {port} on {address}"), "CAP_NET_BIND_SERVICE", error),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::Ipv4Addr};

    use super::*;

    /// A clock that advances with each look, as each attempt takes this long.
    fn clock(step: Duration) -> impl Fn() -> Duration {
        let now = Cell::new(Duration::ZERO);
        move || {
            now.set(now.get() + step);
            now.get()
        }
    }

    fn search() -> Acquisition {
        Acquisition::free(Transport::Udp, Ipv4Addr::LOCALHOST.into(), &[DYNAMIC], 1024, 1).unwrap()
    }

    #[test]
    fn rows_up_to_the_last_port_are_reserved() {
        let address = Ipv4Addr::LOCALHOST.into();
        for first in [65_535_u16, 65_530] {
            let ports: Vec<u16> = (first..=u16::MAX).collect();
            let reserved = |acquisition: Result<Acquisition>| -> Vec<u16> {
                acquisition.unwrap().finish().unwrap().iter().map(Reservation::port).collect()
            };
            assert_eq!(reserved(Acquisition::exact(Transport::Udp, address, first..=u16::MAX, 1)), ports);
            let count = ports.len() as u16;
            assert_eq!(reserved(Acquisition::free(Transport::Udp, address, &[first..=u16::MAX], count, 1)), ports);
        }
    }

    #[test]
    fn turn_ends_at_its_time_limit() {
        let mut search = search();
        // Every 512th port is leased, so 1,024 consecutive free ports do not exist, and the first turn may find no
        // taken port.
        let turn = search.turn_until(|port| port % 512 == 0, clock(Duration::from_micros(10)));
        assert!(turn.unwrap().is_none());
        assert_eq!(search.search.tried(), 50, "attempts of 10 us in a turn of 500 us");
    }

    #[test]
    fn search_stops_at_its_time_limit_and_reports_the_ports_tried() {
        let mut search = search();
        let mut turns = 0;
        let error = loop {
            turns += 1;
            match search.turn_until(|port| port % 513 == 0, clock(Duration::from_micros(10))) {
                Ok(None) => {}
                Ok(Some(row)) => panic!("{} ports", row.len()),
                Err(error) => break error,
            }
        };
        assert!(turns <= 61, "{turns} turns of 500 us in 30 ms");
        let said = error.to_string();
        assert!(
            said.starts_with("no 1024 consecutive free UDP ports on 127.0.0.1: the search was stopped after 30 ms"),
            "{said}"
        );
        assert!(said.ends_with("ask for fewer"), "{said}");
    }
}
