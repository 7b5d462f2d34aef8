//! Capture files, pcap and pcapng, read; pcap with nanoseconds written.

use std::{io::Write, time::Duration};

use pcap_file::{
    DataLink, PcapError, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapParser, PcapWriter},
    pcapng::{Block, PcapNgParser, blocks::interface_description::InterfaceDescriptionOption},
};

use crate::{
    error::{Error, Result},
    layer::{Kind, Packet},
};

/// The largest packet that pcap files hold by convention (libpcap, `MAXIMUM_SNAPLEN`).
const SNAPLEN: u32 = 262_144;

/// A packet of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Since 1970, if the capture says.
    pub time: Option<Duration>,
    /// What its bytes begin with.
    pub first: Kind,
    /// Bytes it had when it was captured, of which some may be missing.
    pub original_length: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Name of the interface, if the capture says.
    pub interface: Option<String>,
}

impl Captured {
    /// The packet's layers.
    pub fn packet(&self) -> Packet {
        Packet::parse(self.first, &self.bytes)
    }
}

/// What a capture file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capture {
    /// The packets in the order of the file.
    pub packets: Vec<Captured>,
    /// Why there are no more, where the file is cut short or broken behind them.
    pub broken: Option<String>,
}

/// Whether some bytes begin as a capture file does.
pub fn is_capture(bytes: &[u8]) -> bool {
    let magic = bytes.first_chunk::<4>().map(|magic| u32::from_be_bytes(*magic));
    matches!(magic, Some(0xa1b2_c3d4 | 0xd4c3_b2a1 | 0xa1b2_3c4d | 0x4d3c_b2a1 | 0x0a0d_0d0a))
}

impl Capture {
    /// Reads a pcap or pcapng file. One that is cut short, or broken somewhere, gives the packets before that
    /// and says so in [`broken`](Self::broken).
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no capture file, or cut short within its header.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        if !is_capture(bytes) {
            return Err(Error::invalid(
                "capture",
                "it is neither pcap nor pcapng: the first bytes are not those of either",
            ));
        }
        if bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) { read_pcapng(bytes) } else { read_pcap(bytes) }
    }
}

fn read_pcap(bytes: &[u8]) -> Result<Capture> {
    let (mut rest, parser) = PcapParser::new(bytes).map_err(|error| header_error(&error))?;
    let header = parser.header();
    let mut capture = Capture::default();
    while !rest.is_empty() {
        // Raw: a length above the announced limit is odd, not unreadable.
        match parser.next_raw_packet(rest) {
            Ok((behind, packet)) => {
                rest = behind;
                let unit = if header.ts_resolution == TsResolution::NanoSecond { 1 } else { 1000 };
                let fraction = Duration::from_nanos(u64::from(packet.ts_frac) * unit);
                capture.packets.push(Captured {
                    time: Some(Duration::from_secs(packet.ts_sec.into()) + fraction),
                    first: first(header.datalink, &packet.data),
                    original_length: packet.orig_len,
                    bytes: packet.data.into_owned(),
                    interface: None,
                });
            }
            Err(error) => {
                capture.broken = Some(broken(&error, bytes.len() - rest.len(), capture.packets.len()));
                break;
            }
        }
    }
    Ok(capture)
}

fn read_pcapng(bytes: &[u8]) -> Result<Capture> {
    let (mut rest, mut parser) = PcapNgParser::new(bytes).map_err(|error| header_error(&error))?;
    let mut capture = Capture::default();
    while !rest.is_empty() {
        let block = match parser.next_block(rest) {
            Ok((behind, block)) => {
                rest = behind;
                block
            }
            Err(error) => {
                capture.broken = Some(broken(&error, bytes.len() - rest.len(), capture.packets.len()));
                break;
            }
        };
        let (time, interface, original_length, data) = match block {
            Block::EnhancedPacket(packet) => {
                (Some(packet.timestamp), packet.interface_id as usize, packet.original_len, packet.data)
            }
            Block::SimplePacket(packet) => (None, 0, packet.original_len, packet.data),
            _ => continue,
        };
        let interface = parser.interfaces().get(interface);
        let name = interface.and_then(|interface| {
            interface.options.iter().find_map(|option| match option {
                InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                _ => None,
            })
        });
        capture.packets.push(Captured {
            // The crate takes the number for nanoseconds, whatever the interface's resolution.
            time: time.map(|time| scaled(time, interface.map_or(&[], |interface| &interface.options))),
            first: interface.map_or(Kind::Raw, |interface| first(interface.linktype, &data)),
            original_length,
            bytes: data.into_owned(),
            interface: name,
        });
    }
    Ok(capture)
}

/// A timestamp by its interface's resolution: microseconds unless said otherwise (pcapng, `if_tsresol`).
fn scaled(time: Duration, options: &[InterfaceDescriptionOption<'_>]) -> Duration {
    let resolution = options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    let units = time.as_nanos();
    let exponent = u32::from(resolution.unwrap_or(6) & 0x7f);
    let per_second = if resolution.is_some_and(|resolution| resolution & 0x80 != 0) {
        1_u128.checked_shl(exponent)
    } else {
        10_u128.checked_pow(exponent)
    };
    // Finer than 128 bits tell is as good as 0.
    let per_second = per_second.unwrap_or(u128::MAX);
    let nanos = (units % per_second).saturating_mul(1_000_000_000) / per_second;
    Duration::new((units / per_second) as u64, nanos as u32)
}

fn first(link: DataLink, bytes: &[u8]) -> Kind {
    match link {
        DataLink::ETHERNET => Kind::Ether,
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => Kind::of_ip(bytes),
        // DLT_RAW as the kernel of the capturing system numbered it.
        DataLink::Unknown(12 | 14) => Kind::of_ip(bytes),
        _ => Kind::Raw,
    }
}

fn header_error(error: &PcapError) -> Error {
    match error {
        PcapError::IncompleteBuffer => Error::invalid("capture", "it is cut short within its header"),
        other => Error::invalid("capture", format_args!("its header makes no sense: {other}")),
    }
}

fn broken(error: &PcapError, at: usize, packets: usize) -> String {
    match error {
        PcapError::IncompleteBuffer => format!("cut short at byte {at}, within packet {}", packets + 1),
        other => format!("broken at byte {at}, behind packet {packets}: {other}"),
    }
}

/// Writes packets of one kind into a pcap file with nanoseconds.
pub struct Writer<W: Write> {
    inner: PcapWriter<W>,
}

impl<W: Write> Writer<W> {
    /// Begins a file of packets that begin with a layer.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is neither Ethernet nor IP, [`Error::Io`] if writing fails.
    pub fn new(out: W, first: Kind) -> Result<Self> {
        let datalink = match first {
            Kind::Ether => DataLink::ETHERNET,
            Kind::Ip | Kind::Ipv6 => DataLink::RAW,
            other => {
                let reason = format_args!(
                    "packets that begin with {} cannot be told in it: Ether, IP or IPv6 is needed",
                    other.name()
                );
                return Err(Error::invalid("pcap", reason));
            }
        };
        let header =
            PcapHeader { snaplen: SNAPLEN, datalink, ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
        Ok(Self { inner: PcapWriter::with_header(out, header).map_err(writing)? })
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is longer than 262,144 bytes, [`Error::Io`] if writing fails.
    pub fn write(&mut self, time: Duration, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.inner.write_packet(&PcapPacket::new(time, length, bytes)).map(drop).map_err(writing)
    }

    /// Ends the file; what was written may still be buffered in `W`.
    pub fn into_inner(self) -> W {
        self.inner.into_writer()
    }
}

fn writing(error: PcapError) -> Error {
    match error {
        PcapError::IoError(source) => Error::Io { action: "write the capture".to_owned(), source },
        other => Error::invalid("pcap", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Ip, Udp};

    fn file() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), Kind::Ip).unwrap();
        for port in 1..=3_u16 {
            let bytes = (Ip::to("192.0.2.1") / Udp::to(port)).build().unwrap();
            writer.write(Duration::new(1_700_000_000, 123_456_789), &bytes).unwrap();
        }
        writer.into_inner()
    }

    #[test]
    fn written_and_read() {
        let capture = Capture::read(&file()).unwrap();
        assert_eq!((capture.packets.len(), &capture.broken), (3, &None));
        let second = &capture.packets[1];
        assert_eq!(second.time, Some(Duration::new(1_700_000_000, 123_456_789)));
        assert_eq!(second.packet().get::<Udp>().unwrap().dport, Some(2));
        assert!(Writer::new(Vec::new(), Kind::Tcp).is_err());
    }

    #[test]
    fn cut_anywhere_gives_the_packets_before() {
        let file = file();
        for end in 0..file.len() {
            match Capture::read(&file[..end]) {
                Ok(capture) => {
                    let whole = (end - 24) / (16 + 28);
                    assert_eq!(capture.packets.len(), whole, "{end}");
                    assert_eq!(capture.broken.is_some(), (end - 24) % 44 != 0, "{end}");
                }
                Err(error) => assert!(end < 24 && matches!(error, Error::Invalid { .. }), "{end}: {error}"),
            }
        }
        let said = Capture::read(&file[..70]).unwrap().broken.unwrap();
        assert_eq!(said, "cut short at byte 68, within packet 2");
    }

    #[test]
    fn resolutions() {
        let option = |resolution| [InterfaceDescriptionOption::IfTsResol(resolution)];
        let units = Duration::from_nanos(3_500_000_000);
        assert_eq!(scaled(units, &option(9)), Duration::from_millis(3500));
        assert_eq!(scaled(units, &[]), Duration::from_secs(3500));
        assert_eq!(scaled(Duration::from_nanos(3), &option(0x81)), Duration::from_millis(1500));
        assert_eq!(scaled(units, &option(0x7f)), Duration::ZERO);
    }

    proptest::proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..170, byte in proptest::prelude::any::<u8>()) {
            let mut file = file();
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
            if let Ok(capture) = Capture::read(&file) {
                capture.packets.iter().for_each(|packet| drop(packet.packet()));
            }
        }

        #[test]
        fn no_pcapng_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100)) {
            let mut file = vec![0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0];
            file.extend([0xff; 8]);
            file.extend([28, 0, 0, 0]);
            file.extend(bytes);
            let _ = Capture::read(&file);
        }
    }
}
