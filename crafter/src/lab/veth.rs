//! The veth pair between the two namespaces: addresses, routes, offloads.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
        link::{InfoData, InfoVeth, LinkFlags},
    },
};

use super::{
    netns::NetNs,
    options::{CLIENT_V4, CLIENT_V6, INTERFACE, LabOptions, SERVER_V4, SERVER_V6},
};
use crate::{Error, Result, datapath::interface::interface_request};

/// How long both ends may take to get carrier; usually milliseconds.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks the options.
///
/// # Errors
/// [`Error::Invalid`] for an MTU out of range.
pub(super) fn check(options: &LabOptions) -> Result<()> {
    // Below 1280 the kernel disables IPv6 on the interface; 65535 is veth's maximum (ETH_MAX_MTU).
    match options.mtu {
        1280..=65535 => Ok(()),
        mtu => Err(Error::invalid("MTU", format_args!("{mtu} bytes are out of range: choose 1280 to 65535"))),
    }
}

/// Connects the two namespaces; when it returns, both ends have carrier.
///
/// # Errors
/// [`Error::Permission`] without CAP_NET_ADMIN, [`Error::Io`] otherwise.
pub(super) fn connect(client: &NetNs, server: &NetNs, options: &LabOptions) -> Result<()> {
    let peer = client.as_fd().as_raw_fd();
    server.run(|| {
        netlink(async |handle| {
            create_pair(&handle, peer, options.mtu).await?;
            configure(&handle, [SERVER_V4.into(), SERVER_V6.into()]).await.map(drop)
        })
    })??;
    client.run(|| {
        netlink(async |handle| {
            let index = configure(&handle, [CLIENT_V4.into(), CLIENT_V6.into()]).await?;
            // The link must be up for routes through a gateway.
            let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(SERVER_V4).output_interface(index);
            handle.route().add(v4.build()).execute().await.map_err(failed("add the IPv4 default route"))?;
            let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(SERVER_V6).output_interface(index);
            handle.route().add(v6.build()).execute().await.map_err(failed("add the IPv6 default route"))?;
            Ok(())
        })
    })??;
    for namespace in [client, server] {
        if !options.offloads {
            namespace.run(|| offloads_off(INTERFACE))??;
        }
        namespace.run(|| netlink(async |handle| ready(&handle).await))??;
    }
    Ok(())
}

/// Runs `work` with a route netlink socket of the calling thread's namespace.
fn netlink<T>(work: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { action: "start an async runtime".into(), source })?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| Error::Io { action: "open a route netlink socket".into(), source })?;
        tokio::spawn(connection);
        work(handle).await
    })
}

/// Creates the pair: one end in the calling thread's namespace, the other in that of `peer`.
async fn create_pair(handle: &Handle, peer: std::os::fd::RawFd, mtu: u32) -> Result<()> {
    let other = LinkUnspec::new_with_name(INTERFACE).setns_by_fd(peer).mtu(mtu).build();
    let pair =
        LinkVeth::new(INTERFACE, INTERFACE).set_info_data(InfoData::Veth(InfoVeth::Peer(other))).mtu(mtu).build();
    handle.link().add(pair).execute().await.map_err(failed("create a veth pair"))
}

/// Gives the interface its addresses and sets it up; returns its index.
async fn configure(handle: &Handle, addresses: [IpAddr; 2]) -> Result<u32> {
    let index = link(handle).await?.header.index;
    // Otherwise duplicate address detection delays the link-local address, and neighbour discovery with it, by a
    // second. If /proc/sys is read-only, the second is spent.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/accept_dad"), "0");
    for address in addresses {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        let mut request = handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            // Without duplicate address detection, which takes a second.
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(failed(&format!("add the address {address}")))?;
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(failed("set the link up"))?;
    Ok(index)
}

/// Waits until the interface has carrier and its IPv6 addresses are usable.
async fn ready(handle: &Handle) -> Result<()> {
    let deadline = Instant::now() + CARRIER_TIMEOUT;
    loop {
        // RUNNING follows the operational state, which the kernel updates on a work queue after LOWER_UP.
        let link = link(handle).await?.header;
        if link.flags.contains(LinkFlags::LowerUp | LinkFlags::Running) && !tentative(handle, link.index).await? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let source = io::Error::new(io::ErrorKind::TimedOut, format!("no carrier within {CARRIER_TIMEOUT:?}"));
            return Err(Error::Io { action: format!("set {INTERFACE} up"), source });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether an address is tentative (RFC 4862, section 5.4): even without duplicate address detection, the state ends on
/// a work queue.
async fn tentative(handle: &Handle, index: u32) -> Result<bool> {
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    let mut any = false;
    while let Some(address) = addresses.try_next().await.map_err(failed("list the addresses"))? {
        any |= address.header.flags.contains(AddressHeaderFlags::Tentative);
    }
    Ok(any)
}

async fn link(handle: &Handle) -> Result<rtnetlink::packet_route::link::LinkMessage> {
    let links = handle.link().get().match_name(INTERFACE).execute().try_next().await;
    links
        .map_err(failed("look the veth interface up"))?
        .ok_or_else(|| Error::UnknownInterface { name: INTERFACE.to_owned() })
}

fn failed(action: &str) -> impl FnOnce(rtnetlink::Error) -> Error {
    let action = action.to_owned();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Error::io(action, "CAP_NET_ADMIN", source)
    }
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO of linux/ethtool.h.
const SET_OFFLOADS: [(&str, u32); 3] = [("TSO", 0x1f), ("GSO", 0x24), ("GRO", 0x2c)];

/// Switches TSO, GSO and GRO of an interface off.
fn offloads_off(interface: &str) -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| Error::Io { action: "open a socket for ethtool".into(), source: errno.into() })?;
    for (name, command) in SET_OFFLOADS {
        let mut value = EthtoolValue { command, value: 0 };
        let mut request = interface_request(interface);
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: SIOCETHTOOL reads an ifreq whose data points to an ethtool_value; both outlive the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
            let source = io::Error::last_os_error();
            return Err(Error::io(format!("switch {name} of {interface} off"), "CAP_NET_ADMIN", source));
        }
    }
    Ok(())
}
