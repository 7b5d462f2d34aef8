//! The addresses of this network namespace, and notifications of changes.

use std::{io, net::IpAddr};

use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
    },
};

use super::netlink::Netlink;
use crate::error::{Error, Result};

/// All addresses of this network namespace, of both families.
///
/// # Errors
/// [`Error::Io`] if the kernel does not answer.
pub async fn local_addresses() -> Result<Vec<IpAddr>> {
    let mut netlink = Netlink::open().map_err(failed)?;
    Ok(of_links(&mut netlink).await?.into_iter().map(|(_, address)| address).collect())
}

/// All addresses, each with the ifindex of its link.
pub(super) async fn of_links(netlink: &mut Netlink) -> Result<Vec<(u32, IpAddr)>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answers = netlink.dump(request).await.map_err(failed)?;
    Ok(answers.into_iter().filter_map(address).collect())
}

fn address(answer: RouteNetlinkMessage) -> Option<(u32, IpAddr)> {
    let RouteNetlinkMessage::NewAddress(message) = answer else {
        return None;
    };
    let (mut local, mut other) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(address),
            AddressAttribute::Address(address) => other = Some(address),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL our own; for IPv6 it mostly reports IFA_ADDRESS
    // only.
    Some((message.header.index, local.or(other)?))
}

fn failed(source: io::Error) -> Error {
    Error::io("list the addresses of this network namespace", "CAP_NET_ADMIN", source)
}

/// Notifications of addresses and links that are added, removed or changed in this network namespace.
pub struct AddressWatch(Netlink);

impl AddressWatch {
    /// Starts to watch. List the addresses after this call, not before, so that no change is missed.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel refuses the socket.
    pub fn open() -> Result<Self> {
        Netlink::listening(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr])
            .map(Self)
            .map_err(|error| Error::io("watch the addresses of this network namespace", "CAP_NET_ADMIN", error))
    }

    /// Waits until an address or a link is added, removed or changed, or until the kernel has dropped notifications.
    /// Returns once per notification: an IPv6 address causes several (tentative, then usable). Cancel safe.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket fails.
    pub async fn changed(&mut self) -> Result<()> {
        loop {
            let message = self.0.event().await.map_err(|error| Error::Io {
                action: "watch the addresses of this network namespace".to_owned(),
                source: error,
            })?;
            match message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewAddress(_)
                    | RouteNetlinkMessage::DelAddress(_)
                    | RouteNetlinkMessage::NewLink(_)
                    | RouteNetlinkMessage::DelLink(_),
                )
                | NetlinkPayload::Overrun(_) => return Ok(()),
                _ => {}
            }
        }
    }
}
