//! The network and the files that the shell works with.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crafter::{
    Error, Result,
    expr::{Pair, Resolve, SystemNames},
    layer::Packet,
    session::{Pace, Session, SrOptions},
    shell::{Exchange, ExchangeOptions, SendOptions, World},
};

use super::file_error;

/// A session, and the system's files, names and clock.
pub struct Outside {
    session: Session,
}

impl Outside {
    /// Opens nothing yet.
    pub fn new(session: Session) -> Self {
        Self { session }
    }

    /// Gives all leases back.
    pub async fn close(self) {
        self.session.close().await;
    }
}

fn options(options: &ExchangeOptions) -> SrOptions {
    let ExchangeOptions { timeout, retry, rate, multi } = *options;
    SrOptions { timeout, retry, pace: Pace { rate }, multi }
}

impl Resolve for Outside {
    fn resolve(&self, name: &str) -> Result<Option<Vec<IpAddr>>, String> {
        SystemNames.resolve(name)
    }
}

impl World for Outside {
    async fn send(&mut self, packets: Vec<Packet>, options: &SendOptions) -> Result<u64> {
        let all = (0..options.count).flat_map(|_| packets.iter().cloned());
        Ok(self.session.send(all, Pace { rate: options.rate }).await?.sent)
    }

    async fn sr(&mut self, packets: Vec<Packet>, given: &ExchangeOptions) -> Result<Exchange> {
        let exchanged = self.session.sr(packets, &options(given)).await?;
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

    async fn sr1(&mut self, packet: Packet, given: &ExchangeOptions) -> Result<Option<Packet>> {
        Ok(self.session.sr1(packet, &options(given)).await?.map(|reply| reply.packet))
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
