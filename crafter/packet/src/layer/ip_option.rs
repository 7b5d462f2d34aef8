//! IPv4 options.

use std::net::Ipv4Addr;

use super::{
    described::{self, Family},
    option::{self, ListOption},
    table::FieldError,
    value::{Element, Value},
};

/// An IPv4 option. Unknown kinds, and known kinds with another length, are [`Other`](Self::Other); bytes that are not
/// options are [`Rest`](Self::Rest).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpOption {
    /// End of the list (kind 0).
    Eol,
    /// Padding (kind 1).
    Nop,
    /// Record route (RFC 791; kind 7): offset of the next free entry, counted from 1, and the entries.
    RecordRoute(u8, Vec<Ipv4Addr>),
    /// Loose source and record route (RFC 791; kind 131).
    LooseRoute(u8, Vec<Ipv4Addr>),
    /// Strict source and record route (RFC 791; kind 137).
    StrictRoute(u8, Vec<Ipv4Addr>),
    /// Internet timestamp (RFC 791; kind 68): pointer, overflow and flag, the words recorded.
    Timestamp(u8, u8, Vec<u32>),
    /// Router alert (RFC 2113; kind 148).
    RouterAlert(u16),
    /// Stream identifier (RFC 791; kind 136).
    StreamId(u16),
    /// Maximum datagram size probed (RFC 1063; kind 11).
    MtuProbe(u16),
    /// Maximum datagram size replied (RFC 1063; kind 12).
    MtuReply(u16),
    /// Traceroute (RFC 1393; kind 82): identifier, outbound and return hop count, originator.
    Traceroute(u16, u16, u16, Ipv4Addr),
    /// Security (RFC 1108; kind 130) and any other kind: kind and data; the length is computed.
    Other(u8, Vec<u8>),
    /// The remaining bytes where they are not a list of options, or after its end.
    Rest(Vec<u8>),
}

const ROUTES: [(u8, &str); 3] = [(7, "RR"), (131, "LSRR"), (137, "SSRR")];
const NUMBERS: [(u8, &str); 4] = [(148, "Router_Alert"), (136, "Stream_Id"), (11, "MTU_Probe"), (12, "MTU_Reply")];

fn read(kind: u8, data: &[u8]) -> Option<IpOption> {
    let addresses = |bytes: &[u8]| -> Option<Vec<Ipv4Addr>> {
        let (words, rest) = bytes.as_chunks::<4>();
        rest.is_empty().then(|| words.iter().map(|word| Ipv4Addr::from(*word)).collect())
    };
    let number = || data.try_into().ok().map(u16::from_be_bytes);
    Some(match (kind, data) {
        (7, [pointer, route @ ..]) => IpOption::RecordRoute(*pointer, addresses(route)?),
        (131, [pointer, route @ ..]) => IpOption::LooseRoute(*pointer, addresses(route)?),
        (137, [pointer, route @ ..]) => IpOption::StrictRoute(*pointer, addresses(route)?),
        (68, [pointer, flags, words @ ..]) => {
            let (words, rest) = words.as_chunks::<4>();
            rest.is_empty().then_some(())?;
            IpOption::Timestamp(*pointer, *flags, words.iter().map(|word| u32::from_be_bytes(*word)).collect())
        }
        (148, _) => IpOption::RouterAlert(number()?),
        (136, _) => IpOption::StreamId(number()?),
        (11, _) => IpOption::MtuProbe(number()?),
        (12, _) => IpOption::MtuReply(number()?),
        (82, &[a, b, c, d, e, f, g, h, i, j]) => {
            let word = |a, b| u16::from_be_bytes([a, b]);
            IpOption::Traceroute(word(a, b), word(c, d), word(e, f), Ipv4Addr::new(g, h, i, j))
        }
        _ => return None,
    })
}

impl ListOption for IpOption {
    const END: Self = Self::Eol;
    const FILLER: Self = Self::Nop;
    const USUAL: usize = 4;

    #[inline]
    fn read(kind: u8, data: &[u8]) -> Self {
        read(kind, data).unwrap_or_else(|| Self::Other(kind, data.to_vec()))
    }

    fn rest(bytes: &[u8]) -> Self {
        Self::Rest(bytes.to_vec())
    }
}

/// Appends options and pads them to a 32-bit word with end-of-list.
pub(crate) fn write(options: &[IpOption], out: &mut Vec<u8>) -> Result<(), FieldError> {
    let start = out.len();
    for option in options {
        let at = out.len();
        match option {
            IpOption::Eol => out.push(0),
            IpOption::Nop => out.push(1),
            IpOption::Rest(bytes) => out.extend_from_slice(bytes),
            IpOption::RecordRoute(pointer, route)
            | IpOption::LooseRoute(pointer, route)
            | IpOption::StrictRoute(pointer, route) => {
                let kind = match option {
                    IpOption::RecordRoute(..) => 7,
                    IpOption::LooseRoute(..) => 131,
                    _ => 137,
                };
                out.extend([kind, 0, *pointer]);
                out.extend(route.iter().flat_map(Ipv4Addr::octets));
            }
            IpOption::Timestamp(pointer, flags, words) => {
                out.extend([68, 0, *pointer, *flags]);
                out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
            }
            IpOption::RouterAlert(value)
            | IpOption::StreamId(value)
            | IpOption::MtuProbe(value)
            | IpOption::MtuReply(value) => {
                let kind = match option {
                    IpOption::RouterAlert(_) => 148,
                    IpOption::StreamId(_) => 136,
                    IpOption::MtuProbe(_) => 11,
                    _ => 12,
                };
                out.extend([kind, 0]);
                out.extend(value.to_be_bytes());
            }
            IpOption::Traceroute(id, outbound, back, originator) => {
                out.extend([82, 0]);
                out.extend([*id, *outbound, *back].iter().flat_map(|word| word.to_be_bytes()));
                out.extend(originator.octets());
            }
            IpOption::Other(kind, data) => {
                out.extend([*kind, 0]);
                out.extend_from_slice(data);
            }
        }
        if !matches!(option, IpOption::Eol | IpOption::Nop | IpOption::Rest(_)) {
            out[at + 1] = u8::try_from(out.len() - at).map_err(|_| TOO_LONG)?;
        }
    }
    let length = out.len() - start;
    out.resize(start + length.next_multiple_of(4), 0);
    Ok(())
}

const TOO_LONG: FieldError = FieldError { layer: "IP", field: "options", bits: 40 * 8 };

impl Element for IpOption {
    fn to_value(&self) -> Value {
        let named = |name: &str, mut values: Vec<Value>| {
            values.insert(0, Value::Text(name.to_owned()));
            Value::Tuple(values)
        };
        let uint = |number: u32| Value::Uint(number.into());
        let route = |name: &str, pointer: u8, route: &[Ipv4Addr]| {
            let route = route.iter().map(|address| Value::Text(address.to_string())).collect();
            named(name, vec![Value::Uint(pointer.into()), Value::List(route)])
        };
        match self {
            Self::Eol => named("EOL", vec![Value::None]),
            Self::Nop => named("NOP", vec![Value::None]),
            Self::RecordRoute(pointer, addresses) => route("RR", *pointer, addresses),
            Self::LooseRoute(pointer, addresses) => route("LSRR", *pointer, addresses),
            Self::StrictRoute(pointer, addresses) => route("SSRR", *pointer, addresses),
            Self::Timestamp(pointer, flags, words) => {
                let words = words.iter().map(|word| uint(*word)).collect();
                named("Timestamp", vec![uint((*pointer).into()), uint((*flags).into()), Value::List(words)])
            }
            Self::RouterAlert(value) => named("Router_Alert", vec![uint((*value).into())]),
            Self::StreamId(value) => named("Stream_Id", vec![uint((*value).into())]),
            Self::MtuProbe(value) => named("MTU_Probe", vec![uint((*value).into())]),
            Self::MtuReply(value) => named("MTU_Reply", vec![uint((*value).into())]),
            Self::Traceroute(id, outbound, back, originator) => {
                let mut values: Vec<Value> = [*id, *outbound, *back].map(|value| uint(value.into())).into();
                values.push(Value::Text(originator.to_string()));
                named("Traceroute", values)
            }
            Self::Other(kind, data) => Value::Tuple(vec![uint((*kind).into()), Value::Bytes(data.clone())]),
            Self::Rest(bytes) => named("Rest", vec![Value::Bytes(bytes.clone())]),
        }
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let values = match value {
            Value::Text(_) => std::slice::from_ref(value),
            Value::Tuple(values) => values.as_slice(),
            record @ Value::Record(..) => {
                let wanted = "an option such as IPOption_Router_Alert(alert=0)";
                let bytes = described::element(record, &[Family::IpOption], wanted)?;
                return Ok(match <[Self; 1]>::try_from(option::parse::<Self>(&bytes)) {
                    Ok([option]) => option,
                    Err(_) => Self::Rest(bytes),
                });
            }
            other => return Err(other.mismatch("an option such as (\"Router_Alert\", 0)")),
        };
        let byte = |value: &Value| value.uint(0xff).map(|number| number as u8);
        let word = |value: &Value| value.uint(0xffff).map(|number| number as u16);
        let (name, data) = match values {
            [Value::Uint(kind), data] if *kind > 1 => {
                return Ok(Self::Other(byte(&Value::Uint(*kind))?, data.bytes()?));
            }
            [Value::Text(name), data @ ..] => (name.as_str(), data),
            _ => return Err("an option is a name with its value, or a kind from 2 to 255 with bytes".to_owned()),
        };
        let route = |pointer: &Value, route: &Value| -> Result<(u8, Vec<Ipv4Addr>), String> {
            Ok((byte(pointer)?, route.list()?.iter().map(Element::from_value).collect::<Result<_, _>>()?))
        };
        Ok(match (name, data) {
            ("EOL", [] | [Value::None]) => Self::Eol,
            ("NOP", [] | [Value::None]) => Self::Nop,
            ("RR", [pointer, addresses]) => route(pointer, addresses).map(|(p, a)| Self::RecordRoute(p, a))?,
            ("LSRR", [pointer, addresses]) => route(pointer, addresses).map(|(p, a)| Self::LooseRoute(p, a))?,
            ("SSRR", [pointer, addresses]) => route(pointer, addresses).map(|(p, a)| Self::StrictRoute(p, a))?,
            ("Timestamp", [pointer, flags, words]) => {
                let words = words.list()?.iter().map(|word| word.uint(u32::MAX.into()).map(|word| word as u32));
                Self::Timestamp(byte(pointer)?, byte(flags)?, words.collect::<Result<_, _>>()?)
            }
            ("Router_Alert", [value]) => Self::RouterAlert(word(value)?),
            ("Stream_Id", [value]) => Self::StreamId(word(value)?),
            ("MTU_Probe", [value]) => Self::MtuProbe(word(value)?),
            ("MTU_Reply", [value]) => Self::MtuReply(word(value)?),
            ("Traceroute", [id, outbound, back, originator]) => {
                Self::Traceroute(word(id)?, word(outbound)?, word(back)?, originator.parsed("an IPv4 address")?)
            }
            ("Rest", [bytes]) => Self::Rest(bytes.bytes()?),
            _ => {
                let known = ROUTES.iter().chain(&NUMBERS).map(|(_, name)| *name);
                let known = known.chain(["EOL", "NOP", "Timestamp", "Traceroute", "Rest"]);
                return Err(format!("{value} is not an IP option{}", super::value::nearest(name, known)));
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
        fn options_round_trip(bytes in proptest::collection::vec(prop_oneof![0u8..12, 66u8..84, 128u8..150, any::<u8>()], 0..10)) {
            let mut bytes = bytes;
            bytes.resize(bytes.len().next_multiple_of(4), 1);
            let options = parse(&bytes);
            let mut out = Vec::new();
            write(&options, &mut out).unwrap();
            prop_assert_eq!(&out, &bytes);
            for option in options {
                let value = option.to_value();
                prop_assert_eq!(IpOption::from_value(&value), Ok(option));
            }
        }
    }

    #[test]
    fn bytes() {
        let options = [IpOption::RouterAlert(0), IpOption::RecordRoute(4, vec![Ipv4Addr::new(192, 0, 2, 1)])];
        let mut out = Vec::new();
        write(&options, &mut out).unwrap();
        assert_eq!(out, [148, 4, 0, 0, 7, 7, 4, 192, 0, 2, 1, 0]);
    }
}
