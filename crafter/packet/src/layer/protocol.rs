//! What a protocol has to say for itself: bytes to fields, fields to bytes, what follows, what answers.

use std::fmt;

use super::{AnyLayer, Kind, build::Building, table::FieldError};

/// The fixed part of a header, from the field table.
pub(crate) trait Fixed: Sized {
    /// Appends the fixed part: values that are set, defaults, 0 for what is still to be computed.
    fn put_fixed(&self, out: &mut Vec<u8>) -> Result<(), FieldError>;
    /// Reads the fixed part; `None` if it is cut short.
    fn get_fixed(bytes: &[u8]) -> Option<Self>;
}

/// A layer read from the beginning of some bytes.
pub(crate) struct Parsed<T> {
    pub layer: T,
    /// Bytes of the header.
    pub header: usize,
    /// Where the payload ends, at most the number of bytes given; what is behind is padding.
    pub end: usize,
    /// What the payload is.
    pub next: Kind,
}

/// One protocol. The files of the layers have the same order: field table, parse, build, answers, summary, tests.
pub(crate) trait Protocol: Sized {
    /// Reads a header from the beginning of `bytes`; `below` is what was read before it.
    /// `None`: these bytes are no such header, so they become [`Raw`](super::Raw).
    fn parse(bytes: &[u8], below: &[AnyLayer]) -> Option<Parsed<Self>>;

    /// Appends the header.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError>;

    /// Computes what is unset and depends on other layers or on bytes: called when all headers are
    /// written, from the last layer to the first.
    #[inline(always)]
    fn finish(&self, _packet: &mut Building<'_>) -> Result<(), FieldError> {
        Ok(())
    }

    /// Whether this layer and those `above` it answer a request that has `request` at this place,
    /// and `asked` above that.
    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        let _ = request;
        super::answer::answers(above, asked)
    }

    /// Its part of the one-line summary.
    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result;
}

/// What a field is worth unless something else is computed: its value or its default.
macro_rules! or_default {
    ($layer:expr, $type:ty, $field:ident) => {
        $layer.$field.or(<$type>::DEFAULTS.$field)
    };
}

pub(crate) use or_default;

/// A number of 16 bits at the beginning of `bytes`.
pub(crate) fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// A number of 32 bits at the beginning of `bytes`.
pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
