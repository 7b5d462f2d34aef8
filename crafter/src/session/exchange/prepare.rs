//! Prepares packets: finds routes, leases ports, fills in unset fields.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use futures_util::future::join_all;

use super::state::{Exchange, Path, ReadyPacket};
use crate::{
    datapath::route::{LinkLayer, Route},
    error::{Error, Result},
    layer::{Arp, Ether, Kind, Mac, Packet},
    packet::Transport,
    session::unset_fields::{self, Outline},
};

/// A packet to be sent, and what it says about its path.
struct OutlinedPacket {
    packet: Packet,
    outline: Outline,
    /// The route to its destination, as an index; `None` if it has no destination.
    route: Option<usize>,
}

/// A route, `None` if the packet needs none. The error is taken out once it is reported.
type Found = std::result::Result<Option<Arc<Route>>, Option<Error>>;

impl Exchange<'_> {
    /// Finds the route of each packet, leases its port, fills in unset fields, and builds it. The error of the first
    /// packet without a route goes to `unroutable`.
    pub(super) async fn prepare(
        &mut self,
        batch: Vec<Packet>,
        unroutable: &mut Option<Error>,
    ) -> Result<Vec<ReadyPacket>> {
        let mut outlined = Vec::with_capacity(batch.len());
        for mut packet in batch {
            let outline = unset_fields::outline(&mut packet)?;
            outlined.push(OutlinedPacket { packet, outline, route: None });
        }
        let mut routes = self.find_routes(&mut outlined).await;
        let mut ready = Vec::with_capacity(outlined.len());
        for OutlinedPacket { mut packet, outline, route } in outlined {
            self.result.account.requests += 1;
            let found = match route.map_or(&mut Ok(None), |at| &mut routes[at]) {
                Ok(route) => self.carries(&outline, route.as_deref()).map(|()| route.clone()).map_err(Some),
                Err(error) => Err(error.take()),
            };
            let route = match found {
                Ok(route) => route,
                Err(error) => {
                    match error {
                        Some(error @ (Error::NoRoute { .. } | Error::NoNeighbour { .. })) => {
                            unroutable.get_or_insert(error);
                        }
                        Some(error) => return Err(error),
                        // Reported with an earlier packet.
                        None => {}
                    }
                    self.result.account.unroutable += 1;
                    self.submit(packet.resolved()?, true);
                    if self.keeps_packets {
                        self.paths.push(None);
                    }
                    continue;
                }
            };
            let (link, leased) = self.fill(&mut packet, &outline, route.as_deref()).await?;
            let bytes = packet.build()?;
            let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
            let route = route.filter(|_| !outline.frame);
            let fragment_size = self.fragment_size(&packet, &outline, (link, route.as_deref()));
            let number = self.submit(Packet::parse(first, &bytes), leased);
            let path = Path { link, route, leased, fragment_size };
            if self.keeps_packets {
                self.paths.push(Some(path.clone()));
            }
            let whole = ReadyPacket { path, first, bytes, number, is_later_fragment: false };
            self.push_ready(&packet, whole, outline.destination, &mut ready)?;
        }
        Ok(ready)
    }

    /// Checks that the route carries the packet: one destination of a set of frames may be this host itself.
    ///
    /// # Errors
    /// [`Error::NoRoute`] for a frame whose route leads over a link without Ethernet headers, such as `lo`.
    fn carries(&self, outline: &Outline, route: Option<&Route>) -> Result<()> {
        match (route, outline.destination) {
            (Some(route), Some(destination))
                if outline.frame && route.link == LinkLayer::None && self.links.options.interface.is_none() =>
            {
                let reason = format!(
                    "it is reached over {}, where packets have no Ethernet header: begin with IP or IPv6, or name an \
                     interface",
                    route.interface
                );
                Err(Error::NoRoute { destination, reason })
            }
            _ => Ok(()),
        }
    }

    /// Adds a packet to the requests, or to those that cannot be answered; returns its number.
    fn submit(&mut self, packet: Packet, leased: bool) -> usize {
        if self.answerable {
            return self.matcher.submit(packet, leased);
        }
        self.unanswerable += 1;
        self.matcher.submit_unanswerable(packet)
    }

    /// Finds all routes concurrently, each once: a next hop that does not answer takes seconds.
    async fn find_routes(&self, outlined: &mut [OutlinedPacket]) -> Vec<Found> {
        let mut known = HashMap::new();
        for OutlinedPacket { packet, outline, route } in outlined {
            let Some(destination) = outline.destination else { continue };
            // The packet itself names the next hop.
            let names_hop = outline.frame
                && (packet.get::<Arp>().is_some() || packet.get::<Ether>().is_some_and(|ether| ether.dst.is_some()));
            let next = known.len();
            *route = Some(*known.entry((destination, outline.source, names_hop)).or_insert(next));
        }
        let mut wanted: Vec<_> = known.into_iter().collect();
        wanted.sort_unstable_by_key(|(_, at)| *at);
        let links = &*self.links;
        let finding = wanted.into_iter().map(|((destination, source, names_hop), _)| async move {
            let found = match names_hop {
                true => links.route_without_hop(destination).await,
                false => links.route(destination, source).await.map(Some),
            };
            found.map_err(Some)
        });
        join_all(finding).await
    }

    /// Opens the interface, leases the port, and fills in unset fields. Returns the index of the link, and whether the
    /// port is leased.
    async fn fill(&mut self, packet: &mut Packet, outline: &Outline, route: Option<&Route>) -> Result<(usize, bool)> {
        let name = match (route, &self.links.options.interface) {
            (_, Some(name)) if outline.frame => name.clone(),
            (Some(route), _) => route.interface.clone(),
            (None, Some(name)) => name.clone(),
            (None, None) => {
                let reason = "the packet has no destination address: name the interface";
                return Err(Error::invalid("interface", reason));
            }
        };
        let link = self.links.open(&name).await?;
        if let Some(readings) = &self.readings
            && !readings.contains_key(&link)
        {
            let reading = self.links.links[link].read_counters(link == 0).await?;
            self.readings.get_or_insert_default().insert(link, reading);
        }
        let source = outline.source.or(route.map(|route| route.source));
        if let Some(source) = source {
            unset_fields::fill_source(packet, source);
        }
        let mut leased = false;
        if let (Some((transport, port)), Some(source)) = (outline.local_port, source)
            && (outline.source.is_none() || self.links.is_local(source).await?)
        {
            let leasing = self.port(link, transport, source, port).await;
            self.links.reset_due(self.observer);
            match leasing {
                Ok(port) => {
                    unset_fields::fill_port(packet, port);
                    leased = true;
                }
                // Sending alone needs no lease.
                Err(Error::PortTaken { .. }) if !self.awaits_replies && port.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        if !leased && self.awaits_replies {
            self.links.links[link].open_tap().await?;
        }
        if outline.frame {
            let mac = self.links.links[link].crafter.interface().mac.unwrap_or_default();
            self.links.links[link].crafter.enable_frames().await?;
            let named = packet.get::<Ether>().is_some_and(|ether| ether.dst.is_some()) || packet.get::<Arp>().is_some();
            let service_hop = match outline.destination.filter(|_| !named) {
                Some(destination) => self.links.service_hop(destination, outline.source, &name).await?,
                None => None,
            };
            let hop = match (service_hop, route.map(|route| route.link)) {
                (Some(mac), _) => mac.0,
                (None, Some(LinkLayer::Ethernet { destination, .. })) => destination,
                _ => Mac::BROADCAST.0,
            };
            unset_fields::fill_link(packet, mac, hop);
        }
        Ok((link, leased))
    }

    /// Leases the port of a packet: the one that it names, or one chosen for the exchange. Returns it.
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
            // A packet without a reply, such as a RST, does not count as a use of the port.
            (Some(port), _)
                if !self.answerable && self.links.links[link].held.contains_key(&(transport, address, port)) =>
            {
                Ok(port)
            }
            (Some(port), _) => self.links.lease(link, transport, address, Some(port)).await,
        }
    }
}
