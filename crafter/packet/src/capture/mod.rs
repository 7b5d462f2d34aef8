//! Reads and writes pcap and pcapng files packet by packet, with nanoseconds, interface names and comments.
//!
//! ```
//! use std::time::Duration;
//! use crafter_packet::{capture::{Entry, Format, Reader, Writer}, layer::{Ip, Kind, Udp}};
//!
//! let bytes = (Ip::to("192.0.2.1") / Udp::to(53) / "who").build()?;
//! let mut writer = Writer::new(Vec::new(), Format::PcapNg)?;
//! let entry = Entry::new(Duration::from_secs(1_700_000_000), Kind::Ip, &bytes);
//! writer.write(&Entry { interface: Some("eth0"), comment: Some("redirected"), ..entry })?;
//! let file = writer.finish()?;
//! for captured in Reader::new(&file[..])? {
//!     let captured = captured?;
//!     assert_eq!(captured.comment.as_deref(), Some("redirected"));
//!     println!("{}", captured.packet().summary());
//! }
//! # Ok::<(), crafter_packet::Error>(())
//! ```

use std::{path::Path, time::Duration};

use crate::{
    error::{Error, Result},
    layer::{Kind, Packet, Raw},
};

mod link;
mod pcapng;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use self::{
    link::Link,
    reader::{In, Reader},
    writer::{Out, Writer},
};

/// The largest packet that capture files hold by convention (libpcap, `MAXIMUM_SNAPLEN`).
const SNAPLEN: u32 = 262_144;

/// Format of a capture file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Packets of one link type with timestamps, without names and comments.
    Pcap,
    /// Packets of several interfaces and link types, with names and comments.
    PcapNg,
}

impl Format {
    /// The format for a file name: pcap for `.pcap` and `.cap`, pcapng for all others and for `-` (stdout).
    pub fn of(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("pcap" | "cap") => Self::Pcap,
            _ => Self::PcapNg,
        }
    }
}

/// Direction of a packet (pcapng, `epb_flags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It was received.
    In,
    /// It was sent.
    Out,
}

impl Direction {
    /// `in` or `out`.
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// A packet of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Wall-clock time since 1970, if the capture has it.
    pub time: Option<Duration>,
    /// The first layer of the bytes.
    pub first: Kind,
    /// The link type in the capture.
    pub link: Link,
    /// Length of the packet on the wire, in bytes; `bytes` may be shorter.
    pub original_length: u32,
    /// The captured bytes of the packet, beginning with `first`.
    pub bytes: Vec<u8>,
    /// Name of the interface, if the capture has it.
    pub interface: Option<String>,
    /// Comment; several comments are joined by newlines.
    pub comment: Option<String>,
    /// Direction, if the capture has it.
    pub direction: Option<Direction>,
}

impl Captured {
    /// A packet of which only the first layer is known, without capture metadata.
    pub fn of(first: Kind, bytes: Vec<u8>) -> Self {
        Self {
            time: None,
            first,
            link: Link::of(first).unwrap_or(Link::UNKNOWN),
            original_length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            bytes,
            interface: None,
            comment: None,
            direction: None,
        }
    }

    /// The packet's layers. The header of a link type without a layer of its own (see [`Link`]) is a [`Raw`] in front
    /// of the others.
    pub fn packet(&self) -> Packet {
        let (header, kind) = self.link.header(&self.bytes).unwrap_or((0, self.first));
        let (header, rest) = self.bytes.split_at(header);
        let mut packet = Packet::parse(kind, rest);
        if !header.is_empty() {
            packet.layers_mut().insert(0, Raw::of(header).into());
        }
        packet
    }

    /// This packet as an entry to write.
    pub fn entry(&self) -> Entry<'_> {
        Entry {
            time: self.time.unwrap_or_default(),
            link: Some(self.link).filter(|link| *link != Link::UNKNOWN),
            first: self.first,
            bytes: &self.bytes,
            original_length: Some(self.original_length),
            interface: self.interface.as_deref(),
            comment: self.comment.as_deref(),
            direction: self.direction,
        }
    }
}

/// A packet to write. A pcap file keeps only time, bytes and original length.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Wall-clock time since 1970.
    pub time: Duration,
    /// The first layer of the bytes: Ethernet or IP, unless `link` is set.
    pub first: Kind,
    /// A link type without a layer.
    pub link: Option<Link>,
    /// The bytes, at most 262,144.
    pub bytes: &'a [u8],
    /// Length on the wire in bytes, if the packet was truncated.
    pub original_length: Option<u32>,
    /// Name of the interface.
    pub interface: Option<&'a str>,
    /// Comment, such as the verdict on the packet; at most 65,535 bytes.
    pub comment: Option<&'a str>,
    /// Direction.
    pub direction: Option<Direction>,
}

impl<'a> Entry<'a> {
    /// An entry with time, first layer and bytes; set the other fields afterwards.
    pub fn new(time: Duration, first: Kind, bytes: &'a [u8]) -> Self {
        Self { time, first, link: None, bytes, original_length: None, interface: None, comment: None, direction: None }
    }
}

/// The content of a capture file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capture {
    /// The packets in the order of the file.
    pub packets: Vec<Captured>,
    /// Why reading stopped, if the file is truncated or malformed after these packets.
    pub broken: Option<String>,
}

/// Whether the bytes begin with the magic number of a capture file.
pub fn is_capture(bytes: &[u8]) -> bool {
    let magic = bytes.first_chunk::<4>().map(|magic| u32::from_be_bytes(*magic));
    matches!(magic, Some(0xa1b2_c3d4 | 0xd4c3_b2a1 | 0xa1b2_3c4d | 0x4d3c_b2a1 | 0x0a0d_0d0a))
}

impl Capture {
    /// Reads a pcap or pcapng file in memory; [`Reader`] reads from a stream. For a truncated or malformed file,
    /// returns the packets before the defect and sets [`broken`](Self::broken).
    ///
    /// # Errors
    /// [`Error::Invalid`] if the bytes are not a capture file, or its header is truncated.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut capture = Self::default();
        for captured in Reader::new(bytes)? {
            match captured {
                Ok(captured) => capture.packets.push(captured),
                Err(Error::Invalid { reason, .. }) => capture.broken = Some(reason),
                Err(other) => return Err(other),
            }
        }
        Ok(capture)
    }
}
