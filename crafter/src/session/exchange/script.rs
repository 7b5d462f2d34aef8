//! An exchange that is told step by step what to send.

use std::{cell::RefCell, time::Instant};

use super::{BATCH, Exchange};
use crate::{
    error::Result,
    layer::Packet,
    session::{Account, Script, Step},
};

/// Packets that are sent together, and what comes after them.
#[derive(Default)]
struct Batch {
    packets: Vec<Packet>,
    /// The first step that does not belong to it.
    then: Option<Step>,
}

impl Exchange<'_> {
    /// Does what `script` says.
    pub(in crate::session) async fn run(mut self, script: &RefCell<&mut dyn Script>) -> Result<Account> {
        (self.expecting, self.keeping) = (true, false);
        self.fresh_ports = script.borrow().fresh_ports();
        let mut after = None;
        loop {
            self.collect()?;
            self.matcher.forget(script.borrow().oldest());
            let first = after.take().unwrap_or_else(|| script.borrow_mut().next(Instant::now()));
            match first {
                Step::Send(packet) => {
                    let batch = Self::batch(packet, script, |step| matches!(step, Step::Send(_)));
                    self.answerable = true;
                    self.emit(batch.packets).await?;
                    after = batch.then;
                }
                Step::Tell(packet) => {
                    let batch = Self::batch(packet, script, |step| matches!(step, Step::Tell(_)));
                    self.answerable = false;
                    self.emit(batch.packets).await?;
                    after = batch.then;
                }
                Step::Wait(until) => self.sleep_until(until).await?,
                Step::Done => return Ok(self.finish().await?.account),
            }
        }
    }

    /// A packet with those of the next steps that are like it.
    fn batch(first: Packet, script: &RefCell<&mut dyn Script>, is_like: fn(&Step) -> bool) -> Batch {
        let mut batch = Batch { packets: vec![first], then: None };
        while batch.packets.len() < BATCH {
            match script.borrow_mut().next(Instant::now()) {
                step if !is_like(&step) => {
                    // A wait is asked for anew, as what is sent until then may be answered by then.
                    batch.then = Some(step).filter(|step| !matches!(step, Step::Wait(_)));
                    break;
                }
                Step::Send(packet) | Step::Tell(packet) => batch.packets.push(packet),
                Step::Wait(_) | Step::Done => break,
            }
        }
        batch
    }

    async fn emit(&mut self, packets: Vec<Packet>) -> Result<()> {
        let mut fault = None;
        let ready = self.prepare(packets, &mut fault).await?;
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
