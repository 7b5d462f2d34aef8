//! The stream engine against a passive smoltcp peer and against crafted segments, on a virtual clock.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use ::smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use ::smoltcp::socket::tcp::{Socket, SocketBuffer};
use ::smoltcp::time::Instant as SmolInstant;
use ::smoltcp::wire::{HardwareAddress, IpCidr};
use proptest::prelude::*;

pub(crate) mod manual;

use super::*;
use crate::error::Error;
use crafter_packet::view::{Checksum, Flags, IcmpError, IcmpReason, Quoted, checksum, ip};
use crafter_packet::{layer::TcpOption, testing::Segment};

const LATENCY: Duration = Duration::from_millis(5);

/// A device that verifies and computes all checksums, unlike that of the engine.
#[derive(Default)]
struct Cable {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;
    fn receive(&mut self, _: SmolInstant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx)))
    }
    fn transmit(&mut self, _: SmolInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

/// The peer: sends `body`, receives into `got`, closes when all is sent and the client has closed,
/// or at once after the body if `closes_first`.
struct Peer {
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    body: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    closes_first: bool,
}

struct Lab {
    now: Instant,
    start: Instant,
    client: StreamEngine,
    peer: Peer,
    flying: BTreeMap<(Instant, u64), (bool, Vec<u8>)>,
    order: u64,
    /// Upload of the client, and what it has read.
    upload: Vec<u8>,
    uploaded: usize,
    read: Vec<u8>,
    eof: bool,
    error: Option<Error>,
    /// All segments that the client sent.
    sent: Vec<Segment>,
    cut: bool,
}

fn endpoints(v6: bool) -> (SocketAddr, SocketAddr) {
    let (a, b) = if v6 { ("[2001:db8::1]:49152", "[2001:db8::2]:80") } else { ("192.0.2.1:49152", "192.0.2.2:80") };
    (a.parse().unwrap(), b.parse().unwrap())
}

pub(crate) fn config(v6: bool) -> StreamConfig {
    let (local, remote) = endpoints(v6);
    StreamConfig::new(local, remote, 42)
}

pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

impl Lab {
    fn new(config: StreamConfig, hook: Option<Box<dyn SegmentHook>>, listening: bool) -> Self {
        let start = Instant::now();
        let mut cable = Cable::default();
        let remote = config.remote;
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut cable, SmolInstant::ZERO);
        let prefix = if remote.is_ipv4() { 24 } else { 64 };
        interface.update_ip_addrs(|list| list.push(IpCidr::new(remote.ip().into(), prefix)).unwrap());
        let buffer = || SocketBuffer::new(vec![0; 1 << 20]);
        let mut socket = Socket::new(buffer(), buffer());
        if listening {
            socket.listen(remote.port()).unwrap();
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let peer = Peer { cable, interface, sockets, handle, body: vec![], sent: 0, got: vec![], closes_first: false };
        Self {
            now: start,
            start,
            client: StreamEngine::connect(config, hook, start).unwrap(),
            peer,
            flying: BTreeMap::new(),
            order: 0,
            upload: Vec::new(),
            uploaded: 0,
            read: Vec::new(),
            eof: false,
            error: None,
            sent: Vec::new(),
            cut: false,
        }
    }

    fn peer_now(&self) -> SmolInstant {
        SmolInstant::from_micros((self.now - self.start).as_micros() as i64 + 1_000_000)
    }

    fn fly(&mut self, to_client: bool, packet: Vec<u8>) {
        self.order += 1;
        self.flying.insert((self.now + LATENCY, self.order), (to_client, packet));
    }

    /// Processes all events at `now`.
    fn work(&mut self) {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                _ if self.cut => {}
                (true, packet) => assert!(self.client.handle_packet(self.now, &packet)),
                (false, packet) => self.peer.cable.rx.push_back(packet),
            }
        }
        self.client.handle_timeout(self.now);
        self.work_client();
        let mut out = Vec::new();
        self.client.poll_transmit(self.now, &mut |packet| out.push(packet.to_vec()));
        for packet in out {
            assert_eq!(checksum::verify(&packet, false), Checksum::Valid);
            self.sent.push(Segment::parse(&packet).unwrap());
            self.fly(false, packet);
        }
        self.work_peer();
        for packet in std::mem::take(&mut self.peer.cable.tx) {
            self.fly(true, packet);
        }
    }

    fn work_client(&mut self) {
        if self.uploaded < self.upload.len() {
            match self.client.send(&self.upload[self.uploaded..]) {
                Ok(length) => self.uploaded += length,
                Err(error) => self.error = Some(error),
            }
        }
        let mut buffer = [0; 100_000];
        while !self.eof && self.error.is_none() {
            match self.client.recv(&mut buffer) {
                Ok(Some(0)) => self.eof = true,
                Ok(Some(length)) => self.read.extend_from_slice(&buffer[..length]),
                Ok(None) => break,
                Err(error) => self.error = Some(error),
            }
        }
        let done = if self.peer.closes_first { self.eof } else { self.read.len() == self.peer.body.len() };
        if done && self.uploaded == self.upload.len() && self.client.state() != StreamState::Connecting {
            self.client.close(self.now);
        }
    }

    fn work_peer(&mut self) {
        let now = self.peer_now();
        let peer = &mut self.peer;
        // Twice, because the application may cause more segments.
        for _ in 0..2 {
            peer.interface.poll(now, &mut peer.cable, &mut peer.sockets);
            let socket = peer.sockets.get_mut::<Socket>(peer.handle);
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), peer.got.extend_from_slice(bytes))).unwrap();
            }
            if socket.can_send() && peer.sent < peer.body.len() {
                peer.sent += socket.send_slice(&peer.body[peer.sent..]).unwrap();
            }
            let established = socket.may_send();
            if established && peer.sent == peer.body.len() && (peer.closes_first || !socket.may_recv()) {
                socket.close();
            }
        }
    }

    /// Runs until the client is finished, `limit` has passed, or no event is pending.
    fn run(&mut self, limit: Duration) {
        for _ in 0..2_000_000 {
            self.work();
            let peer_at = {
                let now = self.peer_now();
                let at = self.peer.interface.poll_at(now, &self.peer.sockets);
                at.map(|at| {
                    self.now
                        + Duration::from_micros((at - now).total_micros().min(1 << 40)).max(if at <= now {
                            Duration::ZERO
                        } else {
                            Duration::from_micros(1)
                        })
                })
            };
            if self.client.is_finished() {
                return;
            }
            let flying = self.flying.first_key_value().map(|(key, _)| key.0);
            let next = [flying, self.client.poll_timeout(self.now), peer_at].into_iter().flatten().min();
            match next {
                Some(next) if next <= self.start + limit => self.now = next.max(self.now),
                _ => return,
            }
        }
        panic!("no end in sight: {:?}, {:?}", self.client.state(), self.client.stats());
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }
}

#[test]
fn lossless_network_has_no_retransmissions() {
    for (v6, closes_first) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut lab = Lab::new(config(v6), None, true);
        lab.peer.body = bytes(3_000_000);
        lab.peer.closes_first = closes_first;
        lab.upload = bytes(1_000_000);
        lab.run(Duration::from_secs(120));
        assert!(lab.error.is_none(), "{:?}", lab.error);
        assert!(lab.read == lab.peer.body && lab.peer.got == lab.upload);
        assert!(lab.client.is_finished() && lab.client.error().is_none());
        let stats = lab.client.stats();
        assert_eq!(stats.handshake, Some(2 * LATENCY));
        assert_eq!((stats.bytes_received, stats.bytes_sent), (3_000_000, 1_000_000));
        let StreamStats { retransmissions, duplicates, out_of_order, resets, hook_drops, bad_checksums, .. } = stats;
        assert_eq!([retransmissions, duplicates, out_of_order, resets, hook_drops, bad_checksums], [0; 6]);
        assert_eq!(stats.segments_sent, lab.sent.len() as u64);
        let syn = &lab.sent[0];
        assert_eq!((syn.mss(), syn.window_scale()), (Some(if v6 { 1440 } else { 1460 }), Some(7)));
        assert!(lab.sent.iter().any(|segment| segment.window == (4_u32 << 20 >> 7) as u16));
        assert!(lab.sent.iter().all(|segment| segment.build().len() <= 1500 && segment.ttl == 64));
    }
}

#[test]
fn fifty_lossy_networks() {
    let (mut drops, mut late) = (0, 0);
    for seed in 0..50 {
        let hook = Impair { loss: 0.03, duplicate: 0.02, reorder: 0.05, delay: 3 * LATENCY, ..Impair::new(seed) };
        let mut lab = Lab::new(config(seed % 2 == 0), Some(Box::new(hook)), true);
        lab.peer.body = bytes(1_000_000 + 60_000 * seed as usize);
        lab.peer.closes_first = seed % 3 == 0;
        lab.upload = bytes(20_000 * seed as usize);
        lab.run(Duration::from_secs(3600));
        match lab.error.take().or(lab.client.error()) {
            None => {
                assert!(lab.read == lab.peer.body, "seed {seed}: download");
                assert!(lab.peer.got == lab.upload, "seed {seed}: upload");
                assert!(lab.client.is_finished(), "seed {seed}");
            }
            // The bytes before the error are right.
            Some(error) => {
                assert!(matches!(error, Error::TimedOut { .. } | Error::Reset { .. }), "seed {seed}: {error}");
                assert!(lab.peer.body.starts_with(&lab.read));
                late += 1;
            }
        }
        drops += lab.client.stats().hook_drops;
        assert!(lab.client.stats().out_of_order > 0 && lab.client.stats().duplicates > 0, "seed {seed}");
    }
    assert!(drops > 1000, "{drops}");
    assert!(late == 0, "{late} of 50 gave up");
}

#[test]
fn closed_port_refuses_connection() {
    let mut lab = Lab::new(config(false), None, false);
    lab.run(Duration::from_secs(60));
    assert!(matches!(lab.error, Some(Error::Refused { .. })), "{:?}", lab.error);
    assert_eq!(lab.elapsed(), 2 * LATENCY);
    assert_eq!((lab.client.stats().resets, lab.sent.len()), (1, 1));
}

#[test]
fn unanswered_syn_times_out_without_rst() {
    let mut lab = Lab::new(config(true), None, true);
    lab.cut = true;
    lab.run(Duration::from_secs(60));
    assert!(matches!(lab.error, Some(Error::TimedOut { waiting_for: "SYN-ACK", .. })), "{:?}", lab.error);
    assert_eq!(lab.elapsed(), Duration::from_secs(5));
    assert_eq!(lab.sent.len(), 3);
    assert!(lab.sent.iter().all(|segment| segment.flags == Flags::SYN && segment.seq == lab.sent[0].seq));
    assert_eq!(lab.client.stats().retransmissions, 2);
}

#[test]
fn reset_is_reported_after_data() {
    let mut lab = Lab::new(config(false), None, true);
    lab.peer.body = bytes(50_000_000);
    lab.run(Duration::from_millis(200));
    assert!(!lab.read.is_empty() && lab.error.is_none());
    lab.peer.sockets.get_mut::<Socket>(lab.peer.handle).abort();
    lab.run(Duration::from_secs(60));
    assert!(matches!(lab.error, Some(Error::Reset { .. })), "{:?}", lab.error);
    assert!(lab.peer.body.starts_with(&lab.read));
    assert!(lab.client.is_finished());
}

#[test]
fn silent_peer_times_out_with_rst() {
    let mut lab = Lab::new(config(false), None, true);
    lab.peer.body = bytes(1);
    lab.upload = bytes(50_000_000);
    lab.run(Duration::from_millis(200));
    assert_eq!(lab.client.state(), StreamState::Established);
    lab.cut = true;
    lab.run(Duration::from_secs(600));
    assert!(matches!(lab.error, Some(Error::TimedOut { waiting_for: "acknowledgment", .. })), "{:?}", lab.error);
    assert!((60..63).contains(&lab.elapsed().as_secs()));
    assert!(lab.sent.last().unwrap().flags.contains(Flags::RST));
    assert!(lab.client.stats().retransmissions >= 4);
}

#[test]
fn idle_connection_times_out() {
    let config = StreamConfig { idle_timeout: Some(Duration::from_secs(7)), ..config(false) };
    let mut lab = Lab::new(config, None, true);
    lab.peer.closes_first = false;
    lab.peer.body = bytes(10);
    // The body is never sent completely, so that neither end closes.
    lab.peer.sent = 1;
    lab.run(Duration::from_secs(60));
    assert!(matches!(lab.error, Some(Error::TimedOut { waiting_for: "data", .. })), "{:?}", lab.error);
    assert_eq!(lab.elapsed().as_secs(), 7);
}

#[test]
fn hooks_corrupt_and_observe() {
    let seen = Arc::new(Mutex::new([0_u64; 2]));
    let counter = seen.clone();
    let mut countdown = 20;
    let corrupt = move |direction: Direction, ip: &mut Vec<u8>| {
        if direction == Direction::Received && ip.len() > 1000 {
            countdown -= 1;
            if countdown == 0 {
                ip[700] ^= 0xff;
            }
        }
    };
    struct Corrupt<F>(F);
    impl<F: FnMut(Direction, &mut Vec<u8>) + Send> SegmentHook for Corrupt<F> {
        fn segment(&mut self, _: Instant, direction: Direction, ip: &mut Vec<u8>) -> Action {
            (self.0)(direction, ip);
            Action::Pass
        }
    }
    let chain: Vec<Box<dyn SegmentHook>> = vec![
        Box::new(Corrupt(corrupt)),
        Box::new(Observer(move |direction, ip: &[u8]| {
            assert!(Segment::parse(ip).is_ok());
            counter.lock().unwrap()[usize::from(direction == Direction::Sent)] += 1;
        })),
    ];
    let mut lab = Lab::new(config(false), Some(Box::new(chain)), true);
    lab.peer.body = bytes(200_000);
    lab.peer.closes_first = true;
    lab.run(Duration::from_secs(60));
    assert!(lab.error.is_none() && lab.read == lab.peer.body);
    let stats = lab.client.stats();
    assert_eq!(stats.bad_checksums, 1);
    assert_eq!(*seen.lock().unwrap(), [stats.segments_received + 1, stats.segments_sent]);
}
