//! Settings and counters of a stream.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::error::{Error, Result};

/// When in-order data is acknowledged. Out-of-order data is acknowledged at once (RFC 5681, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckPolicy {
    /// Once per [`poll_transmit`](super::StreamEngine::poll_transmit), that is, once per burst of received packets.
    PerBurst,
    /// Less than a full segment is acknowledged after this time, or with the next sent data.
    Delayed(Duration),
}

/// Settings of a stream.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Address and port of this end. The caller must have leased the port.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// MTU of the route, in bytes of an IP packet. The offered MSS is the MTU minus the headers.
    pub mtu: usize,
    /// Receive buffer in bytes, which is also the largest offered window. At most 1 GiB.
    pub rx_buffer: usize,
    /// Transmit buffer in bytes. At most 1 GiB.
    pub tx_buffer: usize,
    /// Timeout of the connection attempt.
    pub connect_timeout: Duration,
    /// How long sent data may stay unacknowledged without any segment from the peer. From 15 s on, the stream also
    /// makes at least five attempts before it gives up; after losses they are up to a minute apart.
    pub retransmission_timeout: Duration,
    /// How long the peer of an established connection may be silent; `None`: unlimited.
    pub idle_timeout: Option<Duration>,
    /// Duration of TIME-WAIT, at most [`MAX_TIME_WAIT`](Self::MAX_TIME_WAIT). RFC 9293, section 3.6.1 requires minutes,
    /// to keep old segments from a new connection; a leased port is not reused while its stream is open.
    pub time_wait: Duration,
    /// When to acknowledge.
    pub acks: AckPolicy,
    /// Send small segments at once (`TCP_NODELAY`): no Nagle algorithm.
    pub no_delay: bool,
    /// Offer timestamps (RFC 7323), which cost 12 bytes per segment. The peer can measure round-trip times, and old
    /// segments after a wrap of sequence numbers are rejected (PAWS).
    pub timestamps: bool,
    /// Time to live or hop limit, 1 to 255.
    pub ttl: u8,
    /// 64 bits from the system's random source, new for each stream. The initial sequence number is 32 bits derived
    /// from them, which an off-path attacker cannot guess; the offset of timestamps is derived from them too.
    ///
    /// Unlike in RFC 6528, no clock is added: there it makes a connection over the same two ports begin after the
    /// numbers of the previous one. Here the stream keeps its leased port through TIME-WAIT.
    pub seed: u64,
}

impl StreamConfig {
    /// Longest TIME-WAIT: smoltcp ends it after 10 s (`CLOSE_DELAY`).
    pub const MAX_TIME_WAIT: Duration = Duration::from_millis(9_900);
    /// The smallest supported MTU for IPv4 in bytes, which allows the default MSS of 536 (RFC 9293, section 3.7.1).
    pub const MIN_MTU_V4: usize = 576;
    /// The smallest MTU for IPv6 in bytes (RFC 8200, section 5).
    pub const MIN_MTU_V6: usize = 1280;

    /// Defaults: MTU 1500, 4 MiB to receive and 512 KiB to send, 5 s to connect, 60 s for an acknowledgment, 1 s of
    /// TIME-WAIT, one ACK per burst, no timestamps. `seed` must be random.
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

    /// Rejects invalid settings, some of which would make smoltcp panic.
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
            return Err(Error::invalid(
                "time to live",
                "a packet with 0 never leaves the host (RFC 1122, section 3.2.1.7)",
            ));
        }
        Ok(())
    }
}

/// Counters of a stream. Bytes are payload, retransmissions included. An outgoing segment that a hook drops counts as
/// sent; an incoming one does not count as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// Time from the first SYN to the SYN-ACK; `None` before that.
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
    /// Received segments without new data, and those with an old timestamp.
    pub duplicates: u64,
    /// Segments received while an earlier one was missing.
    pub out_of_order: u64,
    /// RSTs received.
    pub resets: u64,
    /// Segments that a hook dropped, in both directions.
    pub hook_drops: u64,
    /// Received segments dropped because a hook left them with a wrong checksum.
    pub bad_checksums: u64,
}
