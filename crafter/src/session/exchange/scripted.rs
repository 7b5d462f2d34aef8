//! An exchange driven by a script.

use std::{cell::RefCell, time::Instant};

use super::state::Exchange;
use crate::{
    error::Result,
    layer::Packet,
    session::{Account, Script, Step},
};

impl Exchange<'_> {
    /// Executes the steps of `script`, which handles received packets before each step.
    pub(in crate::session) async fn run(mut self, script: &RefCell<&mut dyn Script>) -> Result<Account> {
        (self.awaits_replies, self.keeps_packets) = (true, false);
        self.fresh_ports = script.borrow().fresh_ports();
        loop {
            self.collect()?;
            self.matcher.forget(script.borrow().oldest());
            let step = script.borrow_mut().next(Instant::now());
            match step {
                Step::Send(packet) => self.send_one(packet, true).await?,
                Step::SendUnanswered(packet) => self.send_one(packet, false).await?,
                Step::Wait(until) => self.sleep_until(until).await?,
                Step::Done => return Ok(self.finish().await?.account),
            }
        }
    }

    async fn send_one(&mut self, packet: Packet, answerable: bool) -> Result<()> {
        self.answerable = answerable;
        let mut unroutable = None;
        let ready = self.prepare(vec![packet], &mut unroutable).await?;
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
}
