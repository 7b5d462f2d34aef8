//! The sockets that packets leave by, and how they are addressed.

use std::{
    io, mem,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsFd as _,
    time::Duration,
};

use crafter_common::parse;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::packet::ip;

/// Bytes of socket buffer: room for a TCP window of 1 MiB, whose skbs count at about twice their payload.
const SEND_BUFFER: usize = 4 << 20;

/// Longest wait of one call for a full queue.
pub(in crate::datapath) const ROOM_WAIT: Duration = Duration::from_millis(20);

/// Which socket a packet leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Ethernet,
    Ip4,
    Ip6,
}

pub(super) fn open(path: Path, ifindex: u32, loopback: bool) -> io::Result<Socket> {
    // 255: the header is ours (IP_HDRINCL and IPV6_HDRINCL are implied), nothing is received.
    let raw = Some(Protocol::from(libc::IPPROTO_RAW));
    let index = std::num::NonZeroU32::new(ifindex);
    let socket = match path {
        Path::Ethernet => {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            socket.bind(&link_address(ifindex, 0))?;
            socket
        }
        Path::Ip4 => {
            let socket = Socket::new(Domain::IPV4, Type::RAW, raw)?;
            socket.set_header_included_v4(true)?;
            socket.bind_device_by_index_v4(index)?;
            socket
        }
        Path::Ip6 => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, raw)?;
            socket.set_header_included_v6(true)?;
            // The local routes of IPv6 addresses belong to the link that has the address: a socket bound to `lo` would
            // find none, but an unbound socket sends to `lo` anyway.
            if !loopback {
                socket.bind_device_by_index_v6(index)?;
            }
            socket
        }
    };
    // Beyond net.core.wmem_max only with CAP_NET_ADMIN; what we get instead is enough to work with.
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    Ok(socket)
}

/// Waits a moment for a queue that is full, as `error` says.
pub(in crate::datapath) fn wait_for_room(socket: &Socket, error: &io::Error) {
    if error.raw_os_error() == Some(libc::EAGAIN) {
        // Writable once its buffer has room again. After an interruption the caller tries again.
        let mut room = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        let _ = poll(&mut room, PollTimeout::try_from(ROOM_WAIT).unwrap_or(PollTimeout::ZERO));
    } else {
        // Nothing signals that a driver's queue has room again.
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// `sockaddr_ll` of an interface and an Ethernet protocol in host byte order. With protocol 0 the socket receives
/// nothing, and `packet_parse_headers()` reads the protocol of each sent packet from its Ethernet header.
pub(crate) fn link_address(ifindex: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a socket address type, which sockaddr_storage has room and alignment for, and any
    // bit pattern is a valid one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    // SAFETY: the storage holds a sockaddr_ll of that length, written above.
    unsafe { SockAddr::new(storage, mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Where a raw socket is to send an IP packet; `None` where the packet ends before its addresses.
pub(super) fn destination(packet: &[u8], v6: bool, ifindex: u32) -> Option<SocketAddr> {
    let (_, address) = parse::addresses(packet, 0, v6)?;
    Some(match ip::address(address, v6) {
        IpAddr::V4(address) => SocketAddrV4::new(address, 0).into(),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() || address.is_multicast() { ifindex } else { 0 };
            SocketAddrV6::new(address, 0, 0, scope).into()
        }
    })
}
