//! Where a packet goes: link, source address, MTU and next hop, as the kernel would choose them.

use std::{io, net::IpAddr, time::Duration};

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{
    address,
    interface::Link,
    neighbour::{self, Hop},
    netlink::Netlink,
};
use crate::error::{Error, Result};

/// Link-layer header before the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header with these addresses.
    Ethernet {
        /// The Ethernet address of the link.
        source: [u8; 6],
        /// The Ethernet address of the next hop.
        destination: [u8; 6],
    },
    /// Nothing (tun, wireguard), or the loopback device: sent by AF_INET(6) raw sockets.
    None,
}

/// The route to a destination, valid until the routing or neighbour table changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The link that packets leave by; `lo` for addresses of this host.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The source address asked for, else the one that the kernel would choose.
    pub source: IpAddr,
    /// Largest IP packet in bytes: the route's MTU metric or learned path MTU, at most the link's.
    pub mtu: u32,
    /// The router, if the destination is not on the link. May be IPv6 for an IPv4 destination.
    pub gateway: Option<IpAddr>,
    /// Link-layer header before the IP header.
    pub link: LinkLayer,
}

impl Route {
    /// Sets the Ethernet address of the next hop, on links that have such addresses.
    pub(crate) fn set_next_hop(&mut self, mac: [u8; 6]) {
        if let LinkLayer::Ethernet { destination, .. } = &mut self.link {
            *destination = mac;
        }
    }
}

/// IPv4 counts its length in 16 bits (RFC 791), IPv6 its payload (RFC 8200); `lo` offers 65,536.
const LARGEST_PACKET: u32 = 65_535;

/// Asks the kernel's routing table for the route to `destination`, and resolves the next hop's Ethernet address
/// from its neighbour table: at once if known, else within 3 s.
///
/// With `interface`, only routes through it are used, but addresses of this host are always reached through `lo`. An
/// IPv4 destination that has no route through it is treated as on-link, as with `ping -I`. A `source` that is not an
/// address of this host is allowed, although replies to it may not reach this host.
///
/// # Errors
/// [`Error::UnknownInterface`], [`Error::NoRoute`] (no entry, a reject route, link down), [`Error::NoNeighbour`],
/// [`Error::Invalid`] for addresses that do not go together, [`Error::Permission`] if a next hop has to be resolved
/// without `CAP_NET_ADMIN`.
pub async fn resolve(destination: IpAddr, interface: Option<&str>, source: Option<IpAddr>) -> Result<Route> {
    resolve_within(destination, interface, source, neighbour::RESOLVE).await
}

/// As [`resolve`], but waits at most `limit` for the next hop to answer; a limit above 3 s has no effect.
///
/// # Errors
/// As [`resolve`].
pub async fn resolve_within(
    destination: IpAddr,
    interface: Option<&str>,
    source: Option<IpAddr>,
    limit: Duration,
) -> Result<Route> {
    let mut netlink = open()?;
    let Found { mut route, hop } = find(&mut netlink, destination, interface, source).await?;
    if let Some(hop) = hop {
        route.set_next_hop(neighbour::resolve(&mut netlink, &hop, limit).await?);
    }
    Ok(route)
}

/// As [`resolve`], but with the link's broadcast address in the place of the next hop's, which is not resolved.
///
/// # Errors
/// As [`resolve`], without [`Error::NoNeighbour`].
pub async fn without_hop(destination: IpAddr, interface: Option<&str>, source: Option<IpAddr>) -> Result<Route> {
    find(&mut open()?, destination, interface, source).await.map(|found| found.route)
}

/// A route, and the next hop that remains to be resolved.
pub(crate) struct Found {
    /// The route. While there is a `hop`, its next hop's address is the link's broadcast address.
    pub(crate) route: Route,
    /// `None` if the route needs no neighbour.
    pub(crate) hop: Option<Hop>,
}

fn open() -> Result<Netlink> {
    Netlink::open().map_err(|error| Error::io("open a netlink socket", "CAP_NET_ADMIN", error))
}

/// Finds a route without resolving its next hop.
pub(super) async fn find(
    netlink: &mut Netlink,
    destination: IpAddr,
    interface: Option<&str>,
    source: Option<IpAddr>,
) -> Result<Found> {
    let no_route = |reason: String| Error::NoRoute { destination, reason };
    if destination.is_unspecified() {
        return Err(Error::invalid("destination", format!("{destination} is not an address to send to")));
    }
    if let Some(source) = source.filter(|source| source.is_ipv4() != destination.is_ipv4()) {
        return Err(Error::invalid(
            "source address",
            format!("{source} is of another IP version than the destination {destination}"),
        ));
    }
    let asked = match interface {
        Some(name) => {
            let link = Link::by_name(netlink, name).await?;
            require_running(&link).map_err(no_route)?;
            Some(link)
        }
        None if matches!(destination, IpAddr::V6(address) if address.is_unicast_link_local()) => {
            return Err(no_route("a link-local address needs an interface to go with it".to_owned()));
        }
        None => None,
    };

    let entry = lookup(netlink, destination, asked.as_ref(), source).await?;
    let link = match asked {
        Some(link) if link.interface.ifindex == entry.ifindex => link,
        asked => {
            let link = Link::by_index(netlink, entry.ifindex).await?;
            if let Some(asked) = asked.filter(|_| !link.interface.loopback) {
                let (there, here) = (&link.interface.name, &asked.interface.name);
                return Err(no_route(format!("the routing table sends it out of {there}, not {here}")));
            }
            link
        }
    };
    require_running(&link).map_err(no_route)?;
    let source = source.or(entry.source).ok_or_else(|| {
        let version = if destination.is_ipv4() { "IPv4" } else { "IPv6" };
        no_route(format!("{} has no {version} address to send from; give one", link.interface.name))
    })?;

    let (layer, hop) = match link.interface.mac {
        Some(source) if link.interface.ethernet => {
            let address = entry.gateway.unwrap_or(destination);
            let (destination, hop) = match Hop::new(&link, address, entry.kind == RouteType::Broadcast) {
                Ok(hop) => (link.broadcast.unwrap_or([0xff; 6]), Some(hop)),
                Err(mac) => (mac, None),
            };
            (LinkLayer::Ethernet { source, destination }, hop)
        }
        _ => (LinkLayer::None, None),
    };
    let link_mtu = link.mtu_ipv6.filter(|_| destination.is_ipv6()).unwrap_or(link.interface.mtu);
    let route = Route {
        source,
        mtu: entry.mtu.unwrap_or(link_mtu).min(link.interface.mtu).min(LARGEST_PACKET),
        gateway: entry.gateway,
        link: layer,
        ifindex: link.interface.ifindex,
        interface: link.interface.name,
    };
    Ok(Found { route, hop })
}

fn require_running(link: &Link) -> Result<(), String> {
    let name = &link.interface.name;
    if !link.interface.up {
        return Err(format!("{name} is down (`ip link set {name} up`)"));
    }
    if !link.interface.carrier {
        return Err(format!("{name} has no carrier: nothing is connected to it, or its other end is down"));
    }
    Ok(())
}

struct Entry {
    ifindex: u32,
    kind: RouteType,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
    mtu: Option<u32>,
}

async fn lookup(
    netlink: &mut Netlink,
    destination: IpAddr,
    interface: Option<&Link>,
    source: Option<IpAddr>,
) -> Result<Entry> {
    // The local route of an IPv6 address belongs to the link that has the address: the kernel answers with `lo`, but a
    // request limited to `lo` finds no route.
    let through =
        interface.filter(|link| destination.is_ipv4() || !link.interface.loopback).map(|link| link.interface.ifindex);
    let mut answer = netlink.get(request(destination, through, source)).await;
    // ip_route_output_key_hash_rcu() refuses a foreign IPv4 source (EINVAL; ENETUNREACH on recent kernels), so the
    // route is then requested without a source. For an address of this host, the cause of the error is a rule or a
    // route.
    if let (Err(_), Some(source)) = (&answer, source)
        && !address::of_links(netlink).await?.iter().any(|(_, own)| *own == source)
    {
        answer = netlink.get(request(destination, through, None)).await;
    }
    let message = match answer {
        Ok(RouteNetlinkMessage::NewRoute(message)) => message,
        Ok(_) => {
            return Err(Error::NoRoute { destination, reason: "the kernel's answer contains no route".to_owned() });
        }
        Err(error) => return Err(refusal(destination, interface, error)),
    };
    let mut entry = Entry { ifindex: 0, kind: message.header.kind, source: None, gateway: None, mtu: None };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => entry.ifindex = ifindex,
            RouteAttribute::PrefSource(address) => entry.source = ip(address),
            RouteAttribute::Gateway(address) => entry.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => entry.gateway = Some(address.into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => entry.gateway = Some(address.into()),
            RouteAttribute::Metrics(metrics) => {
                entry.mtu = metrics.into_iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if mtu > 0 => Some(mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // Some kernels answer with the entry instead of its errno.
    let reason = match entry.kind {
        RouteType::BlackHole => "a `blackhole` route covers it",
        RouteType::Unreachable => "an `unreachable` route covers it",
        RouteType::Prohibit => "a `prohibit` route covers it",
        _ if entry.ifindex == 0 => "its route names no link",
        _ => return Ok(entry),
    };
    Err(Error::NoRoute { destination, reason: reason.to_owned() })
}

fn request(destination: IpAddr, through: Option<u32>, source: Option<IpAddr>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let (family, bits) = if destination.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    message.attributes.extend(through.map(RouteAttribute::Oif));
    if let Some(source) = source {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    RouteNetlinkMessage::GetRoute(message)
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(address.into()),
        RouteAddress::Inet6(address) => Some(address.into()),
        _ => None,
    }
}

/// The errnos are those of `fib_props` (net/ipv4/fib_semantics.c) and `ip6_rt_type_to_error()`.
fn refusal(destination: IpAddr, interface: Option<&Link>, error: io::Error) -> Error {
    let through = interface.map(|link| format!(" through {}", link.interface.name)).unwrap_or_default();
    let reason = match error.raw_os_error() {
        Some(libc::ENETUNREACH) => {
            format!("the routing table has no entry for it{through} (`ip route`)")
        }
        Some(libc::EHOSTUNREACH) => "an `unreachable` route covers it".to_owned(),
        Some(libc::EACCES) => "a `prohibit` route covers it".to_owned(),
        Some(libc::EINVAL) => "a `blackhole` route covers it".to_owned(),
        Some(libc::ENODEV | libc::ENETDOWN) => format!("its link is down or does not exist any more{through}"),
        _ => {
            return Error::io(format!("ask for the route to {destination}"), "CAP_NET_ADMIN", error);
        }
    };
    Error::NoRoute { destination, reason }
}
