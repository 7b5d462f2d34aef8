//! Packets of any layers out, their answers matched in: what Scapy calls `send`, `sr` and `sr1`.
//!
//! ```no_run
//! use crafter::{expr::PacketSet, session::{Session, SessionOptions, SrOptions}};
//!
//! # async fn scan() -> crafter::Result<()> {
//! let session = Session::new(SessionOptions::default());
//! let set = PacketSet::parse(r#"IP(dst="192.0.2.1")/TCP(dport=(1,1024), flags="S")"#)?;
//! let exchanged = session.sr(set.packets(1 << 20)?, &SrOptions::default()).await?;
//! for pair in &exchanged.answered {
//!     println!("{} ==> {} in {:?}", pair.request.summary(), pair.reply.packet.summary(), pair.rtt);
//! }
//! println!("{}", exchanged.account);
//! session.close().await;
//! # Ok(()) }
//! ```
//!
//! - A packet begins with `IP`, `IPv6`, `Ether` or `ARP`. What it leaves unset is filled in from the route and the
//!   lease: source addresses, the next hop's Ethernet address, TCP and UDP source ports, ICMP identifiers.
//! - The source port, or identifier, of each packet is leased before it is sent, so that the answer comes here and
//!   the kernel does not reset the conversation. A session keeps the ports that packets named; of those
//!   that it chose itself, the 256 that were used latest. They end with the session.
//! - A SYN-ACK that answered a SYN of the session, and that none of its packets acknowledged, leaves a connection half
//!   open. It is reset before the lease of its port ends, at the latest with the session: the peer would send its
//!   SYN-ACK again, to a kernel that answers with a RST. Not so where a process is killed,
//!   and with [`SessionOptions::leave_open`].
//! - Nothing is leased for a source address that is not this host's, and for other protocols: there the kernel sees
//!   what comes in, and the session sees a copy.
//! - The interface's hooks are attached with the first packet that leaves by it.

mod account;
mod event;
mod exchange;
mod half_open;
mod links;
mod reply_matcher;
mod script;
mod sniffer;
mod unset_fields;

use std::{
    cell::RefCell,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::{
    account::{Account, Kernel},
    event::{Event, What},
    reply_matcher::{Match, Matcher},
    script::{Script, Step},
    sniffer::Watch,
};
use self::{exchange::Exchange, links::Links};
use crate::{datapath::maps::Terms, driver::Options, error::Result, layer::Packet, protocol::Control};
use crafter_common::reason::Reason;
use nix::time::{ClockId, clock_gettime};

/// Where a session sends, and how it receives.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Send by this interface only; otherwise by the one that the route says, packet by packet.
    pub interface: Option<String>,
    /// The source address of packets that name none; otherwise the one that the route prefers.
    pub source: Option<IpAddr>,
    /// How interfaces are opened.
    pub open: Options,
    /// The terms of all leases. Suppressed answers are always reported.
    pub terms: Terms,
    /// The service to do it through, as its policy allows; `None`: this process owns the hooks, which takes
    /// privileges.
    pub service: Option<Arc<Control>>,
    /// Leave half-open connections to the kernel, which resets each when its peer sends the SYN-ACK again. Otherwise
    /// the session resets them.
    pub leave_open: bool,
}

/// How fast to send.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Packets per second; `None`: as fast as it goes.
    pub rate: Option<f64>,
}

/// How to send and how to wait.
#[derive(Clone, Debug)]
pub struct SrOptions {
    /// How long to wait for answers, from the last packet on.
    pub timeout: Duration,
    /// How often what is not answered is sent again, each time with a wait.
    pub retry: u32,
    /// How fast to send.
    pub pace: Pace,
    /// Take every answer to a request, not only the first, and so wait until the time is up.
    pub multi: bool,
}

impl Default for SrOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(2), retry: 0, pace: Pace::default(), multi: false }
    }
}

/// A packet that came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its layers: from the IP header on, or a frame where the request was one that nothing is leased for.
    pub packet: Packet,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// When it was received, since 1970.
    pub time: Duration,
    /// How it came here; [`Reason::Observed`] where the kernel saw it too, [`Reason::OtherProtocol`] where nothing
    /// was leased and this is the tap's copy.
    pub reason: Reason,
    /// The interface it came in on.
    pub interface: String,
}

/// A request and an answer to it.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The request as it was sent: all fields set.
    pub request: Packet,
    /// Its place among the requests, from 0.
    pub number: usize,
    /// When it was sent for the last time, since 1970.
    pub sent: Duration,
    /// The answer.
    pub reply: Reply,
    /// From sending to receiving.
    pub rtt: Duration,
}

/// What came of an exchange.
#[derive(Clone, Debug, Default)]
pub struct Exchanged {
    /// Requests and their answers, in the order of the answers.
    pub answered: Vec<Pair>,
    /// Requests that got none, as they were sent, in the order of sending.
    pub unanswered: Vec<Packet>,
    /// What came to the leased ports and answers nothing that was sent; the first 65,536 of it.
    pub unmatched: Vec<Reply>,
    /// What became of every packet.
    pub account: Account,
}

/// Sends packets and matches what comes back. One exchange at a time: a second one waits for the first.
pub struct Session {
    links: tokio::sync::Mutex<Links>,
}

impl Session {
    /// A session; nothing is opened yet.
    pub fn new(options: SessionOptions) -> Self {
        Self { links: tokio::sync::Mutex::new(Links::new(options)) }
    }

    /// Sends packets without waiting for answers.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a packet that cannot be built or does not fit the MTU, or begins with a layer that
    /// cannot be sent; [`Error::NoRoute`](crate::Error::NoRoute) and [`Error::NoNeighbour`](crate::Error::NoNeighbour) if no packet at all could be sent, otherwise
    /// such packets are counted; those of opening an interface.
    pub async fn send(&self, packets: impl IntoIterator<Item = Packet>, pace: Pace) -> Result<Account> {
        let options = SrOptions { pace, ..SrOptions::default() };
        self.send_with(packets, &options, &mut |_| {}).await
    }

    /// As [`Session::send`], and tells `observer` of each packet that is sent.
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
        Ok(Exchange::new(&mut links, options, observer)?.send(packets).await?.account)
    }

    /// Sends packets and waits for their answers.
    ///
    /// # Errors
    /// As [`Session::send`]; [`Error::PortTaken`](crate::Error::PortTaken) for a source port that somebody else has.
    pub async fn sr(&self, packets: impl IntoIterator<Item = Packet>, options: &SrOptions) -> Result<Exchanged> {
        self.sr_with(packets, options, &mut |_| {}).await
    }

    /// As [`Session::sr`], and tells `observer` of each packet as it is sent, received or suppressed.
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
        Exchange::new(&mut links, options, observer)?.sr(packets).await
    }

    /// Sends one packet and returns the first answer to it, or `None`. Keeps no account.
    ///
    /// # Errors
    /// As [`Session::sr`].
    pub async fn sr1(&self, packet: Packet, options: &SrOptions) -> Result<Option<Reply>> {
        let mut links = self.links.lock().await;
        let mut observer = |_: &Event<'_>| {};
        let exchange = Exchange::new(&mut links, options, &mut observer)?.without_account();
        Ok(exchange.sr([packet]).await?.answered.into_iter().next().map(|pair| pair.reply))
    }

    /// Sends what `script` says when it says so, and tells it of each packet as it is sent, received or suppressed,
    /// until it is done. Keeps no packets, so that it may go on without end.
    ///
    /// # Errors
    /// As [`Session::sr`]; once a packet has been sent, those that no way leads to are only counted.
    pub async fn run(&self, script: &mut dyn Script) -> Result<Account> {
        let mut links = self.links.lock().await;
        let options = SrOptions::default();
        let script = RefCell::new(script);
        let mut observer = |event: &Event<'_>| script.borrow_mut().handle(event, Instant::now());
        Exchange::new(&mut links, &options, &mut observer)?.run(&script).await
    }

    /// What is attached to each interface in use, and why nothing faster.
    pub async fn reports(&self) -> Vec<crate::datapath::program::Report> {
        self.links.lock().await.reports()
    }

    /// Resets the half-open connections: a SYN-ACK answered a SYN of the session, and no packet of the session
    /// acknowledged it (RFC 9293, section 3.5.2). Tells `observer` of each RST. How many connections were reset since
    /// this was asked last; 0 with [`SessionOptions::leave_open`].
    ///
    /// A pace of less than 1,000 packets per second is taken for that; the service's limit of the rate is kept to. After
    /// 5 seconds the rest is left to the kernel. Dropping the future is safe: the session still resets what is left.
    ///
    /// [`Session::close`] does it too. Those that cannot be reset, for want of time or room or by the service's policy,
    /// are logged and not counted.
    pub async fn reset_half_open(&self, pace: Pace, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.links.lock().await.reset_half_open(pace, observer).await
    }

    /// As [`Session::reset_half_open`], and waits for nothing: the service's limit of the rate may stop some.
    pub async fn reset_at_once(&self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.links.lock().await.reset_at_once(observer)
    }

    /// Resets half-open connections as [`Session::reset_half_open`] does, gives all leases back and detaches the hooks;
    /// the interfaces are as they were when it returns. How many connections were reset.
    ///
    /// A session that is dropped resets them too, but waits for nothing: the service's limit of the rate may stop some.
    pub async fn close(self) -> u64 {
        self.close_with(&mut |_| {}).await
    }

    /// As [`Session::close`], and tells `observer` of each RST.
    pub async fn close_with(self, observer: &mut dyn FnMut(&Event<'_>)) -> u64 {
        self.links.into_inner().close(observer).await
    }
}

/// CLOCK_MONOTONIC, by which the kernel half stamps.
fn monotonic() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Into::into)
}

/// The time now, since 1970.
fn wall_clock() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
