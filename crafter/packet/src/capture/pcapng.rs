//! The blocks of pcapng files (draft-ietf-opsawg-pcapng) that describe packets.
//!
//! Lenient, because many programs write these files: texts that are not UTF-8, options with odd lengths or without an
//! end marker, and blocks of unknown types do not lose packets.

use std::{fmt, time::Duration};

use super::{Captured, Direction, Link};
use crate::layer::Kind;

pub(super) const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
/// Obsolete, as in `Packet Block`.
const PACKET: u32 = 2;
const SIMPLE: u32 = 3;
const ENHANCED: u32 = 6;

const MAGIC: u32 = 0x1a2b_3c4d;

const OPT_COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;
/// `pack_flags` of old packet blocks too.
const EPB_FLAGS: u16 = 2;

/// State from the preceding blocks.
#[derive(Debug, Default)]
pub(super) struct Section {
    big_endian: bool,
    interfaces: Vec<Interface>,
}

#[derive(Debug)]
struct Interface {
    link: Link,
    /// Snapshot length in bytes; 0: unlimited.
    snaplen: u32,
    name: Option<String>,
    unit: Unit,
}

/// The unit and offset of timestamps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    /// `if_tsresol`: a power of 10, or of 2 with the highest bit set.
    pub resolution: u8,
    /// `if_tsoffset`: seconds to be added.
    pub offset: i64,
}

/// Why the next block cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It needs at least this many bytes.
    Needs(usize),
    /// It is malformed; the reason.
    Broken(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Needs(length) => write!(f, "the next block claims {length} bytes"),
            Self::Broken(reason) => f.write_str(reason),
        }
    }
}

impl Section {
    /// Reads the block at the start of `bytes`: its length, and the packet, if it is a packet block.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Captured>), Stop> {
        let needed = |length| if bytes.len() < length { Err(Stop::Needs(length)) } else { Ok(()) };
        needed(12)?;
        // The type of a section header reads the same in either byte order.
        if bytes.starts_with(&SECTION.to_be_bytes()) {
            self.big_endian = match u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) {
                MAGIC => true,
                magic if magic == MAGIC.swap_bytes() => false,
                magic => return Err(Stop::Broken(format!("invalid byte-order magic {magic:#010x}"))),
            };
            self.interfaces.clear();
        }
        let mut whole = Fields { rest: bytes, big_endian: self.big_endian };
        let kind = whole.u32().unwrap_or_default();
        let length = whole.u32().unwrap_or_default() as usize;
        if length < 12 || !length.is_multiple_of(4) {
            return Err(Stop::Broken(format!("a block cannot have {length} bytes")));
        }
        needed(length)?;
        let end = Fields { rest: &bytes[length - 4..], ..whole }.u32();
        if end != Some(length as u32) {
            return Err(Stop::Broken("the two length fields of a block differ".to_owned()));
        }
        let body = Fields { rest: &bytes[8..length - 4], ..whole };
        let packet = match kind {
            INTERFACE => {
                let interface =
                    interface(body).ok_or_else(|| Stop::Broken("an interface block is truncated".to_owned()))?;
                self.interfaces.push(interface);
                None
            }
            PACKET | SIMPLE | ENHANCED => {
                let packet = if kind == SIMPLE { self.simple(body) } else { self.packet(body, kind == PACKET) };
                Some(packet.ok_or_else(|| Stop::Broken("a packet does not fit its block".to_owned()))?)
            }
            _ => None,
        };
        Ok((length, packet))
    }

    fn packet(&self, mut body: Fields<'_>, old: bool) -> Option<Captured> {
        // An obsolete packet block has a drop count after the 16-bit interface number.
        let number = if old { u32::from(body.u16()?) } else { body.u32()? };
        if old {
            body.u16()?;
        }
        let units = u64::from(body.u32()?) << 32 | u64::from(body.u32()?);
        let length = body.u32()? as usize;
        let original_length = body.u32()?;
        let bytes = body.padded(length)?;
        let interface = self.interfaces.get(number as usize);
        let unit = interface.map_or(Unit::MICROSECONDS, |interface| interface.unit);
        let mut captured =
            Captured { time: Some(unit.time(units)), original_length, ..of_interface(interface, bytes.to_vec()) };
        for (code, value) in body.options() {
            match code {
                OPT_COMMENT => {
                    let line = String::from_utf8_lossy(value);
                    captured.comment = Some(match captured.comment.take() {
                        Some(lines) => format!("{lines}\n{line}"),
                        None => line.into_owned(),
                    });
                }
                // The two lowest bits of the flags.
                EPB_FLAGS => {
                    captured.direction = match (Fields { rest: value, ..body }).u32().unwrap_or_default() & 3 {
                        1 => Some(Direction::In),
                        2 => Some(Direction::Out),
                        _ => None,
                    }
                }
                _ => {}
            }
        }
        Some(captured)
    }

    fn simple(&self, mut body: Fields<'_>) -> Option<Captured> {
        let original_length = body.u32()?;
        let interface = self.interfaces.first();
        let limit = interface.map(|interface| interface.snaplen).filter(|limit| *limit != 0);
        // A simple packet block has no captured length; the rest of the block is padding.
        let length = original_length.min(limit.unwrap_or(u32::MAX)) as usize;
        let bytes = body.rest.get(..length)?.to_vec();
        Some(Captured { original_length, ..of_interface(interface, bytes) })
    }
}

fn interface(mut body: Fields<'_>) -> Option<Interface> {
    let link = Link(body.u16()?.into());
    body.u16()?;
    let snaplen = body.u32()?;
    let mut interface = Interface { link, snaplen, name: None, unit: Unit::MICROSECONDS };
    for (code, value) in body.options() {
        match (code, value) {
            (IF_NAME, name) => interface.name = Some(String::from_utf8_lossy(name).into_owned()),
            (IF_TSRESOL, &[resolution]) => interface.unit.resolution = resolution,
            (IF_TSOFFSET, &[a, b, c, d, e, f, g, h]) => {
                let bytes = [a, b, c, d, e, f, g, h];
                let offset = if body.big_endian { i64::from_be_bytes(bytes) } else { i64::from_le_bytes(bytes) };
                interface.unit.offset = offset;
            }
            _ => {}
        }
    }
    Some(interface)
}

fn of_interface(interface: Option<&Interface>, bytes: Vec<u8>) -> Captured {
    // An interface without a description block: the link type is unknown.
    let Some(interface) = interface else { return Captured::of(Kind::Raw, bytes) };
    let captured = Captured::of(interface.link.first(&bytes), bytes);
    Captured { link: interface.link, interface: interface.name.clone(), ..captured }
}

impl Unit {
    /// The default.
    pub const MICROSECONDS: Self = Self { resolution: 6, offset: 0 };

    /// Converts a timestamp to the time since 1970.
    pub fn time(self, units: u64) -> Duration {
        let units = u128::from(units);
        let exponent = u32::from(self.resolution & 0x7f);
        let binary = self.resolution & 0x80 != 0;
        let per_second = if binary { 1_u128.checked_shl(exponent) } else { 10_u128.checked_pow(exponent) };
        // A finer resolution than 128 bits can hold rounds to 0.
        let per_second = per_second.unwrap_or(u128::MAX);
        let nanos = (units % per_second).saturating_mul(1_000_000_000) / per_second;
        let seconds = ((units / per_second) as u64).saturating_add_signed(self.offset);
        Duration::new(seconds, nanos as u32)
    }
}

/// A cursor over the bytes of a block.
#[derive(Clone, Copy)]
struct Fields<'b> {
    rest: &'b [u8],
    big_endian: bool,
}

impl<'b> Fields<'b> {
    fn u16(&mut self) -> Option<u16> {
        let (number, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(if self.big_endian { u16::from_be_bytes(*number) } else { u16::from_le_bytes(*number) })
    }

    fn u32(&mut self) -> Option<u32> {
        let (number, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(if self.big_endian { u32::from_be_bytes(*number) } else { u32::from_le_bytes(*number) })
    }

    /// Takes bytes and their padding to a multiple of 4; the padding may be missing.
    fn padded(&mut self, length: usize) -> Option<&'b [u8]> {
        let bytes = self.rest.get(..length)?;
        self.rest = self.rest.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some(bytes)
    }

    /// The remaining options, up to the end marker or the first that does not fit.
    fn options(mut self) -> impl Iterator<Item = (u16, &'b [u8])> {
        std::iter::from_fn(move || {
            let code = self.u16()?;
            let length = self.u16()?;
            if code == 0 { None } else { Some((code, self.padded(length.into())?)) }
        })
    }
}
