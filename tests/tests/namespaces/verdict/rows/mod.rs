//! The rows: owners, packets, and the expected results.

mod accepted;
mod egress;
mod fragments;
mod icmp;
mod peers;
mod transport;

use std::net::{IpAddr, SocketAddr};

use crafter::{
    datapath::{maps::Terms, peers::Peers, program::LoadOptions},
    packet::Transport,
};
use crafter_common::reason::Reason;
use crafter_tests::{
    bench::{ANY, Bench, terms},
    frame::{self, ACK, SYN, TCP, Tcp, UDP},
    oracle::{Flow, FlowId, Owned},
    random::world::World,
};

pub use egress::egress_rows;

/// This host's address, its second address, the address of a host for which it forwards, and the peer's, by IP version.
pub const LOCAL: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
pub const SECOND: [&str; 2] = ["192.0.2.3", "2001:db8::3"];
const TRANSIT: [&str; 2] = ["203.0.113.9", "2001:db8:1::9"];
pub const PEER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Ports of TCP and UDP, by ownership: on any address; on `LOCAL` only; observed; with policy `pass`; not owned.
pub const ON_ANY: u16 = 1000;
const EXACT: u16 = 1001;
/// Consumed on any address, but observed on `LOCAL`: the entry of an address takes precedence.
pub const BOTH: u16 = 1002;
pub const OBSERVED: u16 = 1003;
const ALLOWED: u16 = 1004;
pub const FREE: u16 = 1005;
/// On any address, for packets of peers that were sent to: known by address and port, or by address.
pub const KNOWN: u16 = 1006;
pub const BY_ADDRESS: u16 = 1007;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

pub fn bench(options: &LoadOptions, socket: bool) -> Bench {
    owning(Bench::new(options, 14, socket), &world(false))
}

/// Like [`bench`], but all leases have suppressed answers reported.
pub fn reporting(options: &LoadOptions) -> Bench {
    let mut bench = Bench::new(options, 14, false);
    bench.report = true;
    owning(bench, &world(true))
}

/// The owners of all rows.
pub fn world(report: bool) -> World {
    let addresses = [0, 1].map(|version| [LOCAL, SECOND].map(|all| ip(all[version])).to_vec());
    let mut holdings = Vec::new();
    for protocol in [TCP, UDP, frame::ICMP] {
        let mut own = |place: Option<&str>, port: u16, observe, suppress| {
            let peers = match port {
                KNOWN => Peers::Flow,
                BY_ADDRESS => Peers::Address,
                _ => Peers::Any,
            };
            let owned = Owned { lease: u32::from(port), observe, suppress, report, peers };
            holdings.push((protocol, place.map(ip), port, owned));
        };
        own(None, ON_ANY, false, true);
        own(None, BOTH, false, true);
        own(None, OBSERVED, true, true);
        own(None, ALLOWED, false, false);
        own(None, KNOWN, false, true);
        own(None, BY_ADDRESS, false, true);
        for address in LOCAL {
            own(Some(address), EXACT, false, true);
            own(Some(address), BOTH, true, true);
        }
    }
    World { holdings, peers: peers::known(), addresses, ports: Vec::new() }
}

pub fn owning(mut bench: Bench, world: &World) -> Bench {
    bench.maps.set_local(&world.local()).expect("set the local addresses");
    for &(protocol, place, port, owned) in &world.holdings {
        let transport = match protocol {
            TCP => Transport::Tcp,
            UDP => Transport::Udp,
            _ => Transport::Icmp,
        };
        let terms = Terms { peers: owned.peers, ..terms(owned.observe, owned.suppress) };
        bench.own(transport, place.unwrap_or(ANY), port, terms);
    }
    bench.views().set_peers(&world.peers);
    bench
}

/// What a row expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expect {
    /// Consumed: redirected if there is a socket, else copied.
    Consumed,
    Reason(Reason),
}

/// A packet and the expected result.
#[derive(Clone)]
pub struct Row {
    pub name: String,
    pub frame: Vec<u8>,
    pub mark: u32,
    /// Offset of the IP header.
    pub start: usize,
    pub expect: Expect,
    /// The flow that it updates, and by what: counts, and the latest segment.
    pub updates: Option<(FlowId, Flow)>,
}

impl Row {
    /// The expected reason with or without a socket to redirect into.
    pub fn reason(&self, socket: bool) -> Reason {
        match self.expect {
            Expect::Reason(reason) => reason,
            Expect::Consumed if socket => Reason::Redirected,
            Expect::Consumed => Reason::Copied,
        }
    }

    /// Expects that the flow between these ends counts a received packet, if it is delivered.
    fn updating(self, protocol: u8, local: SocketAddr, remote: SocketAddr, last: (u32, u32, u8)) -> Self {
        let length = (self.frame.len() - self.start) as u64;
        let owned = matches!(self.expect, Consumed | Expect::Reason(Reason::Observed));
        let flow = Flow { rx: (1, length), last, ..Flow::default() };
        Self { updates: owned.then_some((flow_id(protocol, local, remote), flow)), ..self }
    }
}

/// A flow of the lease that owns the local port, which is also its number.
pub fn flow_id(protocol: u8, local: SocketAddr, remote: SocketAddr) -> FlowId {
    FlowId { lease: local.port().into(), protocol, local, remote }
}

fn row(name: impl Into<String>, expect: Expect, frame: Vec<u8>) -> Row {
    Row { name: name.into(), frame, mark: 0, start: 14, expect, updates: None }
}

use Expect::Consumed;

const fn is(reason: Reason) -> Expect {
    Expect::Reason(reason)
}

const NOT_OWNED: Expect = is(Reason::NotOwned);
const OTHER: Expect = is(Reason::OtherProtocol);
const MALFORMED: Expect = is(Reason::Malformed);

/// Chains of eight and nine extension headers with an atomic fragment header among them; eight are walked.
const MIXED: [(&[u8], Option<Expect>); 6] = [
    (&[44, 60, 60, 60, 60, 60, 60, 60], Some(Consumed)),
    (&[60, 60, 60, 60, 60, 60, 60, 44], Some(Consumed)),
    (&[60, 60, 44, 60, 60, 60, 44, 44], Some(Consumed)),
    (&[44, 60, 60, 60, 60, 60, 60, 60, 60], None),
    (&[60, 60, 60, 60, 60, 60, 60, 60, 44], None),
    (&[60, 60, 60, 60, 60, 60, 60, 44, 60], None),
];

/// Types of a ninth header: some that would be walked, and others.
const NINTH: [u8; 8] = [0, 43, 44, 51, 60, 135, 59, 139];

/// Sequence number, acknowledgment number and flags of [`segment`].
const SEGMENT: (u32, u32, u8) = (7, 8, SYN | ACK);

/// A SYN-ACK from the peer to `destination`.
pub fn segment(destination: SocketAddr) -> Vec<u8> {
    let peer = PEER[usize::from(destination.is_ipv6())];
    Tcp::new(SYN | ACK, 7, 8).ip(at(peer, 80), destination)
}

pub fn datagram(destination: SocketAddr) -> Vec<u8> {
    let peer = PEER[usize::from(destination.is_ipv6())];
    frame::udp_ip(at(peer, 53), destination, b"answer")
}

pub fn ingress_rows() -> Vec<Row> {
    let mut rows = vec![
        row("ARP", is(Reason::NotIp), frame::ethernet(&[], 0x0806, &[0; 28])),
        row("nothing after an Ethernet header", is(Reason::NotIp), frame::ethernet(&[], 0x0806, &[])),
        row("an IPv4 ethertype around version 5", MALFORMED, frame::ethernet(&[], 0x0800, &[0x55; 40])),
        row("an IPv6 ethertype around version 4", MALFORMED, frame::ethernet(&[], 0x86dd, &[0x44; 60])),
        row("IPv4 of one byte", MALFORMED, frame::ethernet(&[(0x8100, 1)], 0x0800, &[0x45])),
        row("IPv4 with a header length of 16", MALFORMED, {
            let mut packet = segment(at(LOCAL[0], ON_ANY));
            packet[0] = 0x44;
            frame::framed(&packet)
        }),
    ];
    for (version, &local) in LOCAL.iter().enumerate() {
        transport::addressed_rows(&mut rows, version, local);
        transport::short_rows(&mut rows, version, local);
        transport::tagged_rows(&mut rows, version, local);
        accepted::accepted_rows(&mut rows, version, local);
        icmp::icmp_rows(&mut rows, version, local);
        icmp::query_rows(&mut rows, version, local);
        icmp::type_rows(&mut rows, version, local);
        peers::ingress_rows(&mut rows, version);
    }
    transport::option_rows(&mut rows);
    transport::extension_rows(&mut rows);
    fragments::fragment_rows(&mut rows);
    fragments::order_rows(&mut rows);
    rows
}
