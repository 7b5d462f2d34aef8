//! Tracks half-open connections: those with a SYN-ACK to a SYN of the session that no sent packet acknowledged.
//! Sans-IO: its input is segments, its output RSTs.
//!
//! The peer retransmits its SYN-ACK until it is acknowledged or reset (Linux: after 1 s, 3 s, 7 s, ...). Once the lease
//! of the port has ended, the kernel answers the next one with a RST of its own.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use crate::{
    layer::{Ip, IpFlags, Tcp},
    packet::{Flags, TcpView},
};

/// Connections tracked at most, answered or not; some 40 MB.
const CAPACITY: usize = 1 << 17;

/// How far an acknowledgment of the SYN-ACK may be beyond it, in bytes: with TCP Fast Open (RFC 7413), the peer may
/// have sent data within an unscaled window.
const EARLY_DATA: u32 = 0xffff;

/// Local and remote address and port.
type Key = (SocketAddr, SocketAddr);

/// Connections opened by a SYN of the session. `P`: the path of their packets.
#[derive(Debug)]
pub(super) struct HalfOpen<P> {
    connections: HashMap<Key, Connection<P>>,
    /// Their keys by number, in the order of the SYNs.
    order: BTreeMap<u64, Key>,
    /// Number of the next connection.
    number: u64,
    capacity: usize,
}

#[derive(Debug)]
struct Connection<P> {
    number: u64,
    path: P,
    /// The latest SYN.
    syn: Syn,
    /// Sequence and acknowledgment number of the latest SYN-ACK; preferably of one that acknowledges the SYN.
    syn_ack: Option<(u32, u32)>,
    /// The latest acknowledgment number sent before a SYN-ACK was received.
    acknowledged: Option<u32>,
    /// The latest sequence number of a RST sent before a SYN-ACK was received.
    reset: Option<u32>,
}

/// The sequence numbers of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Syn {
    seq: u32,
    /// Length of the segment in sequence numbers: 1, the data (RFC 7413), and 1 for a FIN.
    length: u32,
}

impl Syn {
    fn of(segment: &TcpView<'_>) -> Self {
        let fin = u32::from(segment.flags.contains(Flags::FIN));
        // A segment has at most 65,535 bytes.
        Self { seq: segment.seq, length: 1 + segment.payload().len() as u32 + fin }
    }

    /// Whether `ack` acknowledges it: `ISS < SEG.ACK =< SND.NXT` (RFC 9293, section 3.10.7.3).
    fn is_acknowledged(self, ack: u32) -> bool {
        (1..=self.length).contains(&ack.wrapping_sub(self.seq))
    }
}

/// The RST of a half-open connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reset<P> {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// The acknowledgment number of the SYN-ACK.
    pub(super) seq: u32,
    /// Path of the RST.
    pub(super) path: P,
}

impl<P> Reset<P> {
    /// The packet from its IP header on: `<SEQ=SEG.ACK><CTL=RST>` (RFC 9293, sections 3.5.2 and 3.10.7.3).
    pub(super) fn packet(&self) -> Vec<u8> {
        let Self { local, remote, seq, .. } = *self;
        let mut packet = Tcp::new().seq(seq).flags(Flags::RST).window(0).between(local, remote);
        if let Some(ip) = packet.get_mut::<Ip>() {
            (ip.flags, ip.id) = (Some(IpFlags::DF), Some(0));
        }
        packet.build().expect("every number fits its field")
    }
}

impl<P> Default for HalfOpen<P> {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl<P> HalfOpen<P> {
    fn with_capacity(capacity: usize) -> Self {
        Self { connections: HashMap::new(), order: BTreeMap::new(), number: 0, capacity }
    }

    /// Handles a sent segment: a SYN adds a connection, an acknowledgment or RST of a SYN-ACK removes one. Returns the
    /// RST of the oldest connection if it is half-open and removed for the new one.
    pub(super) fn handle_sent(&mut self, segment: &TcpView<'_>, path: impl FnOnce() -> P) -> Option<Reset<P>> {
        let (key, flags) = ((segment.source(), segment.destination()), segment.flags);
        if flags.contains(Flags::SYN) && !flags.intersects(Flags::ACK | Flags::RST) {
            return self.begin(key, Syn::of(segment), path);
        }
        let connection = self.connections.get_mut(&key)?;
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
            self.remove(key);
        }
        None
    }

    /// Handles a received segment with a correct checksum.
    pub(super) fn handle_received(&mut self, segment: &TcpView<'_>) {
        let (key, flags) = ((segment.destination(), segment.source()), segment.flags);
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let is_over = if flags.contains(Flags::RST) {
            // A RST to another segment than the SYN does not end the connection.
            match connection.syn_ack {
                Some((seq, _)) => segment.seq == seq.wrapping_add(1),
                None => flags.contains(Flags::ACK) && connection.syn.is_acknowledged(segment.ack),
            }
        } else if flags.contains(Flags::SYN | Flags::ACK) {
            let acknowledges_syn = |ack| connection.syn.is_acknowledged(ack);
            if !acknowledges_syn(segment.ack) && connection.syn_ack.is_some_and(|(_, ack)| acknowledges_syn(ack)) {
                return;
            }
            connection.syn_ack = Some((segment.seq, segment.ack));
            connection.acknowledged.is_some_and(|ack| acknowledges(ack, segment.seq))
                || connection.reset == Some(segment.ack)
        } else {
            false
        };
        if is_over {
            self.remove(key);
        }
    }

    /// Removes the connections of a local port whose lease ends; returns the RSTs of the half-open ones.
    pub(super) fn take_port(&mut self, local: SocketAddr) -> Vec<Reset<P>> {
        self.extract(|key, _| key.0 == local)
    }

    /// Removes the half-open connections; returns their RSTs in the order of the SYNs. The others may still become
    /// half-open.
    pub(super) fn take(&mut self) -> Vec<Reset<P>> {
        self.extract(|_, connection| connection.syn_ack.is_some())
    }

    fn extract(&mut self, is_taken: impl Fn(&Key, &Connection<P>) -> bool) -> Vec<Reset<P>> {
        let mut taken: Vec<_> = self.connections.extract_if(|key, connection| is_taken(key, connection)).collect();
        taken.sort_unstable_by_key(|(_, connection)| connection.number);
        for (_, connection) in &taken {
            self.order.remove(&connection.number);
        }
        taken.into_iter().filter_map(reset).collect()
    }

    fn begin(&mut self, key: Key, syn: Syn, path: impl FnOnce() -> P) -> Option<Reset<P>> {
        if let Some(connection) = self.connections.get_mut(&key) {
            // The peer answers a retransmitted SYN like the first one.
            if connection.syn.seq != syn.seq {
                (connection.acknowledged, connection.reset) = (None, None);
            }
            connection.syn = syn;
            return None;
        }
        let number = self.number;
        let connection = Connection { number, path: path(), syn, syn_ack: None, acknowledged: None, reset: None };
        self.connections.insert(key, connection);
        self.order.insert(number, key);
        self.number += 1;
        if self.connections.len() <= self.capacity {
            return None;
        }
        let (_, oldest) = self.order.pop_first()?;
        reset(self.connections.remove_entry(&oldest)?)
    }

    fn remove(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            self.order.remove(&connection.number);
        }
    }
}

/// Whether an acknowledgment number acknowledges a SYN-ACK of this sequence number.
fn acknowledges(ack: u32, seq: u32) -> bool {
    ack.wrapping_sub(seq.wrapping_add(1)) <= EARLY_DATA
}

fn reset<P>(((local, remote), connection): (Key, Connection<P>)) -> Option<Reset<P>> {
    let Connection { syn_ack: Some((_, seq)), path, .. } = connection else { return None };
    Some(Reset { local, remote, seq, path })
}

#[cfg(test)]
#[path = "half_open_tests.rs"]
mod tests;
