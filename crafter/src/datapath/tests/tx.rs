use std::{io::Read, os::fd::AsRawFd, time::Instant};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use rtnetlink::LinkUnspec;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{
    super::{
        interface::interface,
        route::{LinkLayer, resolve},
        tx::{BATCH, NoRoom, Sender, TxPacket},
    },
    *,
};
use crate::error::Error;

const MARK: u32 = 0x00c4_af7e;

/// A UDP datagram from port 4000 to port 5000, with `length` bytes of payload. No UDP checksum on IPv4 (RFC 768); IPv6
/// requires one.
fn datagram(from: IpAddr, to: IpAddr, length: usize) -> Vec<u8> {
    let mut udp = vec![0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 0];
    udp.resize(8 + length, b'x');
    let size = udp.len() as u16;
    udp[4..6].copy_from_slice(&size.to_be_bytes());
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, 17, 0, 0];
            header[2..4].copy_from_slice(&(20 + size).to_be_bytes());
            header.extend(from.octets());
            header.extend(to.octets());
            let check = !sum(&header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
            header[4..6].copy_from_slice(&size.to_be_bytes());
            header.extend(from.octets());
            header.extend(to.octets());
            let pseudo = [&header[8..], &u32::from(size).to_be_bytes(), &[0, 0, 0, 17], &udp].concat();
            let check = !sum(&pseudo);
            udp[6..8].copy_from_slice(&check.to_be_bytes());
            header
        }
        _ => panic!("two IP versions"),
    };
    packet.extend(udp);
    packet
}

fn sum(bytes: &[u8]) -> u16 {
    let mut total: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// An AF_PACKET socket that sees all frames of the namespace, in and out.
pub(super) fn tap() -> Socket {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all)))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.set_recv_buffer_size(8 << 20).unwrap();
    socket
}

/// The frames that a tap caught with `part` in them.
pub(super) fn caught(tap: &Socket, part: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok(length) = (&mut &*tap).read(&mut buffer) {
        if buffer[..length].windows(part.len()).any(|window| window == part) {
            frames.push(buffer[..length].to_vec());
        }
    }
    frames
}

#[test]
fn frames_arrive_as_crafted() {
    pair(|peer| async move {
        let v0 = interface("v0").await.unwrap();
        let mut sender = Sender::open(&v0, MARK).unwrap();
        let tap_there = peer.run(tap);
        let mut expected = Vec::new();
        // More than two batches, both IP versions mixed, the last batch not full.
        for index in 0..150 {
            let (here, there) = (ip(HERE[index % 2]), ip(THERE[index % 2]));
            let route = resolve(there, None, None).await.unwrap();
            let packet = datagram(here, there, 100 + index);
            sender.push(&route, &packet).unwrap();
            let LinkLayer::Ethernet { source, destination } = route.link else { panic!("{route:?}") };
            let ethertype = if index % 2 == 0 { [0x08, 0x00] } else { [0x86, 0xdd] };
            expected.push([&destination[..], &source, &ethertype, &packet].concat());
        }
        assert_eq!(sender.sent(), 2 * BATCH as u64);
        assert_eq!(sender.flush().unwrap(), 150 - 2 * BATCH);
        assert_eq!(sender.flush().unwrap(), 0);
        assert_eq!((sender.sent(), sender.dropped()), (150, 0));
        let mut arrived = caught(&tap_there, b"xxxxxxxx");
        // The tap also sees the peer's port-unreachables, which quote the datagrams.
        arrived.retain(|frame| frame[..6] == expected[0][..6]);
        assert!(arrived == expected, "{} of {} frames, or changed ones", arrived.len(), expected.len());
    });
}

#[test]
fn packets_carry_the_mark() {
    pair(|_peer| async move {
        // ld mark; jeq #MARK; accept or drop, on what leaves this namespace.
        let filter = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
        let mark = (libc::SKF_AD_OFF + libc::SKF_AD_MARK) as u32;
        let marked = tap();
        marked
            .attach_filter(&[
                filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, mark),
                filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, MARK),
                filter(libc::BPF_RET | libc::BPF_K, 0, 0, 0x40000),
                filter(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            ])
            .unwrap();
        for name in ["v0", "lo"] {
            let link = interface(name).await.unwrap();
            for version in 0..2 {
                let to = if name == "lo" { HERE } else { THERE }[version];
                let route = resolve(ip(to), None, None).await.unwrap();
                for (mark, expected) in [(MARK, true), (MARK + 1, false)] {
                    let mut sender = Sender::open(&link, mark).unwrap();
                    sender.push(&route, &datagram(route.source, ip(to), 33)).unwrap();
                    assert_eq!(sender.flush().unwrap(), 1);
                    assert_eq!(!caught(&marked, &[b'x'; 33]).is_empty(), expected, "{name} {to} {mark:#x}");
                }
            }
        }
    });
}

#[test]
fn loopback_delivers_to_sockets() {
    pair(|_peer| async move {
        let lo = interface("lo").await.unwrap();
        let mut sender = Sender::open(&lo, MARK).unwrap();
        for to in ["127.0.0.1", "::1", HERE[0], HERE[1]] {
            let receiver = UdpSocket::bind((ip(to), 5000)).unwrap();
            receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let route = resolve(ip(to), None, None).await.unwrap();
            for _ in 0..3 {
                sender.push(&route, &datagram(ip(to), ip(to), 9)).unwrap();
            }
            assert_eq!(sender.flush().unwrap(), 3);
            for _ in 0..3 {
                let mut buffer = [0; 64];
                assert_eq!(receiver.recv_from(&mut buffer).unwrap(), (9, (ip(to), 4000).into()));
            }
        }
        // Both versions in one queue: two sockets, one order.
        for to in ["127.0.0.1", "::1"] {
            let route = resolve(ip(to), None, None).await.unwrap();
            sender.push(&route, &datagram(ip(to), ip(to), 9)).unwrap();
        }
        assert_eq!(sender.flush().unwrap(), 1);
        assert_eq!(sender.sent(), 14);
    });
}

#[test]
fn tun_gets_bare_ip_packets() {
    alone(|| async {
        let mut tun = tun("t0");
        configure("t0", HERE).await;
        usable(HERE);
        let t0 = interface("t0").await.unwrap();
        assert_eq!((t0.ethernet, t0.mac, t0.kind.as_deref()), (false, None, Some("tun")));
        let mut sender = Sender::open(&t0, MARK).unwrap();
        for (here, there) in HERE.into_iter().zip(THERE) {
            let route = resolve(ip(there), None, None).await.unwrap();
            assert_eq!(route.link, LinkLayer::None);
            let packet = datagram(ip(here), ip(there), 77);
            sender.push(&route, &packet).unwrap();
            assert_eq!(sender.flush().unwrap(), 1);
            // The kernel's own IPv6 router solicitations are seen as well.
            let mut buffer = [0; 2048];
            let found = (0..20).any(|_| {
                let length = tun.read(&mut buffer).unwrap();
                buffer[..length] == packet
            });
            assert!(found, "{there}");
        }
    });
}

/// A tun device without packet information, as long as the file is open.
pub(super) fn tun(name: &str) -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    file
}

#[test]
fn refused_packets_are_errors_that_name_the_link() {
    pair(|_peer| async move {
        let v0 = interface("v0").await.unwrap();
        let route = resolve(ip(THERE[0]), None, None).await.unwrap();
        let packet = datagram(route.source, ip(THERE[0]), 10);
        let mut sender = Sender::open(&v0, MARK).unwrap();
        let whole = datagram(route.source, ip(THERE[0]), 1500 - 28);
        sender.push(&route, &whole).unwrap();
        let error = sender.push(&route, &datagram(route.source, ip(THERE[0]), 1500 - 27)).unwrap_err();
        assert!(matches!(&error, Error::Invalid { reason, .. } if reason.contains("1501") && reason.contains("1500")));
        assert!(matches!(sender.push(&route, &[]), Err(Error::Invalid { .. })));
        assert!(matches!(sender.push(&route, b"GET /"), Ok(())), "starts with 4: malformed, but legal");
        assert_eq!(sender.flush().unwrap(), 2);

        // The MTU is lowered while the sender is open: the kernel rejects the packet that is too long, and the others
        // are sent.
        set(LinkUnspec::new_with_name("v0").mtu(1280).build()).await;
        for queued in [&packet, &whole, &packet] {
            sender.push(&route, queued).unwrap();
        }
        assert!(matches!(sender.flush(), Err(Error::Invalid { .. })));
        assert_eq!((sender.sent(), sender.dropped()), (4, 1));

        set(LinkUnspec::new_with_name("v0").down().build()).await;
        sender.push(&route, &packet).unwrap();
        assert!(sender.flush().unwrap_err().to_string().contains("v0"));
        netlink().link().del(v0.ifindex).execute().await.unwrap();
        sender.push(&route, &packet).unwrap();
        let error = sender.flush().unwrap_err();
        assert!(matches!(&error, Error::UnknownInterface { name } if name == "v0"), "{error}");
        assert!(matches!(Sender::open(&v0, MARK), Err(Error::UnknownInterface { .. })));
    });
}

#[test]
fn a_batch_stops_at_the_first_packet_without_room() {
    pair(|_peer| async move {
        let v0 = interface("v0").await.unwrap();
        let route = resolve(ip(THERE[0]), None, None).await.unwrap();
        let mut sender = Sender::open(&v0, MARK).unwrap();
        let packets: Vec<_> = (0..100).map(|_| datagram(route.source, ip(THERE[0]), 72)).collect();
        let mut batch: Vec<_> = packets.iter().map(|packet| TxPacket::Ip(&route, packet)).collect();
        let sent = sender.send_batch(&batch, NoRoom::Stop);
        assert_eq!((sent.sent, sent.refused, sent.tried), (100, 0, 100), "{:?}", sent.error);

        // The queue holds about ten of these frames, and sends about one per second.
        let tbf = ["qdisc", "add", "dev", "v0", "root", "tbf", "rate", "1kbit", "burst", "120", "limit", "1200"];
        assert!(std::process::Command::new("tc").args(tbf).status().unwrap().success());
        let whole = datagram(route.source, ip(THERE[0]), 1500 - 27);
        batch[1] = TxPacket::Ip(&route, &whole);
        batch[50] = TxPacket::Frame(&[0; 13]);
        let first = sender.send_batch(&batch, NoRoom::Stop);
        assert!((2..40).contains(&first.tried), "{first:?}");
        assert_eq!((first.sent, first.refused), (first.tried as u64 - 1, 0), "one was too large");
        assert!(first.error.unwrap().to_string().contains("1501"));
        // Indexes count from 0 in each call, and an invalid packet is reported only when it is tried.
        let again = sender.send_batch(&batch[first.tried..], NoRoom::Stop);
        assert!(again.tried <= 1 && again.error.is_none(), "{again:?}");
        assert_eq!((again.sent, again.refused), (again.tried as u64, 0));
        let rest = sender.send_batch(&batch[2..], NoRoom::Refuse);
        assert_eq!((rest.tried, rest.sent + rest.refused), (98, 97), "all but the frame that is too short");
        assert!(rest.refused > 80 && rest.error.unwrap().to_string().contains("14 bytes"));
        assert_eq!(sender.sent() + sender.dropped(), 100 + first.sent + again.sent + 97);
    });
}

#[test]
fn sending_is_fast() {
    pair(|peer| async move {
        let v0 = interface("v0").await.unwrap();
        let route = resolve(ip(THERE[0]), None, None).await.unwrap();
        let mut sender = Sender::open(&v0, MARK).unwrap();
        let _drop = peer.run(|| features::drop_all(block_on(interface("v1")).unwrap().ifindex));
        let packet = datagram(route.source, ip(THERE[0]), 12);
        let mut times = Vec::new();
        for _ in 0..5000 {
            let start = Instant::now();
            sender.push(&route, &packet).unwrap();
            sender.flush().unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("push and flush of one packet: median {:?}", times[times.len() / 2]);
        // Some of it at least, however busy the machine is.
        assert!(times[times.len() / 10] < Duration::from_micros(50));

        // The machine may be busy with other things: processor time says what a core could do.
        let spent = || {
            let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
            let both = usage.user_time() + usage.system_time();
            both.num_microseconds() as f64 / 1e6
        };
        let (start, spent_before, before) = (Instant::now(), spent(), sender.sent());
        while start.elapsed() < Duration::from_millis(500) {
            for _ in 0..BATCH {
                sender.push(&route, &packet).unwrap();
            }
        }
        let million = (sender.sent() - before) as f64 / 1e6;
        println!(
            "batches of {BATCH}: {:.2} million packets/s, {:.2} per second of processor time, {} dropped",
            million / start.elapsed().as_secs_f64(),
            million / (spent() - spent_before),
            sender.dropped()
        );
        assert_eq!(sender.dropped(), 0);
    });
}
