//! A peer that sends malformed segments.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crafter::{
    LeaseRequest, StreamOptions,
    datapath::program::Attach,
    engine::{Direction, Observer},
    lab::INTERFACE,
    packet::TcpView,
};
use crafter_tests::{
    frame::{self, ACK, FIN, MORE, PSH, RST, SYN, TCP, Tcp, UDP, V4},
    leak::Serial,
    manual::{self, REPLY_TIMEOUT},
    peer::Nginx,
    random::Rng,
    slow::bytes,
    testbed::{ENDS, lab, open},
    wire::{Wire, mac},
    within,
};
use tokio::io::AsyncReadExt;

/// The next sequence number of each side, as seen by the hook of the attacked stream.
#[derive(Clone, Copy, Default)]
struct Numbers {
    server: u32,
    client: u32,
}

/// A peer sends malformed segments to an owned port during a download, which stays correct.
#[test]
fn malformed_segments_do_not_disturb_a_download() {
    let _serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let client_mac = lab.client().run(|| mac(INTERFACE)).unwrap();
    for (attach, ends) in [(Attach::Native, ENDS[0]), (Attach::Tc, ENDS[1])] {
        let remote = SocketAddr::new(ends.1, 80);
        let numbers = Arc::new(Mutex::new(Numbers::default()));
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let target = Mutex::new(None);
        std::thread::scope(|scope| {
            let injector = scope.spawn(|| {
                lab.server()
                    .run(|| {
                        let wire = Wire::open(INTERFACE, client_mac).unwrap();
                        let mut random = Rng::new(7);
                        while !stop.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_micros(500));
                            let now = *numbers.lock().unwrap();
                            let Some(local) = *target.lock().unwrap() else { continue };
                            for kind in 0..KINDS {
                                for packet in malformed(kind, remote, local, now, &mut random) {
                                    match wire.send(&packet) {
                                        Ok(()) => drop(sent.fetch_add(1, Ordering::Relaxed)),
                                        // On a slow CPU the queue may be full: the packet is lost, as on any network.
                                        Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                                        Err(e) => panic!("{e}"),
                                    }
                                }
                            }
                        }
                    })
                    .unwrap();
            });
            within(lab.client(), async || {
                let stop_guard = SetOnDrop(&stop);
                let crafter = open(attach).await;
                let hook = Box::new(Observer(watch(numbers.clone())));
                let options = StreamOptions { hook: Some(hook), ..StreamOptions::default() };
                let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, options).await;
                *target.lock().unwrap() = Some(stream.local());
                let (length, sum) = manual::download(&mut stream, "/slow/medium").await;
                drop(stop_guard);
                assert_eq!((length, sum), (nginx.medium.length, nginx.medium.sha256), "{:?}", stream.stats());
                let stats = crafter.stats();
                println!("{attach:?}: {} malformed, {stats:?}, {:?}", sent.load(Ordering::Relaxed), stream.stats());
                assert!(sent.load(Ordering::Relaxed) > bytes(10_000));
                assert!(stats.bad_checksum > bytes(500), "{stats:?}");
                manual::close(&mut stream).await;
            });
            injector.join().expect("the injector");
        });
    }
    // Positive control: a correct RST resets the stream.
    within(lab.client(), async || {
        let numbers = Arc::new(Mutex::new(Numbers::default()));
        let crafter = open(Attach::Auto).await;
        let hook = Box::new(Observer(watch(numbers.clone())));
        let options = StreamOptions { hook: Some(hook), ..StreamOptions::default() };
        let remote = SocketAddr::new(ENDS[0].1, 80);
        let mut stream = manual::connect(&crafter, LeaseRequest::tcp(), remote, options).await;
        let now = *numbers.lock().unwrap();
        let rst = Tcp::new(RST | ACK, now.server, now.client).ip(remote, stream.local());
        lab.server().run(|| Wire::open(INTERFACE, client_mac).unwrap().send(&rst)).unwrap().unwrap();
        let error = tokio::time::timeout(REPLY_TIMEOUT, stream.read(&mut [0; 1])).await.expect("in time");
        assert_eq!(error.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
    });
}

/// Sets a flag when dropped, also by a panic.
struct SetOnDrop<'b>(&'b AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A hook that tracks the sequence numbers of a stream.
fn watch(numbers: Arc<Mutex<Numbers>>) -> impl FnMut(Direction, &[u8]) + Send {
    move |direction, ip| {
        let Ok(segment) = TcpView::parse(ip) else { return };
        let mut now = numbers.lock().unwrap();
        // The numbers are taken from sent segments, so that forged segments do not change them.
        if direction == Direction::Sent {
            now.client = segment.seq.wrapping_add(segment.sequence_length());
            if segment.ack != 0 {
                now.server = segment.ack;
            }
        } else if segment.flags.contains(crafter::packet::Flags::SYN) && now.server == 0 {
            now.server = segment.seq.wrapping_add(1);
        }
    }
}

/// xorshift64 (Marsaglia, 2003): the same bytes in every run.
/// Number of kinds of [`malformed`].
const KINDS: u32 = 15;

/// Packets of one kind from the server to the owned port that must not change the state of a TCP connection.
fn malformed(kind: u32, server: SocketAddr, client: SocketAddr, now: Numbers, random: &mut Rng) -> Vec<Vec<u8>> {
    let (seq, ack) = (now.server, now.client);
    let data = |seq| Tcp::new(PSH | ACK, seq, ack).with(b"not what the server sent");
    let raw = |bytes: &[u8]| frame::packet(server.ip(), client.ip(), TCP, bytes);
    let far = seq.wrapping_add(0x8000_0000);
    match kind {
        // The next segment, a RST and a FIN, correct except for the checksum.
        0 => vec![Tcp { spoil: 1, ..data(seq) }.ip(server, client)],
        1 => vec![Tcp { spoil: 0x1000, ..Tcp::new(RST | ACK, seq, ack) }.ip(server, client)],
        2 => vec![Tcp { spoil: 7, ..Tcp::new(FIN | ACK, seq, ack) }.ip(server, client)],
        // A data offset less than the minimum, and one beyond the segment.
        3 => vec![Tcp { offset: Some(random.below(5) as u8), ..data(seq) }.ip(server, client)],
        4 => vec![Tcp { offset: Some(15), ..Tcp::new(ACK, seq, ack) }.ip(server, client)],
        // Truncated within the header.
        5 => vec![raw(&data(seq).bytes(server, client)[..1 + random.below(19)])],
        // Random bytes after the correct ports.
        6 => {
            let length = 16 + random.below(1400);
            let ports = [server.port().to_be_bytes(), client.port().to_be_bytes()].concat();
            vec![raw(&[ports, random.bytes(length)].concat())]
        }
        // From another port of the server.
        7 => vec![data(seq).ip(SocketAddr::new(server.ip(), 81), client)],
        // Correct except for the numbers, which are far outside the window.
        8 => vec![data(far).ip(server, client), Tcp::new(RST, far, 0).ip(server, client)],
        9 => vec![Tcp::new(FIN | ACK, far, ack).ip(server, client), Tcp::new(SYN | ACK, far, ack).ip(server, client)],
        // Overlaps received data with other bytes, and ends before the next sequence number.
        10 => vec![data(seq.wrapping_sub(24)).ip(server, client)],
        // Options of length zero and beyond the header, on an ACK without news.
        11 => [[3, 0, 0, 0], [2, 44, 5, 180], [5, 1, 1, 1]]
            .map(|options| Tcp { offset: Some(6), ..Tcp::new(ACK, seq, ack).with(&options) }.ip(server, client))
            .to_vec(),
        // All flags, no flags.
        12 => vec![
            Tcp { spoil: 1, ..Tcp::new(0xff, seq, ack) }.ip(server, client),
            Tcp::new(0, seq, ack).ip(server, client),
        ],
        // Overlapping fragments, some with wrong offsets.
        13 => fragments(server, client, now, random),
        // Wrong lengths in the IP header.
        _ => {
            let mut packets = vec![data(far).ip(server, client); 3];
            let at = if server.is_ipv4() { 2 } else { 4 };
            packets[0][at..at + 2].copy_from_slice(&9000_u16.to_be_bytes());
            packets[1][at..at + 2].copy_from_slice(&3_u16.to_be_bytes());
            packets[2].truncate(30);
            packets
        }
    }
}

fn fragments(server: SocketAddr, client: SocketAddr, now: Numbers, random: &mut Rng) -> Vec<Vec<u8>> {
    let whole = Tcp { spoil: 3, ..Tcp::new(ACK, now.server, now.client).with(&random.bytes(64)) }.bytes(server, client);
    let id = random.bits();
    let piece = |offset: u16, more: bool, bytes: &[u8]| match server {
        SocketAddr::V4(_) => {
            V4 { id: id as u16, fragment: (offset / 8) | if more { MORE } else { 0 }, ..V4::default() }.packet(
                server.ip(),
                client.ip(),
                TCP,
                bytes,
            )
        }
        SocketAddr::V6(_) => {
            let header = frame::fragment6(TCP, offset, more, id as u32, bytes);
            frame::v6(server.ip(), client.ip(), 44, &header)
        }
    };
    let junk = random.bytes(40);
    vec![
        piece(0, true, &whole[..32]),
        piece(16, true, &junk),
        piece(24, false, &whole[24..]),
        piece(8, true, &junk[..16]),
        piece(65_528, false, &junk),
        // Of UDP, and never completed.
        frame::packet(server.ip(), client.ip(), UDP, &junk[..5]),
    ]
}
