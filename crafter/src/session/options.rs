//! Options of a session and of its exchanges.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    datapath::maps::Terms,
    driver::Options,
    error::Result,
    protocol::{Control, wire::PolicyCall},
};

/// Where a session sends, and how it receives.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Send on this interface only; `None`: on the interface of each packet's route.
    pub interface: Option<String>,
    /// Source address of packets that leave it unset; `None`: the one that the route prefers.
    pub source: Option<IpAddr>,
    /// How interfaces are opened.
    pub open: Options,
    /// Terms of all leases. Suppressed packets are always reported.
    pub terms: Terms,
    /// Work through this service, within its policy; `None`: this process attaches the hooks, which needs
    /// privileges.
    pub service: Option<Arc<Control>>,
    /// Leave half-open connections to the kernel, which resets each when the peer retransmits its SYN-ACK. Otherwise
    /// the session resets them.
    pub leave_open: bool,
    /// How long to wait for a next hop to answer ARP or neighbour discovery; `None`: as long as the kernel, 3 s. A
    /// service waits as long as the kernel.
    pub hop_timeout: Option<Duration>,
}

/// How fast to send.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Packets per second; `None`: unlimited.
    pub rate: Option<f64>,
}

/// Which packets that are too large for their path are sent as fragments; the others are refused. An identification that
/// the packet leaves unset is random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// UDP datagrams and ICMP queries larger than the MTU, as the kernel does, unless the don't-fragment flag is set.
    #[default]
    Automatic,
    /// All packets larger than the MTU. The don't-fragment flag is cleared.
    Mtu,
    /// All packets larger than this, in bytes from the IP header on. The don't-fragment flag is cleared.
    Size(u16),
}

/// How to send requests and how long to wait for replies.
#[derive(Clone, Debug)]
pub struct SrOptions {
    /// How long to wait for replies after the last packet.
    pub timeout: Duration,
    /// How often unanswered requests are sent again, each time with another wait of `timeout`.
    pub retry: u32,
    /// How fast to send.
    pub pace: Pace,
    /// Accept every reply to a request, not only the first, and so always wait for the whole `timeout`.
    pub multi: bool,
    /// Which packets are sent as fragments.
    pub fragment: Fragment,
    /// Leave replies and unmatched packets out of the result, to save memory: only the observer gets them.
    pub discard_replies: bool,
}

impl Default for SrOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(2),
            retry: 0,
            pace: Pace::default(),
            multi: false,
            fragment: Fragment::default(),
            discard_replies: false,
        }
    }
}

/// Share of the service's rate limit that a session uses: the service measures the rate by another clock.
const RATE_LIMIT_SHARE: f64 = 0.995;

impl SessionOptions {
    /// How fast the service's policy lets this user send, in packets per second; `None`: unlimited.
    ///
    /// # Errors
    /// Those of [`Control::call`].
    pub(super) async fn rate_limit(&self) -> Result<Option<f64>> {
        let Some(control) = &self.service else { return Ok(None) };
        let rule = control.call(&PolicyCall {}).await?.rule;
        Ok(rule.and_then(|rule| rule.packets_per_second).map(|rate| f64::from(rate) * RATE_LIMIT_SHARE))
    }
}
