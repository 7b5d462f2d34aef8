//! Waits for the pace, and for packets.

use std::time::Instant;

use super::state::{BATCH, Exchange};
use crate::{engine::Pacer, error::Result};

impl Exchange<'_> {
    /// Waits until the pace allows packets, then takes as many of `items`, at most [`BATCH`]; `None` if none is left.
    pub(super) async fn next_batch<T>(&mut self, items: &mut impl Iterator<Item = T>) -> Result<Option<Vec<T>>> {
        let count = self.wait_for_pace().await?;
        let batch: Vec<T> = items.take(count).collect();
        if let Some(pacer) = &mut self.pacer {
            pacer.take(batch.len());
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// Waits until the pace allows packets; returns how many.
    async fn wait_for_pace(&mut self) -> Result<usize> {
        if !std::mem::replace(&mut self.has_rate_limit, true)
            && self.readings.is_some()
            && let Some(limit) = self.links.options.rate_limit().await?
            && self.options.pace.rate.is_none_or(|rate| rate > limit)
        {
            self.pacer = Some(Pacer::per_second(limit)?);
        }
        loop {
            let now = Instant::now();
            let until = match &mut self.pacer {
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

    /// Waits until that time, or until a packet arrives.
    pub(super) async fn sleep_until(&mut self, until: Instant) -> Result<()> {
        let arrived = self.links.arrived.clone();
        let tapped = tokio::select! {
            () = arrived.notified() => None,
            () = tokio::time::sleep_until(until.into()) => None,
            tapped = self.links.next_tapped() => Some(tapped?),
        };
        if let Some((at, captured)) = tapped {
            self.handle_tapped(at, captured);
        }
        Ok(())
    }
}
