//! The Ethernet address of the next hop, from the kernel's neighbour table.
//!
//! The kernel sends the ARP or neighbour discovery requests, and this module waits for the result: a resolver of our
//! own would send requests twice and could disagree with the kernel.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rtnetlink::{
    MulticastGroup,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};
use tokio::sync::Notify;

#[cfg(feature = "service")]
use super::route::{self, Found};
use super::{
    interface::Link,
    lock,
    netlink::{Netlink, SharedNetlink},
};
use crate::error::{Error, Result};

/// As long as the kernel tries by default: `mcast_solicit` 3 times `retrans_time` 1 s.
pub(crate) const RESOLVE: Duration = Duration::from_secs(3);
/// How long a neighbour with a stale address may take to confirm it before the address is used anyway.
const CONFIRM: Duration = Duration::from_millis(200);
/// Interval at which a waiting resolution reads the table even without a notification: notifications can be lost.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

type Mac = [u8; 6];

/// A next hop: an address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HopKey {
    pub(crate) ifindex: u32,
    pub(crate) address: IpAddr,
}

/// A next hop whose Ethernet address the neighbour table has.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    pub(crate) key: HopKey,
    /// The name of its link.
    interface: String,
    /// The address to use if the table has no entry; `None`: resolve it.
    unlisted: Option<Mac>,
}

impl Hop {
    /// The next hop `address` on `link`, or its Ethernet address if that follows from `address`. `broadcast` says that
    /// the route's type is broadcast.
    pub(super) fn new(link: &Link, address: IpAddr, broadcast: bool) -> Result<Self, Mac> {
        if let Some(mac) = multicast(address) {
            return Err(mac);
        }
        let link_broadcast = link.broadcast.unwrap_or([0xff; 6]);
        if broadcast {
            return Err(link_broadcast);
        }
        // On a link without ARP, arp_constructor() and ndisc_constructor() use the link's own address.
        let unlisted = match (link.noarp, link.point_to_point) {
            (true, _) => Some(link.interface.mac.unwrap_or(link_broadcast)),
            (false, true) => Some(link_broadcast),
            (false, false) => None,
        };
        let key = HopKey { ifindex: link.interface.ifindex, address };
        Ok(Self { key, interface: link.interface.name.clone(), unlisted })
    }

    /// The error if it does not answer within `after`.
    pub(crate) fn no_neighbour(&self, after: Duration) -> Error {
        Error::NoNeighbour { address: self.key.address, interface: self.interface.clone(), after }
    }

    /// The error for a system call that failed.
    pub(crate) fn failed(&self, error: io::Error) -> Error {
        Error::io(format!("resolve {} on {}", self.key.address, self.interface), "CAP_NET_ADMIN", error)
    }
}

/// What the neighbour table has for a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// An address that is usable at once.
    Usable(Mac),
    /// An address that may be out of date.
    Doubtful(Mac),
    /// None.
    Unknown,
}

/// The result of [`Neighbours::resolve`].
#[derive(Debug)]
pub(crate) struct Resolution {
    /// The Ethernet address of the next hop.
    pub(crate) found: Result<Mac>,
    /// Whether the kernel's table has an entry that this resolution created. [`Neighbours::remove`] removes it.
    #[cfg_attr(not(feature = "service"), allow(dead_code, reason = "the service counts and removes its entries"))]
    pub(crate) created: bool,
}

/// Resolves routes and next hops through one netlink socket, however many wait.
pub(crate) struct Neighbours {
    netlink: SharedNetlink,
    waiting: Arc<Waiting>,
}

/// Notifies the task that waits for a change of the entry of a key.
type Waiting = Mutex<HashMap<HopKey, Arc<Notify>>>;

impl Neighbours {
    /// Opens the socket in the network namespace of the calling thread. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open() -> Result<Self> {
        let waiting = Arc::<Waiting>::default();
        let notified = waiting.clone();
        let netlink = SharedNetlink::listening(&[MulticastGroup::Neigh], move |event| match event.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry),
            ) => {
                let waiter = key_of(&entry).and_then(|key| lock(&notified).get(&key).cloned());
                waiter.inspect(|waiter| waiter.notify_one());
            }
            NetlinkPayload::Overrun(_) => lock(&notified).values().for_each(|waiter| waiter.notify_one()),
            _ => {}
        });
        let netlink = netlink.map_err(|error| Error::io("watch the neighbour table", "CAP_NET_ADMIN", error))?;
        Ok(Self { netlink, waiting })
    }

    /// Resolves a next hop that is not [`Known::Usable`]. One caller at a time for each next hop.
    ///
    /// An entry that may be out of date is probed at once (NUD_PROBE), and used when the neighbour confirms it or does
    /// not answer for 200 ms. Without an entry, the kernel is made to resolve the address (NTF_USE). Both waits end
    /// after `limit`. An entry that was created for a neighbour that does not answer is removed.
    pub(crate) async fn resolve(&self, hop: &Hop, known: Known, limit: Duration) -> Resolution {
        let changed = Arc::new(Notify::new());
        lock(&self.waiting).insert(hop.key, changed.clone());
        let mut resolving = Resolving { netlink: self.netlink.requests(), hop, changed, created: false };
        let mut found = match known {
            Known::Usable(mac) => Ok(mac),
            Known::Doubtful(mac) => resolving.confirm(mac, limit).await,
            Known::Unknown => resolving.solicit(limit).await,
        };
        let Resolving { mut created, .. } = resolving;
        lock(&self.waiting).remove(&hop.key);
        if created {
            let removed = match &found {
                Ok(_) => self.remove_group(hop.key).await,
                Err(_) => self.remove(hop.key).await,
            };
            created = found.is_ok();
            if let Err(error) = removed {
                found = Err(hop.failed(error));
            }
        }
        Resolution { found, created }
    }

    /// Removes an entry from the kernel's table, unless an administrator made it permanent. A missing entry is not an
    /// error.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) async fn remove(&self, key: HopKey) -> io::Result<()> {
        match entry(&mut self.netlink.requests(), key).await? {
            Some((NeighbourState::Permanent | NeighbourState::Noarp, _)) | None => {}
            Some(_) => self.delete(key).await?,
        }
        self.remove_group(key).await
    }

    /// Removes the entry of the group to which the kernel sends its solicitations for an IPv6 address: otherwise each
    /// resolution leaves one.
    async fn remove_group(&self, HopKey { ifindex, address }: HopKey) -> io::Result<()> {
        match address {
            IpAddr::V4(_) => Ok(()),
            IpAddr::V6(address) => self.delete(HopKey { ifindex, address: solicited_node(address).into() }).await,
        }
    }

    async fn delete(&self, key: HopKey) -> io::Result<()> {
        match self.netlink.requests().change(RouteNetlinkMessage::DelNeighbour(message(key)), 0).await {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(feature = "service")]
impl Neighbours {
    /// Looks up a route; see [`route::resolve`].
    ///
    /// # Errors
    /// Those of [`route::without_hop`].
    pub(crate) async fn route(
        &self,
        destination: IpAddr,
        interface: Option<&str>,
        source: Option<IpAddr>,
    ) -> Result<Found> {
        route::find(&mut self.netlink.requests(), destination, interface, source).await
    }

    /// Reads the entry of a next hop.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) async fn known(&self, hop: &Hop) -> Result<Known> {
        known(&mut self.netlink.requests(), hop).await
    }

    /// The lowest `gc_thresh1` of the kernel's neighbour tables: with fewer entries than this, the kernel collects none.
    /// `None` if the kernel does not say.
    pub(crate) async fn collection_threshold(&self) -> Option<u32> {
        use rtnetlink::packet_route::neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage};

        let request = RouteNetlinkMessage::GetNeighbourTable(NeighbourTableMessage::default());
        let tables = self.netlink.requests().dump(request).await.ok()?;
        let thresholds = tables.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbourTable(table) => {
                table.attributes.into_iter().find_map(|attribute| match attribute {
                    NeighbourTableAttribute::Threshold1(entries) => Some(entries),
                    _ => None,
                })
            }
            _ => None,
        });
        thresholds.min()
    }
}

/// The Ethernet address of a next hop, resolved as in [`Neighbours::resolve`] if necessary.
pub(super) async fn resolve(netlink: &mut Netlink, hop: &Hop, limit: Duration) -> Result<Mac> {
    match known(netlink, hop).await? {
        Known::Usable(mac) => Ok(mac),
        known => Neighbours::open()?.resolve(hop, known, limit).await.found,
    }
}

async fn known(netlink: &mut Netlink, hop: &Hop) -> Result<Known> {
    Ok(match (lookup(netlink, hop).await?, hop.unlisted) {
        (Entry::Usable(mac), _) | (Entry::Missing, Some(mac)) => Known::Usable(mac),
        (Entry::Doubtful(mac), _) => Known::Doubtful(mac),
        (Entry::Missing | Entry::Failed, _) => Known::Unknown,
    })
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

/// The solicited-node multicast address (RFC 4291, section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    (PREFIX | address.to_bits() & 0xff_ffff).into()
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

async fn lookup(netlink: &mut Netlink, hop: &Hop) -> Result<Entry> {
    let Some(found) = entry(netlink, hop.key).await.map_err(|error| hop.failed(error))? else {
        return Ok(Entry::Missing);
    };
    Ok(match found {
        (NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => {
            Entry::Usable(mac)
        }
        (NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe, Some(mac)) => Entry::Doubtful(mac),
        (NeighbourState::Failed, _) => Entry::Failed,
        _ => Entry::Missing,
    })
}

/// State and address of an entry; `None` if there is none.
async fn entry(netlink: &mut Netlink, key: HopKey) -> io::Result<Option<(NeighbourState, Option<Mac>)>> {
    let answer = match netlink.get(RouteNetlinkMessage::GetNeighbour(message(key))).await {
        Ok(RouteNetlinkMessage::NewNeighbour(answer)) => answer,
        Ok(_) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mac = answer.attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac).ok(),
        _ => None,
    });
    Ok(Some((answer.header.state, mac)))
}

/// A resolution that waits for the neighbour.
struct Resolving<'h> {
    netlink: Netlink,
    hop: &'h Hop,
    /// Notified when the entry changes.
    changed: Arc<Notify>,
    created: bool,
}

impl Resolving<'_> {
    async fn confirm(&mut self, doubtful: Mac, limit: Duration) -> Result<Mac> {
        let mut probe = message(self.hop.key);
        probe.header.state = NeighbourState::Probe;
        // No NDA_LLADDR: __neigh_update() then keeps the address that the entry has by now, whatever we read before.
        match self.netlink.change(RouteNetlinkMessage::NewNeighbour(probe), NLM_F_REPLACE).await {
            Ok(()) => {}
            // Without CAP_NET_ADMIN, use the entry unconfirmed, as the kernel does in state DELAY.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(doubtful),
            // Removed or failed since it was read: there is no address to probe with.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                return self.solicit(limit).await;
            }
            Err(error) => return Err(self.hop.failed(error)),
        }
        let until = Instant::now() + CONFIRM.min(limit);
        loop {
            match lookup(&mut self.netlink, self.hop).await? {
                Entry::Usable(mac) => return Ok(mac),
                Entry::Doubtful(mac) => {
                    if !self.changed(until).await {
                        return Ok(mac);
                    }
                }
                Entry::Missing | Entry::Failed => return self.solicit(limit).await,
            }
        }
    }

    async fn solicit(&mut self, limit: Duration) -> Result<Mac> {
        let start = Instant::now();
        self.create().await.map_err(|error| self.hop.failed(error))?;
        let until = start + RESOLVE.min(limit);
        let mut heard = true;
        loop {
            match lookup(&mut self.netlink, self.hop).await? {
                Entry::Usable(mac) | Entry::Doubtful(mac) => return Ok(mac),
                Entry::Missing if heard => heard = self.changed(until).await,
                Entry::Missing | Entry::Failed => {
                    return Err(self.hop.no_neighbour(Duration::from_millis(start.elapsed().as_millis() as u64)));
                }
            }
        }
    }

    /// Makes the kernel resolve the address. NLM_F_EXCL shows whether the entry is new.
    async fn create(&mut self) -> io::Result<()> {
        let mut wanted = message(self.hop.key);
        wanted.header.flags = NeighbourFlags::Use;
        let request = RouteNetlinkMessage::NewNeighbour(wanted);
        match self.netlink.change(request.clone(), NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.netlink.change(request, NLM_F_CREATE).await
            }
            created => created.map(|()| self.created = true),
        }
    }

    /// Waits until the entry may have changed; false once `until` is past.
    async fn changed(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        // Whether the wait ended by itself does not matter: the caller reads the entry.
        let _ = tokio::time::timeout(left.min(LOOK_AGAIN), self.changed.notified()).await;
        true
    }
}

fn message(key: HopKey) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = key.ifindex;
    let (family, address) = match key.address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

fn key_of(entry: &NeighbourMessage) -> Option<HopKey> {
    let address = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    });
    Some(HopKey { ifindex: entry.header.ifindex, address: address? })
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

    #[test]
    fn solicited_node_address_has_the_last_24_bits() {
        let of = |address: &str| solicited_node(address.parse().unwrap());
        assert_eq!(of("4037::1:800:200e:8c6c"), "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
    }
}
