//! What the shell needs of the world around it.

use std::time::Duration;

use crate::{
    error::{Error, Result},
    expr::{Pair, Received, Resolve},
    layer::Packet,
};

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SendOptions {
    /// How often to send all of them.
    pub count: u64,
    /// Packets a second; `None`: as fast as it goes.
    pub rate: Option<f64>,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self { count: 1, rate: None }
    }
}

/// How to send and wait for answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExchangeOptions {
    /// How long to wait behind the last packet sent.
    pub timeout: Duration,
    /// How often to send again what was not answered.
    pub retry: u32,
    /// Packets a second; `None`: as fast as it goes.
    pub rate: Option<f64>,
    /// Whether one packet may have many answers.
    pub multi: bool,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(2), retry: 0, rate: None, multi: false }
    }
}

/// What to listen for; a count or a timeout is given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SniffOptions {
    /// An expression of tcpdump.
    pub filter: Option<String>,
    /// To end after so many packets; `None`: only by time.
    pub count: Option<u64>,
    /// To end after this time; `None`: only by count.
    pub timeout: Option<Duration>,
    /// Where to listen, if not where the world does by itself.
    pub interface: Option<String>,
}

/// What was sent and what came back.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exchange {
    /// Packets with an answer, in the order they were sent.
    pub answered: Vec<Pair>,
    /// Packets without one.
    pub unanswered: Vec<Packet>,
    /// What else is to be known of it, for people, if anything.
    pub note: Option<String>,
}

/// The network, files, clock and names of hosts that a [`Shell`](super::Shell) works with.
#[allow(async_fn_in_trait)]
pub trait World: Resolve {
    /// Sends packets; how many went out.
    ///
    /// # Errors
    /// Why they cannot be sent.
    async fn send(&mut self, packets: Vec<Packet>, options: &SendOptions) -> Result<u64>;

    /// Sends packets and matches what comes back.
    ///
    /// # Errors
    /// Why they cannot be sent; that nothing comes back is none.
    async fn sr(&mut self, packets: Vec<Packet>, options: &ExchangeOptions) -> Result<Exchange>;

    /// Sends one packet; the first answer.
    ///
    /// # Errors
    /// As [`sr`](Self::sr).
    async fn sr1(&mut self, packet: Packet, options: &ExchangeOptions) -> Result<Option<Received>> {
        let answered = self.sr(vec![packet], options).await?.answered;
        Ok(answered.first().map(Pair::received))
    }

    /// Packets as they come by.
    ///
    /// # Errors
    /// Why they cannot be had.
    async fn sniff(&mut self, options: &SniffOptions) -> Result<Vec<Received>> {
        let _ = options;
        Err(Error::invalid("sniff", "it is not available here"))
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// The system's reason.
    fn read(&mut self, path: &str) -> Result<Vec<u8>>;

    /// Makes a file of bytes, in place of one that may be there.
    ///
    /// # Errors
    /// The system's reason.
    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()>;

    /// The time since 1970.
    fn now(&self) -> Duration;

    /// A random number, all 64 bits of it.
    ///
    /// # Errors
    /// The system has none.
    fn random(&mut self) -> Result<u64>;
}
