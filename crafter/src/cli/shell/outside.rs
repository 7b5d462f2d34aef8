//! Network, files and clock for the shell.

use std::{
    io,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crafter::{
    Error, Result,
    datapath::tap::{Tap, TapOptions},
    expr::{Pair, Received, Resolve as _},
    layer::Packet,
    session::{Pace, Session, SrOptions},
    shell::{Exchange, SniffOptions, World},
};

use super::super::{exchange, signals::Signals, sniff::first_interface, system_names::SystemNames};

/// Limit of packets that `sniff` keeps without a count.
const MAX_SNIFFED: usize = 1_000_000;

/// A session, and files, names and clock of the system.
pub struct Outside {
    session: Session,
    interface: Option<String>,
    /// Half-open connections that exchanges have reset.
    reset: u64,
}

impl Outside {
    /// Attaches nothing yet.
    pub fn new(session: Session, interface: Option<String>) -> Self {
        Self { session, interface, reset: 0 }
    }

    /// Resets half-open connections and releases all leases; returns how many connections were reset in total. Ctrl-C
    /// ends the wait.
    pub async fn close(self, signals: &mut Signals) -> u64 {
        self.reset + exchange::close(self.session, Pace::default(), signals, &mut |_| {}).await.reset
    }
}

impl World for Outside {
    /// In another thread, so that signals, the other tasks and the leases do not wait for the system's resolver. After a
    /// cancellation it ends by itself, or with the process.
    async fn resolve(&mut self, name: &str) -> std::result::Result<Option<Vec<IpAddr>>, String> {
        let name = name.to_owned();
        let found = tokio::task::spawn_blocking(move || SystemNames::default().resolve(&name));
        // A panic of the function continues here.
        found.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    async fn send(&mut self, packets: Vec<Packet>, count: u64, pace: Pace) -> Result<u64> {
        let all = (0..count).flat_map(|_| packets.iter().cloned());
        let account = self.session.send(all, pace).await?;
        self.reset += account.half_open_reset;
        Ok(account.sent)
    }

    async fn sr(&mut self, packets: Vec<Packet>, options: &SrOptions) -> Result<Exchange> {
        let exchanged = self.session.sr(packets, options).await?;
        self.reset += exchanged.account.half_open_reset;
        let answered = exchanged.answered.into_iter().map(|pair| Pair {
            request: pair.request,
            time: pair.reply.time,
            reply: pair.reply.packet,
            rtt: pair.rtt,
        });
        Ok(Exchange {
            answered: answered.collect(),
            unanswered: exchanged.unanswered,
            note: Some(exchanged.account.to_string()),
        })
    }

    async fn sr1(&mut self, packet: Packet, options: &SrOptions) -> Result<Option<Received>> {
        Ok(self
            .session
            .sr1(packet, options)
            .await?
            .map(|reply| Received { packet: reply.packet, time: Some(reply.time) }))
    }

    async fn sniff(&mut self, options: &SniffOptions) -> Result<Vec<Received>> {
        let interface = match options.interface.as_ref().or(self.interface.as_ref()) {
            Some(interface) => interface.clone(),
            None => first_interface().await?,
        };
        let tap = TapOptions { filter: options.filter.clone(), ..TapOptions::default() };
        tap.check()?;
        let mut tap = Tap::open(&interface, &tap).await?;
        let count = options.count.map_or(MAX_SNIFFED, |count| usize::try_from(count).unwrap_or(MAX_SNIFFED));
        let mut packets = Vec::new();
        let listening = async {
            while packets.len() < count {
                let captured = tap.next().await?;
                packets.push(Received { packet: captured.packet(), time: captured.time });
            }
            Ok::<(), Error>(())
        };
        match options.timeout {
            // Packets captured before the timeout are the result.
            Some(timeout) => tokio::time::timeout(timeout, listening).await.unwrap_or(Ok(()))?,
            None => listening.await?,
        }
        Ok(packets)
    }

    fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        std::fs::read(path).map_err(|error| file_error("read", path, error))
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        std::fs::write(path, bytes).map_err(|error| file_error("write", path, error))
    }

    fn now(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    fn random(&mut self) -> Result<u64> {
        getrandom::u64().map_err(|error| Error::invalid("random numbers", error))
    }
}

/// The error of a file operation.
fn file_error(action: &str, path: &str, source: io::Error) -> Error {
    Error::Io { action: format!("{action} {path}"), source }
}
