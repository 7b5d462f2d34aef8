//! Runs an exchange: `send`, `sr` or a script.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use super::state::{Exchange, ReadyPacket};
use crate::{
    error::{Error, Result},
    layer::{Kind, Packet},
    session::{Account, Exchanged, Script, Step},
};

/// Busy-poll time for replies of near peers, which take less than this through the service.
const BUSY_POLL_TIME: Duration = Duration::from_micros(150);

/// How long the counters of kernel half and user half may take to agree, for packets in between.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(50);

/// How long the service may take to answer a call after the exchange was stopped.
const LAST_CALL_TIMEOUT: Duration = Duration::from_secs(1);

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

    /// Executes the steps of `script`, which handles received packets before each step.
    pub(in crate::session) async fn run(mut self, script: &RefCell<&mut dyn Script>) -> Result<Account> {
        (self.awaits_replies, self.keeps_packets) = (true, false);
        self.fresh_ports = script.borrow().fresh_ports();
        loop {
            self.collect()?;
            self.matcher.forget(script.borrow().oldest());
            let step = match self.stop.is_stopped() {
                true => Step::Done,
                false => script.borrow_mut().next(Instant::now()),
            };
            match step {
                Step::Send(packet) => self.send_one(packet, true).await?,
                Step::SendUnanswered(packet) => self.send_one(packet, false).await?,
                Step::Wait(until) => self.sleep_until(until).await?,
                Step::Done => return Ok(self.finish().await?.account),
            }
        }
    }

    fn is_done(&self) -> bool {
        if self.stop.is_stopped() {
            return true;
        }
        // Packets that were not sent get no reply.
        let not_sent = (self.result.account.unroutable + self.refused) as usize;
        !self.options.multi && self.matcher.answered() + not_sent >= self.matcher.len()
    }

    /// Sends each packet once and handles the replies that arrive meanwhile.
    async fn send_all(&mut self, mut packets: impl Iterator<Item = Packet>) -> Result<()> {
        let stop = self.stop;
        tokio::select! {
            biased;
            limited = self.limit_pace() => limited?,
            () = stop.stopped() => {}
        }
        let mut unroutable = None;
        while let Some(batch) = self.next_batch(&mut packets).await? {
            let Some(ready) = self.prepare_unless_stopped(batch, &mut unroutable).await? else { break };
            self.transmit(&ready, 0)?;
            self.collect()?;
            // Let other tasks of this thread run, above all the driver's.
            if !ready.is_empty() && packets.size_hint().1 != Some(0) {
                tokio::task::yield_now().await;
            }
        }
        match unroutable {
            Some(error) if !self.stop.is_stopped() && self.result.account.unroutable as usize == self.matcher.len() => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// As [`Exchange::prepare`]; `None` if the exchange is stopped meanwhile, as resolving a next hop takes seconds. The
    /// packets of the batch are not sent and not counted.
    async fn prepare_unless_stopped(
        &mut self,
        batch: Vec<Packet>,
        unroutable: &mut Option<Error>,
    ) -> Result<Option<Vec<ReadyPacket>>> {
        let (stop, before) = (self.stop, self.matcher.len());
        let counted = (self.result.account.requests, self.result.account.unroutable, self.unanswerable);
        tokio::select! {
            biased;
            ready = self.prepare(batch, unroutable) => return ready.map(Some),
            () = stop.stopped() => {}
        }
        (self.result.account.requests, self.result.account.unroutable, self.unanswerable) = counted;
        self.unanswerable += (self.matcher.len() - before) as u64;
        self.prepared = Some(before);
        Ok(None)
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
                let (path, packet) = (path.clone(), packet.clone());
                let first = packet.layers().first().map_or(Kind::Raw, |layer| layer.kind());
                let whole = ReadyPacket { path, first, bytes: packet.build()?, number, is_later_fragment: false };
                self.push_ready(&packet, whole, None, &mut ready)?;
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

    async fn send_one(&mut self, packet: Packet, answerable: bool) -> Result<()> {
        self.answerable = answerable;
        let mut unroutable = None;
        let Some(ready) = self.prepare_unless_stopped(vec![packet], &mut unroutable).await? else { return Ok(()) };
        let account = &self.result.account;
        if let Some(error) = unroutable {
            if account.unroutable == account.requests {
                return Err(error);
            }
            log::warn!("{error}");
        }
        self.transmit(&ready, 0)?;
        // Let other tasks of this thread run, above all the driver's.
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Computes the account and the result.
    async fn finish(mut self) -> Result<Exchanged> {
        self.collect()?;
        let keeps_account = self.readings.is_some();
        if let Some(readings) = self.readings.take() {
            let until = Instant::now() + SETTLE_TIMEOUT;
            let mut has_read = false;
            'account: loop {
                self.collect()?;
                let mut account = Account { kernel: Default::default(), ..self.result.account };
                for (&link, before) in &readings {
                    let reading = self.links.links[link].read_counters(link == 0);
                    if !self.stop.is_stopped() {
                        account.add(before, &reading.await?);
                    } else if let Ok(reading) = tokio::time::timeout(LAST_CALL_TIMEOUT, reading).await {
                        account.add(before, &reading?);
                    } else {
                        log::warn!("the service does not answer; the account has no counters of the kernel half");
                        break 'account;
                    }
                }
                if account.agrees() || Instant::now() >= until {
                    self.result.account = account;
                    break;
                }
                // By the reply to the second call, the service has counted everything sent before the first.
                if std::mem::replace(&mut has_read, true) || self.links.options.service.is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        match self.refusal.take() {
            Some(refusal) if self.refused >= self.result.account.requests => return Err(refusal),
            Some(refusal) => log::warn!("the service refused {} packets: {refusal}", self.refused),
            None => {}
        }
        let account = &mut self.result.account;
        account.answered = self.matcher.answered() as u64;
        if keeps_account {
            account.half_open_reset = self.links.resets.take_count();
        }
        if self.awaits_replies {
            account.unanswered = (self.matcher.len() - self.matcher.answered()) as u64 - self.unanswerable;
        }
        if self.awaits_replies && self.keeps_packets {
            let sent = self.prepared.unwrap_or(self.matcher.len());
            self.result.unanswered = self.matcher.into_unanswered(sent).collect();
        }
        Ok(self.result)
    }
}
