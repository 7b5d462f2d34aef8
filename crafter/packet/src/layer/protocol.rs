//! The trait that each protocol implements: parse, build, match replies, summarize.

use std::fmt;

use super::{AnyLayer, Kind, build::Building, table::FieldError};

/// The fixed part of a header, from the field table.
pub(crate) trait Fixed: Sized {
    /// Description of the layer.
    const INFO: &'static super::LayerInfo;

    /// Appends the fixed part: set values, defaults, 0 for fields to be computed.
    fn put_fixed(&self, out: &mut Vec<u8>) -> Result<(), FieldError>;
    /// Reads the fixed part; `None` if the bytes are too short.
    fn get_fixed(bytes: &[u8]) -> Option<Self>;
}

/// A parsed layer.
pub(crate) struct Parsed<T> {
    pub layer: T,
    /// Length of the header, in bytes.
    pub header: usize,
    /// End of the payload, at most the number of bytes given; padding follows.
    pub end: usize,
    /// Kind of the payload.
    pub next: Kind,
}

/// A protocol. All layer files have the same order: field table, parse, build, answers, summary, tests.
pub(crate) trait Protocol: Sized {
    /// Parses a header at the start of `bytes`; `below` are the layers parsed before. `None`: the bytes are not such a
    /// header and become [`Raw`](super::Raw).
    fn parse(bytes: &[u8], below: &[AnyLayer]) -> Option<Parsed<Self>>;

    /// Appends the header.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError>;

    /// Fills in unset fields that depend on other layers or on bytes. Called after all headers are written, from the
    /// last layer to the first.
    #[inline(always)]
    fn finish(&self, _packet: &mut Building<'_>) -> Result<(), FieldError> {
        Ok(())
    }

    /// Whether this layer with the layers `above` it answers a request whose corresponding layer is `request`, with the
    /// layers `asked` above it.
    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        let _ = request;
        super::answer::answers(above, asked)
    }

    /// Writes the layer's part of the one-line summary.
    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result;
}

/// The value of a field, or its default.
macro_rules! or_default {
    ($layer:expr, $type:ty, $field:ident) => {
        $layer.$field.or(<$type>::DEFAULTS.$field)
    };
}

pub(crate) use or_default;

/// Reads a big-endian `u16` at the start of `bytes`.
pub(crate) fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Reads a big-endian `u32` at the start of `bytes`.
pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
