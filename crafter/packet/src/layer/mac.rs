//! Ethernet addresses.

use std::{fmt, str::FromStr};

use super::{
    table::BitField,
    value::{FieldInfo, FieldKind, FieldValue, Value, text_fields},
};

/// An Ethernet address (EUI-48).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`: the broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`.
    pub const ZERO: Self = Self([0; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not six pairs of hex digits separated by `:` or `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Ethernet address is needed, such as 02:00:00:00:00:01")]
pub struct ParseMacError;

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or(ParseMacError)?;
            if !(1..=2).contains(&part.len()) || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() { Err(ParseMacError) } else { Ok(Self(bytes)) }
    }
}

impl From<[u8; 6]> for Mac {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl FieldValue for Mac {
    const KIND: FieldKind = FieldKind::Mac;

    fn to_value(&self) -> Value {
        Value::Text(self.to_string())
    }

    fn from_value(value: &Value, _: &FieldInfo) -> Result<Self, String> {
        value.parsed("an Ethernet address such as 02:00:00:00:00:01")
    }
}

impl BitField for Mac {
    #[inline(always)]
    fn put(self, header: &mut [u8], offset: usize, _: usize) -> bool {
        self.0.put(header, offset, 48)
    }

    #[inline(always)]
    fn get(header: &[u8], offset: usize, _: usize) -> Self {
        Self(BitField::get(header, offset, 48))
    }
}

text_fields!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        assert_eq!("02-0a:0:0:0:Ff".parse(), Ok(Mac([2, 10, 0, 0, 0, 255])));
        assert_eq!(Mac([2, 10, 0, 0, 0, 255]).to_string(), "02:0a:00:00:00:ff");
        for text in ["", "1:2:3:4:5", "1:2:3:4:5:6:7", "1:2:3:4:5:+6", "1:2:3:4:5:666", "1:2:3:4:5:g"] {
            assert_eq!(text.parse::<Mac>(), Err(ParseMacError), "{text}");
        }
    }
}
