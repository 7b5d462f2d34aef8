//! What the kernel takes on an interface, for the kernel half, which delivers nothing else to a lease.

use std::fs;

use crafter_common::attached::{ACCEPT_LOCAL, CHECK_SOURCE, CHECK_STATION, ROUTE_LOCALNET};

use super::interface::Interface;

/// What the kernel takes on an interface. The default: frames to any station, from any source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The Ethernet address that frames are for; `None` where there is none to compare.
    pub station: Option<[u8; 6]>,
    /// Whether sources are checked.
    pub sources: bool,
    /// Own addresses may be sources (`accept_local`).
    pub local: bool,
    /// 127.0.0.0/8 may be sources (`route_localnet`).
    pub loopback: bool,
}

impl Accepted {
    /// What the kernel takes on `interface` of this thread's network namespace.
    pub fn by_kernel(interface: &Interface) -> Self {
        if interface.loopback {
            return Self::default();
        }
        let station = interface.mac.filter(|_| interface.ethernet);
        let is_set = |key: &str| {
            // The kernel takes either as "yes" (IN_DEV_ORCONF() in linux/inetdevice.h).
            ["all", &interface.name].iter().any(|of| {
                let value = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/{key}"));
                value.is_ok_and(|value| value.trim() != "0")
            })
        };
        Self { station, sources: true, local: is_set("accept_local"), loopback: is_set("route_localnet") }
    }

    /// The fields `checks` and `station` of the map.
    pub(super) fn for_map(&self) -> (u32, [u8; 8]) {
        let flags = [
            (self.station.is_some(), CHECK_STATION),
            (self.sources, CHECK_SOURCE),
            (self.local, ACCEPT_LOCAL),
            (self.loopback, ROUTE_LOCALNET),
        ];
        let checks = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        let mut station = [0; 8];
        station[..6].copy_from_slice(&self.station.unwrap_or_default());
        (checks, station)
    }
}
