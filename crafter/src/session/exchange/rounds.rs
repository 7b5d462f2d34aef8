//! `send` and `sr`: all packets once, then retransmissions.

use std::time::{Duration, Instant};

use super::state::{Exchange, ReadyPacket};
use crate::{
    error::Result,
    layer::{Kind, Packet},
    session::Exchanged,
};

/// Busy-poll time for replies of near peers, which take less than this through the service.
const BUSY_POLL_TIME: Duration = Duration::from_micros(150);

impl Exchange<'_> {
    /// Sends all packets.
    pub(in crate::session) async fn send(mut self, packets: impl IntoIterator<Item = Packet>) -> Result<Exchanged> {
        self.send_all(packets.into_iter()).await?;
        self.finish().await
    }

    /// Sends all packets and waits for replies.
    pub(in crate::session) async fn sr(mut self, packets: impl IntoIterator<Item = Packet>) -> Result<Exchanged> {
        self.awaits_replies = true;
        self.send_all(packets.into_iter()).await?;
        self.wait().await?;
        for attempt in 1..=self.options.retry {
            if self.is_done() {
                break;
            }
            self.resend(attempt).await?;
            self.wait().await?;
        }
        self.finish().await
    }

    fn is_done(&self) -> bool {
        // Packets that were not sent get no reply.
        let not_sent = (self.result.account.unroutable + self.refused) as usize;
        !self.options.multi && self.matcher.answered() + not_sent >= self.matcher.len()
    }

    /// Sends each packet once and handles the replies that arrive meanwhile.
    async fn send_all(&mut self, mut packets: impl Iterator<Item = Packet>) -> Result<()> {
        let mut unroutable = None;
        while let Some(batch) = self.next_batch(&mut packets).await? {
            let ready = self.prepare(batch, &mut unroutable).await?;
            self.transmit(&ready, 0)?;
            self.collect()?;
            // Let other tasks of this thread run, above all the driver's.
            if !ready.is_empty() && packets.size_hint().1 != Some(0) {
                tokio::task::yield_now().await;
            }
        }
        match unroutable {
            Some(error) if self.result.account.unroutable as usize == self.matcher.len() => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends unanswered requests again.
    async fn resend(&mut self, attempt: u32) -> Result<()> {
        let numbers: Vec<usize> = self.matcher.unanswered().collect();
        let mut numbers = numbers.into_iter();
        while let Some(batch) = self.next_batch(&mut numbers).await? {
            let mut ready = Vec::with_capacity(batch.len());
            for number in batch {
                let (Some(Some(path)), Some(packet)) = (self.paths.get(number), self.matcher.request(number)) else {
                    continue;
                };
                let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
                let (link, route) = (path.link, path.route.clone());
                ready.push(ReadyPacket { link, route, first, bytes: packet.build()?, number, leased: path.leased });
            }
            self.transmit(&ready, attempt)?;
            self.collect()?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Waits for replies until all requests are answered or the options' timeout is over.
    async fn wait(&mut self) -> Result<()> {
        let until = Instant::now() + self.options.timeout;
        for link in &self.links.links {
            link.crafter.busy_poll(BUSY_POLL_TIME);
        }
        loop {
            self.collect()?;
            if self.is_done() || Instant::now() >= until {
                return Ok(());
            }
            self.sleep_until(until).await?;
        }
    }
}
