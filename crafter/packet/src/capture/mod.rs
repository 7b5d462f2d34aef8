//! Capture files, pcap and pcapng, read and written packet by packet, with nanoseconds, interface names
//! and comments.
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

/// Which kind of capture file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One kind of packets with times, no names and no comments.
    Pcap,
    /// Packets of several interfaces and link types, with names and comments.
    PcapNg,
}

impl Format {
    /// By a file's name: `.pcap` and `.cap` for pcap, all others, and `-` for stdout, for pcapng.
    pub fn of(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("pcap" | "cap") => Self::Pcap,
            _ => Self::PcapNg,
        }
    }
}

/// Which way a packet went (pcapng, `epb_flags`).
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
    /// Since 1970, if the capture says.
    pub time: Option<Duration>,
    /// What its bytes begin with.
    pub first: Kind,
    /// What the capture says that its bytes begin with.
    pub link: Link,
    /// Bytes it had when it was captured, of which some may be missing.
    pub original_length: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Name of the interface, if the capture says.
    pub interface: Option<String>,
    /// What somebody wrote to it; several comments are lines.
    pub comment: Option<String>,
    /// Which way it went, if the capture says.
    pub direction: Option<Direction>,
}

impl Captured {
    /// A packet of no capture, of which nothing but its first layer is known.
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

    /// The packet's layers. A header of a link type that is no layer of crafter's, but short and with a known
    /// protocol behind it (see [`Link`]), is a [`Raw`] in front of the others.
    pub fn packet(&self) -> Packet {
        let (header, kind) = self.link.header(&self.bytes).unwrap_or((0, self.first));
        let (header, rest) = self.bytes.split_at(header);
        let mut packet = Packet::parse(kind, rest);
        if !header.is_empty() {
            packet.layers_mut().insert(0, Raw::of(header).into());
        }
        packet
    }

    /// The same, to be written again.
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

/// A packet to be written, of which a pcap file keeps time, bytes and original length.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Since 1970.
    pub time: Duration,
    /// What the bytes begin with: Ethernet or IP, unless `link` says something else.
    pub first: Kind,
    /// A link type that no layer stands for.
    pub link: Option<Link>,
    /// The bytes, at most 262,144.
    pub bytes: &'a [u8],
    /// Bytes there were, where these are not all.
    pub original_length: Option<u32>,
    /// Name of the interface.
    pub interface: Option<&'a str>,
    /// Anything worth saying, such as the verdict on the packet; at most 65,535 bytes.
    pub comment: Option<&'a str>,
    /// Which way it went.
    pub direction: Option<Direction>,
}

impl<'a> Entry<'a> {
    /// A packet of which nothing but the time is known; the other fields can be set.
    pub fn new(time: Duration, first: Kind, bytes: &'a [u8]) -> Self {
        Self { time, first, link: None, bytes, original_length: None, interface: None, comment: None, direction: None }
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
    /// Reads a pcap or pcapng file that is in memory; [`Reader`] reads one as it comes. One that is cut short,
    /// or broken somewhere, gives the packets before that and says so in [`broken`](Self::broken).
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no capture file, or cut short within its header.
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
