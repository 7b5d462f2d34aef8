//! The sockets that reserve ports: one for each port.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::discard::Discard;
use crate::packet::Transport;

/// More sockets than these are closed on another thread if there is a runtime: closing takes longer than binding.
pub(super) const MANY: usize = 256;

/// Binds the ports of one reservation, one after the other.
#[derive(Debug)]
pub(super) struct Binder {
    transport: Transport,
    address: IpAddr,
    ifindex: u32,
    /// Whether one socket on `[::]` holds a port of both families. False once the kernel has none of IPv6.
    has_ipv6: bool,
    /// A socket of the last attempt, whose port was taken.
    unbound: Option<Socket>,
    /// The filter of the sockets; set for UDP on any address.
    discard: Option<Arc<Discard>>,
}

/// What holds one port: a socket, that is never read, only kept open.
#[derive(Debug)]
pub(super) struct Held {
    /// `None` if nothing can hold it: ICMP identifier 0, or without permission for ping sockets.
    _socket: Option<Socket>,
    _discard: Option<Arc<Discard>>,
}

impl Binder {
    /// `ifindex` gives IPv6 link-local addresses their scope.
    pub(super) fn new(transport: Transport, address: IpAddr, ifindex: u32) -> Self {
        // A mapped address is an IPv4 address, and conflicts with its sockets.
        Self { transport, address: address.to_canonical(), ifindex, has_ipv6: true, unbound: None, discard: None }
    }

    /// Holds a port.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`; `AddrInUse` if another socket conflicts.
    pub(super) fn hold(&mut self, port: u16) -> io::Result<Held> {
        let is_udp = self.transport == Transport::Udp;
        let socket = match (self.transport, self.address.is_unspecified()) {
            // bind() of a ping socket takes 0 to mean "any free identifier", so no socket can hold 0.
            (Transport::Icmp, _) if port == 0 => None,
            (Transport::Icmp, is_any) => {
                // Identifiers of the two families are one set in the kernel (`ping_get_port()`).
                let address = if is_any { Ipv4Addr::UNSPECIFIED.into() } else { self.address };
                match self.bind(address, port) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
                    bound => Some(bound?),
                }
            }
            (_, false) => {
                let socket = self.bind(self.address, port)?;
                if is_udp {
                    socket.connect(&self.end(self.address, port).into())?;
                }
                Some(socket)
            }
            (_, true) => {
                if is_udp && self.discard.is_none() {
                    self.discard = Some(Discard::shared()?);
                }
                Some(self.bind_any(port)?)
            }
        };
        Ok(Held { _socket: socket, _discard: self.discard.clone() })
    }

    /// Holds a port of both families. A socket on `[::]` without IPV6_V6ONLY conflicts with every socket of either
    /// (`ipv6_rcv_saddr_equal()`).
    fn bind_any(&mut self, port: u16) -> io::Result<Socket> {
        if self.has_ipv6 {
            match self.bind(Ipv6Addr::UNSPECIFIED.into(), port) {
                Err(error) if no_family(&error) => {
                    self.has_ipv6 = false;
                    self.unbound = None;
                }
                bound => return bound,
            }
        }
        self.bind(Ipv4Addr::UNSPECIFIED.into(), port)
    }

    fn end(&self, address: IpAddr, port: u16) -> SocketAddr {
        match address {
            IpAddr::V4(_) => SocketAddr::new(address, port),
            IpAddr::V6(address) => {
                let scope = if address.is_unicast_link_local() { self.ifindex } else { 0 };
                SocketAddrV6::new(address, port, 0, scope).into()
            }
        }
    }

    /// Binds a socket, that of the last attempt if its port was taken.
    fn bind(&mut self, address: IpAddr, port: u16) -> io::Result<Socket> {
        let socket = match self.unbound.take() {
            Some(socket) => socket,
            None => self.socket(address)?,
        };
        // No SO_REUSEADDR and no SO_REUSEPORT: if both sockets had it, another program could bind the same port.
        match socket.bind(&self.end(address, port).into()) {
            Ok(()) => Ok(socket),
            Err(error) => {
                self.unbound = Some(socket);
                Err(error)
            }
        }
    }

    fn socket(&self, address: IpAddr) -> io::Result<Socket> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let (kind, protocol) = match (self.transport, domain) {
            (Transport::Tcp, _) => (Type::STREAM, None),
            (Transport::Udp, _) => (Type::DGRAM, None),
            (Transport::Icmp, Domain::IPV4) => (Type::DGRAM, Some(Protocol::ICMPV4)),
            (Transport::Icmp, _) => (Type::DGRAM, Some(Protocol::ICMPV6)),
        };
        let socket = Socket::new(domain, kind, protocol)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(!address.is_unspecified())?;
        }
        if let Some(discard) = &self.discard {
            discard.attach(&socket)?;
        }
        Ok(socket)
    }
}

/// Whether the kernel has no IPv6, or none with addresses.
fn no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Closes sockets, many of them on another thread if there is a runtime.
pub(super) fn close(held: Vec<Held>) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) if held.len() > MANY => {
            runtime.spawn_blocking(move || drop(held));
        }
        _ => drop(held),
    }
}
