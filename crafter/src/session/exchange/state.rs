//! The state of an exchange.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use crate::{
    datapath::route::Route,
    driver::{LeaseId, Received},
    engine::Pacer,
    error::{Error, Result},
    layer::Kind,
    packet::Transport,
    session::{Event, Exchanged, ReplyMatcher, SrOptions, Stop, account::Reading, links::Links},
};

/// Packets prepared and sent by one call.
pub(super) const BATCH: usize = 64;

/// How a packet is sent.
#[derive(Clone)]
pub(super) struct Path {
    pub(super) link: usize,
    /// The route of an IP packet; `None` for a frame.
    pub(super) route: Option<Arc<Route>>,
    /// Whether its source port is leased.
    pub(super) leased: bool,
    /// The size in bytes from which on it is sent as fragments of at most that size; `None`: never.
    pub(super) fragment_size: Option<usize>,
}

/// A packet ready to be sent.
pub(super) struct ReadyPacket {
    pub(super) path: Path,
    pub(super) first: Kind,
    pub(super) bytes: Vec<u8>,
    /// The request's number.
    pub(super) number: usize,
    /// Whether it is a fragment, but not the first one.
    pub(super) is_later_fragment: bool,
}

/// An exchange in progress.
pub(in crate::session) struct Exchange<'a> {
    pub(super) links: &'a mut Links,
    pub(super) options: &'a SrOptions,
    pub(super) observer: &'a mut dyn FnMut(&Event<'_>),
    /// Ends the exchange early.
    pub(super) stop: &'a Stop,
    /// Number of requests when preparing a batch was interrupted: later ones were not sent.
    pub(super) prepared: Option<usize>,
    pub(super) pacer: Option<Pacer>,
    pub(super) matcher: ReplyMatcher,
    /// The path of each request, by number, to send it again; `None` without a route.
    pub(super) paths: Vec<Option<Path>>,
    /// Counters of each link when the exchange first used it; `None`: no account is kept.
    pub(super) readings: Option<HashMap<usize, Reading>>,
    /// Ports chosen for packets of this exchange that leave theirs unset.
    pub(super) chosen: HashMap<(usize, Transport, IpAddr), u16>,
    /// Whether replies are waited for.
    pub(super) awaits_replies: bool,
    /// Whether the packets that are sent next can be answered.
    pub(super) answerable: bool,
    /// Packets sent that cannot be answered.
    pub(super) unanswerable: u64,
    /// Whether requests and replies are kept for the result.
    pub(super) keeps_packets: bool,
    /// Whether each packet that leaves its port unset gets a new one.
    pub(super) fresh_ports: bool,
    pub(super) inbox: Vec<(LeaseId, Received)>,
    /// Packets refused by the service, and the error of the first.
    pub(super) refused: u64,
    pub(super) refusal: Option<Error>,
    pub(super) result: Exchanged,
}

impl<'a> Exchange<'a> {
    pub(in crate::session) fn new(
        links: &'a mut Links,
        options: &'a SrOptions,
        observer: &'a mut dyn FnMut(&Event<'_>),
        stop: &'a Stop,
    ) -> Result<Self> {
        let pacer = options.pace.rate.map(Pacer::per_second).transpose()?;
        Ok(Self {
            links,
            options,
            observer,
            stop,
            prepared: None,
            pacer,
            matcher: ReplyMatcher::default(),
            paths: Vec::new(),
            readings: Some(HashMap::new()),
            chosen: HashMap::new(),
            awaits_replies: false,
            answerable: true,
            unanswerable: 0,
            keeps_packets: true,
            fresh_ports: false,
            inbox: Vec::new(),
            refused: 0,
            refusal: None,
            result: Exchanged::default(),
        })
    }

    /// Keeps no account: reading the counters takes longer than one reply.
    pub(in crate::session) fn without_account(mut self) -> Self {
        self.readings = None;
        self
    }
}
