//! The Ethernet address of the next hop, from the kernel's neighbour table.
//!
//! The kernel sends the ARP or neighbour discovery requests, and this module waits for the result: a resolver of our
//! own would send requests twice and could disagree with the kernel.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use rtnetlink::{
    MulticastGroup,
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};

use super::{interface::Link, netlink::Netlink};
use crate::error::{Error, Result};

/// As long as the kernel tries by default: `mcast_solicit` 3 times `retrans_time` 1 s.
pub(super) const RESOLVE: Duration = Duration::from_secs(3);
/// How long a neighbour with a stale address may take to confirm it before the address is used anyway.
const CONFIRM: Duration = Duration::from_millis(200);
/// Interval after which the table is read again even without a notification: notifications can be lost.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

type Mac = [u8; 6];

/// The Ethernet address that reaches `address` on `link`. `broadcast` says that the route's type is broadcast.
///
/// A usable entry is returned at once. An entry that may be out of date is probed at once (NUD_PROBE), and used when
/// the neighbour confirms it or does not answer for 200 ms. Without an entry, the kernel is made to resolve the
/// address (NTF_USE). Both waits end after `limit`.
pub(super) async fn resolve(
    netlink: &mut Netlink,
    link: &Link,
    address: IpAddr,
    broadcast: bool,
    limit: Duration,
) -> Result<Mac> {
    if let Some(mac) = multicast(address) {
        return Ok(mac);
    }
    let link_broadcast = link.broadcast.unwrap_or([0xff; 6]);
    if broadcast {
        return Ok(link_broadcast);
    }
    match lookup(netlink, link, address).await? {
        Entry::Usable(mac) => Ok(mac),
        // On a link without ARP, arp_constructor() and ndisc_constructor() use the link's own address.
        Entry::Missing if link.noarp => Ok(link.interface.mac.unwrap_or(link_broadcast)),
        Entry::Missing if link.point_to_point => Ok(link_broadcast),
        Entry::Doubtful(mac) => confirm(link, address, mac, limit).await,
        Entry::Missing | Entry::Failed => {
            let mut netlink = listen()?;
            solicit(&mut netlink, link, address, limit).await
        }
    }
}

/// RFC 1112 section 6.4, RFC 2464 section 7.
fn multicast(address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(address) if address.is_multicast() => {
            let [_, b, c, d] = address.octets();
            Some([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V4(address) if address.is_broadcast() => Some([0xff; 6]),
        IpAddr::V6(address) if address.is_multicast() => {
            let [.., a, b, c, d] = address.octets();
            Some([0x33, 0x33, a, b, c, d])
        }
        _ => None,
    }
}

#[derive(Debug, PartialEq)]
enum Entry {
    /// REACHABLE, PERMANENT or NOARP.
    Usable(Mac),
    /// STALE, DELAY or PROBE: was right once.
    Doubtful(Mac),
    /// None, or one that the kernel is still asking for.
    Missing,
    /// FAILED: the neighbour did not answer.
    Failed,
}

async fn lookup(netlink: &mut Netlink, link: &Link, address: IpAddr) -> Result<Entry> {
    let answer = match netlink.get(RouteNetlinkMessage::GetNeighbour(message(link, address))).await {
        Ok(RouteNetlinkMessage::NewNeighbour(answer)) => answer,
        Ok(_) => return Ok(Entry::Missing),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Entry::Missing),
        Err(error) => return Err(failed(link, address, error)),
    };
    let mac = answer.attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac).ok(),
        _ => None,
    });
    Ok(match (answer.header.state, mac) {
        (NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => {
            Entry::Usable(mac)
        }
        (NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe, Some(mac)) => Entry::Doubtful(mac),
        (NeighbourState::Failed, _) => Entry::Failed,
        _ => Entry::Missing,
    })
}

async fn confirm(link: &Link, address: IpAddr, doubtful: Mac, limit: Duration) -> Result<Mac> {
    let mut netlink = listen()?;
    let mut probe = message(link, address);
    probe.header.state = NeighbourState::Probe;
    // No NDA_LLADDR: __neigh_update() then keeps the address that the entry has by now, whatever we read before.
    match netlink.change(RouteNetlinkMessage::NewNeighbour(probe), NLM_F_REPLACE).await {
        Ok(()) => {}
        // Without CAP_NET_ADMIN, use the entry unconfirmed, as the kernel does in state DELAY.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(doubtful),
        // Removed or failed since it was read: there is no address to probe with.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            return solicit(&mut netlink, link, address, limit).await;
        }
        Err(error) => return Err(failed(link, address, error)),
    }
    let until = Instant::now() + CONFIRM.min(limit);
    loop {
        match lookup(&mut netlink, link, address).await? {
            Entry::Usable(mac) => return Ok(mac),
            Entry::Doubtful(mac) => {
                if !word(&mut netlink, until).await {
                    return Ok(mac);
                }
            }
            Entry::Missing | Entry::Failed => return solicit(&mut netlink, link, address, limit).await,
        }
    }
}

async fn solicit(netlink: &mut Netlink, link: &Link, address: IpAddr, limit: Duration) -> Result<Mac> {
    let start = Instant::now();
    let mut wanted = message(link, address);
    wanted.header.flags = NeighbourFlags::Use;
    netlink
        .change(RouteNetlinkMessage::NewNeighbour(wanted), NLM_F_CREATE)
        .await
        .map_err(|error| failed(link, address, error))?;
    let until = start + RESOLVE.min(limit);
    let mut heard = true;
    loop {
        match lookup(netlink, link, address).await? {
            Entry::Usable(mac) | Entry::Doubtful(mac) => return Ok(mac),
            Entry::Missing if heard => heard = word(netlink, until).await,
            Entry::Missing | Entry::Failed => {
                return Err(Error::NoNeighbour {
                    address,
                    interface: link.interface.name.clone(),
                    after: Duration::from_millis(start.elapsed().as_millis() as u64),
                });
            }
        }
    }
}

/// A socket that receives notifications of neighbour table changes; open it before the request that causes them.
fn listen() -> Result<Netlink> {
    Netlink::listening(&[MulticastGroup::Neigh])
        .map_err(|error| Error::io("watch the neighbour table", "CAP_NET_ADMIN", error))
}

/// Waits until the neighbour table may have changed; false once `until` is past.
async fn word(netlink: &mut Netlink, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    // Which entry changed, and whether the wait ended by itself, does not matter: the caller reads the table.
    let _ = tokio::time::timeout(left.min(LOOK_AGAIN), netlink.event()).await;
    true
}

fn message(link: &Link, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link.interface.ifindex;
    let (family, address) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

fn failed(link: &Link, address: IpAddr, error: io::Error) -> Error {
    let action = format!("resolve {address} on {}", link.interface.name);
    Error::io(action, "CAP_NET_ADMIN", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_map_to_ethernet() {
        let mac = |address: &str| multicast(address.parse().unwrap());
        // RFC 1112: only 23 bits, so 239.129.2.3 and 239.1.2.3 share an address.
        assert_eq!(mac("239.129.2.3"), Some([0x01, 0x00, 0x5e, 0x01, 0x02, 0x03]));
        assert_eq!(mac("255.255.255.255"), Some([0xff; 6]));
        assert_eq!(mac("ff02::1:ff00:1234"), Some([0x33, 0x33, 0xff, 0x00, 0x12, 0x34]));
        assert_eq!(mac("192.0.2.1"), None);
        assert_eq!(mac("2001:db8::1"), None);
    }
}
