//! A model of the kernel half: what it must do with each packet, implemented a second time in plain Rust from the RFCs
//! and the documentation of reasons, maps and leases. It shares names with crafter, but no code.

pub mod read;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use crafter::datapath::{peers::Peers, program::Hook};
use crafter_common::reason::Reason;

use crate::frame::STATION;
use read::{Fault, Icmp, Ip, Piece};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The protocol number of ICMP of both IP versions, in the keys of ports and flows.
const ICMP: u8 = 1;

/// The terms of an owned port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Number of the lease.
    pub lease: u32,
    /// The kernel receives the packet, too.
    pub observe: bool,
    /// The kernel's RSTs and port-unreachable errors are dropped.
    pub suppress: bool,
    /// The owner gets a copy of what is dropped.
    pub report: bool,
    /// Whose packets the owner gets.
    pub peers: Peers,
}

/// Key of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// Number of the lease.
    pub lease: u32,
    /// 6, 17, or 1 for the ICMP of both versions.
    pub protocol: u8,
    /// This host's end; for ICMP queries the port is the identifier.
    pub local: SocketAddr,
    /// The peer's end; port 0 for ICMP.
    pub remote: SocketAddr,
}

/// Counts of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Packets received, and their bytes from the IP header on.
    pub rx: (u64, u64),
    /// Packets crafted, and their bytes from the IP header on.
    pub tx: (u64, u64),
    /// Answers of the kernel that were suppressed.
    pub suppressed: u64,
    /// Sequence number, acknowledgment number and flags of the latest segment received.
    pub last: (u32, u32, u8),
}

/// What the fragments of a datagram have in common (RFC 791, section 3.2; RFC 8200, section 4.5): source, destination,
/// identification and, for IPv4, the protocol.
pub type Siblings = (IpAddr, IpAddr, u32, Option<u8>);

/// An owned first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// The lease that it was delivered to.
    pub lease: u32,
    /// 6, 17, or 1 for the ICMP of both versions.
    pub protocol: u8,
    /// Its destination port or identifier.
    pub local: u16,
    /// Its source port; 0 for ICMP.
    pub remote: u16,
}

/// Verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Continue to the kernel or to the wire.
    Pass,
    /// Drop.
    Drop,
    /// Redirect into the AF_XDP socket.
    Redirect,
}

/// The expected result for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The counter that is incremented.
    pub reason: Reason,
    /// The verdict.
    pub action: Action,
    /// Offset at which the owner's copy in the ring begins; `None` if there is no copy.
    pub copied: Option<usize>,
    /// The flow that is updated.
    pub flow: Option<FlowId>,
}

/// Constants and maps of the kernel half.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// Whether packets begin with an Ethernet header.
    pub ethernet: bool,
    /// The mark of crafted packets.
    pub mark: u32,
    /// The longest frame in bytes that fits into the AF_XDP socket; `None` if there is no socket.
    pub socket: Option<usize>,
    /// Bytes at the start of a packet from which headers can be read.
    pub linear: usize,
    /// Owned ports, by protocol, address (`None`: any local address) and port.
    pub owned: HashMap<(u8, Option<IpAddr>, u16), Owned>,
    /// This host's addresses.
    pub local: HashSet<IpAddr>,
    /// Flows.
    pub flows: HashMap<FlowId, Flow>,
    /// Peers that leases have sent to; with port 0 those known by address.
    pub peers: HashSet<FlowId>,
    /// Owned first fragments.
    pub fragments: HashMap<Siblings, First>,
}

impl Oracle {
    /// Predicts the result for `frame` at `hook` and updates the maps. Assumes that the ring never fills up.
    pub fn predict(&mut self, hook: Hook, frame: &[u8], mark: u32) -> Prediction {
        let mut flow = None;
        let start = self.link(frame).map_or(0, |(start, _)| start);
        let (reason, report) = match hook {
            Hook::Egress => self.egress(frame, mark, &mut flow),
            _ => (self.ingress(hook, frame, &mut flow), false),
        };
        let (action, copied) = match reason {
            Reason::Redirected => (Action::Redirect, false),
            Reason::Copied => (Action::Drop, true),
            Reason::Observed => (Action::Pass, true),
            Reason::RstSuppressed | Reason::UnreachableSuppressed => (Action::Drop, report),
            Reason::DeliveryFull => (Action::Drop, false),
            _ => (Action::Pass, false),
        };
        Prediction { reason, action, copied: copied.then_some(start), flow }
    }

    fn link(&self, frame: &[u8]) -> Result<(usize, u8), Fault> {
        if self.ethernet { read::ethernet(frame) } else { read::bare(frame) }
    }

    /// The IP packet in a frame, and its length in bytes including padding.
    fn network<'a>(&self, frame: &'a [u8]) -> Result<(Ip<'a>, usize), Fault> {
        let (start, version) = self.link(frame)?;
        let readable = &frame[..frame.len().min(self.linear)];
        Ok((read::ip(readable.get(start..).unwrap_or_default(), version)?, frame.len() - start))
    }

    /// The owner of `port` on `address` itself, or else on any local address.
    fn owner(&self, protocol: u8, address: IpAddr, port: u16) -> Option<Owned> {
        // No packet has these as its source or destination: the unspecified address (RFC 4291, section 2.5.2), and
        // IPv4-mapped addresses (section 2.5.5.2), which represent IPv4 nodes.
        if let IpAddr::V6(v6) = address
            && (v6.is_unspecified() || v6.to_ipv4_mapped().is_some())
        {
            return None;
        }
        let any = || self.owned.get(&(protocol, None, port)).filter(|_| self.local.contains(&address));
        self.owned.get(&(protocol, Some(address), port)).or_else(any).copied()
    }

    fn ingress(&mut self, hook: Hook, frame: &[u8], flow: &mut Option<FlowId>) -> Reason {
        match self.receiver(frame, flow) {
            Err(reason) => reason,
            Ok(owned) if owned.observe => Reason::Observed,
            Ok(_) if hook == Hook::Xdp && self.socket.is_some_and(|longest| frame.len() <= longest) => {
                Reason::Redirected
            }
            Ok(_) => Reason::Copied,
        }
    }

    /// The owner of a received packet, or the reason why it has none.
    fn receiver(&mut self, frame: &[u8], touched: &mut Option<FlowId>) -> Result<Owned, Reason> {
        let (ip, length) = self.network(frame).map_err(|fault| match fault {
            Fault::NotIp => Reason::NotIp,
            Fault::CutShort => Reason::Malformed,
            Fault::TooManyHeaders => Reason::OtherProtocol,
        })?;
        match ip.piece {
            // The lease of the first fragment, if it still owns the port.
            Piece::Later(id) => {
                let first = self.fragments.get(&siblings(&ip, id)).filter(|_| !ip.routed);
                let owned = first.and_then(|first| {
                    let owned = self.owner(first.protocol, ip.destination, first.local);
                    let remote = SocketAddr::new(ip.source, first.remote);
                    let local = SocketAddr::new(ip.destination, first.local);
                    owned.filter(|owned| {
                        owned.lease == first.lease && self.is_peer(owned, flow_of(owned, first.protocol, local, remote))
                    })
                });
                let owned = owned.ok_or(Reason::FragmentNotOwned)?;
                return self.accepts(frame, &ip).map(|()| owned);
            }
            // Of another datagram than an earlier one with the same identification.
            Piece::First(id) => {
                self.fragments.remove(&siblings(&ip, id));
            }
            Piece::Whole => {}
        }
        let (protocol, local, remote, last) = match ip.protocol {
            TCP | UDP => {
                let (source, destination) = read::ports(ip.rest).ok_or(Reason::Malformed)?;
                (ip.protocol, destination, source, last(&ip))
            }
            protocol if is_icmp(protocol, &ip) => match read::icmp(ip.rest, ip.source.is_ipv6()) {
                None => return Err(Reason::Malformed),
                Some(Icmp::Other | Icmp::Query(_)) => return Err(Reason::OtherProtocol),
                Some(Icmp::Error { quoted, .. }) => {
                    let owned = self.sender_of_quoted(quoted, ip.source.is_ipv6()).ok_or(Reason::IcmpNotOwned)?;
                    return self.accepts(frame, &ip).map(|()| owned);
                }
                Some(Icmp::Reply(id)) => (ICMP, id, 0, Some((0, 0, 0))),
            },
            _ => return Err(Reason::OtherProtocol),
        };
        let owned = if ip.routed { None } else { self.owner(protocol, ip.destination, local) };
        let owned = owned.ok_or(Reason::NotOwned)?;
        self.accepts(frame, &ip)?;
        // Minimum header length: 20 bytes for TCP (RFC 9293, section 3.1), 8 bytes for UDP (RFC 768).
        let last = last.ok_or(Reason::Malformed)?;
        let (local_end, remote_end) = (SocketAddr::new(ip.destination, local), SocketAddr::new(ip.source, remote));
        let id = flow_of(&owned, protocol, local_end, remote_end);
        if !self.is_peer(&owned, id) {
            return Err(Reason::NotPeer);
        }
        if let Piece::First(id) = ip.piece {
            // Later fragments follow, except those of an ICMP error: see `Reason::FragmentNotOwned`.
            self.fragments.insert(siblings(&ip, id), First { lease: owned.lease, protocol, local, remote });
        }
        let flow = self.flows.entry(id).or_default();
        flow.rx = (flow.rx.0 + 1, flow.rx.1 + length as u64);
        flow.last = last;
        *touched = Some(id);
        Ok(owned)
    }

    /// Whether the kernel of a host with the Ethernet address [`STATION`] takes the packet: its link, source and header.
    fn accepts(&self, frame: &[u8], ip: &Ip<'_>) -> Result<(), Reason> {
        if self.ethernet {
            // IEEE 802.3 section 3.2.3: the first bit of an address tells a group. Linux takes no TCP in such frames.
            let is_group = frame[0] % 2 == 1 && ip.protocol != TCP;
            if in_vlan(frame) || (frame[..6] != STATION && !is_group) {
                return Err(Reason::OtherLink);
            }
        }
        let is_martian = match ip.source {
            IpAddr::V4(v4) => {
                v4.is_multicast()
                    || v4.is_broadcast()
                    || v4.is_loopback()
                    || v4.is_unspecified()
                    || self.local.contains(&ip.source)
            }
            IpAddr::V6(v6) => v6.is_multicast() || v6.is_loopback() || v6.to_ipv4_mapped().is_some(),
        };
        match (is_martian, ip.valid) {
            (true, _) => Err(Reason::MartianSource),
            (_, false) => Err(Reason::InvalidHeader),
            _ => Ok(()),
        }
    }

    /// The owner of the packet that an ICMP error quotes.
    fn sender_of_quoted(&self, quoted: &[u8], v6: bool) -> Option<Owned> {
        let ip = read::ip(quoted, if v6 { 6 } else { 4 }).ok()?;
        if let Piece::Later(_) = ip.piece {
            return None;
        }
        let (protocol, local, remote) = match ip.protocol {
            TCP | UDP => {
                let (source, destination) = read::ports(ip.rest)?;
                (ip.protocol, source, destination)
            }
            protocol if is_icmp(protocol, &ip) => match read::icmp(ip.rest, v6)? {
                Icmp::Query(id) => (ICMP, id, 0),
                _ => return None,
            },
            _ => return None,
        };
        let owned = self.owner(protocol, ip.source, local)?;
        let (local, remote) = (SocketAddr::new(ip.source, local), SocketAddr::new(ip.destination, remote));
        self.is_peer(&owned, flow_of(&owned, protocol, local, remote)).then_some(owned)
    }

    /// Whether the owner gets packets of this flow's peer.
    fn is_peer(&self, owned: &Owned, id: FlowId) -> bool {
        match owned.peers {
            Peers::Any => true,
            Peers::Flow => self.peers.contains(&id),
            Peers::Address => {
                let remote = SocketAddr::new(id.remote.ip(), 0);
                self.peers.contains(&FlowId { remote, ..id })
            }
        }
    }

    /// The reason, and whether the owner gets a report.
    fn egress(&mut self, frame: &[u8], mark: u32, touched: &mut Option<FlowId>) -> (Reason, bool) {
        let crafted = mark == self.mark;
        let otherwise = (if crafted { Reason::Crafted } else { Reason::EgressOther }, false);
        let Ok((ip, length)) = self.network(frame) else { return otherwise };
        if let Piece::Later(_) = ip.piece {
            return otherwise;
        }
        if crafted {
            self.sent(&ip, length, touched);
            return otherwise;
        }
        let answer = match ip.protocol {
            TCP => self.rst(&ip),
            protocol if is_icmp(protocol, &ip) => self.unreachable(&ip),
            _ => None,
        };
        let Some((id, [suppressed, allowed, not_owned])) = answer else { return otherwise };
        let owned = self.owner(id.protocol, id.local.ip(), id.local.port());
        let id = owned.map_or(id, |owned| FlowId { lease: owned.lease, ..id });
        let is_answer = |owned: &Owned| self.is_peer(owned, id) && !(self.ethernet && in_vlan(frame));
        match owned.filter(is_answer) {
            Some(owned) if owned.suppress => {
                self.flows.entry(id).or_default().suppressed += 1;
                *touched = Some(id);
                (suppressed, owned.report)
            }
            Some(_) => (allowed, false),
            None => (not_owned, false),
        }
    }

    /// Counts a crafted packet from an owned port, or a crafted query with an owned identifier, in its flow.
    fn sent(&mut self, ip: &Ip<'_>, length: usize, touched: &mut Option<FlowId>) {
        let ends = match ip.protocol {
            TCP | UDP => read::ports(ip.rest).map(|(source, destination)| (ip.protocol, source, destination)),
            protocol if is_icmp(protocol, ip) => match read::icmp(ip.rest, ip.source.is_ipv6()) {
                Some(Icmp::Query(id)) => Some((ICMP, id, 0)),
                _ => None,
            },
            _ => None,
        };
        let Some((protocol, local, remote)) = ends else { return };
        let Some(owned) = self.owner(protocol, ip.source, local) else { return };
        let (local, remote) = (SocketAddr::new(ip.source, local), SocketAddr::new(ip.destination, remote));
        let id = flow_of(&owned, protocol, local, remote);
        let flow = self.flows.entry(id).or_default();
        flow.tx = (flow.tx.0 + 1, flow.tx.1 + length as u64);
        *touched = Some(id);
    }

    /// The flow of a RST sent by the kernel, and the possible reasons (suppressed, allowed, not owned).
    fn rst(&self, ip: &Ip<'_>) -> Option<(FlowId, [Reason; 3])> {
        let (_, _, flags) = last(ip)?;
        let (source, destination) = read::ports(ip.rest)?;
        let id = FlowId {
            lease: 0,
            protocol: TCP,
            local: SocketAddr::new(ip.source, source),
            remote: SocketAddr::new(ip.destination, destination),
        };
        (flags & 4 != 0).then_some((id, [Reason::RstSuppressed, Reason::RstAllowed, Reason::RstNotOwned]))
    }

    /// The same for a port-unreachable error, which quotes a received datagram.
    fn unreachable(&self, ip: &Ip<'_>) -> Option<(FlowId, [Reason; 3])> {
        let v6 = ip.source.is_ipv6();
        let Some(Icmp::Error { port_unreachable: true, quoted }) = read::icmp(ip.rest, v6) else { return None };
        let quoted = read::ip(quoted, if v6 { 6 } else { 4 }).ok()?;
        if quoted.protocol != UDP || matches!(quoted.piece, Piece::Later(_)) {
            return None;
        }
        let (source, destination) = read::ports(quoted.rest)?;
        let id = FlowId {
            lease: 0,
            protocol: UDP,
            local: SocketAddr::new(quoted.destination, destination),
            remote: SocketAddr::new(quoted.source, source),
        };
        Some((id, [Reason::UnreachableSuppressed, Reason::UnreachableAllowed, Reason::UnreachableNotOwned]))
    }
}

fn flow_of(owned: &Owned, protocol: u8, local: SocketAddr, remote: SocketAddr) -> FlowId {
    FlowId { lease: owned.lease, protocol, local, remote }
}

/// Whether a VLAN tag of the frame has an identifier other than 0 (IEEE 802.1Q section 9.6: priority-tagged).
fn in_vlan(frame: &[u8]) -> bool {
    let tags = frame[12..].chunks(4).take_while(|tag| matches!(tag, [0x81, 0x00, ..] | [0x88, 0xa8, ..]));
    tags.into_iter().any(|tag| tag[2] % 16 != 0 || tag[3] != 0)
}

fn siblings(ip: &Ip<'_>, id: u32) -> Siblings {
    (ip.source, ip.destination, id, ip.source.is_ipv4().then_some(ip.protocol))
}

/// Whether `protocol` is the ICMP of this IP version: ICMPv6 over IPv4 counts as any other protocol.
fn is_icmp(protocol: u8, ip: &Ip<'_>) -> bool {
    protocol == if ip.source.is_ipv4() { 1 } else { 58 }
}

/// Sequence number, acknowledgment number and flags of a complete TCP header; zeros for a complete UDP header.
fn last(ip: &Ip<'_>) -> Option<(u32, u32, u8)> {
    if ip.protocol == UDP {
        return (ip.rest.len() >= 8).then_some((0, 0, 0));
    }
    let tcp: &[u8; 20] = ip.rest.first_chunk()?;
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    Some((number(4), number(8), tcp[13]))
}
