//! Addresses, names and options of a lab.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Name of the interface, the same in both namespaces.
pub const INTERFACE: &str = "lab0";
/// The client's IPv4 address, in 192.0.2.0/24 (TEST-NET-1, RFC 5737).
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The server's IPv4 address, the client's default gateway.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The client's IPv6 address, in 2001:db8::/64 (documentation prefix, RFC 3849).
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// The server's IPv6 address, the client's default gateway.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Options of a lab.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// MTU of both ends in bytes, 1280 (the minimum of IPv6: RFC 8200, section 5) to 65535.
    pub mtu: u32,
    /// Keep TSO, GSO and GRO as the kernel sets them on both ends. Otherwise they are off, and packets are at most MTU
    /// bytes long.
    pub offloads: bool,
    /// Start the web server on port 80.
    pub web: bool,
    /// Start the DNS server on port 53.
    pub dns: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { mtu: 1500, offloads: true, web: true, dns: true }
    }
}
