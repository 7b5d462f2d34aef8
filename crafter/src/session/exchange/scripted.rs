//! An exchange that is told step by step what to send.

use std::{cell::RefCell, time::Instant};

use super::Exchange;
use crate::{
    error::Result,
    layer::Packet,
    session::{Account, Script, Step},
};

impl Exchange<'_> {
    /// Does what `script` says, packet by packet: an answer that is there already is told before the next one leaves.
    pub(in crate::session) async fn run(mut self, script: &RefCell<&mut dyn Script>) -> Result<Account> {
        (self.expecting, self.keeping) = (true, false);
        self.fresh_ports = script.borrow().fresh_ports();
        loop {
            self.collect()?;
            self.matcher.forget(script.borrow().oldest());
            let step = script.borrow_mut().next(Instant::now());
            match step {
                Step::Send(packet) => self.emit(packet, true).await?,
                Step::Tell(packet) => self.emit(packet, false).await?,
                Step::Wait(until) => self.sleep_until(until).await?,
                Step::Done => return Ok(self.finish().await?.account),
            }
        }
    }

    async fn emit(&mut self, packet: Packet, answerable: bool) -> Result<()> {
        self.answerable = answerable;
        let mut fault = None;
        let ready = self.prepare(vec![packet], &mut fault).await?;
        let account = &self.result.account;
        if let Some(fault) = fault {
            if account.unroutable == account.requests {
                return Err(fault);
            }
            log::warn!("{fault}");
        }
        self.transmit(&ready, 0)?;
        // Others on this thread get their turn: the driver above all.
        tokio::task::yield_now().await;
        Ok(())
    }
}
