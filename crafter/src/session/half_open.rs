//! Half-open connections: a SYN-ACK answered a SYN of ours, and nothing that was sent acknowledged it. Sans-IO:
//! segments come in, resets come out.
//!
//! Until it is acknowledged or reset, the peer repeats its SYN-ACK (Linux: after 1 s, 3 s, 7 s, ...). Once the lease of
//! the port has ended, the kernel answers the next one with a RST of its own.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry as Place},
    net::SocketAddr,
};

use crate::packet::{Flags, Segment, TcpView};

/// SYNs tracked at a time, answered or not. With all tables at their largest some 65 MB from one port, and 120 MB from
/// a port each: computed from the sizes of the entries, 105 and 72 bytes.
const CAPACITY: usize = 1 << 17;

/// How far an ACK of the handshake may be beyond the SYN-ACK: what a peer may have sent before it, with TCP Fast Open
/// (RFC 7413), within an unscaled window.
const EARLY_DATA: u32 = 0xffff;

/// Connections that were begun by a SYN of ours. `P` is how their packets leave.
#[derive(Debug)]
pub(super) struct HalfOpen<P> {
    /// By the local end, then by the remote one.
    connections: HashMap<SocketAddr, HashMap<SocketAddr, Connection<P>>>,
    count: usize,
    /// In the order of their SYNs, with their numbers. May name some that are removed.
    order: VecDeque<(SocketAddr, SocketAddr, u64)>,
    /// Of the next connection.
    number: u64,
    capacity: usize,
}

#[derive(Debug)]
struct Connection<P> {
    number: u64,
    path: P,
    /// Of the latest SYN.
    syn: Syn,
    /// Sequence and acknowledgment number of the latest SYN-ACK; of one that acknowledges the SYN, if any did.
    syn_ack: Option<(u32, u32)>,
    /// The latest acknowledgment number sent before a SYN-ACK was seen here.
    acknowledged: Option<u32>,
    /// The latest sequence number of a RST sent before a SYN-ACK was seen here.
    reset: Option<u32>,
}

/// What of a SYN its answers are told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Syn {
    seq: u32,
    /// Of the whole segment: 1, the data (RFC 7413), and 1 for a FIN.
    length: u32,
}

impl Syn {
    fn of(segment: &TcpView<'_>) -> Self {
        let fin = u32::from(segment.flags.contains(Flags::FIN));
        // A segment has 65,535 bytes at most.
        Self { seq: segment.seq, length: 1 + segment.payload().len() as u32 + fin }
    }

    /// Whether the number acknowledges it: `ISS < SEG.ACK =< SND.NXT` (RFC 9293, section 3.10.7.3).
    fn is_acknowledged(self, ack: u32) -> bool {
        (1..=self.length).contains(&ack.wrapping_sub(self.seq))
    }
}

/// The RST that a half-open connection ends with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reset<P> {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// The number that the SYN-ACK acknowledges.
    pub(super) seq: u32,
    /// How it leaves.
    pub(super) path: P,
}

impl<P> Reset<P> {
    /// The packet from its IP header on: `<SEQ=SEG.ACK><CTL=RST>` (RFC 9293, sections 3.5.2 and 3.10.7.3).
    pub(super) fn packet(&self) -> Vec<u8> {
        let Self { local, remote, seq, .. } = *self;
        Segment { seq, flags: Flags::RST, window: 0, ..Segment::new(local, remote) }.build()
    }
}

impl<P> Default for HalfOpen<P> {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl<P> HalfOpen<P> {
    fn with_capacity(capacity: usize) -> Self {
        Self { connections: HashMap::new(), count: 0, order: VecDeque::new(), number: 0, capacity }
    }

    /// A segment leaves. A SYN begins a connection; what acknowledges or resets a half-open one ends its being so.
    /// The reset is that of the oldest connection, if it is half-open and the new one takes its place.
    pub(super) fn handle_sent(&mut self, segment: &TcpView<'_>, path: impl FnOnce() -> P) -> Option<Reset<P>> {
        let (local, remote, flags) = (segment.source(), segment.destination(), segment.flags);
        if flags.contains(Flags::SYN) && !flags.intersects(Flags::ACK | Flags::RST) {
            return self.begin(local, remote, Syn::of(segment), path);
        }
        let connection = self.connections.get_mut(&local)?.get_mut(&remote)?;
        let is_over = match connection.syn_ack {
            Some((_, ack)) if flags.contains(Flags::RST) => segment.seq == ack,
            Some((seq, _)) => flags.contains(Flags::ACK) && acknowledges(segment.ack, seq),
            None if flags.contains(Flags::RST) => {
                connection.reset = Some(segment.seq);
                false
            }
            None => {
                connection.acknowledged = flags.contains(Flags::ACK).then_some(segment.ack).or(connection.acknowledged);
                false
            }
        };
        if is_over {
            self.remove(local, remote);
        }
        None
    }

    /// A segment with a right checksum has come to a leased port.
    pub(super) fn handle_received(&mut self, segment: &TcpView<'_>) {
        let (local, remote, flags) = (segment.destination(), segment.source(), segment.flags);
        let found = self.connections.get_mut(&local).and_then(|remotes| remotes.get_mut(&remote));
        let Some(connection) = found else { return };
        let is_over = if flags.contains(Flags::RST) {
            // One that answers another segment than the SYN leaves the connection as it is.
            match connection.syn_ack {
                Some((seq, _)) => segment.seq == seq.wrapping_add(1),
                None => flags.contains(Flags::ACK) && connection.syn.is_acknowledged(segment.ack),
            }
        } else if flags.contains(Flags::SYN | Flags::ACK) {
            let is_right = |ack| connection.syn.is_acknowledged(ack);
            if !is_right(segment.ack) && connection.syn_ack.is_some_and(|(_, ack)| is_right(ack)) {
                return;
            }
            connection.syn_ack = Some((segment.seq, segment.ack));
            connection.acknowledged.is_some_and(|ack| acknowledges(ack, segment.seq))
                || connection.reset == Some(segment.ack)
        } else {
            false
        };
        if is_over {
            self.remove(local, remote);
        }
    }

    /// Forgets the connections of a local port that is about to be given back; the resets of the half-open ones.
    pub(super) fn take_port(&mut self, local: SocketAddr) -> Vec<Reset<P>> {
        let remotes = self.connections.remove(&local).unwrap_or_default();
        self.count -= remotes.len();
        in_order(remotes.into_iter().map(|(remote, connection)| (local, remote, connection)))
    }

    /// Forgets the half-open connections; their resets, in the order of the SYNs. The SYN-ACKs of the others may come.
    pub(super) fn take(&mut self) -> Vec<Reset<P>> {
        let mut taken = Vec::new();
        self.connections.retain(|&local, remotes| {
            let is_half_open = |_: &SocketAddr, connection: &mut Connection<P>| connection.syn_ack.is_some();
            taken.extend(remotes.extract_if(is_half_open).map(|(remote, connection)| (local, remote, connection)));
            !remotes.is_empty()
        });
        self.count -= taken.len();
        if self.count == 0 {
            self.order = VecDeque::new();
        }
        in_order(taken.into_iter())
    }

    fn begin(&mut self, local: SocketAddr, remote: SocketAddr, syn: Syn, path: impl FnOnce() -> P) -> Option<Reset<P>> {
        let number = self.number;
        match self.connections.entry(local).or_default().entry(remote) {
            Place::Occupied(mut known) => {
                // The peer answers a SYN that is sent again as it has answered the first.
                let connection = known.get_mut();
                if connection.syn.seq != syn.seq {
                    (connection.acknowledged, connection.reset) = (None, None);
                }
                connection.syn = syn;
                return None;
            }
            Place::Vacant(place) => {
                place.insert(Connection { number, path: path(), syn, syn_ack: None, acknowledged: None, reset: None });
            }
        }
        self.number += 1;
        self.count += 1;
        self.order.push_back((local, remote, number));
        // Most are removed before they are the oldest.
        if self.order.len() > 2 * self.count + 1024 {
            let Self { connections, order, .. } = self;
            order.retain(|(local, remote, number)| is_numbered(connections, *local, *remote, *number));
        }
        let mut oldest = None;
        while self.count > self.capacity
            && let Some((local, remote, number)) = self.order.pop_front()
        {
            if is_numbered(&self.connections, local, remote, number) {
                let connection = self.remove(local, remote)?;
                oldest = reset(local, remote, connection);
            }
        }
        oldest
    }

    fn remove(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Connection<P>> {
        let remotes = self.connections.get_mut(&local)?;
        let removed = remotes.remove(&remote)?;
        if remotes.is_empty() {
            self.connections.remove(&local);
        }
        self.count -= 1;
        Some(removed)
    }
}

type Connections<P> = HashMap<SocketAddr, HashMap<SocketAddr, Connection<P>>>;

fn is_numbered<P>(connections: &Connections<P>, local: SocketAddr, remote: SocketAddr, number: u64) -> bool {
    connections.get(&local).and_then(|remotes| remotes.get(&remote)).is_some_and(|found| found.number == number)
}

/// Whether an acknowledgment number acknowledges a SYN-ACK of this sequence number.
fn acknowledges(ack: u32, seq: u32) -> bool {
    ack.wrapping_sub(seq.wrapping_add(1)) <= EARLY_DATA
}

fn reset<P>(local: SocketAddr, remote: SocketAddr, connection: Connection<P>) -> Option<Reset<P>> {
    let Connection { syn_ack: Some((_, seq)), path, .. } = connection else { return None };
    Some(Reset { local, remote, seq, path })
}

fn in_order<P>(connections: impl Iterator<Item = (SocketAddr, SocketAddr, Connection<P>)>) -> Vec<Reset<P>> {
    let numbered = connections.filter_map(|(local, remote, connection)| {
        let number = connection.number;
        Some((number, reset(local, remote, connection)?))
    });
    let mut resets: Vec<(u64, Reset<P>)> = numbered.collect();
    resets.sort_unstable_by_key(|(number, _)| *number);
    resets.into_iter().map(|(_, reset)| reset).collect()
}

#[cfg(test)]
#[path = "half_open_tests.rs"]
mod tests;
