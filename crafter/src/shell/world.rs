//! [`World`]: the network, files, clock and host names that a shell uses.

use std::{net::IpAddr, time::Duration};

use crate::{
    error::{Error, Result},
    expr::{Pair, Received},
    layer::Packet,
    session::{Pace, SrOptions},
};

/// Options of `sniff()`. A count or a timeout is set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SniffOptions {
    /// A filter expression, pcap-filter(7).
    pub filter: Option<String>,
    /// End after this many packets; `None`: unlimited.
    pub count: Option<u64>,
    /// End after this time; `None`: unlimited.
    pub timeout: Option<Duration>,
    /// Interface to capture on; `None`: the world's default.
    pub interface: Option<String>,
}

/// The result of `sr()`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exchange {
    /// Packets with a reply, in the order of the replies.
    pub answered: Vec<Pair>,
    /// Packets without a reply.
    pub unanswered: Vec<Packet>,
    /// A note about the exchange for the user.
    pub note: Option<String>,
}

/// The network, files, clock and names of hosts that a [`Shell`](super::Shell) works with.
#[allow(async_fn_in_trait)]
pub trait World {
    /// The addresses of a host in order of preference; `None` if names are not resolved. Safe to cancel.
    ///
    /// # Errors
    /// An error message.
    async fn resolve(&mut self, name: &str) -> std::result::Result<Option<Vec<IpAddr>>, String>;

    /// Sends all packets `count` times; returns how many were sent.
    ///
    /// # Errors
    /// Why they cannot be sent.
    async fn send(&mut self, packets: Vec<Packet>, count: u64, pace: Pace) -> Result<u64>;

    /// Sends packets and matches the replies.
    ///
    /// # Errors
    /// Why they cannot be sent. No reply is not an error.
    async fn sr(&mut self, packets: Vec<Packet>, options: &SrOptions) -> Result<Exchange>;

    /// Sends one packet; returns the first reply.
    ///
    /// # Errors
    /// As [`sr`](Self::sr).
    async fn sr1(&mut self, packet: Packet, options: &SrOptions) -> Result<Option<Received>> {
        let answered = self.sr(vec![packet], options).await?.answered;
        Ok(answered.first().map(Pair::received))
    }

    /// Captures packets.
    ///
    /// # Errors
    /// Why they cannot be captured; [`Error::Invalid`] in a world that cannot capture.
    async fn sniff(&mut self, options: &SniffOptions) -> Result<Vec<Received>> {
        let _ = options;
        Err(Error::invalid("sniff", "not available here"))
    }

    /// The interface through which all packets go; `None`: that of the route to each destination.
    fn interface(&self) -> Option<&str> {
        None
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn read(&mut self, path: &str) -> Result<Vec<u8>>;

    /// Writes a file, replacing an existing one.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()>;

    /// Wall-clock time since 1970.
    fn now(&self) -> Duration;

    /// A random number of 64 bits.
    ///
    /// # Errors
    /// The system has no random numbers.
    fn random(&mut self) -> Result<u64>;
}
