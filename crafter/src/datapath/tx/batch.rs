//! A batch of packets: what the caller hands over, the form that the kernel gets, and the result.

use std::net::SocketAddr;

use crafter_common::link;

use crate::{datapath::route::Route, error::Error};

/// Packets per sendmmsg.
pub const BATCH: usize = 64;
/// Bytes of an Ethernet header without tags.
pub(super) const ETHERNET: usize = link::ETHERNET_HEADER;

/// A packet to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TxPacket<'p> {
    /// From the IP header on.
    Ip(&'p Route, &'p [u8]),
    /// From the Ethernet header on.
    Frame(&'p [u8]),
}

/// What to do when the queue has no room for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Wait for the room timeout, then count the packet as refused and continue with the next one.
    Refuse,
    /// Stop: the packet and all packets after it remain with the caller.
    Stop,
}

/// Result of sending a batch: counts of packets, and where it stopped.
#[derive(Debug, Default)]
pub(crate) struct Transmitted {
    /// Packets that the kernel took.
    pub(crate) sent: u64,
    /// Packets that it did not take. Invalid packets are not passed to the kernel, and are counted in neither field.
    pub(crate) refused: u64,
    /// How many packets were tried. With [`NoRoom::Stop`] it is the index of the first without room.
    pub(crate) tried: usize,
    /// Why a packet was not taken: the first one's error.
    pub(crate) error: Option<Error>,
}

/// A packet as the kernel gets it.
#[derive(Debug)]
pub(super) struct Ready<'p> {
    /// Its index in the caller's batch.
    pub(super) index: usize,
    /// The link-layer header that is sent before `bytes`.
    pub(super) header: Option<[u8; ETHERNET]>,
    pub(super) bytes: &'p [u8],
    /// Where raw sockets send it.
    pub(super) to: Option<SocketAddr>,
}

impl Ready<'_> {
    /// The bytes, in two parts of which the second may be empty.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        match &self.header {
            Some(header) => [header, self.bytes],
            None => [self.bytes, &[]],
        }
    }
}

/// Result of sending consecutive packets of a batch by one socket.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Packets that the kernel took.
    pub(super) taken: usize,
    /// The index of the first packet without room, if the run stopped there.
    pub(super) stopped: Option<usize>,
    /// The index of the first packet that the kernel refused, and why.
    pub(super) failure: Option<(usize, Error)>,
}
