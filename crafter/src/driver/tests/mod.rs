//! Core and table on a fake backend, without a namespace, a socket or a clock.

mod endings;
mod leases;
mod pressure;
mod service;
mod streams;

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use crafter_packet::testing::Segment;
use tokio::sync::Notify;

use super::{
    core::{Core, LeaseHandles},
    entry::{LeaseId, Meta, Ports, Received, StreamId, Waiter},
    fake::{Arrival, Fake, FakeBackend},
};
use crate::{
    datapath::{
        maps::Terms,
        route::{LinkLayer, Route},
    },
    engine::{StreamConfig, StreamEngine, StreamState},
    error::Result,
    layer::Udp,
    packet::{Checksum, Flags, TcpView, Transport, checksum},
};

/// This host's address.
const HERE: &str = "192.0.2.1";
/// The peer's address.
const THERE: &str = "192.0.2.2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    (Udp::new().between(from, to) / payload).build().unwrap()
}

fn tcp(from: SocketAddr, to: SocketAddr, flags: Flags) -> Vec<u8> {
    Segment { flags, ..Segment::new(from, to) }.build()
}

/// An ICMP message over IPv4.
fn icmp(from: &str, to: &str, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (ip(from), ip(to)) else { panic!("not IPv4") };
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend([kind, code, 0, 0]);
    packet.extend(rest);
    packet.extend(data);
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    checksum::fix(&mut packet);
    packet
}

fn route() -> Arc<Route> {
    let (interface, source) = ("fake0".to_owned(), ip(HERE));
    Arc::new(Route { interface, ifindex: 1, source, mtu: 1500, gateway: None, link: LinkLayer::None })
}

/// Counts how often a task is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    /// Wakes since the last call.
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// Consumes a notification; `false` if there is none.
fn take_notification(notify: &Notify) -> bool {
    pin!(notify.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// A core on a fake backend, with the test's own time.
struct World {
    now: Instant,
    core: Core,
    backend: FakeBackend,
}

impl World {
    fn new() -> Self {
        let backend = FakeBackend::default();
        Self { now: Instant::now(), core: Core::new(backend.clone(), false), backend }
    }

    fn fake(&self) -> MutexGuard<'_, Fake> {
        self.backend.lock()
    }

    fn try_lease(&mut self, transport: Transport, address: &str, ports: &[u16], gathered: bool) -> Result<Lease> {
        let id = self.core.table.next_lease();
        let arrived = Arc::new(Notify::new());
        let handles = LeaseHandles { arrived: arrived.clone(), gathered, reservations: Vec::new() };
        let ports = Ports { transport, address: ip(address), ports: ports.to_vec() };
        self.core.add_lease(id, ports, Terms::default(), handles)?;
        Ok(Lease { id, arrived })
    }

    fn lease(&mut self, transport: Transport, address: &str, port: u16) -> Lease {
        self.try_lease(transport, address, &[port], false).unwrap()
    }

    /// Delivers something, and drains it.
    fn arrive(&mut self, arrival: Arrival) {
        self.fake().arrivals.push_back(arrival);
        assert_eq!(self.core.drain(self.now), 1);
    }

    fn arrive_packet(&mut self, packet: Vec<u8>) {
        self.arrive(Arrival::Packet(packet, Meta::REDIRECTED));
    }

    fn receive(&mut self, lease: &Lease) -> Option<Received> {
        self.core.receive(self.now, lease.id)
    }

    fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.fake().sent)
    }

    fn take_segments(&self) -> Vec<Segment> {
        self.take_sent().iter().map(|packet| Segment::parse(packet).unwrap()).collect()
    }

    /// Advances the time, and handles each deadline in between.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(next) = self.core.arm().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.core.handle_timeouts(self.now);
        }
        self.now = until;
    }

    /// Opens a stream and sends its SYN.
    fn connect(&mut self, local: SocketAddr, remote: SocketAddr) -> StreamId {
        let engine = StreamEngine::connect(StreamConfig::new(local, remote, 42), None, self.now).unwrap();
        let id = self.core.table.add_stream(engine, route(), local, remote).expect("no other stream of that flow");
        self.core.execute(self.now);
        id
    }

    fn poll<T>(
        &mut self,
        stream: StreamId,
        waiter: Waiter,
        wakes: &Arc<Wakes>,
        act: impl FnOnce(&mut StreamEngine) -> Poll<T>,
    ) -> Poll<T> {
        self.core.poll_stream(self.now, stream, waiter, &wakes.clone().into(), act)
    }

    fn read(&mut self, stream: StreamId, wakes: &Arc<Wakes>) -> Poll<Result<Vec<u8>>> {
        self.poll(stream, Waiter::Reader, wakes, |engine| {
            let mut buffer = [0; 4096];
            match engine.recv(&mut buffer) {
                Ok(Some(length)) => Poll::Ready(Ok(buffer[..length].to_vec())),
                Ok(None) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error.into())),
            }
        })
    }

    fn write(&mut self, stream: StreamId, bytes: &[u8]) {
        let written = self.poll(stream, Waiter::Writer, &Arc::default(), |engine| Poll::Ready(engine.send(bytes)));
        assert!(matches!(written, Poll::Ready(Ok(length)) if length == bytes.len()), "{written:?}");
    }

    fn shut_down(&mut self, stream: StreamId) {
        let now = self.now;
        let _ = self.poll(stream, Waiter::Writer, &Arc::default(), |engine| {
            engine.close(now);
            Poll::Ready(())
        });
    }

    fn state(&mut self, stream: StreamId) -> Option<StreamState> {
        self.core.table.stream(stream).map(|stream| stream.engine.state())
    }
}

/// A lease of a test.
struct Lease {
    id: LeaseId,
    arrived: Arc<Notify>,
}

/// The peer of a stream: answers each segment like a server that only receives.
struct Peer {
    address: SocketAddr,
    remote: SocketAddr,
    /// The next sequence number to send, and the next one expected.
    seq: u32,
    ack: u32,
    got: Vec<u8>,
    has_fin: bool,
}

impl Peer {
    fn new(address: SocketAddr, remote: SocketAddr) -> Self {
        Self { address, remote, seq: 1000, ack: 0, got: Vec::new(), has_fin: false }
    }

    /// A segment from the peer.
    fn segment(&mut self, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let segment = Segment {
            seq: self.seq,
            ack: self.ack,
            flags,
            payload: payload.to_vec(),
            ..Segment::new(self.address, self.remote)
        };
        self.seq = self.seq.wrapping_add(segment.sequence_length());
        segment.build()
    }

    /// Handles a segment; returns the answer, if there is one.
    fn handle(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        assert_eq!(checksum::verify(packet, false), Checksum::Valid);
        let segment = TcpView::parse(packet).unwrap();
        assert_eq!((segment.source(), segment.destination()), (self.remote, self.address));
        if segment.flags.contains(Flags::SYN) {
            self.ack = segment.seq.wrapping_add(1);
            return Some(self.segment(Flags::SYN | Flags::ACK, &[]));
        }
        if segment.seq != self.ack || segment.sequence_length() == 0 || segment.flags.contains(Flags::RST) {
            return None;
        }
        self.ack = self.ack.wrapping_add(segment.sequence_length());
        self.got.extend_from_slice(segment.payload());
        self.has_fin |= segment.flags.contains(Flags::FIN);
        Some(self.segment(Flags::ACK, &[]))
    }

    /// Both ends exchange segments until neither answers.
    fn exchange(&mut self, world: &mut World) {
        for _ in 0..1000 {
            let sent = world.take_sent();
            if sent.is_empty() {
                return;
            }
            sent.iter().filter_map(|packet| self.handle(packet)).for_each(|answer| world.arrive_packet(answer));
        }
        panic!("the exchange does not end");
    }
}

/// A lease with an established stream.
fn established() -> (World, Lease, StreamId, Peer) {
    let mut world = World::new();
    let lease = world.lease(Transport::Tcp, HERE, 40_000);
    let (local, remote) = (at(HERE, 40_000), at(THERE, 80));
    let stream = world.connect(local, remote);
    let mut peer = Peer::new(remote, local);
    peer.exchange(&mut world);
    assert_eq!(world.state(stream), Some(StreamState::Established));
    (world, lease, stream, peer)
}
