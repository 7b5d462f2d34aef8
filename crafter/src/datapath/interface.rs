//! Links of the current network namespace, by rtnetlink.
//!
//! Not from sysfs: `/sys/class/net` shows the namespace in which it was mounted, not the current one.

use std::{fmt, io, net::IpAddr, os::fd::AsRawFd};

use nix::sys::socket::SockProtocol;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        LinkXdp, XdpAttached,
    },
};
use serde::{Serialize, Serializer};

use super::{
    address,
    netlink::{self, Netlink},
};
use crate::error::{Error, Result};

/// A link of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Interface {
    /// E.g. `eth0`.
    pub name: String,
    /// The kernel's number for it, unique in the namespace.
    pub ifindex: u32,
    /// Largest IP packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Its Ethernet address; `None` on devices that have none of 6 bytes.
    #[serde(serialize_with = "mac_as_text")]
    pub mac: Option<[u8; 6]>,
    /// `IFLA_INFO_KIND`: `veth`, `tun`, `bridge`, ...; `None` for hardware and `lo`.
    pub kind: Option<String>,
    /// Packets carry an Ethernet header (`ARPHRD_ETHER`). False for `lo`.
    pub ethernet: bool,
    /// It is `lo`.
    pub loopback: bool,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// The driver sees a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// The XDP program attached, if any.
    pub xdp: Option<AttachedXdp>,
    /// Its own addresses, of both families.
    pub addresses: Vec<IpAddr>,
    /// Receive queues in use; AF_XDP needs one socket for each.
    pub rx_queues: u32,
}

/// An XDP program that is attached to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AttachedXdp {
    /// How it is attached.
    pub mode: XdpMode,
    /// The program's id, as `bpftool prog` lists it.
    pub program_id: u32,
}

/// `IFLA_XDP_ATTACHED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Called by the driver.
    Native,
    /// Called by the stack once an skb exists.
    Generic,
    /// Runs on the device.
    Offload,
    /// In more than one mode; the id is that of the one called first.
    Multiple,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
            Self::Multiple => "multiple",
        })
    }
}

/// All links of this network namespace.
///
/// # Errors
/// [`Error::Io`] if the kernel does not answer.
pub async fn interfaces() -> Result<Vec<Interface>> {
    let mut netlink = Netlink::open().map_err(list_failed)?;
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(request)).await.map_err(list_failed)?;
    let addresses = address::of_links(&mut netlink).await?;
    Ok(answers.into_iter().filter_map(Link::from_answer).map(|link| link.complete(&addresses)).collect())
}

/// The link called `name`.
///
/// # Errors
/// [`Error::UnknownInterface`]; [`Error::Io`] if the kernel does not answer.
pub async fn interface(name: &str) -> Result<Interface> {
    let mut netlink = Netlink::open().map_err(list_failed)?;
    let link = Link::by_name(&mut netlink, name).await?;
    let addresses = address::of_links(&mut netlink).await?;
    Ok(link.complete(&addresses))
}

/// Whether the link `ifindex` has ports, as a bond or a bridge does. True if the kernel does not answer.
pub(super) fn has_ports(ifindex: u32) -> bool {
    const IFINFOMSG: usize = 16;
    /// `IFLA_MASTER`, `IFLA_EXT_MASK`, `RTEXT_FILTER_SKIP_STATS` (linux/if_link.h, linux/rtnetlink.h).
    const MASTER: u16 = 10;
    const EXT_MASK: u16 = 29;
    const SKIP_STATS: u32 = 8;
    let mut request = vec![0; IFINFOMSG];
    for (kind, value) in [(MASTER, ifindex), (EXT_MASK, SKIP_STATS)] {
        request.extend_from_slice(&8_u16.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&value.to_ne_bytes());
    }
    let flags = libc::NLM_F_DUMP as u16;
    let answers = netlink::exchange(SockProtocol::NetlinkRoute, libc::RTM_GETLINK, flags, &request);
    !answers.is_ok_and(|ports| ports.is_empty())
}

/// Whether `interface` carries VLAN devices, by the list of the 8021q module for this network namespace.
pub(super) fn has_vlans(interface: &str) -> bool {
    // Each line after the first two: `eth0.5 | 5 | eth0`.
    let list = std::fs::read_to_string("/proc/thread-self/net/vlan/config").unwrap_or_default();
    list.lines().skip(2).any(|line| line.rsplit('|').next().is_some_and(|lower| lower.trim() == interface))
}

fn list_failed(source: io::Error) -> Error {
    Error::io("list the network interfaces", "CAP_NET_ADMIN", source)
}

/// The part of an [`Interface`] that one request returns, and further fields that routing needs.
pub(super) struct Link {
    /// `addresses` is empty, `rx_queues` counts the allocated ones.
    pub(super) interface: Interface,
    /// Where broadcasts go.
    pub(super) broadcast: Option<[u8; 6]>,
    /// `IFF_NOARP`: the kernel resolves nothing here.
    pub(super) noarp: bool,
    /// `IFF_POINTOPOINT`.
    pub(super) point_to_point: bool,
    /// The MTU for IPv6, which a router advertisement may have lowered.
    pub(super) mtu_ipv6: Option<u32>,
}

impl Link {
    pub(super) async fn by_name(netlink: &mut Netlink, name: &str) -> Result<Self> {
        let unknown = || Error::UnknownInterface { name: name.to_owned() };
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(unknown());
        }
        Self::get(netlink, 0, Some(LinkAttribute::IfName(name.to_owned()))).await?.ok_or_else(unknown)
    }

    /// The link number `ifindex`, which the kernel has just named.
    pub(super) async fn by_index(netlink: &mut Netlink, ifindex: u32) -> Result<Self> {
        let unknown = || Error::UnknownInterface { name: format!("#{ifindex}") };
        Self::get(netlink, ifindex, None).await?.ok_or_else(unknown)
    }

    async fn get(netlink: &mut Netlink, ifindex: u32, name: Option<LinkAttribute>) -> Result<Option<Self>> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex;
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        request.attributes.extend(name);
        match netlink.get(RouteNetlinkMessage::GetLink(request)).await {
            Ok(answer) => Ok(Self::from_answer(answer)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(list_failed(error)),
        }
    }

    fn from_answer(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = answer else {
            return None;
        };
        // AF_BRIDGE answers describe a port a second time.
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let flags = message.header.flags;
        let loopback = flags.contains(LinkFlags::Loopback);
        let mut link = Self {
            interface: Interface {
                name: String::new(),
                ifindex: message.header.index,
                mtu: 0,
                mac: None,
                kind: None,
                ethernet: message.header.link_layer_type == LinkLayerType::Ether && !loopback,
                loopback,
                up: flags.contains(LinkFlags::Up),
                carrier: flags.contains(LinkFlags::LowerUp),
                xdp: None,
                addresses: Vec::new(),
                rx_queues: 1,
            },
            broadcast: None,
            noarp: flags.contains(LinkFlags::Noarp),
            point_to_point: flags.contains(LinkFlags::Pointopoint),
            mtu_ipv6: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.interface.name = name,
                LinkAttribute::Mtu(mtu) => link.interface.mtu = mtu,
                LinkAttribute::Address(address) => link.interface.mac = address.try_into().ok(),
                LinkAttribute::Broadcast(address) => link.broadcast = address.try_into().ok(),
                LinkAttribute::NumRxQueues(queues) => link.interface.rx_queues = queues,
                LinkAttribute::Xdp(xdp) => link.interface.xdp = attached(&xdp),
                LinkAttribute::LinkInfo(infos) => {
                    link.interface.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                LinkAttribute::AfSpecUnspec(families) => link.mtu_ipv6 = mtu_ipv6(&families),
                _ => {}
            }
        }
        Some(link)
    }

    fn complete(self, addresses: &[(u32, IpAddr)]) -> Interface {
        let mut interface = self.interface;
        interface.addresses =
            addresses.iter().filter(|(index, _)| *index == interface.ifindex).map(|(_, address)| *address).collect();
        // IFLA_NUM_RX_QUEUES counts the allocated queues; veth allocates one per possible CPU and uses one.
        interface.rx_queues = channels(&interface.name).unwrap_or(interface.rx_queues).max(1);
        interface
    }
}

fn mtu_ipv6(families: &[AfSpecUnspec]) -> Option<u32> {
    families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => attributes.iter().find_map(|attribute| match attribute {
            AfSpecInet6::DevConf(configuration) => u32::try_from(configuration.mtu6).ok().filter(|mtu| *mtu > 0),
            _ => None,
        }),
        _ => None,
    })
}

fn attached(attributes: &[LinkXdp]) -> Option<AttachedXdp> {
    let mut mode = None;
    let (mut program, mut native, mut generic) = (None, None, None);
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::Driver) => mode = Some(XdpMode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(XdpMode::Generic),
            LinkXdp::Attached(XdpAttached::Hardware) => mode = Some(XdpMode::Offload),
            LinkXdp::Attached(XdpAttached::Multiple) => mode = Some(XdpMode::Multiple),
            LinkXdp::ProgId(id) => program = Some(*id),
            LinkXdp::DrvProgId(id) => native = Some(*id),
            LinkXdp::SkbProgId(id) => generic = Some(*id),
            _ => {}
        }
    }
    // With programs in several modes the kernel leaves IFLA_XDP_PROG_ID out.
    Some(AttachedXdp { mode: mode?, program_id: program.or(native).or(generic)? })
}

/// Receive queues in use (`real_num_rx_queues`), by ETHTOOL_GCHANNELS; `None` where the driver does not say.
fn channels(name: &str) -> Option<u32> {
    /// `struct ethtool_channels` of linux/ethtool.h.
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        command: u32,
        max: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;

    let socket = std::net::UdpSocket::bind("127.0.0.1:0")
        .or_else(|_| std::net::UdpSocket::bind("[::1]:0"))
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))
        .ok()?;
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Default::default() };
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: the name is NUL-terminated, and ifru_data points to the struct that ETHTOOL_GCHANNELS fills,
    // which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    (result == 0).then_some(channels.rx + channels.combined)
}

/// An `ifreq` that names an interface, all other bytes zero.
pub(crate) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data (an array and a union of integers and pointers), for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less, so that the name stays NUL-terminated.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn mac_as_text<S: Serializer>(mac: &Option<[u8; 6]>, serializer: S) -> Result<S::Ok, S::Error> {
    mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).serialize(serializer)
}
