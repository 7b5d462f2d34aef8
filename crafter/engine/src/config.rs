//! Settings and counters of a stream.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::error::{Error, Result};

/// When data that arrived in order is acknowledged. Data out of order always is at once (RFC 5681, 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckPolicy {
    /// Once per [`poll_transmit`](super::StreamEngine::poll_transmit), so once per burst that the caller hands in.
    PerBurst,
    /// Less than a full segment is acknowledged after this time, or with the next data that is sent.
    Delayed(Duration),
}

/// Settings of a stream.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Address and port of this end; the port has to be leased already.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// The route's MTU, in bytes of IP packet. The offered MSS is this less the headers.
    pub mtu: usize,
    /// Receive buffer in bytes, and so the largest window offered. At most 1 GiB.
    pub rx_buffer: usize,
    /// Transmit buffer in bytes.
    pub tx_buffer: usize,
    /// How long the SYN may go unanswered.
    pub connect_timeout: Duration,
    /// How long sent data may stay unacknowledged while nothing arrives from the peer. From 15 s on, the stream gives
    /// up only after five attempts, too; after losses they are up to a minute apart.
    pub retransmission_timeout: Duration,
    /// How long an established connection may be silent; `None`: without limit.
    pub idle_timeout: Option<Duration>,
    /// How long TIME-WAIT lasts, at most [`MAX_TIME_WAIT`](Self::MAX_TIME_WAIT). RFC 9293 asks for minutes
    /// to keep old segments from a new connection; a leased port is not used again while its stream is open.
    pub time_wait: Duration,
    /// When to acknowledge.
    pub acks: AckPolicy,
    /// Send small segments at once (`TCP_NODELAY`).
    pub no_delay: bool,
    /// Offer timestamps (RFC 7323), which take 12 bytes of each segment. With them the peer measures round trips, and
    /// segments from before a wrap of the sequence numbers are rejected (PAWS).
    pub timestamps: bool,
    /// Time to live or hop limit, 1 to 255.
    pub ttl: u8,
    /// 64 bits from the system's random source, new for each stream. The initial sequence number is 32 bits drawn from
    /// them, so that nobody who does not see the segments can guess it; the offset of the timestamps is another 32.
    ///
    /// There is no clock in it: RFC 6528 adds one to its keyed hash, so that a connection over the same two ports
    /// begins behind the numbers of the one before. Here the port is leased for the one stream, which keeps it through
    /// TIME-WAIT.
    pub seed: u64,
}

impl StreamConfig {
    /// Longer than this, smoltcp ends TIME-WAIT by itself (its `CLOSE_DELAY` is 10 s).
    pub const MAX_TIME_WAIT: Duration = Duration::from_millis(9_900);
    /// The least MTU of IPv4 that leaves the default MSS of 536 (RFC 9293, 3.7.1).
    pub const MIN_MTU_V4: usize = 576;
    /// The least MTU of IPv6 (RFC 8200, section 5).
    pub const MIN_MTU_V6: usize = 1280;

    /// Defaults: MTU 1500, 4 MiB to receive and 512 KiB to send, 5 s to connect, 60 s for an acknowledgment,
    /// 1 s of TIME-WAIT, one ACK per burst, no timestamps. `seed` has to be random.
    pub fn new(local: SocketAddr, remote: SocketAddr, seed: u64) -> Self {
        Self {
            local,
            remote,
            mtu: 1500,
            rx_buffer: 4 << 20,
            tx_buffer: 512 << 10,
            connect_timeout: Duration::from_secs(5),
            retransmission_timeout: Duration::from_secs(60),
            idle_timeout: None,
            time_wait: Duration::from_secs(1),
            acks: AckPolicy::PerBurst,
            no_delay: true,
            timestamps: false,
            ttl: 64,
            seed,
        }
    }

    /// Rejects settings that cannot work, some of which would make smoltcp panic.
    pub(super) fn check(&self) -> Result<()> {
        let unicast = |address: IpAddr| match address {
            IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
            IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast()),
        };
        for (what, endpoint) in [("local address", self.local), ("remote address", self.remote)] {
            if !unicast(endpoint.ip()) || endpoint.port() == 0 {
                return Err(Error::invalid(what, format!("{endpoint} is not a unicast address with a port")));
            }
        }
        if self.local.is_ipv4() != self.remote.is_ipv4() {
            return Err(Error::invalid("local address", "both ends have to be IPv4, or both IPv6"));
        }
        let least = if self.local.is_ipv4() { Self::MIN_MTU_V4 } else { Self::MIN_MTU_V6 };
        if !(least..=65_535).contains(&self.mtu) {
            return Err(Error::invalid("MTU", format!("{} is not between {least} and 65535", self.mtu)));
        }
        if !(1..=1 << 30).contains(&self.rx_buffer) || !(1..=1 << 30).contains(&self.tx_buffer) {
            return Err(Error::invalid("buffer size", "it has to be between 1 byte and 1 GiB"));
        }
        if self.ttl == 0 {
            return Err(Error::invalid("time to live", "0 never leaves the host (RFC 1122, 3.2.1.7)"));
        }
        Ok(())
    }
}

/// Counters of one stream. Bytes are payload, retransmitted ones included. A segment that a hook drops counts as sent
/// if it was outgoing, and does not count as received if it was incoming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// From the first SYN to the SYN-ACK; `None` until then.
    pub handshake: Option<Duration>,
    /// Whether both ends use timestamps.
    pub timestamps: bool,
    /// Segments sent, pure ACKs included.
    pub segments_sent: u64,
    /// Segments received.
    pub segments_received: u64,
    /// Payload sent, in bytes.
    pub bytes_sent: u64,
    /// Payload received, in bytes.
    pub bytes_received: u64,
    /// Segments sent whose sequence number was sent before.
    pub retransmissions: u64,
    /// Segments received that had nothing new, and those with an old timestamp.
    pub duplicates: u64,
    /// Segments received while an earlier one was missing.
    pub out_of_order: u64,
    /// RSTs received.
    pub resets: u64,
    /// Segments that a hook dropped, both ways.
    pub hook_drops: u64,
    /// Received segments dropped because a hook left them with a wrong checksum.
    pub bad_checksums: u64,
}
