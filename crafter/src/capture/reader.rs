//! Capture files, read packet by packet.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use pcap_file::{
    Endianness, PcapError, TsResolution,
    pcap::PcapParser,
    pcapng::{
        Block, PcapNgParser,
        blocks::{
            enhanced_packet::EnhancedPacketOption,
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            packet::PacketOption,
        },
    },
};

use super::{Captured, Direction, Link, is_capture};
use crate::{
    error::{Error, Result},
    layer::Kind,
};

/// Bytes asked for at once.
const CHUNK: usize = 1 << 16;

/// A block or packet that claims to be longer is damage (Wireshark has the same limit).
const LONGEST: usize = 1 << 24;

/// What a [`Reader`] reads from that opened it by name.
pub type In = Box<dyn Read + Send>;

/// Reads the packets of a pcap or pcapng file as they come, none of them earlier than it is asked for.
///
/// A file that is cut short, or broken somewhere, gives the packets before that, then an
/// [`Error::Invalid`] that says where, then nothing any more.
pub struct Reader<R: Read> {
    source: R,
    buffer: Vec<u8>,
    /// Where in the buffer the next packet begins.
    start: usize,
    /// Bytes of the file before those in the buffer.
    before: u64,
    packets: u64,
    parser: Parser,
    ended: bool,
}

enum Parser {
    Pcap(PcapParser),
    PcapNg(PcapNgParser),
}

impl Reader<In> {
    /// Opens a file; `-` is stdin.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or read; as [`new`](Self::new).
    pub fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Self::new(Box::new(io::stdin()));
        }
        let file =
            File::open(path).map_err(|source| Error::Io { action: format!("open {}", path.display()), source })?;
        Self::new(Box::new(file))
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header. `source` need not be buffered.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no capture file, or cut short within its header; [`Error::Io`] if reading fails.
    pub fn new(source: R) -> Result<Self> {
        let mut source = source;
        let mut buffer = Vec::new();
        loop {
            if buffer.len() >= 4 && !is_capture(&buffer) {
                break;
            }
            let parsed = if buffer.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
                PcapNgParser::new(&buffer).map(|(rest, parser)| (rest.len(), Parser::PcapNg(parser)))
            } else {
                PcapParser::new(&buffer).map(|(rest, parser)| (rest.len(), Parser::Pcap(parser)))
            };
            match parsed {
                Ok((rest, parser)) => {
                    let start = buffer.len() - rest;
                    return Ok(Self { source, buffer, start, before: 0, packets: 0, parser, ended: false });
                }
                Err(PcapError::IncompleteBuffer) if buffer.len() < LONGEST => {}
                Err(error) => {
                    return Err(Error::invalid("capture", format_args!("its header makes no sense: {error}")));
                }
            }
            if more(&mut source, &mut buffer)? == 0 {
                break;
            }
        }
        Err(Error::invalid(
            "capture",
            if is_capture(&buffer) {
                "it is cut short within its header"
            } else if buffer.starts_with(&[0x1f, 0x8b]) {
                "it is compressed; `gunzip -c FILE` gives what is in it"
            } else {
                "it is neither pcap nor pcapng: the first bytes are not those of either"
            },
        ))
    }

    /// Whether the next packet can be had without waiting for the source, as far as bytes read already tell.
    pub fn has_buffered(&self) -> bool {
        self.start < self.buffer.len()
    }

    fn read(&mut self) -> Result<Option<Captured>> {
        loop {
            let rest = &self.buffer[self.start..];
            let parsed = if rest.is_empty() { Err(PcapError::IncompleteBuffer) } else { self.parser.next(rest) };
            match parsed {
                Ok((left, captured)) => {
                    self.start = self.buffer.len() - left;
                    if let Some(captured) = captured {
                        self.packets += 1;
                        return Ok(Some(captured));
                    }
                }
                Err(PcapError::IncompleteBuffer) if rest.len() < LONGEST => {
                    self.before += self.start as u64;
                    self.buffer.drain(..self.start);
                    self.start = 0;
                    if more(&mut self.source, &mut self.buffer)? == 0 {
                        return if self.buffer.is_empty() { Ok(None) } else { Err(self.cut()) };
                    }
                }
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    fn cut(&self) -> Error {
        let at = self.before + self.start as u64;
        Error::invalid("capture", format_args!("cut short at byte {at}, within packet {}", self.packets + 1))
    }

    fn broken(&self, error: &PcapError) -> Error {
        let at = self.before + self.start as u64;
        let place = format!("broken at byte {at}, behind packet {}", self.packets);
        match error {
            PcapError::IncompleteBuffer => Error::invalid(
                "capture",
                format_args!("{place}: what follows claims to be longer than {LONGEST} bytes"),
            ),
            other => Error::invalid("capture", format_args!("{place}: {other}")),
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Captured>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read().transpose();
        self.ended = !matches!(read, Some(Ok(_)));
        read
    }
}

/// Reads what there is, at least a byte unless the source is at its end.
fn more(source: &mut impl Read, buffer: &mut Vec<u8>) -> Result<usize> {
    let end = buffer.len();
    buffer.resize(end + CHUNK, 0);
    let read = loop {
        match source.read(&mut buffer[end..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    buffer.truncate(end + read.as_ref().map_or(0, |read| *read));
    read.map_err(|source| Error::Io { action: "read the capture".to_owned(), source })
}

impl Parser {
    /// How many bytes are behind the next block, and its packet, if it is one's.
    fn next(&mut self, bytes: &[u8]) -> Result<(usize, Option<Captured>), PcapError> {
        match self {
            Self::Pcap(parser) => {
                let header = parser.header();
                // Raw: a length above the announced limit is odd, not unreadable.
                let (rest, packet) = parser.next_raw_packet(bytes)?;
                let unit = if header.ts_resolution == TsResolution::NanoSecond { 1 } else { 1000 };
                let fraction = Duration::from_nanos(u64::from(packet.ts_frac) * unit);
                // The bits above tell of checksums behind the frames.
                let link = Link(u32::from(header.datalink) & 0x03ff_ffff);
                let captured = Captured {
                    time: Some(Duration::from_secs(packet.ts_sec.into()) + fraction),
                    original_length: packet.orig_len,
                    ..captured(link, packet.data.into_owned())
                };
                Ok((rest.len(), Some(captured)))
            }
            Self::PcapNg(parser) => {
                let (rest, block) = parser.next_block(bytes)?;
                Ok((rest.len(), packet(parser, block)))
            }
        }
    }
}

fn captured(link: Link, bytes: Vec<u8>) -> Captured {
    Captured { link, ..Captured::of(link.first(&bytes), bytes) }
}

fn packet(parser: &PcapNgParser, block: Block<'_>) -> Option<Captured> {
    let interface = |number: u32| parser.interfaces().get(number as usize);
    match block {
        Block::EnhancedPacket(packet) => {
            let (mut comment, mut flags) = (None, 0);
            for option in packet.options {
                match option {
                    EnhancedPacketOption::Comment(line) => join(&mut comment, &line),
                    EnhancedPacketOption::Flags(number) => flags = number,
                    _ => {}
                }
            }
            // The crate takes the number for nanoseconds, whatever the interface's resolution.
            let units = packet.timestamp.as_nanos() as u64;
            let interface = interface(packet.interface_id);
            let captured = of_interface(interface, packet.data.into_owned());
            let time = Some(time(units, interface.map_or(&[], |interface| &interface.options)));
            let direction = direction(flags);
            Some(Captured { time, original_length: packet.original_len, comment, direction, ..captured })
        }
        Block::Packet(packet) => {
            let (mut comment, mut flags) = (None, 0);
            for option in packet.options {
                match option {
                    PacketOption::Comment(line) => join(&mut comment, &line),
                    PacketOption::Flags(number) => flags = number,
                    _ => {}
                }
            }
            // Two numbers of 32 bits, the upper one first, that the crate reads as one of 64.
            let little = parser.section().endianness == Endianness::Little;
            let units = if little { packet.timestamp.rotate_left(32) } else { packet.timestamp };
            let interface = interface(packet.interface_id.into());
            let captured = of_interface(interface, packet.data.into_owned());
            let time = Some(time(units, interface.map_or(&[], |interface| &interface.options)));
            let direction = direction(flags);
            Some(Captured { time, original_length: packet.original_len, comment, direction, ..captured })
        }
        Block::SimplePacket(packet) => {
            let interface = interface(0);
            let limit = interface.map(|interface| interface.snaplen).filter(|limit| *limit != 0);
            // The block is padded, and its length says nothing of how much.
            let length = packet.original_len.min(limit.unwrap_or(u32::MAX)) as usize;
            let mut bytes = packet.data.into_owned();
            bytes.truncate(length);
            Some(Captured { original_length: packet.original_len, ..of_interface(interface, bytes) })
        }
        _ => None,
    }
}

fn of_interface(interface: Option<&InterfaceDescriptionBlock<'_>>, bytes: Vec<u8>) -> Captured {
    let Some(interface) = interface else {
        // It was never told, so that nothing is known of the bytes.
        return Captured::of(Kind::Raw, bytes);
    };
    let name = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
        _ => None,
    });
    Captured { interface: name, ..captured(Link(interface.linktype.into()), bytes) }
}

fn join(comment: &mut Option<String>, line: &str) {
    match comment {
        Some(comment) => *comment += &format!("\n{line}"),
        None => *comment = Some(line.to_owned()),
    }
}

/// The two lowest bits of `epb_flags`.
fn direction(flags: u32) -> Option<Direction> {
    match flags & 3 {
        1 => Some(Direction::In),
        2 => Some(Direction::Out),
        _ => None,
    }
}

/// A timestamp in an interface's unit, microseconds unless said otherwise (pcapng, `if_tsresol` and
/// `if_tsoffset`).
pub(super) fn time(units: u64, options: &[InterfaceDescriptionOption<'_>]) -> Duration {
    let (mut resolution, mut offset) = (6, 0_u64);
    for option in options {
        match option {
            InterfaceDescriptionOption::IfTsResol(set) => resolution = *set,
            InterfaceDescriptionOption::IfTsOffset(set) => offset = *set,
            _ => {}
        }
    }
    let units = u128::from(units);
    let exponent = u32::from(resolution & 0x7f);
    let per_second = if resolution & 0x80 != 0 { 1_u128.checked_shl(exponent) } else { 10_u128.checked_pow(exponent) };
    // Finer than 128 bits tell is as good as 0.
    let per_second = per_second.unwrap_or(u128::MAX);
    let nanos = (units % per_second).saturating_mul(1_000_000_000) / per_second;
    // The offset is a signed number of seconds.
    let seconds = ((units / per_second) as u64).saturating_add_signed(offset as i64);
    Duration::new(seconds, nanos as u32)
}
