use std::{
    cell::Cell,
    io::{self, Read},
    time::Duration,
};

use proptest::prelude::{any, prop};

use super::{pcapng::Unit, *};
use crate::layer::{Ether, Ip, Udp};

const TIME: Duration = Duration::new(1_700_000_000, 123_456_789);

fn file(format: Format) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), format).unwrap();
    for port in 1..=3_u16 {
        let bytes = (Ip::to("192.0.2.1") / Udp::to(port)).build().unwrap();
        writer.write(&Entry::new(TIME, Kind::Ip, &bytes)).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn written_packets_are_read_back() {
    for format in [Format::Pcap, Format::PcapNg] {
        let capture = Capture::read(&file(format)).unwrap();
        assert_eq!((capture.packets.len(), &capture.broken), (3, &None));
        let second = &capture.packets[1];
        assert_eq!(second.time, Some(TIME));
        assert_eq!(second.packet().get::<Udp>().unwrap().dport, Some(2));
        let mut writer = Writer::new(Vec::new(), format).unwrap();
        let refused = writer.write(&Entry::new(TIME, Kind::Tcp, &[]));
        assert!(refused.unwrap_err().to_string().contains("begin with TCP"));
        let refused = writer.write(&Entry::new(TIME, Kind::Ip, &[0; 262_145]));
        assert!(refused.unwrap_err().to_string().contains("262145 bytes"));
    }
}

#[test]
fn pcapng_metadata_round_trips() {
    let frame = (Ether::new() / Ip::to("192.0.2.1") / Udp::to(5)).build().unwrap();
    let mut writer = Writer::new(Vec::new(), Format::PcapNg).unwrap();
    let entries = [
        Entry { interface: Some("eth0"), direction: Some(Direction::Out), ..Entry::new(TIME, Kind::Ether, &frame) },
        Entry { comment: Some("matched: ümlaut"), ..Entry::new(TIME, Kind::Ip, &frame[14..]) },
        Entry {
            interface: Some("eth0"),
            comment: Some("redirected"),
            direction: Some(Direction::In),
            original_length: Some(1500),
            ..Entry::new(TIME, Kind::Ether, &frame)
        },
        Entry { link: Some(Link(147)), ..Entry::new(TIME, Kind::Raw, b"abc") },
    ];
    for entry in &entries {
        writer.write(entry).unwrap();
    }
    let too_long = "x".repeat(65_536);
    assert!(writer.write(&Entry { comment: Some(&too_long), ..entries[0] }).is_err());
    assert!(writer.write(&Entry { interface: Some(&too_long), ..entries[0] }).is_err());
    assert!(writer.write(&Entry { time: Duration::from_secs(1 << 35), ..entries[0] }).is_err());
    let file = writer.finish().unwrap();
    let read = Capture::read(&file).unwrap();
    assert_eq!((read.packets.len(), read.broken), (4, None));
    for (read, entry) in read.packets.iter().zip(&entries) {
        assert_eq!(read.time, Some(entry.time));
        assert_eq!((read.first, &read.bytes[..]), (entry.first, entry.bytes));
        assert_eq!((read.interface.as_deref(), read.comment.as_deref()), (entry.interface, entry.comment));
        assert_eq!(read.direction, entry.direction);
        assert_eq!(read.original_length as usize, entry.original_length.map_or(entry.bytes.len(), |all| all as usize));
    }
    // Writing the packets that were read gives the same file.
    let mut again = Writer::new(Vec::new(), Format::PcapNg).unwrap();
    read.packets.iter().for_each(|packet| again.write(&packet.entry()).unwrap());
    assert_eq!(again.finish().unwrap(), file);
}

#[test]
fn pcap_rejects_second_link_type() {
    let mut writer = Writer::new(Vec::new(), Format::Pcap).unwrap();
    writer.interface(Some("eth0"), Kind::Ether).unwrap();
    let refused = writer.write(&Entry::new(TIME, Kind::Ipv6, &[0; 40])).unwrap_err().to_string();
    assert_eq!(refused, "pcap: its packets begin with ETHERNET, not RAW: a pcapng file holds both");
    let late = Entry::new(Duration::from_secs(1 << 32), Kind::Ether, &[0; 14]);
    assert!(writer.write(&late).unwrap_err().to_string().contains("2106"));
    assert_eq!(writer.finish().unwrap().len(), 24);
    let empty = Writer::new(Vec::new(), Format::Pcap).unwrap().finish().unwrap();
    assert_eq!(Capture::read(&empty).unwrap(), Capture::default());
}

#[test]
fn truncated_capture_returns_packets_before() {
    let pcap = file(Format::Pcap);
    for end in 0..pcap.len() {
        match Capture::read(&pcap[..end]) {
            Ok(capture) => {
                let whole = (end - 24) / (16 + 28);
                assert_eq!(capture.packets.len(), whole, "{end}");
                assert_eq!(capture.broken.is_some(), (end - 24) % 44 != 0, "{end}");
            }
            Err(error) => assert!(end < 24 && matches!(error, Error::Invalid { .. }), "{end}: {error}"),
        }
    }
    let said = Capture::read(&pcap[..70]).unwrap().broken.unwrap();
    assert_eq!(said, "truncated at byte 68, within packet 2");

    let pcapng = file(Format::PcapNg);
    let mut packets = 0;
    for end in 4..pcapng.len() {
        let Ok(capture) = Capture::read(&pcapng[..end]) else { continue };
        assert!((packets..=packets + 1).contains(&capture.packets.len()), "{end}");
        packets = capture.packets.len();
        assert!(end % 4 == 0 || capture.broken.is_some(), "{end}");
    }
    assert_eq!(packets, 2);
}

/// A source that returns one byte per read, and counts them.
struct Drops<'b>(&'b [u8], &'b Cell<usize>);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(1);
        self.1.set(self.1.get() + length);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn packet_is_returned_after_its_last_byte() {
    for format in [Format::Pcap, Format::PcapNg] {
        let file = file(format);
        let given = Cell::new(0);
        let mut reader = Reader::new(Drops(&file, &given)).unwrap();
        for port in 1..=3 {
            let captured = reader.next().unwrap().unwrap();
            assert_eq!(captured.packet().get::<Udp>().unwrap().dport, Some(port));
            let rest = file.len() - given.get();
            let block = if format == Format::Pcap { 44 } else { 60 };
            assert_eq!(rest, (3 - port as usize) * block, "nothing behind the packet was asked for");
        }
        assert!(reader.next().is_none() && reader.next().is_none());
    }
}

#[test]
fn read_error_ends_iteration() {
    let mut file = file(Format::Pcap);
    file.truncate(file.len() - 1);
    let mut reader = Reader::new(&file[..]).unwrap();
    assert_eq!(reader.by_ref().take(2).filter(Result::is_ok).count(), 2);
    assert!(matches!(reader.next(), Some(Err(Error::Invalid { .. }))) && reader.next().is_none());
}

#[test]
fn impossible_lengths_are_rejected_at_once() {
    let mut file = file(Format::Pcap);
    file[24 + 8..24 + 12].fill(0xff);
    let said = Reader::new(file.chain(io::repeat(0))).unwrap().next().unwrap().unwrap_err().to_string();
    let reason = "malformed at byte 24, after packet 0: the next block claims 4294967311 bytes";
    assert_eq!(said, format!("capture: {reason}"));
}

#[test]
fn files_other_than_captures_are_rejected() {
    let said = |bytes: &[u8]| Reader::new(bytes).err().unwrap().to_string();
    assert!(said(b"").contains("neither pcap nor pcapng"));
    assert!(said(b"hello, world").contains("neither pcap nor pcapng"));
    assert!(said(&[0x1f, 0x8b, 8, 0, 0, 0]).contains("gunzip"));
    assert!(said(&[0xa1, 0xb2, 0xc3, 0xd4, 0]).contains("truncated within its header"));
    assert!(said(&[0x0a, 0x0d, 0x0d, 0x0a, 0, 0, 0, 7, 0x1a, 0x2b, 0x3c, 0x4d]).contains("is malformed"));
}

#[test]
fn times() {
    let of = |units, resolution| Unit { resolution, offset: 0 }.time(units);
    assert_eq!(of(3_500_000_000, 9), Duration::from_millis(3500));
    assert_eq!(of(3_500_000_000, 6), Duration::from_secs(3500));
    assert_eq!(of(3, 0x81), Duration::from_millis(1500));
    assert_eq!(of(3_500_000_000, 0x7f), Duration::ZERO);
    assert_eq!(of(u64::MAX, 0), Duration::from_secs(u64::MAX));
    assert_eq!(Unit { resolution: 6, offset: -2 }.time(5_000_000), Duration::from_secs(3));
    assert_eq!(Unit { resolution: 0, offset: i64::MIN }.time(5), Duration::ZERO);
}

/// An obsolete packet block, and a simple one with padding.
#[test]
fn obsolete_and_simple_packet_blocks() {
    for little in [true, false] {
        let number = |number: u32| if little { number.to_le_bytes() } else { number.to_be_bytes() };
        let half = |number: u16| if little { number.to_le_bytes() } else { number.to_be_bytes() };
        let mut file = vec![0x0a, 0x0d, 0x0d, 0x0a];
        let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
        put(&[&number(28)[..], &number(0x1a2b_3c4d), &half(1), &half(0), &[0xff; 8], &number(28)].concat());
        // A name that is not UTF-8, an option of an odd length, and no end marker.
        let options = [&half(2)[..], &half(1), b"\xff\0\0\0", &half(9), &half(2), &[9; 4]].concat();
        put(&[&number(1)[..], &number(36), &half(101), &half(7), &number(0), &options, &number(36)].concat());
        // 2^32 + 2 microseconds.
        let times = [number(1), number(2)].concat();
        let lengths = [number(5), number(60)].concat();
        put(&[&number(2)[..], &number(40), &half(0), &half(0), &times, &lengths, b"Ehell\0\0\0", &number(40)].concat());
        put(&[&number(3)[..], &number(24), &number(5), b"hello\0\0\0", &number(24)].concat());
        let read = Capture::read(&file).unwrap();
        assert_eq!((read.packets.len(), read.broken), (2, None));
        assert_eq!(read.packets[0].time, Some(Duration::from_micros((1 << 32) + 2)));
        assert_eq!((&read.packets[0].bytes[..], read.packets[0].original_length), (&b"Ehell"[..], 60));
        assert_eq!((&read.packets[1].bytes[..], read.packets[1].time), (&b"hello"[..], None));
        assert!(read.packets.iter().all(|packet| packet.interface.as_deref() == Some("\u{fffd}")));
    }
}

#[test]
fn headers_of_other_link_types() {
    let ip = (Ip::to("192.0.2.1") / Udp::to(7)).build().unwrap();
    let captured = |link: Link, header: &[u8]| {
        let bytes = [header, &ip].concat();
        let mut writer = Writer::new(Vec::new(), Format::Pcap).unwrap();
        writer.write(&Entry { link: Some(link), ..Entry::new(TIME, Kind::Raw, &bytes) }).unwrap();
        Capture::read(&writer.finish().unwrap()).unwrap().packets.remove(0)
    };
    let sll = [[0; 14].as_slice(), &[8, 0]].concat();
    let sll2 = [[8, 0].as_slice(), &[0; 18]].concat();
    let known: [(Link, &[u8]); 8] = [
        (Link::NULL, &[2, 0, 0, 0]),
        (Link::NULL, &[0, 0, 0, 2]),
        (Link::LOOP, &[0, 0, 0, 2]),
        (Link::LINUX_SLL, &sll),
        (Link::LINUX_SLL2, &sll2),
        (Link::PPP, &[0xff, 3, 0, 0x21]),
        (Link::PPP, &[0, 0x21]),
        (Link::C_HDLC, &[0x0f, 0, 8, 0]),
    ];
    for (link, header) in known {
        let captured = captured(link, header);
        let packet = captured.packet();
        assert_eq!(packet.get::<Udp>().unwrap().dport, Some(7), "{link}");
        assert_eq!(packet.get::<Raw>().unwrap().load.as_deref(), Some(header), "{link}");
        assert_eq!(packet.build().unwrap(), captured.bytes, "{link}");
    }
    for (link, header) in [(Link::NULL, &[1, 0, 0, 0][..]), (Link(105), &[0; 30]), (Link::LINUX_SLL, &[0; 16])] {
        let captured = captured(link, header);
        assert_eq!(captured.packet().layers().len(), 1, "{link}");
        assert_eq!(captured.packet().build().unwrap(), captured.bytes, "{link}");
    }
}

#[test]
fn format_follows_file_name() {
    for (name, format) in [
        ("a.pcap", Format::Pcap),
        ("a.CAP", Format::Pcap),
        ("a.pcapng", Format::PcapNg),
        ("a", Format::PcapNg),
        ("-", Format::PcapNg),
    ] {
        assert_eq!(Format::of(Path::new(name)), format, "{name}");
    }
}

proptest::proptest! {
    #[test]
    fn damaged_bytes_do_not_panic(at in 0usize..300, byte in any::<u8>(), pcapng in any::<bool>()) {
        let mut file = file(if pcapng { Format::PcapNg } else { Format::Pcap });
        if let Some(place) = file.get_mut(at) {
            *place = byte;
        }
        if let Ok(capture) = Capture::read(&file) {
            capture.packets.iter().for_each(|packet| drop(packet.packet()));
        }
    }

    #[test]
    fn any_pcapng_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut file = vec![0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0];
        file.extend([0xff; 8]);
        file.extend([28, 0, 0, 0]);
        file.extend(bytes);
        let _ = Capture::read(&file);
    }
}
