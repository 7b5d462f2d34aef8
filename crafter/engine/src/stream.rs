//! A TCP connection over crafted packets, based on smoltcp.

mod drive;

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Duration as SmolDuration;

use super::config::{AckPolicy, StreamConfig, StreamStats};
use super::delay::Outbox;
use super::filter::SegmentFilter;
use super::hook::{Direction, SegmentHook};
use super::smoltcp::Rewrite;
use super::smoltcp::device::{OneShot, interface};
use super::smoltcp::plain::for_each_plain;
use super::smoltcp::socket::{is_connecting, owes_handshake_ack, receive_next};
use super::smoltcp::timers::{Clock, time_wait_end};
use super::smoltcp::timestamps::{self, Timestamps};
use crate::error::{Error, Result};
use crafter_packet::view::{Checksum, Flags, IcmpError, IcmpReason, Seq, TcpView, checksum, ip};

/// Maximum number of segments per [`StreamEngine::poll_transmit`]; above what a transmit buffer holds.
const MAX_BURST: usize = 32_768;

/// State of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamState {
    /// SYN-SENT or SYN-RECEIVED.
    Connecting,
    /// Both directions are open.
    Established,
    /// The peer has closed its direction; this end may still send.
    PeerClosed,
    /// This end has closed its direction (FIN-WAIT-1, FIN-WAIT-2), or both have and an acknowledgment is pending
    /// (CLOSING, LAST-ACK).
    Closing,
    /// Both directions are closed; the last ACK is still repeated.
    TimeWait,
    /// Closed or failed: see [`StreamEngine::error`].
    Closed,
}

/// Memory for the receive or the transmit buffer of a stream.
pub struct StreamBuffer {
    bytes: SocketBuffer<'static>,
    owner: Option<Box<dyn Send>>,
}

impl StreamBuffer {
    /// Memory that belongs to `owner`, such as pages from `mmap`. `owner` is dropped after the last use of `bytes`.
    pub fn within(bytes: &'static mut [u8], owner: Box<dyn Send>) -> Self {
        Self { bytes: SocketBuffer::new(bytes), owner: Some(owner) }
    }
}

impl From<Vec<u8>> for StreamBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: SocketBuffer::new(bytes), owner: None }
    }
}

/// Why a stream failed.
#[derive(Debug, Clone, Copy)]
enum Failure {
    Refused,
    Reset,
    TimedOut { after: Duration, waiting_for: &'static str },
    LinkRemoved,
    NotAllowed,
    Unreachable { from: IpAddr, reason: IcmpReason },
    Aborted,
}

/// A TCP connection without IO and without a clock of its own.
///
/// The caller passes received packets, whose checksums it has verified, to [`handle_packet`](Self::handle_packet),
/// sends the packets from [`poll_transmit`](Self::poll_transmit), and calls [`handle_timeout`](Self::handle_timeout) at
/// the time that [`poll_timeout`](Self::poll_timeout) returns. After every other call, `poll_transmit` is due.
pub struct StreamEngine {
    config: StreamConfig,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// Owners of the buffers of the socket in `sockets`: dropped after it.
    _owners: [Option<Box<dyn Send>>; 2],
    handle: SocketHandle,
    mtu: usize,
    scratch: Vec<u8>,
    plain: Vec<u8>,
    outbox: Outbox,
    filter: SegmentFilter,
    clock: Clock,
    started: Instant,
    last_heard: Instant,
    /// Since when an acknowledgment from the peer is pending.
    waiting_since: Option<Instant>,
    time_wait_until: Option<Instant>,
    /// Number of stream bytes that the reader has consumed, modulo 2^32.
    consumed: u32,
    failure: Option<Failure>,
    /// For [`Failure::NotAllowed`]: the rule and the message.
    refusal: Option<(Option<u32>, String)>,
    finished: bool,
}

impl StreamEngine {
    /// Starts to connect and allocates the buffers. The next [`poll_transmit`](Self::poll_transmit) sends the SYN.
    ///
    /// # Errors
    /// [`Error::Invalid`] if an address, the MTU or a size in `config` is invalid.
    pub fn connect(config: StreamConfig, hook: Option<Box<dyn SegmentHook>>, now: Instant) -> Result<Self> {
        config.check()?;
        let buffers = [config.rx_buffer, config.tx_buffer].map(|length| vec![0; length].into());
        Self::connect_in(config, buffers, hook, now)
    }

    /// Like [`connect`](Self::connect), with buffers of the caller. Their lengths replace those in `config`; their
    /// content is ignored.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub fn connect_in(
        config: StreamConfig,
        [receive, transmit]: [StreamBuffer; 2],
        hook: Option<Box<dyn SegmentHook>>,
        now: Instant,
    ) -> Result<Self> {
        config.check()?;
        let mut socket = Socket::new(receive.bytes, transmit.bytes);
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_nagle_enabled(!config.no_delay);
        socket.set_hop_limit(Some(config.ttl));
        let timestamps = config.timestamps.then(|| Timestamps::new(config.seed));
        socket.set_tsval_generator(timestamps.as_ref().map(|_| timestamps::clock as fn() -> u32));
        socket.set_ack_delay(match config.acks {
            AckPolicy::PerBurst => None,
            AckPolicy::Delayed(delay) => Some(SmolDuration::from_micros(delay.as_micros() as u64)),
        });
        let mut interface = interface(&config, config.mtu);
        socket
            .connect(interface.context(), config.remote, config.local)
            .map_err(|error| Error::invalid("remote address", error))?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self {
            mtu: config.mtu,
            config,
            interface,
            sockets,
            _owners: [receive.owner, transmit.owner],
            handle,
            scratch: Vec::new(),
            plain: Vec::new(),
            outbox: Outbox::default(),
            filter: SegmentFilter::new(hook, timestamps),
            clock: Clock::new(now),
            started: now,
            last_heard: now,
            waiting_since: None,
            time_wait_until: None,
            consumed: 0,
            failure: None,
            refusal: None,
            finished: false,
        })
    }

    /// Processes a received IP packet, which may be a super-frame longer than the MTU; returns whether it belongs to
    /// this connection. Its checksums must have been verified.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) -> bool {
        let Some(view) = self.read(packet) else {
            return false;
        };
        if !self.filter.has_hook() {
            self.process(now, &view);
            return true;
        }
        for packet in self.filter.incoming(now, packet) {
            self.process_hooked(now, &packet);
        }
        true
    }

    /// Processes an ICMP error; returns whether it quotes a segment of this connection that is in flight.
    ///
    /// While connecting, an unreachable error ends the attempt. Afterwards only "packet too big" has an effect: it
    /// reduces the MTU (RFC 5927, sections 5.2 and 7.2).
    pub fn handle_icmp(&mut self, _now: Instant, error: &IcmpError) -> bool {
        let quoted = &error.quoted;
        if quoted.protocol != ip::TCP
            || quoted.source != self.config.local
            || quoted.destination != self.config.remote
            || !quoted.seq.is_some_and(|seq| self.filter.is_in_flight(Seq(seq)))
        {
            return false;
        }
        if let IcmpReason::PacketTooBig { mtu } = error.reason {
            let mtu = mtu as usize;
            let least = if self.config.local.is_ipv4() { StreamConfig::MIN_MTU_V4 } else { StreamConfig::MIN_MTU_V6 };
            if (least..self.mtu).contains(&mtu) {
                self.mtu = mtu;
                self.interface = interface(&self.config, mtu);
            }
        } else if self.state() == StreamState::Connecting && error.reason.is_unreachable() {
            self.fail_silently(Failure::Unreachable { from: error.from, reason: error.reason });
        }
        true
    }

    /// Handles expired timeouts.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((direction, packet)) = self.filter.delayed.pop_due(now) {
            match direction {
                Direction::Sent => self.outbox.push(&packet),
                Direction::Received => self.process_hooked(now, &packet),
            }
        }
        if self.finished {
            return;
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let connecting = self.state() == StreamState::Connecting;
        if connecting && due(Some(self.started + self.config.connect_timeout)) {
            let after = self.config.connect_timeout;
            self.fail_silently(Failure::TimedOut { after, waiting_for: "SYN-ACK" });
        } else if due(self.gives_up_at()) {
            let after = self.config.retransmission_timeout;
            self.fail(Failure::TimedOut { after, waiting_for: "acknowledgment" });
        } else if due(self.idle_until()) {
            let after = self.config.idle_timeout.unwrap_or_default();
            self.fail(Failure::TimedOut { after, waiting_for: "data" });
        } else if due(self.time_wait_until) {
            // With a TIME-WAIT of 0, the ACK of the FIN is not sent yet.
            self.egress_to_outbox(now);
            self.finished = true;
        }
    }

    /// Passes each packet that is due to `out`; returns their number.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut dyn FnMut(&[u8])) -> usize {
        let count = self.outbox.drain(out);
        count + self.egress(now, out)
    }

    /// When [`handle_timeout`](Self::handle_timeout) and [`poll_transmit`](Self::poll_transmit) are due, not before
    /// `now`; `None` if no timer is pending.
    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        if !self.outbox.is_empty() {
            return Some(now);
        }
        let mut next = self.filter.delayed.next_at();
        let mut sooner = |at: Option<Instant>| next = next.into_iter().chain(at).min();
        if !self.finished {
            let at = self.interface.poll_at(self.clock.to_smoltcp(now), &self.sockets);
            sooner(at.map(|at| self.clock.to_instant(at)));
            sooner(self.gives_up_at());
            sooner(self.idle_until());
            sooner(self.time_wait_until);
            if self.state() == StreamState::Connecting {
                sooner(Some(self.started + self.config.connect_timeout));
            }
        }
        next.map(|at| at.max(now))
    }

    /// Moves received bytes into `buffer` and returns their number: `Some(0)` at the end of the stream, `None` if none
    /// are available.
    ///
    /// # Errors
    /// The failure of the connection, after all bytes received before it were read.
    pub fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        let mut at = 0;
        // Twice, because the socket's ring buffer may wrap.
        for _ in 0..2 {
            let taken = self.recv_with(|bytes| {
                let length = bytes.len().min(buffer.len() - at);
                buffer[at..at + length].copy_from_slice(&bytes[..length]);
                length
            });
            match taken {
                Ok(Some(0)) | Ok(None) | Err(_) if at > 0 => break,
                Ok(Some(length)) if length > 0 => at += length,
                other => return other,
            }
        }
        Ok(Some(at))
    }

    /// Passes received bytes to `take`, which returns how many it consumed. Result and errors are those of
    /// [`recv`](Self::recv).
    pub fn recv_with(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Result<Option<usize>> {
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        if socket.can_recv() {
            let taken = socket.recv(|bytes| {
                let taken = take(bytes).min(bytes.len());
                (taken, taken)
            });
            let taken = taken.unwrap_or(0);
            self.consumed = self.consumed.wrapping_add(taken as u32);
            return Ok(Some(taken));
        }
        match socket.recv(|_| (0, ())) {
            Err(RecvError::Finished) => Ok(Some(0)),
            _ => match self.error() {
                Some(error) => Err(error),
                None => Ok(None),
            },
        }
    }

    /// Queues bytes to send; returns how many fit: 0 if the buffer is full or the connection is not established.
    ///
    /// # Errors
    /// The failure of the connection, or [`Error::Io`] (broken pipe) after [`close`](Self::close).
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        let connecting = self.state() == StreamState::Connecting;
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        match socket.send_slice(bytes) {
            Ok(length) => Ok(length),
            Err(_) if connecting => Ok(0),
            Err(_) => Err(self.error().unwrap_or_else(|| Error::Io {
                action: "send on a closed stream".into(),
                source: io::ErrorKind::BrokenPipe.into(),
            })),
        }
    }

    /// Closes this end's direction: FIN follows the last byte. While connecting, ends the attempt.
    pub fn close(&mut self, _now: Instant) {
        if self.state() == StreamState::Connecting {
            self.fail_silently(Failure::Aborted);
        } else {
            self.socket_mut().close();
        }
    }

    /// Ends the connection with a RST, or without one while connecting; unsent bytes are discarded.
    pub fn abort(&mut self, _now: Instant) {
        match self.state() {
            StreamState::Connecting => self.fail_silently(Failure::Aborted),
            StreamState::TimeWait | StreamState::Closed => self.finished = true,
            _ => self.fail(Failure::Aborted),
        }
    }

    /// Ends the connection because its interface was removed. Nothing is sent.
    pub fn handle_link_removed(&mut self, _now: Instant) {
        if !self.finished {
            self.fail_silently(Failure::LinkRemoved);
        }
    }

    /// Ends the connection because a policy does not allow its segments. Nothing is sent.
    pub fn handle_refusal(&mut self, _now: Instant, rule: Option<u32>, sentence: &str) {
        if !self.finished {
            self.refusal = Some((rule, sentence.to_owned()));
            self.fail_silently(Failure::NotAllowed);
        }
    }

    /// The state of the stream.
    pub fn state(&self) -> StreamState {
        if self.finished {
            return StreamState::Closed;
        }
        match self.socket().state() {
            State::SynSent | State::SynReceived | State::Listen => StreamState::Connecting,
            State::Established => StreamState::Established,
            State::CloseWait => StreamState::PeerClosed,
            State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck => StreamState::Closing,
            State::TimeWait => StreamState::TimeWait,
            State::Closed => StreamState::Closed,
        }
    }

    /// Whether the stream is closed and has nothing to send, so that the port may be released. Received bytes can still
    /// be read.
    pub fn is_finished(&self) -> bool {
        self.finished && self.outbox.is_empty() && !self.filter.delayed.has_outgoing()
    }

    /// Whether [`recv`](Self::recv) has bytes.
    pub fn can_recv(&self) -> bool {
        self.socket().can_recv()
    }

    /// Whether [`send`](Self::send) accepts bytes.
    pub fn can_send(&self) -> bool {
        self.socket().can_send()
    }

    /// Number of bytes passed to [`send`](Self::send) that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.socket().send_queue()
    }

    /// The known path MTU, in bytes of an IP packet.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Counters so far.
    pub fn stats(&self) -> StreamStats {
        self.filter.stats
    }

    /// The failure of the connection, if it failed.
    pub fn error(&self) -> Option<Error> {
        let remote = self.config.remote;
        Some(match self.failure? {
            Failure::Refused => Error::Refused { remote },
            Failure::Reset => Error::Reset { remote },
            Failure::TimedOut { after, waiting_for } => Error::TimedOut { remote, after, waiting_for },
            Failure::Unreachable { from, reason } => Error::Unreachable { remote, from, reason: reason.to_string() },
            Failure::LinkRemoved => Error::Io {
                action: format!("keep the connection to {remote}"),
                source: io::Error::new(io::ErrorKind::NetworkDown, "its interface was removed"),
            },
            Failure::NotAllowed => {
                let (rule, message) = self.refusal.clone().unwrap_or_default();
                Error::Forbidden { rule, message }
            }
            Failure::Aborted => {
                Error::Io { action: "use an aborted stream".into(), source: io::ErrorKind::ConnectionAborted.into() }
            }
        })
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Parses `packet` if it is a segment of this connection.
    fn read<'p>(&self, packet: &'p [u8]) -> Option<TcpView<'p>> {
        let view = TcpView::read(packet).ok()?;
        let ours = view.source_port == self.config.remote.port()
            && view.destination_port == self.config.local.port()
            && view.ip.source == self.config.remote.ip()
            && view.ip.destination == self.config.local.ip();
        ours.then_some(view)
    }
}
