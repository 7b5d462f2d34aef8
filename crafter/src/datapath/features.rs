//! Capabilities of this kernel, this process and each driver, for `crafter doctor` and for messages.

use std::{fs, io, path::Path};

use nix::sys::{socket::SockProtocol, utsname::uname};
use rtnetlink::packet_core::{NlaBuffer, NlasIterator};
use serde::Serialize;

pub use super::holder::holder_of_program;
use super::netlink;
use crate::error::{Error, Result};

/// What the kernel and the capabilities of this process allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Host {
    /// As `uname -r` prints it.
    pub kernel: String,
    /// The kernel carries its own type information (`/sys/kernel/btf/vmlinux`).
    pub btf: bool,
    /// `net.core.bpf_jit_enable`: 0 off, 1 on, 2 on with debugging. `None` if it cannot be read: it exists only in the
    /// initial network namespace, and not in the service's /proc.
    pub jit: Option<u8>,
    /// Effective capabilities of the calling thread, e.g. `CAP_NET_RAW`.
    pub capabilities: Vec<String>,
}

impl Host {
    /// Whether the calling thread had `capability` (such as `CAP_NET_RAW`) when this was read.
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|own| own == capability)
    }
}

/// Reads the facts about the host.
///
/// # Errors
/// [`Error::Io`] if /proc is not mounted.
pub fn host() -> Result<Host> {
    let failed = |action: &str, source| Error::Io { action: action.to_owned(), source };
    let status = "/proc/thread-self/status";
    // Not /proc/sys, which the service's /proc lacks (ProcSubset=pid in its unit).
    let names = uname().map_err(|errno| failed("ask for the kernel's release", errno.into()))?;
    Ok(Host {
        kernel: names.release().to_string_lossy().into_owned(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok().and_then(|text| text.trim().parse().ok()),
        capabilities: capabilities(
            &fs::read_to_string(status).map_err(|source| failed(&format!("read {status}"), source))?,
        ),
    })
}

/// The first two numbers of a kernel release, e.g. (6, 1) of `6.1.0-44-cloud-amd64`; zeroes where there are none.
pub fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// First kernel that attaches classifiers by tcx.
const TCX_KERNEL: (u32, u32) = (6, 6);

/// Whether a kernel of this release attaches classifiers by tcx; else they are filters under clsact.
pub fn has_tcx(release: &str) -> bool {
    version(release) >= TCX_KERNEL
}

/// Whether classifiers go under clsact even on a kernel with tcx, for tests.
pub(super) fn is_clsact_forced() -> bool {
    std::env::var_os("CRAFTER_CLSACT").is_some()
}

/// Whether this process attaches classifiers under clsact, and so needs a [`guard`](super::guard).
///
/// # Errors
/// [`Error::Io`] if the kernel does not answer `uname`.
pub fn needs_guard() -> Result<bool> {
    Ok(is_clsact_forced() || !has_tcx(&host()?.kernel))
}

fn capabilities(status: &str) -> Vec<String> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let names = CAPABILITIES.split(' ').map(|name| format!("CAP_{name}"));
    let unnamed = (CAPABILITIES.split(' ').count()..64).map(|bit| format!("CAP_{bit}"));
    names.chain(unnamed).enumerate().filter(|(bit, _)| set & (1 << bit) != 0).map(|(_, name)| name).collect()
}

/// By bit number, as in linux/capability.h.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER \
    SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE \
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP \
    MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
    CHECKPOINT_RESTORE";

/// What the driver of an interface says it does for native XDP (`NETDEV_XDP_ACT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct XdpFeatures {
    /// XDP_ABORTED, XDP_DROP, XDP_PASS and XDP_TX: native mode works.
    pub basic: bool,
    /// XDP_REDIRECT, so also into AF_XDP sockets.
    pub redirect: bool,
    /// Other devices can redirect frames out of it (`ndo_xdp_xmit`).
    pub transmit: bool,
    /// AF_XDP without copying.
    pub zero_copy: bool,
    /// Programs can run on the device itself.
    pub offload: bool,
    /// Frames in more than one buffer, received.
    pub fragments: bool,
}

/// Asks the `netdev` generic netlink family (Linux 6.3). `None` on older kernels and where it does not answer.
///
/// The `xdp` crate has the same query, but fails on devices without ETHTOOL_GCHANNELS when sysfs belongs to another
/// network namespace.
pub fn xdp_features(ifindex: u32) -> Option<XdpFeatures> {
    let flags = netdev_xdp_features(ifindex).ok()?;
    let has = |bit: u32| flags & (1 << bit) != 0;
    Some(XdpFeatures {
        basic: has(0),
        redirect: has(1),
        transmit: has(2),
        zero_copy: has(3),
        offload: has(4),
        fragments: has(5),
    })
}

fn netdev_xdp_features(ifindex: u32) -> io::Result<u64> {
    const GENL_ID_CTRL: u16 = 0x10;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_ID: u16 = 1;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    const NETDEV_CMD_DEV_GET: u8 = 1;
    const NETDEV_A_DEV_IFINDEX: u16 = 1;
    const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

    let family = generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0")?;
    let family = attribute(&family, CTRL_ATTR_FAMILY_ID)
        .and_then(|value| Some(u16::from_ne_bytes(*value.first_chunk()?)))
        .ok_or(io::ErrorKind::InvalidData)?;
    let device = generic(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes())?;
    attribute(&device, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|value| Some(u64::from_ne_bytes(*value.first_chunk()?)))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Sends a generic netlink request with one attribute. Returns the answer without its `genlmsghdr`.
fn generic(family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    const GENL_HEADER: usize = 4;
    let mut request = vec![command, 1, 0, 0];
    request.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(value);
    request.resize(request.len().next_multiple_of(4), 0);
    let answers = netlink::exchange(SockProtocol::NetlinkGeneric, family, 0, &request)?;
    let answer = answers.into_iter().next().ok_or(io::ErrorKind::UnexpectedEof)?;
    answer.get(GENL_HEADER..).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .flatten()
        .find(|nla: &NlaBuffer<&[u8]>| nla.kind() == kind)
        .map(|nla| nla.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_by_name() {
        let status = "Name:\tx\nCapEff:\t0000008000003000\n";
        assert_eq!(capabilities(status), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"]);
        assert_eq!(capabilities("CapEff:\t8000000000000000\n"), ["CAP_63"]);
        assert!(capabilities("").is_empty());
    }
}
