//! The sockets that send the packets of a capture.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    ops::Range,
};

use crafter::{
    Error, Result,
    datapath::{
        frames::{self, FrameSender},
        interface::{Interface, interface},
        program::LoadOptions,
        route::{Route, resolve},
        tx::Sender,
    },
    packet::ip,
};
use crafter_common::{
    link,
    parse::{self, Bytes as _},
};

use super::tape::Tape;

const ETHERNET: usize = link::ETHERNET_HEADER;
const VLAN_TAG: usize = 4;

/// Sockets, and the routes of IP packets.
#[derive(Default)]
pub struct Outlet {
    frames: Option<FrameSender>,
    routes: HashMap<IpAddr, Route>,
    /// The senders of IP packets, by interface index.
    senders: HashMap<u32, Sender>,
}

impl Outlet {
    /// Opens the sockets that the packets of `tape` need, and checks the length of each packet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a packet that is too long or too short; those of interfaces and routes.
    pub async fn open(tape: &Tape, name: Option<&str>, top_speed: bool) -> Result<Self> {
        let mark = LoadOptions::default().mark;
        let link = match name {
            Some(name) => Some(interface(name).await?),
            None => None,
        };
        let mut outlet = Self::default();
        for (index, item) in tape.items.iter().enumerate() {
            let bytes = tape.bytes(index);
            let invalid = |reason: String| Err(Error::invalid(tape.name(index), reason));
            if item.ethernet {
                let Some(link) = &link else {
                    return Err(Error::invalid(
                        "--interface",
                        "the capture holds Ethernet frames, which have no route; name the interface to send on",
                    ));
                };
                if bytes.len() < ETHERNET {
                    return invalid(format!(
                        "{} bytes are too short for an Ethernet header; remove it from the capture",
                        bytes.len()
                    ));
                }
                let fits = max_length(link, bytes);
                if bytes.len() > fits {
                    let (length, mtu) = (bytes.len(), link.mtu);
                    return invalid(format!(
                        "{length} bytes are too long for {}: an MTU of {mtu} allows {fits}; raise the MTU or send fragments",
                        link.name
                    ));
                }
                if outlet.frames.is_none() {
                    let queueing = if top_speed { frames::Outlet::Direct } else { frames::Outlet::Queued { mark } };
                    outlet.frames = Some(FrameSender::open(link, queueing)?);
                }
            } else {
                let Some(to) = destination(bytes) else {
                    return invalid(format!(
                        "{} bytes are too short for an IP header; remove it from the capture",
                        bytes.len()
                    ));
                };
                let route = outlet.route(to, name).await?;
                if bytes.len() > route.mtu as usize {
                    let Route { interface, mtu, .. } = route;
                    return invalid(format!(
                        "{} bytes are too long for the route to {to}: {interface} has an MTU of {mtu}; send fragments",
                        bytes.len()
                    ));
                }
                let (ifindex, name) = (route.ifindex, route.interface.clone());
                if let Entry::Vacant(new) = outlet.senders.entry(ifindex) {
                    new.insert(Sender::open(&interface(&name).await?, mark)?);
                }
            }
        }
        Ok(outlet)
    }

    async fn route(&mut self, to: IpAddr, interface: Option<&str>) -> Result<&Route> {
        Ok(match self.routes.entry(to) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(resolve(to, interface, None).await?),
        })
    }

    /// Sends a range of packets.
    ///
    /// # Errors
    /// If an interface is down or removed; packets sent before that are counted.
    pub fn send(&mut self, tape: &Tape, range: Range<usize>) -> Result<()> {
        let mut rest = range;
        while !rest.is_empty() {
            let ethernet = tape.items[rest.start].ethernet;
            let alike = tape.items[rest.clone()].iter().take_while(|item| item.ethernet == ethernet).count();
            let run = rest.start..rest.start + alike;
            rest.start = run.end;
            if ethernet { self.send_frames(tape, run)? } else { self.send_packets(tape, run)? }
        }
        Ok(())
    }

    fn send_frames(&mut self, tape: &Tape, run: Range<usize>) -> Result<()> {
        let frames: Vec<&[u8]> = run.map(|index| tape.bytes(index)).collect();
        let Some(sender) = &mut self.frames else { return Ok(()) };
        sender.send(&frames)?;
        Ok(())
    }

    fn send_packets(&mut self, tape: &Tape, run: Range<usize>) -> Result<()> {
        let mut result = Ok(());
        for index in run {
            let bytes = tape.bytes(index);
            let route = destination(bytes).and_then(|to| self.routes.get(&to));
            let Some((route, sender)) = route.and_then(|route| Some((route, self.senders.get_mut(&route.ifindex)?)))
            else {
                continue;
            };
            result = result.and(sender.push(route, bytes));
        }
        for sender in self.senders.values_mut() {
            result = result.and(sender.flush().map(drop));
        }
        result
    }

    /// Packets that the kernel accepted.
    pub fn sent(&self) -> u64 {
        self.frames.as_ref().map_or(0, FrameSender::sent) + self.senders.values().map(Sender::sent).sum::<u64>()
    }

    /// Packets that the kernel rejected.
    pub fn refused(&self) -> u64 {
        self.frames.as_ref().map_or(0, FrameSender::refused) + self.senders.values().map(Sender::dropped).sum::<u64>()
    }
}

/// Largest length of a frame on a link. Like the kernel (`packet_extra_vlan_len_allowed()`), it allows 4 bytes more for
/// an outermost IEEE 802.1Q tag.
fn max_length(link: &Interface, frame: &[u8]) -> usize {
    let is_tagged = frame.load::<2>(12) == Some(link::ETHERTYPE_VLAN.to_be_bytes());
    link.mtu as usize + ETHERNET + if is_tagged { VLAN_TAG } else { 0 }
}

/// Destination address of an IP packet; `None` if it is too short.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    let (_, v6) = parse::link(packet, 0).ok()?;
    Some(ip::address(parse::addresses(packet, 0, v6)?.1, v6))
}
