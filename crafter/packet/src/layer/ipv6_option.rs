//! Options of the IPv6 hop-by-hop and destination options headers.

use std::net::Ipv6Addr;

use super::{
    described::{self, Family, gap, pad},
    protocol::{be16, be32},
    table::FieldError,
    value::{Element, Value},
};

/// An option. Unknown types, and known types with another length, are [`Other`](Self::Other); bytes that are not
/// options are [`Rest`](Self::Rest).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ipv6Option {
    /// One byte of padding (RFC 8200, section 4.2; type 0).
    Pad1,
    /// Padding of several bytes: its data (RFC 8200, section 4.2; type 1).
    PadN(Vec<u8>),
    /// Router alert (RFC 2711; type 5).
    RouterAlert(u16),
    /// Length of a jumbogram (RFC 2675; type 0xc2).
    Jumbo(u32),
    /// Home address (RFC 6275; type 0xc9).
    HomeAddress(Ipv6Addr),
    /// Any other type: type and data; the length is computed.
    Other(u8, Vec<u8>),
    /// The remaining bytes where they are not a list of options.
    Rest(Vec<u8>),
}

fn read(kind: u8, data: &[u8]) -> Option<Ipv6Option> {
    Some(match (kind, data.len()) {
        (1, _) => Ipv6Option::PadN(data.to_vec()),
        (5, 2) => Ipv6Option::RouterAlert(be16(data)?),
        (0xc2, 4) => Ipv6Option::Jumbo(be32(data)?),
        (0xc9, _) => Ipv6Option::HomeAddress(<[u8; 16]>::try_from(data).ok()?.into()),
        _ => return None,
    })
}

/// Parses option bytes. Building the options gives the same bytes.
pub(crate) fn parse(mut bytes: &[u8]) -> Vec<Ipv6Option> {
    let mut options = Vec::with_capacity(2);
    loop {
        match bytes {
            [] => return options,
            [0, rest @ ..] => {
                options.push(Ipv6Option::Pad1);
                bytes = rest;
            }
            [kind, length, rest @ ..] if usize::from(*length) <= rest.len() => {
                let (data, rest) = rest.split_at(usize::from(*length));
                options.push(read(*kind, data).unwrap_or_else(|| Ipv6Option::Other(*kind, data.to_vec())));
                bytes = rest;
            }
            rest => {
                options.push(Ipv6Option::Rest(rest.to_vec()));
                return options;
            }
        }
    }
}

/// Where an option begins (RFC 8200, section 4.2): a multiple of the first number, plus the second.
fn alignment(option: &Ipv6Option) -> (u8, u8) {
    match option {
        Ipv6Option::RouterAlert(_) | Ipv6Option::Other(99, _) => (2, 0),
        Ipv6Option::Jumbo(_) => (4, 2),
        Ipv6Option::HomeAddress(_) => (8, 6),
        _ => (0, 0),
    }
}

/// Appends the options of the header that began at `start`; if `is_padded`, aligns them and pads the header to a
/// multiple of 8 bytes.
pub(crate) fn write(
    options: &[Ipv6Option],
    is_padded: bool,
    start: usize,
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    for option in options {
        if is_padded {
            pad(gap(out.len() - start, alignment(option)), 1, out);
        }
        let at = out.len();
        match option {
            Ipv6Option::Pad1 => out.push(0),
            Ipv6Option::Rest(bytes) => out.extend_from_slice(bytes),
            Ipv6Option::RouterAlert(value) => {
                out.extend([5, 2]);
                out.extend(value.to_be_bytes());
            }
            Ipv6Option::Jumbo(length) => {
                out.extend([0xc2, 4]);
                out.extend(length.to_be_bytes());
            }
            Ipv6Option::HomeAddress(address) => {
                out.extend([0xc9, 16]);
                out.extend(address.octets());
            }
            Ipv6Option::PadN(data) | Ipv6Option::Other(_, data) => {
                let kind = if let Ipv6Option::Other(kind, _) = option { *kind } else { 1 };
                out.extend([kind, 0]);
                out.extend_from_slice(data);
                out[at + 1] = u8::try_from(data.len()).map_err(|_| FieldError {
                    layer: "IPv6 extension header",
                    field: "options",
                    bits: 255 * 8,
                })?;
            }
        }
    }
    if is_padded {
        let length = out.len() - start;
        pad(length.next_multiple_of(8) - length, 1, out);
    }
    Ok(())
}

const NAMES: [&str; 6] = ["Pad1", "PadN", "RouterAlert", "Jumbo", "HAO", "Rest"];

impl Element for Ipv6Option {
    fn to_value(&self) -> Value {
        let pair = |name: &str, value| Value::Tuple(vec![Value::Text(name.to_owned()), value]);
        match self {
            Self::Pad1 => pair("Pad1", Value::None),
            Self::PadN(data) => pair("PadN", Value::Bytes(data.clone())),
            Self::RouterAlert(value) => pair("RouterAlert", Value::Uint((*value).into())),
            Self::Jumbo(length) => pair("Jumbo", Value::Uint((*length).into())),
            Self::HomeAddress(address) => pair("HAO", Value::Text(address.to_string())),
            Self::Other(kind, data) => Value::Tuple(vec![Value::Uint((*kind).into()), Value::Bytes(data.clone())]),
            Self::Rest(bytes) => pair("Rest", Value::Bytes(bytes.clone())),
        }
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let (name, data) = match value {
            Value::Text(name) => (name, &Value::None),
            Value::Tuple(values) => match &values[..] {
                [Value::Text(name), data] => (name, data),
                [Value::Uint(kind), data] if *kind > 0 => {
                    return Ok(Self::Other(Value::Uint(*kind).uint(0xff)? as u8, data.bytes()?));
                }
                _ => return Err("an option is a name with its value, or a type from 1 to 255 with bytes".to_owned()),
            },
            record @ Value::Record(..) => {
                let wanted = "an option such as RouterAlert(value=0)";
                let bytes = described::element(record, &[Family::Ipv6Option], wanted)?;
                return Ok(match <[Self; 1]>::try_from(parse(&bytes)) {
                    Ok([option]) => option,
                    Err(_) => Self::Rest(bytes),
                });
            }
            other => return Err(other.mismatch("an option such as (\"RouterAlert\", 0)")),
        };
        Ok(match name.as_str() {
            "Pad1" => Self::Pad1,
            "PadN" => Self::PadN(data.bytes()?),
            "RouterAlert" => Self::RouterAlert(data.uint(0xffff)? as u16),
            "Jumbo" => Self::Jumbo(data.uint(u32::MAX.into())? as u32),
            "HAO" => Self::HomeAddress(data.parsed("an IPv6 address")?),
            "Rest" => Self::Rest(data.bytes()?),
            _ => {
                let near = super::value::nearest(name, NAMES.into_iter());
                return Err(format!("'{name}' is not an IPv6 option{near}"));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn options_round_trip(bytes in proptest::collection::vec(prop_oneof![0u8..7, any::<u8>(), Just(0xc2), Just(0xc9)], 0..40)) {
            let mut bytes = bytes;
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let options = parse(&bytes);
            let mut out = Vec::new();
            write(&options, false, 0, &mut out).unwrap();
            prop_assert_eq!(&out, &bytes);
            for option in options {
                let value = option.to_value();
                prop_assert_eq!(Ipv6Option::from_value(&value), Ok(option));
            }
        }
    }
}
