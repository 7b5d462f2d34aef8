//! Reads capture files packet by packet.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use pcap_file::{Endianness, PcapError, TsResolution, pcap::PcapParser};

use super::{
    Captured, Link, is_capture,
    pcapng::{SECTION, Section, Stop},
};
use crate::error::{Error, Result};

/// Size of a read, in bytes.
const CHUNK: usize = 1 << 16;

/// A longer block or packet is treated as damage, in bytes (Wireshark has the same limit).
const LONGEST: usize = 1 << 24;

/// The source of a [`Reader`] opened by file name.
pub type In = Box<dyn Read + Send>;

/// Iterates over the packets of a pcap or pcapng file; reads no further than the packet that it returns needs.
///
/// For a truncated or malformed file, it returns the packets before the defect, then an [`Error::Invalid`] with the
/// position, then `None`.
pub struct Reader<R: Read> {
    source: R,
    buffer: Vec<u8>,
    /// Offset of the next packet in the buffer.
    start: usize,
    /// Offset of the buffer in the file, in bytes.
    before: u64,
    packets: u64,
    parser: Parser,
    ended: bool,
}

enum Parser {
    Pcap(PcapParser),
    PcapNg(Section),
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
    /// [`Error::Invalid`] if it is not a capture file, or its header is truncated; [`Error::Io`] if reading fails.
    pub fn new(mut source: R) -> Result<Self> {
        let mut buffer = Vec::new();
        while buffer.len() < 4 && more(&mut source, &mut buffer)? > 0 {}
        if !is_capture(&buffer) {
            let reason = if buffer.starts_with(&[0x1f, 0x8b]) {
                "it is compressed; decompress it with `gunzip -c FILE`"
            } else {
                "it is neither pcap nor pcapng: unknown magic number"
            };
            return Err(Error::invalid("capture", reason));
        }
        loop {
            match Parser::begin(&buffer) {
                Ok((start, parser)) => {
                    return Ok(Self { source, buffer, start, before: 0, packets: 0, parser, ended: false });
                }
                Err(Stop::Needs(length)) if length <= LONGEST => {
                    if more(&mut source, &mut buffer)? == 0 {
                        return Err(Error::invalid("capture", "it is truncated within its header"));
                    }
                }
                Err(stop) => return Err(Error::invalid("capture", format_args!("its header is malformed: {stop}"))),
            }
        }
    }

    fn read(&mut self) -> Result<Option<Captured>> {
        loop {
            let at = self.before + self.start as u64;
            match self.parser.read(&self.buffer[self.start..]) {
                Ok((length, captured)) => {
                    self.start += length;
                    if let Some(captured) = captured {
                        self.packets += 1;
                        return Ok(Some(captured));
                    }
                }
                Err(Stop::Needs(length)) if length <= LONGEST => {
                    self.before = at;
                    self.buffer.drain(..self.start);
                    self.start = 0;
                    if more(&mut self.source, &mut self.buffer)? == 0 {
                        if self.buffer.is_empty() {
                            return Ok(None);
                        }
                        let reason = format_args!("truncated at byte {at}, within packet {}", self.packets + 1);
                        return Err(Error::invalid("capture", reason));
                    }
                }
                Err(stop) => {
                    let reason = format_args!("malformed at byte {at}, after packet {}: {stop}", self.packets);
                    return Err(Error::invalid("capture", reason));
                }
            }
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

/// Reads what is available: at least one byte, except at the end of the source.
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
    /// Reads the file header; returns its length and the parser for what follows.
    fn begin(bytes: &[u8]) -> Result<(usize, Self), Stop> {
        if bytes.starts_with(&SECTION.to_be_bytes()) {
            let mut section = Section::default();
            let (length, _) = section.read(bytes)?;
            return Ok((length, Self::PcapNg(section)));
        }
        match PcapParser::new(bytes) {
            Ok((rest, parser)) => Ok((bytes.len() - rest.len(), Self::Pcap(parser))),
            Err(PcapError::IncompleteBuffer) => Err(Stop::Needs(bytes.len() + 1)),
            Err(error) => Err(Stop::Broken(error.to_string())),
        }
    }

    /// Reads the next record: its length, and the packet in it, if any.
    fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Captured>), Stop> {
        match self {
            Self::Pcap(parser) => {
                let header = parser.header();
                // `next_raw_packet` also accepts a length above the snapshot length.
                let (rest, packet) = parser.next_raw_packet(bytes).map_err(|error| match error {
                    PcapError::IncompleteBuffer => Stop::Needs(pcap_length(bytes, header.endianness)),
                    other => Stop::Broken(other.to_string()),
                })?;
                let unit = if header.ts_resolution == TsResolution::NanoSecond { 1 } else { 1000 };
                let fraction = Duration::from_nanos(u64::from(packet.ts_frac) * unit);
                // The upper bits describe frame check sequences.
                let link = Link(u32::from(header.datalink) & 0x03ff_ffff);
                let data = packet.data.into_owned();
                let captured = Captured {
                    time: Some(Duration::from_secs(packet.ts_sec.into()) + fraction),
                    link,
                    original_length: packet.orig_len,
                    ..Captured::of(link.first(&data), data)
                };
                Ok((bytes.len() - rest.len(), Some(captured)))
            }
            Self::PcapNg(section) => section.read(bytes),
        }
    }
}

/// Length of a truncated packet record, header included.
fn pcap_length(bytes: &[u8], endianness: Endianness) -> usize {
    let length = bytes.get(8..12).and_then(|bytes| bytes.first_chunk()).map_or(0, |length| match endianness {
        Endianness::Big => u32::from_be_bytes(*length),
        Endianness::Little => u32::from_le_bytes(*length),
    });
    16 + length as usize
}
