//! Dynamically typed values of fields, printed in Python notation, and the traits of field types.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::described::Form;

/// The value of a field, as used in the text form, `show` and JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `None`: unset.
    None,
    /// A number.
    Uint(u64),
    /// A string: an address, a name, flags.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// `[a, b]`: the elements of a list field, or alternative values.
    List(Vec<Value>),
    /// `(a, b)`: an option with its value, or a range of numbers.
    Tuple(Vec<Value>),
    /// `NAME(field=value)`: a record, such as a DNS record.
    Record(String, Vec<(String, Value)>),
}

impl Value {
    /// The value as JSON. Bytes are hex digits; records are objects with their name as `record`.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::None => serde_json::Value::Null,
            Self::Uint(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Bytes(bytes) => hex(bytes).into(),
            Self::List(values) | Self::Tuple(values) => values.iter().map(Self::to_json).collect(),
            Self::Record(name, fields) => {
                let head = [("record".to_owned(), name.as_str().into())];
                let fields = fields.iter().map(|(name, value)| (name.clone(), value.to_json()));
                head.into_iter().chain(fields).collect()
            }
        }
    }

    /// The type of the value, for error messages.
    fn is(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Uint(_) => "a number",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Record(..) => "a record",
        }
    }

    /// The error message if another type is needed.
    pub(crate) fn mismatch(&self, wanted: &str) -> String {
        format!("{} does not fit: {wanted} is needed", self.is())
    }

    pub(crate) fn uint(&self, max: u64) -> Result<u64, String> {
        match self {
            Self::Uint(number) if *number <= max => Ok(*number),
            Self::Uint(number) => Err(format!("{number} is too large, the largest is {max}")),
            other => Err(other.mismatch("a number")),
        }
    }

    pub(crate) fn text(&self) -> Result<&str, String> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(other.mismatch("a text")),
        }
    }

    pub(crate) fn list(&self) -> Result<&[Value], String> {
        match self {
            Self::List(values) => Ok(values),
            other => Err(other.mismatch("a list")),
        }
    }

    /// Parses a string, such as an address.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, wanted: &str) -> Result<T, String> {
        match self {
            Self::Text(text) => text.parse().map_err(|_| format!("'{text}' is not {wanted}")),
            other => Err(other.mismatch(wanted)),
        }
    }

    /// Bytes, or the bytes of a string.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::Bytes(bytes) => Ok(bytes.clone()),
            other => Err(other.mismatch("bytes or a text")),
        }
    }
}

/// Lower-case hex digits without separators.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, values: &[Value]| {
            values.iter().enumerate().try_for_each(|(i, value)| write!(f, "{}{value}", if i > 0 { ", " } else { "" }))
        };
        match self {
            Self::None => f.write_str("None"),
            Self::Uint(number) => write!(f, "{number}"),
            Self::Text(text) => quoted(f, text.chars()),
            Self::Bytes(bytes) => {
                f.write_str("b\"")?;
                for byte in bytes {
                    match byte {
                        b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                        b' '..=b'~' => write!(f, "{}", char::from(*byte))?,
                        b'\n' => f.write_str("\\n")?,
                        b'\r' => f.write_str("\\r")?,
                        _ => write!(f, "\\x{byte:02x}")?,
                    }
                }
                f.write_str("\"")
            }
            Self::List(values) => {
                f.write_str("[")?;
                list(f, values)?;
                f.write_str("]")
            }
            Self::Tuple(values) => {
                f.write_str("(")?;
                list(f, values)?;
                f.write_str(if values.len() == 1 { ",)" } else { ")" })
            }
            Self::Record(name, fields) => {
                write!(f, "{name}(")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{name}={value}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(")")
            }
        }
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: impl Iterator<Item = char>) -> fmt::Result {
    f.write_str("\"")?;
    for char in text {
        match char {
            '"' | '\\' => write!(f, "\\{char}")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            char if (char as u32) < 0x20 || char as u32 == 0x7f => write!(f, "\\x{:02x}", char as u32)?,
            char => write!(f, "{char}")?,
        }
    }
    f.write_str("\"")
}

/// Type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// A number; in the text form also a range or a list of alternatives.
    Uint,
    /// Flags: a number, or their names.
    Flags,
    /// An IPv4 address; in the text form also a prefix.
    Ipv4,
    /// An IPv6 address; in the text form also a prefix.
    Ipv6,
    /// An Ethernet address.
    Mac,
    /// Bytes or a string.
    Bytes,
    /// A list: options, addresses, records.
    List,
}

impl FieldKind {
    /// The value of a missing optional field.
    pub(crate) fn empty(self) -> Value {
        match self {
            Self::List => Value::List(Vec::new()),
            Self::Bytes => Value::Bytes(Vec::new()),
            _ => Value::None,
        }
    }

    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uint => "uint",
            Self::Flags => "flags",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Mac => "mac",
            Self::Bytes => "bytes",
            Self::List => "list",
        }
    }
}

/// Description of a field.
#[derive(Debug, Clone, Copy)]
pub struct FieldInfo {
    /// The name in Scapy.
    pub name: &'static str,
    /// The type of its values.
    pub kind: FieldKind,
    /// Width in bits; 0: variable.
    pub bits: usize,
    /// Offset in the header, in bits; `None`: after the fixed part.
    pub offset: Option<usize>,
    /// The default value; `None`: computed from the packet.
    pub default: Option<fn() -> Value>,
    /// Names of values.
    pub names: &'static [(u64, &'static str)],
    /// The meaning.
    pub doc: &'static str,
    /// How it is written.
    pub(crate) form: Form,
}

impl FieldInfo {
    /// The largest number that fits the width.
    pub fn max(&self) -> u64 {
        match self.bits {
            0 | 64.. => u64::MAX,
            bits => (1 << bits) - 1,
        }
    }

    /// The number for a name.
    pub(crate) fn number(&self, name: &str) -> Result<u64, String> {
        let found = self.names.iter().find(|(_, known)| known.eq_ignore_ascii_case(name));
        let service = || match self.name {
            "sport" | "dport" => super::service::port(name),
            _ => None,
        };
        found.map(|&(number, _)| number).or_else(service).ok_or_else(|| match self.names {
            [] => format!("'{name}' does not fit: a number is needed"),
            names => {
                format!("'{name}' is not the name of a value{}", nearest(name, names.iter().map(|&(_, name)| name)))
            }
        })
    }
}

/// A hint for an unknown name: `; did you mean ...?` with the nearest names, or all known names.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let lower = name.to_ascii_lowercase();
    // Edit distance finds typing errors, Jaro-Winkler similarity finds abbreviations.
    let likeness = |known: &str| {
        let known = known.to_ascii_lowercase();
        let slip = strsim::osa_distance(&lower, &known) <= (known.len() / 3).max(1);
        strsim::jaro_winkler(&lower, &known) + f64::from(u8::from(slip))
    };
    let mut near: Vec<(f64, &str)> = known.map(|known| (likeness(known), known)).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let close: Vec<&str> =
        near.iter().filter(|(likeness, _)| *likeness > 0.85).map(|(_, name)| *name).take(3).collect();
    match close[..] {
        [] if near.is_empty() => String::new(),
        [] => {
            near.truncate(24);
            format!("; known: {}", near.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", "))
        }
        _ => format!("; did you mean {}?", close.join(" or ")),
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Uint(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// A type of field values.
pub trait FieldValue: Sized {
    /// The type of field.
    const KIND: FieldKind;
    /// Converts to a dynamically typed value.
    fn to_value(&self) -> Value;
    /// Converts from a dynamically typed value.
    ///
    /// # Errors
    /// Why `value` does not fit `field`, without the name of the field.
    fn from_value(value: &Value, field: &FieldInfo) -> Result<Self, String>;
}

macro_rules! uint {
    ($($type:ty),*) => {$(
        impl FieldValue for $type {
            const KIND: FieldKind = FieldKind::Uint;

            fn to_value(&self) -> Value {
                Value::Uint(u64::from(*self))
            }

            fn from_value(value: &Value, field: &FieldInfo) -> Result<Self, String> {
                let number = match value {
                    Value::Text(text) => field.number(text)?,
                    other => other.uint(u64::MAX)?,
                };
                let max = field.max();
                if number > max {
                    return Err(format!("{number} does not fit {} bits, the largest is {max}", field.bits));
                }
                <$type>::try_from(number).map_err(|e| e.to_string())
            }
        }
    )*};
}

uint!(u8, u16, u32, u64);

impl FieldValue for Ipv4Addr {
    const KIND: FieldKind = FieldKind::Ipv4;

    fn to_value(&self) -> Value {
        Value::Text(self.to_string())
    }

    fn from_value(value: &Value, _: &FieldInfo) -> Result<Self, String> {
        value.parsed("an IPv4 address")
    }
}

impl FieldValue for Ipv6Addr {
    const KIND: FieldKind = FieldKind::Ipv6;

    fn to_value(&self) -> Value {
        Value::Text(self.to_string())
    }

    fn from_value(value: &Value, _: &FieldInfo) -> Result<Self, String> {
        value.parsed("an IPv6 address")
    }
}

impl FieldValue for Vec<u8> {
    const KIND: FieldKind = FieldKind::Bytes;

    fn to_value(&self) -> Value {
        Value::Bytes(self.clone())
    }

    fn from_value(value: &Value, _: &FieldInfo) -> Result<Self, String> {
        value.bytes()
    }
}

impl<const N: usize> FieldValue for [u8; N] {
    const KIND: FieldKind = FieldKind::Bytes;

    fn to_value(&self) -> Value {
        Value::Bytes(self.to_vec())
    }

    fn from_value(value: &Value, _: &FieldInfo) -> Result<Self, String> {
        let bytes = value.bytes()?;
        let length = bytes.len();
        bytes.try_into().map_err(|_| format!("{length} bytes do not fit: {N} bytes are needed"))
    }
}

/// An element of a list field: an option, an address, a record.
pub trait Element: Sized {
    /// Converts to a dynamically typed value.
    fn to_value(&self) -> Value;
    /// Converts from a dynamically typed value.
    ///
    /// # Errors
    /// Why the value does not fit.
    fn from_value(value: &Value) -> Result<Self, String>;
}

impl<T: Element> FieldValue for Vec<T> {
    const KIND: FieldKind = FieldKind::List;

    fn to_value(&self) -> Value {
        Value::List(self.iter().map(Element::to_value).collect())
    }

    fn from_value(value: &Value, _: &FieldInfo) -> Result<Self, String> {
        match value {
            Value::List(values) => values.iter().map(Element::from_value).collect(),
            // Like Scapy, accepts a record instead of a list with one element.
            one @ (Value::Record(..) | Value::Tuple(_)) => Ok(vec![Element::from_value(one)?]),
            other => Err(other.mismatch("a list")),
        }
    }
}

macro_rules! address_elements {
    ($($type:ty: $wanted:literal),*) => {$(
        impl Element for $type {
            fn to_value(&self) -> Value {
                Value::Text(self.to_string())
            }

            fn from_value(value: &Value) -> Result<Self, String> {
                value.parsed($wanted)
            }
        }
    )*};
}

address_elements!(Ipv4Addr: "an IPv4 address", Ipv6Addr: "an IPv6 address");

/// A value that a builder method accepts for a field of type `T`: a `T`, or a string literal.
///
/// # Panics
/// A string that is not a valid `T` panics, because it is a mistake in the source code. Parse external input first, or
/// pass it to [`Packet::set_field`](super::Packet::set_field).
pub trait IntoField<T> {
    /// The value.
    fn into_field(self) -> T;
}

impl<T> IntoField<T> for T {
    fn into_field(self) -> T {
        self
    }
}

macro_rules! text_fields {
    ($($type:ty),*) => {$(
        impl $crate::layer::value::IntoField<$type> for &str {
            fn into_field(self) -> $type {
                match self.parse() {
                    Ok(value) => value,
                    Err(_) => panic!("'{self}' is not a valid {}", stringify!($type)),
                }
            }
        }
    )*};
}

pub(crate) use text_fields;

text_fields!(Ipv4Addr, Ipv6Addr);

impl IntoField<Vec<u8>> for &str {
    fn into_field(self) -> Vec<u8> {
        self.into()
    }
}

impl IntoField<Vec<u8>> for &[u8] {
    fn into_field(self) -> Vec<u8> {
        self.into()
    }
}

impl<T: Clone, const N: usize> IntoField<Vec<T>> for [T; N] {
    fn into_field(self) -> Vec<T> {
        self.into()
    }
}
