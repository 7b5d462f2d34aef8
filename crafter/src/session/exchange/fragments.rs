//! Packets that are larger than the MTU of their path, sent as fragments.

use std::net::IpAddr;

use super::state::{Exchange, ReadyPacket};
use crate::{
    datapath::route::Route,
    error::{Error, Result},
    layer::{Ip, IpFlags, Packet},
    packet::Transport,
    session::{Fragment, unset_fields::Outline},
};

impl Exchange<'_> {
    /// The size in bytes from which on a packet is sent as fragments of at most that size; `None`: never.
    pub(super) fn fragment_size(
        &self,
        packet: &Packet,
        outline: &Outline,
        (link, route): (usize, Option<&Route>),
    ) -> Option<usize> {
        let mtu = route.map_or(self.links.links[link].crafter.interface().mtu, |route| route.mtu);
        match self.options.fragment {
            Fragment::Automatic => {
                let transport = outline.local_port.map(|(transport, _)| transport);
                let has_flag =
                    packet.get::<Ip>().and_then(|ip| ip.flags).is_some_and(|flags| flags.0 & IpFlags::DF.0 != 0);
                let is_divisible = matches!(transport, Some(Transport::Udp | Transport::Icmp)) && !has_flag;
                is_divisible.then_some(mtu as usize)
            }
            Fragment::Mtu => Some(mtu as usize),
            Fragment::Size(size) => Some(size.into()),
        }
    }

    /// Adds a packet to those that are sent next: in one piece, or as fragments.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it cannot be fragmented, or does not fit the MTU of the route.
    pub(super) fn push_ready(
        &mut self,
        packet: &Packet,
        whole: ReadyPacket,
        destination: Option<IpAddr>,
        ready: &mut Vec<ReadyPacket>,
    ) -> Result<()> {
        let ReadyPacket { path, first, bytes, number, .. } = whole;
        let mut pieces = Vec::new();
        match path.fragment_size {
            // A frame is longer than its IP packet; one that fits stays whole.
            Some(size) if bytes.len() > size => {
                // As the kernel does, a value that an observer cannot predict (RFC 7739).
                let id = getrandom::u32().map_err(|error| Error::invalid("random numbers", error))?;
                for fragment in packet.fragment(size, id)? {
                    pieces.push(fragment.build()?);
                }
            }
            _ => pieces.push(bytes),
        }
        if let Some(route) = &path.route
            && let Some(largest) = pieces.iter().map(Vec::len).max().filter(|largest| *largest > route.mtu as usize)
        {
            let reason = format_args!(
                "{largest} bytes do not fit the MTU towards {}, which is {} bytes on {}: send it in fragments",
                destination.unwrap_or(route.source),
                route.mtu,
                route.interface
            );
            return Err(Error::invalid("packet", reason));
        }
        if let Some(pacer) = &mut self.pacer {
            pacer.take(pieces.len() - 1);
        }
        ready.extend(pieces.into_iter().enumerate().map(|(piece, bytes)| ReadyPacket {
            path: path.clone(),
            first,
            bytes,
            number,
            is_later_fragment: piece > 0,
        }));
        Ok(())
    }
}
