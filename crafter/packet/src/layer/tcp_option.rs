//! TCP options.

use smallvec::SmallVec;

use super::{
    described::{self, Family},
    option::{self, ListOption},
    protocol::be32,
    table::FieldError,
    value::{Element, Value},
};
use crate::view::option::{
    END, FAST_OPEN, MD5, MSS, NOP, SACK, SACK_PERMITTED, TIMESTAMPS, TIMESTAMPS_LENGTH, USER_TIMEOUT, WINDOW_SCALE,
};

/// A TCP option. Unknown kinds, and known kinds with another length, are [`Other`](Self::Other); bytes that are not
/// options are [`Rest`](Self::Rest).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcpOption {
    /// End of the list (kind 0).
    Eol,
    /// Padding (kind 1).
    Nop,
    /// Maximum segment size in bytes (RFC 9293, section 3.7.1; kind 2).
    Mss(u16),
    /// Window scale, as a shift count (RFC 7323; kind 3).
    WScale(u8),
    /// SACK permitted (RFC 2018; kind 4).
    SackOk,
    /// Selective acknowledgment: blocks received out of order, `[left, right)` in sequence space (RFC 2018; kind 5).
    Sack(SmallVec<[(u32, u32); 2]>),
    /// Timestamps: TSval and TSecr (RFC 7323; kind 8).
    Timestamp(u32, u32),
    /// MD5 signature (RFC 2385; kind 19).
    Md5([u8; 16]),
    /// User timeout, granularity bit and value (RFC 5482; kind 28).
    Uto(u16),
    /// Fast Open cookie; empty: a cookie request (RFC 7413; kind 34).
    Tfo(Vec<u8>),
    /// Any other kind: kind and data; the length is computed.
    Other(u8, Vec<u8>),
    /// The remaining bytes where they are not a list of options, or after its end.
    Rest(Vec<u8>),
}

const KINDS: [(u8, &str); 12] = [
    (MSS, "MSS"),
    (WINDOW_SCALE, "WScale"),
    (SACK_PERMITTED, "SAckOK"),
    (SACK, "SAck"),
    (TIMESTAMPS, "Timestamp"),
    (14, "AltChkSum"),
    (15, "AltChkSumOpt"),
    (MD5, "MD5"),
    (25, "Mood"),
    (USER_TIMEOUT, "UTO"),
    (29, "AO"),
    (FAST_OPEN, "TFO"),
];

const NAMES: [&str; 11] = ["EOL", "NOP", "MSS", "WScale", "SAckOK", "SAck", "Timestamp", "MD5", "UTO", "TFO", "Rest"];

#[inline]
fn read(kind: u8, data: &[u8]) -> Option<TcpOption> {
    Some(match (kind, data) {
        (MSS, &[a, b]) => TcpOption::Mss(u16::from_be_bytes([a, b])),
        (WINDOW_SCALE, &[shift]) => TcpOption::WScale(shift),
        (SACK_PERMITTED, []) => TcpOption::SackOk,
        (SACK, blocks) if blocks.len().is_multiple_of(8) => {
            let block = |block: &[u8; 8]| (be32(block).unwrap_or(0), be32(&block[4..]).unwrap_or(0));
            TcpOption::Sack(blocks.as_chunks::<8>().0.iter().map(block).collect())
        }
        (TIMESTAMPS, times) if times.len() == 8 => TcpOption::Timestamp(be32(times)?, be32(&times[4..])?),
        (MD5, signature) => TcpOption::Md5(signature.try_into().ok()?),
        (USER_TIMEOUT, &[a, b]) => TcpOption::Uto(u16::from_be_bytes([a, b])),
        (FAST_OPEN, cookie) => TcpOption::Tfo(cookie.to_vec()),
        _ => return None,
    })
}

impl TcpOption {
    /// Parses the options of a TCP header, padding included. Building them gives the same bytes.
    pub fn parse(bytes: &[u8]) -> Vec<Self> {
        option::parse(bytes)
    }
}

impl ListOption for TcpOption {
    const END: Self = Self::Eol;
    const FILLER: Self = Self::Nop;
    const USUAL: usize = 6;

    #[inline]
    fn read(kind: u8, data: &[u8]) -> Self {
        read(kind, data).unwrap_or_else(|| Self::Other(kind, data.to_vec()))
    }

    fn rest(bytes: &[u8]) -> Self {
        Self::Rest(bytes.to_vec())
    }
}

/// Appends options and pads them to a 32-bit word with end-of-list.
#[inline]
pub(crate) fn write(options: &[TcpOption], out: &mut Vec<u8>) -> Result<(), FieldError> {
    let start = out.len();
    for option in options {
        match option {
            TcpOption::Eol => out.push(END),
            TcpOption::Nop => out.push(NOP),
            TcpOption::Mss(size) => {
                let [a, b] = size.to_be_bytes();
                out.extend_from_slice(&[MSS, 4, a, b]);
            }
            TcpOption::WScale(shift) => out.extend_from_slice(&[WINDOW_SCALE, 3, *shift]),
            TcpOption::SackOk => out.extend_from_slice(&[SACK_PERMITTED, 2]),
            TcpOption::Sack(blocks) => {
                out.extend_from_slice(&[SACK, length(blocks.len().saturating_mul(8))?]);
                for (left, right) in blocks {
                    out.extend_from_slice(&left.to_be_bytes());
                    out.extend_from_slice(&right.to_be_bytes());
                }
            }
            TcpOption::Timestamp(value, echo) => {
                let mut bytes = [TIMESTAMPS, TIMESTAMPS_LENGTH, 0, 0, 0, 0, 0, 0, 0, 0];
                bytes[2..6].copy_from_slice(&value.to_be_bytes());
                bytes[6..].copy_from_slice(&echo.to_be_bytes());
                out.extend_from_slice(&bytes);
            }
            TcpOption::Md5(signature) => {
                out.extend_from_slice(&[MD5, 18]);
                out.extend_from_slice(signature);
            }
            TcpOption::Uto(timeout) => {
                let [a, b] = timeout.to_be_bytes();
                out.extend_from_slice(&[USER_TIMEOUT, 4, a, b]);
            }
            TcpOption::Tfo(cookie) => {
                out.extend_from_slice(&[FAST_OPEN, length(cookie.len())?]);
                out.extend_from_slice(cookie);
            }
            TcpOption::Other(kind, data) => {
                out.extend_from_slice(&[*kind, length(data.len())?]);
                out.extend_from_slice(data);
            }
            TcpOption::Rest(bytes) => out.extend_from_slice(bytes),
        }
    }
    let length = out.len() - start;
    let fill = length.next_multiple_of(4) - length;
    out.extend_from_slice(&[0; 3][..fill]);
    Ok(())
}

fn length(data: usize) -> Result<u8, FieldError> {
    u8::try_from(data + 2).map_err(|_| FieldError { layer: "TCP", field: "options", bits: 40 * 8 })
}

/// The option with these bytes after kind and length. By way of the list, so that reading lists stays inlined.
#[cold]
fn of_bytes(kind: u8, data: &[u8]) -> Result<TcpOption, String> {
    let length = length(data.len()).map_err(|_| "an option has at most 253 bytes".to_owned())?;
    let bytes = [&[kind, length], data].concat();
    TcpOption::parse(&bytes).into_iter().next().ok_or_else(|| "an option needs a kind".to_owned())
}

impl Element for TcpOption {
    fn to_value(&self) -> Value {
        let uint = |number: u32| Value::Uint(number.into());
        let pair = |name: &str, value: Value| Value::Tuple(vec![Value::Text(name.to_owned()), value]);
        match self {
            Self::Eol => pair("EOL", Value::None),
            Self::Nop => pair("NOP", Value::None),
            Self::Mss(size) => pair("MSS", uint((*size).into())),
            Self::WScale(shift) => pair("WScale", uint((*shift).into())),
            Self::SackOk => pair("SAckOK", Value::Bytes(Vec::new())),
            Self::Sack(blocks) => pair(
                "SAck",
                Value::Tuple(blocks.iter().flat_map(|(left, right)| [uint(*left), uint(*right)]).collect()),
            ),
            Self::Timestamp(value, echo) => pair("Timestamp", Value::Tuple(vec![uint(*value), uint(*echo)])),
            Self::Md5(signature) => pair("MD5", Value::Bytes(signature.to_vec())),
            Self::Uto(timeout) => pair("UTO", uint((*timeout).into())),
            Self::Tfo(cookie) => pair("TFO", Value::Bytes(cookie.clone())),
            Self::Other(kind, data) => Value::Tuple(vec![uint((*kind).into()), Value::Bytes(data.clone())]),
            Self::Rest(bytes) => pair("Rest", Value::Bytes(bytes.clone())),
        }
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let values = match value {
            Value::Text(_) => std::slice::from_ref(value),
            Value::Tuple(values) => values.as_slice(),
            other => return Err(other.mismatch("an option such as (\"MSS\", 1460)")),
        };
        let (name, data) = match values {
            [Value::Uint(0)] | [Value::Uint(0), _] => return Ok(Self::Eol),
            [Value::Uint(1)] | [Value::Uint(1), _] => return Ok(Self::Nop),
            [Value::Uint(kind), data] => return Ok(Self::Other(Value::Uint(*kind).uint(0xff)? as u8, data.bytes()?)),
            [Value::Text(name)] => (name.as_str(), &Value::None),
            [Value::Text(name), data] => (name.as_str(), data),
            _ => return Err("an option is a name or kind with its value".to_owned()),
        };
        let numbers = || match data {
            Value::Tuple(values) | Value::List(values) => {
                values.iter().map(|value| value.uint(u32::MAX.into()).map(|number| number as u32)).collect()
            }
            Value::None => Ok(Vec::new()),
            other => Err(other.mismatch("a tuple of numbers")),
        };
        // Scapy's names of options without a variant; as bytes, any option.
        let kind = KINDS.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(kind, _)| *kind);
        match (kind, data) {
            (Some(SACK_PERMITTED), _) => {}
            (Some(kind), Value::Bytes(bytes)) => return of_bytes(kind, bytes),
            (Some(29), value) => {
                let bytes = described::element(value, &[Family::TcpOption], "TCPAOValue(...)")?;
                return Ok(Self::Other(29, bytes));
            }
            (Some(14), Value::Tuple(pair)) if pair.len() == 2 => {
                let mut bytes = vec![pair[0].uint(0xff)? as u8];
                bytes.extend((pair[1].uint(0xffff)? as u16).to_be_bytes());
                return Ok(Self::Other(14, bytes));
            }
            (Some(FAST_OPEN), Value::Tuple(_)) => {
                return Ok(Self::Tfo(numbers()?.iter().flat_map(|number: &u32| number.to_be_bytes()).collect()));
            }
            (Some(kind @ (14 | 15 | 25)), value) => return Ok(Self::Other(kind, value.bytes()?)),
            _ => {}
        }
        let known = NAMES.iter().find(|known| known.eq_ignore_ascii_case(name));
        Ok(match known.copied() {
            Some("EOL") => Self::Eol,
            Some("NOP") => Self::Nop,
            Some("MSS") => Self::Mss(data.uint(0xffff)? as u16),
            Some("WScale") => Self::WScale(data.uint(0xff)? as u8),
            Some("SAckOK") => Self::SackOk,
            Some("SAck") => {
                let numbers = numbers()?;
                let (blocks, rest) = numbers.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err("SAck needs two numbers for each block".to_owned());
                }
                Self::Sack(blocks.iter().map(|[left, right]| (*left, *right)).collect())
            }
            Some("Timestamp") => match numbers()?[..] {
                [value, echo] => Self::Timestamp(value, echo),
                _ => return Err("Timestamp needs two numbers: value and echo".to_owned()),
            },
            Some("MD5") => {
                let bytes = data.bytes()?;
                Self::Md5(bytes.try_into().map_err(|_| "MD5 needs 16 bytes".to_owned())?)
            }
            Some("UTO") => Self::Uto(data.uint(0xffff)? as u16),
            Some("TFO") if *data == Value::None => Self::Tfo(Vec::new()),
            Some("TFO") => Self::Tfo(data.bytes()?),
            Some("Rest") => Self::Rest(data.bytes()?),
            _ => {
                return Err(format!("'{name}' is not a TCP option{}", super::value::nearest(name, NAMES.into_iter())));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::option::parse;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn options_round_trip(bytes in proptest::collection::vec(prop_oneof![0u8..12, any::<u8>()], 0..10)) {
            let mut bytes = bytes;
            bytes.resize(bytes.len() * 4, 1);
            let options = parse(&bytes);
            let mut out = Vec::new();
            write(&options, &mut out).unwrap();
            prop_assert_eq!(&out, &bytes);
            for option in options {
                let value = option.to_value();
                prop_assert_eq!(TcpOption::from_value(&value), Ok(option));
            }
        }
    }

    #[test]
    fn every_option() {
        let options = [
            TcpOption::Mss(1460),
            TcpOption::SackOk,
            TcpOption::Timestamp(1, 2),
            TcpOption::Nop,
            TcpOption::WScale(7),
            TcpOption::Sack([(1, 2), (3, 4)].into_iter().collect()),
            TcpOption::Md5([7; 16]),
            TcpOption::Uto(0x8005),
            TcpOption::Tfo(vec![1, 2, 3, 4]),
            TcpOption::Other(253, vec![9]),
        ];
        let mut out = Vec::new();
        write(&options, &mut out).unwrap();
        assert_eq!(parse::<TcpOption>(&out)[..10], options);
        assert_eq!(out[..12], [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1]);
        let error = TcpOption::from_value(&Value::Text("Timestmp".into())).unwrap_err();
        assert_eq!(error, "'Timestmp' is not a TCP option; did you mean Timestamp?");
    }
}
