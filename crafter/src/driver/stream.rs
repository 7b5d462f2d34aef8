//! Streams: whole TCP connections over crafted segments, as tokio's `AsyncRead` and `AsyncWrite`.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    buffer::buffer,
    core::Core,
    entry::{StreamId, Waiter},
    lease::{Lease, LeaseInner},
};
use crate::{
    datapath::{peers::Exchange, route::Route},
    engine::{SegmentHook, StreamConfig, StreamEngine, StreamState, StreamStats},
    error::{Error, Result},
    packet::{Flags, Transport},
};

/// The options of a stream.
#[derive(Default)]
pub struct StreamOptions {
    /// Sees and may change every segment in both directions.
    pub hook: Option<Box<dyn SegmentHook>>,
    /// How long to wait for the answer to the SYN; `None`: 5 s.
    pub connect_timeout: Option<Duration>,
    /// How long an established connection may be idle; `None`: forever.
    pub idle_timeout: Option<Duration>,
    /// The duration of TIME-WAIT if this end closes first; `None`: 1 s.
    pub time_wait: Option<Duration>,
    /// The receive buffer in bytes, and so the largest window; `None`: 4 MiB.
    pub rx_buffer: Option<usize>,
    /// The send buffer in bytes; `None`: 512 KiB.
    pub tx_buffer: Option<usize>,
    /// Whether to offer timestamps (RFC 7323); [`stats`](Stream::stats) say whether the peer accepted them.
    pub timestamps: bool,
}

impl Lease {
    /// Opens a TCP connection from the leased port, and waits until it is established.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::TimedOut`], [`Error::Unreachable`], [`Error::NoRoute`], [`Error::NoNeighbour`];
    /// [`Error::Invalid`] for a lease that is not TCP, or that has a stream to `remote` already, and for an IPv6 address
    /// whose scope id is another interface's index.
    pub async fn connect(&self, remote: SocketAddr, options: StreamOptions) -> Result<Stream> {
        if self.transport() != Transport::Tcp {
            let reason = format_args!("a stream needs a TCP lease; this one is {}", self.transport());
            return Err(Error::invalid("lease", reason));
        }
        let inner = self.inner();
        let route = inner.route(remote.ip()).await?;
        if let SocketAddr::V6(address) = remote
            && ![0, route.ifindex].contains(&address.scope_id())
        {
            let reason = format_args!(
                "its zone is interface {}, but the lease is on {} ({})",
                address.scope_id(),
                route.interface,
                route.ifindex
            );
            return Err(Error::invalid(format!("address {remote}"), reason));
        }
        // Segments have no zone.
        let remote = SocketAddr::new(remote.ip(), remote.port());
        let local = SocketAddr::new(self.address().unwrap_or(route.source), self.port());
        Stream::connect(inner.clone(), route, local, remote, options).await
    }
}

/// A TCP connection of crafted segments. Dropping it without [`shutdown`] resets the connection, because the peer would
/// wait otherwise; after a shutdown it closes in the background.
///
/// [`shutdown`]: tokio::io::AsyncWriteExt::shutdown
pub struct Stream {
    lease: Arc<LeaseInner>,
    id: StreamId,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Stream {
    pub(super) async fn connect(
        lease: Arc<LeaseInner>,
        route: Arc<Route>,
        local: SocketAddr,
        remote: SocketAddr,
        options: StreamOptions,
    ) -> Result<Self> {
        let mut config = StreamConfig::new(local, remote, seed()?);
        config.mtu = route.mtu.min(u16::MAX.into()) as usize;
        config.connect_timeout = options.connect_timeout.unwrap_or(config.connect_timeout);
        config.idle_timeout = options.idle_timeout;
        config.time_wait = options.time_wait.unwrap_or(config.time_wait);
        config.rx_buffer = options.rx_buffer.unwrap_or(config.rx_buffer);
        config.tx_buffer = options.tx_buffer.unwrap_or(config.tx_buffer);
        config.timestamps = options.timestamps;
        lease.begin(&Exchange { transport: Transport::Tcp, local, remote, flags: Flags::SYN | Flags::ACK })?;
        let now = Instant::now();
        let buffers = [buffer(config.rx_buffer)?, buffer(config.tx_buffer)?];
        let engine = StreamEngine::connect_in(config, buffers, options.hook, now)?;
        let stream = {
            let mut core = lease.shared().lock();
            let Some(id) = core.table.add_stream(engine, route, local, remote) else {
                return Err(Error::invalid(
                    "lease",
                    format_args!("it already has a stream to {remote}; lease another port"),
                ));
            };
            core.execute(now);
            // On most paths, the SYN-ACK has arrived when the system call that sends the SYN returns.
            core.drain(Instant::now());
            lease.shared().rearm_if_nearer(&core);
            drop(core);
            Self { lease, id, local, remote }
        };
        poll_fn(|cx| stream.poll_established(cx)).await?;
        Ok(stream)
    }

    /// The local address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The peer's address and port.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Counters so far.
    pub fn stats(&self) -> StreamStats {
        self.with(|core, id| core.table.stream(id).map(|s| s.engine.stats())).unwrap_or_default()
    }

    /// The state of the connection.
    pub fn state(&self) -> StreamState {
        self.with(|core, id| core.table.stream(id).map(|s| s.engine.state())).unwrap_or(StreamState::Closed)
    }

    /// Why the connection failed, if it did: the cause of an [`io::Error`] from reading or writing.
    pub fn error(&self) -> Option<Error> {
        self.with(|core, id| core.table.stream(id).and_then(|s| s.engine.error()).map(Error::from))
    }

    /// Waits until both sides have closed the connection, TIME-WAIT included. Call it after both sides have shut down.
    ///
    /// # Errors
    /// The error that ended the connection, if there is one.
    pub async fn closed(&self) -> Result<()> {
        poll_fn(|cx| {
            self.poll(cx, Waiter::Reader, |stream| match (stream.is_finished(), stream.error()) {
                (_, Some(error)) => Poll::Ready(Err(error.into())),
                (true, None) => Poll::Ready(Ok(())),
                (false, None) => Poll::Pending,
            })
        })
        .await
    }

    fn poll_established(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(cx, Waiter::Reader, |stream| match (stream.error(), stream.state()) {
            (Some(error), _) => Poll::Ready(Err(error.into())),
            (None, StreamState::Connecting) => Poll::Pending,
            (None, _) => Poll::Ready(Ok(())),
        })
    }

    /// Calls `act` with the engine, sends the resulting segments, and registers the waker if `act` is pending.
    fn poll<T>(&self, cx: &mut Context<'_>, waiter: Waiter, act: impl FnOnce(&mut StreamEngine) -> Poll<T>) -> Poll<T> {
        let shared = self.lease.shared();
        let mut core = shared.lock();
        let done = core.poll_stream(Instant::now(), self.id, waiter, cx.waker(), act);
        shared.rearm_if_nearer(&core);
        done
    }

    fn with<T>(&self, act: impl FnOnce(&mut Core, StreamId) -> T) -> T {
        act(&mut self.lease.shared().lock(), self.id)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, Waiter::Reader, |engine| {
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            // Copied without zeroing the buffer first. Twice, because the engine's ring buffer may wrap.
            for round in 0..2 {
                let taken = engine.recv_with(|bytes| {
                    let count = bytes.len().min(buf.remaining());
                    buf.put_slice(&bytes[..count]);
                    count
                });
                match taken {
                    Ok(Some(0)) => break,
                    Ok(Some(_)) => {}
                    // Data that arrived before the failure is returned first.
                    Ok(None) | Err(_) if round > 0 => break,
                    Ok(None) => return Poll::Pending,
                    Err(e) => return Poll::Ready(Err(io_error(e.into()))),
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, Waiter::Writer, |engine| match engine.send(bytes) {
            Ok(0) if !bytes.is_empty() => Poll::Pending,
            Ok(count) => Poll::Ready(Ok(count)),
            Err(e) => Poll::Ready(Err(io_error(e.into()))),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The engine sends the written data as the windows allow.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, Waiter::Writer, |engine| {
            engine.close(Instant::now());
            Poll::Ready(Ok(()))
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let shared = self.lease.shared();
        let now = Instant::now();
        let mut core = shared.lock();
        core.release_stream(now, self.id, self.lease.clone());
        if !shared.is_driven() {
            core.give_up_orphans();
        }
        shared.rearm_if_nearer(&core);
    }
}

/// Converts an error for tokio's traits; [`Stream::error`] returns it unchanged.
fn io_error(error: Error) -> io::Error {
    let kind = match &error {
        Error::Refused { .. } => io::ErrorKind::ConnectionRefused,
        Error::Reset { .. } => io::ErrorKind::ConnectionReset,
        Error::TimedOut { .. } => io::ErrorKind::TimedOut,
        Error::Unreachable { .. } => io::ErrorKind::HostUnreachable,
        Error::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// 64 bits from getrandom(2).
fn seed() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::Io { action: "read random bytes".into(), source: io::Error::other(e.to_string()) })?;
    Ok(u64::from_ne_bytes(bytes))
}
