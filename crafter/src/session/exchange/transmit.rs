//! Sends prepared packets.

use std::time::Instant;

use super::state::{Exchange, ReadyPacket};
use crate::{
    driver::Outgoing,
    error::{Error, Result},
    session::{Event, Outcome, clock::wall_clock},
};

impl Exchange<'_> {
    /// Sends packets in their order, one call for each run of the same interface.
    pub(super) fn transmit(&mut self, mut ready: &[ReadyPacket], attempt: u32) -> Result<()> {
        while let Some(first) = ready.first() {
            let count = ready.iter().take_while(|next| next.link == first.link).count();
            let (run, rest) = ready.split_at(count);
            for ReadyPacket { link, route, bytes, .. } in run.iter().filter(|packet| packet.leased) {
                self.links.resets.handle_sent(*link, route.as_ref(), bytes);
            }
            self.links.reset_due(self.observer);
            let link = &self.links.links[first.link];
            let (now, wall) = (Instant::now(), wall_clock());
            for packet in run {
                self.matcher.handle_sent(packet.number, now, wall);
                let outcome = Outcome::Sent { request: packet.number, attempt };
                let ReadyPacket { first, bytes, .. } = packet;
                (self.observer)(&Event { time: wall, interface: link.name(), first: *first, bytes, outcome });
            }
            let sent = link.crafter.transmit(run.iter().map(|packet| match &packet.route {
                Some(route) => Outgoing::Ip(route, &packet.bytes),
                None => Outgoing::Frame(&packet.bytes),
            }));
            if self.readings.is_none() {
                self.result.account.sent += sent.sent;
            }
            match sent.error {
                // If only some packets were refused, the exchange goes on; the account counts them.
                Some(error) if sent.sent == 0 || matches!(error, Error::UnknownInterface { .. }) => return Err(error),
                Some(error) => log::warn!("{} of {count} packets not sent: {error}", sent.refused),
                None => {}
            }
            ready = rest;
        }
        Ok(())
    }
}
