//! The end of an exchange: its account and its result.

use std::time::{Duration, Instant};

use super::state::Exchange;
use crate::{
    error::Result,
    session::{Account, Exchanged},
};

/// How long the counters of kernel half and user half may take to agree, for packets in between.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(50);

impl Exchange<'_> {
    /// Computes the account and the result.
    pub(super) async fn finish(mut self) -> Result<Exchanged> {
        self.collect()?;
        let keeps_account = self.readings.is_some();
        if let Some(readings) = self.readings.take() {
            let until = Instant::now() + SETTLE_TIMEOUT;
            let mut has_read = false;
            loop {
                self.collect()?;
                let mut account = Account { kernel: Default::default(), ..self.result.account };
                for (&link, before) in &readings {
                    account.add(before, &self.links.links[link].read_counters(link == 0).await?);
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
            self.result.unanswered = self.matcher.into_unanswered().collect();
        }
        Ok(self.result)
    }
}
