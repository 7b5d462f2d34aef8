//! Constructors of the fields in the tables.

use super::form::{Form, Of};
use crate::layer::{
    Value,
    value::{FieldInfo, FieldKind},
};

pub(super) type Default = fn() -> Value;
pub(super) type Names = &'static [(u64, &'static str)];

/// `d!(24)`: a function that returns the value.
macro_rules! d {
    ($value:expr) => {
        || $crate::layer::Value::from($value)
    };
}

pub(super) use d;

pub(super) const fn field(
    name: &'static str,
    form: Form,
    bits: usize,
    default: Option<Default>,
    doc: &'static str,
) -> FieldInfo {
    FieldInfo { name, kind: form.kind(), bits, offset: None, default, names: &[], doc, form }
}

/// A number.
pub(super) const fn uint(name: &'static str, bits: usize, default: Default, doc: &'static str) -> FieldInfo {
    field(name, Form::Uint, bits, Some(default), doc)
}

/// Zero bits.
pub(super) const fn zero(name: &'static str, bits: usize) -> FieldInfo {
    field(name, Form::Uint, bits, Some(|| Value::Uint(0)), "Reserved")
}

/// A number with names.
pub(super) const fn named(info: FieldInfo, names: Names) -> FieldInfo {
    FieldInfo { names, ..info }
}

/// The length of the layer's header: `bytes / unit + add`.
pub(super) const fn header_length(name: &'static str, bits: usize, unit: u8, add: i8, doc: &'static str) -> FieldInfo {
    field(name, Form::Length(Of::Header, unit, add), bits, None, doc)
}

/// The length of a field: `bytes / unit + add`.
pub(super) const fn length_of(name: &'static str, bits: usize, of: &'static str, unit: u8, add: i8) -> FieldInfo {
    field(name, Form::Length(Of::Field(of), unit, add), bits, None, "Length")
}

/// The number of a field's elements, plus `add`.
pub(super) const fn count_of(name: &'static str, bits: usize, of: &'static str, add: i8) -> FieldInfo {
    field(name, Form::Count(of, add), bits, None, "Number of elements")
}

/// The checksum of an upper-layer protocol.
pub(super) const fn checksum(protocol: u8) -> FieldInfo {
    field("cksum", Form::Checksum(protocol), 16, None, "Checksum over pseudo-header, header and payload")
}

/// Bytes to the end of the layer, or as many as a length field says.
pub(super) const fn bytes(name: &'static str, default: Default, doc: &'static str) -> FieldInfo {
    field(name, Form::Bytes, 0, Some(default), doc)
}

/// A fixed number of bytes.
pub(super) const fn fixed(name: &'static str, bytes: usize, default: Default, doc: &'static str) -> FieldInfo {
    field(name, Form::Fixed, bytes * 8, Some(default), doc)
}

pub(super) const fn mac(name: &'static str, doc: &'static str) -> FieldInfo {
    field(name, Form::Mac, 48, Some(d!("00:00:00:00:00:00")), doc)
}

pub(super) const fn ipv4(name: &'static str, doc: &'static str) -> FieldInfo {
    field(name, Form::Ipv4, 32, Some(d!("0.0.0.0")), doc)
}

pub(super) const fn ipv6(name: &'static str, doc: &'static str) -> FieldInfo {
    field(name, Form::Ipv6, 128, Some(d!("::")), doc)
}

/// A field of variable length with an empty default.
pub(super) const fn variable(name: &'static str, form: Form, doc: &'static str) -> FieldInfo {
    let default: Default = match form.kind() {
        FieldKind::List => || Value::List(Vec::new()),
        _ => || Value::Bytes(Vec::new()),
    };
    field(name, form, 0, Some(default), doc)
}

/// The fields with their offsets, as long as these are fixed.
pub(super) const fn laid_out<const N: usize>(mut fields: [FieldInfo; N]) -> [FieldInfo; N] {
    let (mut at, mut offset) = (0, 0);
    while at < N {
        if fields[at].bits == 0 {
            break;
        }
        fields[at].offset = Some(offset);
        offset += fields[at].bits;
        at += 1;
    }
    fields
}
