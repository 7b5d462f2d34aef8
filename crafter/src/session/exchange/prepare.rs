//! Before packets leave: their way, their port, and what they leave unset.

use std::{net::IpAddr, sync::Arc};

use futures_util::future::join_all;

use super::{Exchange, Ready, Way};
use crate::{
    datapath::route::{LinkLayer, Route},
    error::{Error, Result},
    layer::{Arp, Ether, Kind, Mac, Packet},
    packet::Transport,
    session::unset_fields::{self, Outline},
};

/// A packet that is to go out.
struct Outlined {
    packet: Packet,
    outline: Outline,
    /// The way that its destination asks for; `None` where it names no destination.
    route: Option<Result<Arc<Route>>>,
}

impl Exchange<'_> {
    /// Finds the way of each packet, leases what it takes, fills in what is unset, and builds it. Of packets that no
    /// way leads to, the first one's reason goes to `fault`.
    pub(super) async fn prepare(&mut self, chunk: Vec<Packet>, fault: &mut Option<Error>) -> Result<Vec<Ready>> {
        let mut outlined = Vec::with_capacity(chunk.len());
        for mut packet in chunk {
            let outline = unset_fields::outline(&mut packet)?;
            outlined.push(Outlined { packet, outline, route: None });
        }
        self.find_routes(&mut outlined).await;
        let mut ready = Vec::with_capacity(outlined.len());
        for Outlined { mut packet, outline, route } in outlined {
            self.result.account.requests += 1;
            let route = match route.transpose() {
                Ok(route) => route,
                Err(error @ (Error::NoRoute { .. } | Error::NoNeighbour { .. })) => {
                    self.result.account.unroutable += 1;
                    fault.get_or_insert(error);
                    self.submit(packet.resolved()?, true);
                    if self.keeping {
                        self.ways.push(None);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (link, leased) = self.fill(&mut packet, &outline, route.as_deref()).await?;
            let bytes = packet.build()?;
            let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
            let route = route.filter(|_| !outline.frame);
            if let Some(route) = &route
                && bytes.len() > route.mtu as usize
            {
                let reason = format_args!(
                    "{} bytes do not fit the MTU towards {}, which is {} bytes on {}: send it in fragments",
                    bytes.len(),
                    outline.destination.unwrap_or(route.source),
                    route.mtu,
                    route.interface
                );
                return Err(Error::invalid("packet", reason));
            }
            let number = self.submit(Packet::parse(first, &bytes), leased);
            if self.keeping {
                self.ways.push(Some(Way { link, route: route.clone(), leased }));
            }
            ready.push(Ready { link, route, first, bytes, number, leased });
        }
        Ok(ready)
    }

    /// Adds a packet to those that may be answered, if it is to be.
    fn submit(&mut self, packet: Packet, leased: bool) -> usize {
        if self.answerable {
            return self.matcher.submit(packet, leased);
        }
        self.unanswerable += 1;
        self.matcher.submit_unanswerable(packet)
    }

    /// Asks for all ways at once: a next hop that does not answer takes seconds.
    async fn find_routes(&self, outlined: &mut [Outlined]) {
        let links = &*self.links;
        let routes = outlined.iter().map(|Outlined { packet, outline, .. }| async move {
            let destination = outline.destination?;
            let is_arp = packet.get::<Arp>().is_some();
            let has_hop = packet.get::<Ether>().is_some_and(|ether| ether.dst.is_some());
            if outline.frame && (is_arp || has_hop) {
                // The next hop is the packet's own business.
                return links.link_towards(destination).await.transpose();
            }
            Some(links.route(destination, outline.source).await)
        });
        let found = join_all(routes).await;
        for (packet, route) in outlined.iter_mut().zip(found) {
            packet.route = route;
        }
    }

    /// Opens the interface, leases the port, and fills in what is unset; the link, and whether answers come over a
    /// lease.
    async fn fill(&mut self, packet: &mut Packet, outline: &Outline, route: Option<&Route>) -> Result<(usize, bool)> {
        let name = match (route, &self.links.options.interface) {
            (_, Some(name)) if outline.frame => name.clone(),
            (Some(route), _) => route.interface.clone(),
            (None, Some(name)) => name.clone(),
            (None, None) => {
                let reason = "nothing in the packet says where it goes: name the interface";
                return Err(Error::invalid("interface", reason));
            }
        };
        let link = self.links.open(&name).await?;
        if let Some(readings) = &self.readings
            && !readings.contains_key(&link)
        {
            let reading = self.links.links[link].read(link == 0).await?;
            self.readings.get_or_insert_default().insert(link, reading);
        }
        let source = outline.source.or(route.map(|route| route.source));
        if let Some(source) = source {
            unset_fields::fill_source(packet, source);
        }
        let mut leased = false;
        if let (Some((transport, port)), Some(source)) = (outline.end, source)
            && (outline.source.is_none() || self.links.is_local(source).await?)
        {
            let leasing = self.port(link, transport, source, port).await;
            self.links.reset_due(self.observer);
            match leasing {
                Ok(port) => {
                    unset_fields::fill_port(packet, port);
                    leased = true;
                }
                // Who only sends may use a port that is somebody else's.
                Err(Error::PortTaken { .. }) if !self.expecting && port.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        if !leased && self.expecting {
            self.links.links[link].tap().await?;
        }
        if outline.frame {
            let mac = self.links.links[link].crafter.interface().mac.unwrap_or_default();
            self.links.links[link].crafter.enable_frames().await?;
            let named = packet.get::<Ether>().is_some_and(|ether| ether.dst.is_some()) || packet.get::<Arp>().is_some();
            let served = match outline.destination.filter(|_| !named) {
                Some(destination) => self.links.hop(destination, outline.source, &name).await?,
                None => None,
            };
            let hop = match (served, route.map(|route| route.link)) {
                (Some(mac), _) => mac.0,
                (None, Some(LinkLayer::Ethernet { destination, .. })) => destination,
                _ => Mac::BROADCAST.0,
            };
            unset_fields::fill_link(packet, mac, hop);
        }
        Ok((link, leased))
    }

    /// The port of a packet: the one that it names, or the one chosen for this exchange.
    async fn port(&mut self, link: usize, transport: Transport, address: IpAddr, named: Option<u16>) -> Result<u16> {
        let key = (link, transport, address);
        match (named, self.chosen.get(&key)) {
            (None, _) if self.fresh_ports => self.links.lease(link, transport, address, None).await,
            (None, Some(&port)) => Ok(port),
            (None, None) => {
                let port = self.links.lease(link, transport, address, None).await?;
                self.chosen.insert(key, port);
                Ok(port)
            }
            // What only follows, such as a RST, does not keep a port longer than what it follows.
            (Some(port), _) if !self.answerable && self.links.holds(link, transport, address, port) => Ok(port),
            (Some(port), _) => self.links.lease(link, transport, address, Some(port)).await,
        }
    }
}
