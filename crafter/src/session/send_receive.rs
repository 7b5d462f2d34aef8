//! [`Session`]: `send`, `sr`, `sr1` and scripts.

use std::{cell::RefCell, time::Instant};

use super::{
    Account, Event, Exchanged, Pace, Reply, Script, SessionOptions, SrOptions, Stop, exchange::Exchange, links::Links,
};
use crate::{datapath::program::Report, error::Result, layer::Packet};

/// Sends packets and matches the replies. A session runs one exchange at a time; a second one waits for the first.
pub struct Session {
    links: tokio::sync::Mutex<Links>,
    stop: Stop,
}

impl Session {
    /// A session that has not opened any interface yet.
    pub fn new(options: SessionOptions) -> Self {
        Self { links: tokio::sync::Mutex::new(Links::new(options)), stop: Stop::default() }
    }

    /// What ends an exchange early: its result has the replies and the account so far.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Sends packets without waiting for replies.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a packet that cannot be built, does not fit the MTU or begins with
    /// a layer that cannot be sent; [`Error::NoRoute`](crate::Error::NoRoute) and
    /// [`Error::NoNeighbour`](crate::Error::NoNeighbour) if no packet at all could be sent, otherwise such packets are
    /// only counted; those of opening an interface.
    pub async fn send(&self, packets: impl IntoIterator<Item = Packet>, pace: Pace) -> Result<Account> {
        let options = SrOptions { pace, ..SrOptions::default() };
        self.send_with(packets, &options, &mut |_| {}).await
    }

    /// As [`Session::send`], and calls `observer` for each packet that is sent.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub async fn send_with(
        &self,
        packets: impl IntoIterator<Item = Packet>,
        options: &SrOptions,
        observer: &mut dyn FnMut(&Event<'_>),
    ) -> Result<Account> {
        let mut links = self.links.lock().await;
        Ok(Exchange::new(&mut links, options, observer, &self.stop)?.send(packets).await?.account)
    }

    /// Sends packets and waits for replies.
    ///
    /// # Errors
    /// As [`Session::send`]; [`Error::PortTaken`](crate::Error::PortTaken) for a source port that is in use.
    pub async fn sr(&self, packets: impl IntoIterator<Item = Packet>, options: &SrOptions) -> Result<Exchanged> {
        self.sr_with(packets, options, &mut |_| {}).await
    }

    /// As [`Session::sr`], and calls `observer` for each packet as it is sent, received or suppressed.
    ///
    /// # Errors
    /// As [`Session::sr`].
    pub async fn sr_with(
        &self,
        packets: impl IntoIterator<Item = Packet>,
        options: &SrOptions,
        observer: &mut dyn FnMut(&Event<'_>),
    ) -> Result<Exchanged> {
        let mut links = self.links.lock().await;
        Exchange::new(&mut links, options, observer, &self.stop)?.sr(packets).await
    }

    /// Sends one packet and returns the first reply, or `None` without one. Keeps no account.
    ///
    /// # Errors
    /// As [`Session::sr`].
    pub async fn sr1(&self, packet: Packet, options: &SrOptions) -> Result<Option<Reply>> {
        let mut links = self.links.lock().await;
        let mut observer = |_: &Event<'_>| {};
        let exchange = Exchange::new(&mut links, options, &mut observer, &self.stop)?.without_account();
        Ok(exchange.sr([packet]).await?.answered.into_iter().next().map(|pair| pair.reply))
    }

    /// Executes the steps of `script` and passes it each packet as it is sent, received or suppressed, until it ends.
    /// Keeps no packets: memory stays bounded for a script without end.
    ///
    /// # Errors
    /// As [`Session::sr`]; once a packet has been sent, packets without a route are only counted.
    pub async fn run(&self, script: &mut dyn Script) -> Result<Account> {
        let mut links = self.links.lock().await;
        let options = SrOptions::default();
        let script = RefCell::new(script);
        let mut observer = |event: &Event<'_>| script.borrow_mut().handle(event, Instant::now());
        Exchange::new(&mut links, &options, &mut observer, &self.stop)?.run(&script).await
    }

    /// How each interface in use is attached, and why not by a faster mechanism.
    pub async fn reports(&self) -> Vec<Report> {
        self.links.lock().await.links.iter().map(|link| link.crafter.report().clone()).collect()
    }

    /// Resets the half-open connections: those with a SYN-ACK to a SYN of the session that no packet of the session
    /// acknowledged (RFC 9293, section 3.5.2). Calls `observer` for each RST. Returns how many connections were reset
    /// since the last call; 0 with [`SessionOptions::leave_open`].
    ///
    /// Sends at `pace`, but at least 1,000 packets per second unless the service's rate limit is lower. After 5 seconds
    /// the rest is left to the kernel. Dropping the future is safe: the session still resets the rest.
    ///
    /// [`Session::close`] does this too. Connections that cannot be reset, for lack of time or room or by the service's
    /// policy, are logged and not counted.
    pub async fn reset_half_open(&self, pace: Pace, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.links.lock().await.reset_half_open(pace, observer).await
    }

    /// As [`Session::reset_half_open`], but without waiting: the service's rate limit may drop some RSTs.
    pub async fn reset_at_once(&self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.links.lock().await.reset_half_open_now(observer)
    }

    /// Resets half-open connections as [`Session::reset_half_open`] does, gives all leases back and detaches the hooks.
    /// Returns how many connections were reset.
    ///
    /// Dropping a session resets them too, but without waiting: the service's rate limit may drop some RSTs.
    pub async fn close(self) -> u64 {
        self.close_with(&mut |_| {}).await
    }

    /// As [`Session::close`], and calls `observer` for each RST.
    pub async fn close_with(self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.links.into_inner().close(observer).await
    }
}
