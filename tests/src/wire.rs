//! A packet socket that sends IP packets unchanged, without crafter: for positive controls and for misbehaving peers.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crafter::datapath::interface::interface;

/// A packet socket bound to one interface and one Ethernet destination.
pub struct Wire {
    socket: OwnedFd,
    ifindex: u32,
    neighbour: [u8; 6],
}

impl Wire {
    /// Opens it in the calling thread's namespace; `neighbour` is the destination's Ethernet address.
    pub fn open(interface: &str, neighbour: [u8; 6]) -> io::Result<Self> {
        let ifindex = nix::net::if_::if_nametoindex(interface)?;
        // Protocol 0: the socket receives nothing.
        // SAFETY: socket() takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() has just returned this descriptor, which nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Self { socket, ifindex, neighbour })
    }

    /// Sends a packet that begins with its IP header.
    pub fn send(&self, ip: &[u8]) -> io::Result<()> {
        self.send_as(ethertype(ip), ip)
    }

    /// Sends a packet that begins with its IP header, behind an 802.1Q tag with this control information.
    pub fn send_tagged(&self, tci: u16, ip: &[u8]) -> io::Result<()> {
        self.send_as(0x8100, &[&tci.to_be_bytes(), &ethertype(ip).to_be_bytes(), ip].concat())
    }

    fn send_as(&self, protocol: u16, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol.to_be();
        to.sll_ifindex = self.ifindex as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&self.neighbour);
        let size = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the buffer and the address outlive the call, and their lengths are correct.
        let sent = unsafe {
            libc::sendto(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, (&raw const to).cast(), size)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The ethertype of a packet that begins with its IP header.
fn ethertype(ip: &[u8]) -> u16 {
    if ip.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 }
}

/// The Ethernet address of an interface of the calling thread's namespace.
pub fn mac(name: &str) -> [u8; 6] {
    crate::block_on(async { interface(name).await.expect("the interface").mac.expect("an Ethernet address") })
}
