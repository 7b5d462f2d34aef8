//! Sends prepared packets, at the pace of the options.

use std::time::Instant;

use super::state::{BATCH, Exchange, Path, ReadyPacket};
use crate::{
    driver::TxPacket,
    engine::Pacer,
    error::{Error, Result},
    session::{Event, Outcome, clock::wall_clock},
};

impl Exchange<'_> {
    /// Sends packets in their order, one call for each run of the same interface.
    pub(super) fn transmit(&mut self, mut ready: &[ReadyPacket], attempt: u32) -> Result<()> {
        while let Some(first) = ready.first() {
            let count = ready.iter().take_while(|next| next.path.link == first.path.link).count();
            let (run, rest) = ready.split_at(count);
            for ReadyPacket { path: Path { link, route, .. }, bytes, .. } in
                run.iter().filter(|ready| ready.path.leased)
            {
                self.links.resets.handle_sent(*link, route.as_ref(), bytes);
            }
            self.links.reset_due(self.observer);
            let link = &self.links.links[first.path.link];
            let (now, wall) = (Instant::now(), wall_clock());
            for packet in run {
                self.matcher.handle_sent(packet.number, now, wall);
                let outcome = match packet.is_later_fragment {
                    true => Outcome::SentFragment { request: packet.number },
                    false => Outcome::Sent { request: packet.number, attempt },
                };
                let ReadyPacket { first, bytes, number, .. } = packet;
                let request = self.matcher.request(*number);
                let interface = link.name();
                let event = Event { time: wall, interface, first: *first, bytes, request, reply: None, outcome };
                (self.observer)(&event);
            }
            let sent = link.crafter.transmit(run.iter().map(|packet| match &packet.path.route {
                Some(route) => TxPacket::Ip(route, &packet.bytes),
                None => TxPacket::Frame(&packet.bytes),
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

    /// Waits until the pace allows packets, then takes as many of `items`, at most [`BATCH`]; `None` if none is left, or
    /// the exchange is stopped.
    pub(super) async fn next_batch<T>(&mut self, items: &mut impl Iterator<Item = T>) -> Result<Option<Vec<T>>> {
        let count = self.wait_for_pace().await?;
        if self.stop.is_stopped() {
            return Ok(None);
        }
        let batch: Vec<T> = items.take(count).collect();
        if let Some(pacer) = &mut self.pacer {
            pacer.take(batch.len());
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// Lowers the pace to the service's rate limit. Not without an account: the call takes longer than a reply.
    pub(super) async fn limit_pace(&mut self) -> Result<()> {
        if self.readings.is_some()
            && let Some(limit) = self.links.options.rate_limit().await?
            && self.options.pace.rate.is_none_or(|rate| rate > limit)
        {
            self.pacer = Some(Pacer::per_second(limit)?);
        }
        Ok(())
    }

    /// Waits until the pace allows packets; returns how many.
    async fn wait_for_pace(&mut self) -> Result<usize> {
        loop {
            let now = Instant::now();
            let until = match &mut self.pacer {
                _ if self.stop.is_stopped() => return Ok(0),
                None => return Ok(BATCH),
                Some(pacer) => match pacer.ready(now) {
                    0 => pacer.next(now),
                    ready => return Ok(ready.min(BATCH)),
                },
            };
            self.sleep_until(until).await?;
            self.collect()?;
        }
    }

    /// Waits until that time, until a packet arrives, or until the exchange is stopped.
    pub(super) async fn sleep_until(&mut self, until: Instant) -> Result<()> {
        let arrived = self.links.arrived.clone();
        let tapped = tokio::select! {
            () = arrived.notified() => None,
            () = tokio::time::sleep_until(until.into()) => None,
            () = self.stop.stopped() => None,
            tapped = self.links.next_tapped() => Some(tapped?),
        };
        if let Some((at, captured)) = tapped {
            self.handle_tapped(at, captured);
        }
        Ok(())
    }
}
