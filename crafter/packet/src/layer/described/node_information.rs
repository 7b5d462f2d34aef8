//! Node information queries and replies (RFC 4620).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Description, Family, Form, encode,
    field::{checksum, d, field, fixed, laid_out, uint, zero},
};
use crate::{
    layer::{Value, value::FieldInfo},
    view::ip::ICMPV6,
};

const FLAGS: &str = "TACLSG";

/// The fields of a message; the first number is the type.
const fn fields(
    number: fn() -> Value,
    code: FieldInfo,
    qtype: fn() -> Value,
    flags: fn() -> Value,
    data: FieldInfo,
) -> [FieldInfo; 8] {
    laid_out([
        uint("type", 8, number, "Type"),
        code,
        checksum(ICMPV6),
        uint("qtype", 16, qtype, "Type of the requested information"),
        zero("unused", 10),
        field(
            "flags",
            Form::Flags(FLAGS),
            6,
            Some(flags),
            "Truncated, all, compatible, link-local, site-local, global",
        ),
        fixed("nonce", 8, d!(""), "Nonce"),
        data,
    ])
}

macro_rules! query {
    ($name:literal, $doc:literal, $qtype:literal, $flags:literal) => {
        Description::new(
            $name,
            "RFC 4620, section 4",
            $doc,
            Family::Icmpv6,
            &const {
                let code = field("code", Form::QueryCode, 8, None, "What the data is: address, name, IPv4 address");
                let data = field("data", Form::Query, 0, Some(|| Value::Bytes(vec![0; 3])), "The subject");
                fields(d!(139), code, d!($qtype), d!($flags), data)
            },
        )
    };
}

macro_rules! reply {
    ($name:literal, $doc:literal, $code:literal, $qtype:literal) => {
        Description::new(
            $name,
            "RFC 4620, section 4",
            $doc,
            Family::Icmpv6,
            &const {
                let code = uint("code", 8, d!($code), "Code");
                let data =
                    field("data", Form::Reply, 0, Some(|| Value::Bytes(Vec::new())), "Names, or addresses with TTLs");
                fields(d!(140), code, d!($qtype), d!(0), data)
            },
        )
    };
}

pub(super) const TABLE: &[Description] = &[
    query!("ICMPv6NIQueryNOOP", "Node information: no operation", 0, 0),
    query!("ICMPv6NIQueryName", "Node information: query of the name", 2, 0),
    query!("ICMPv6NIQueryIPv6", "Node information: query of IPv6 addresses", 3, 0x3e),
    query!("ICMPv6NIQueryIPv4", "Node information: query of IPv4 addresses", 4, 0),
    reply!("ICMPv6NIReplyNOOP", "Node information: reply to no operation", 0, 0),
    reply!("ICMPv6NIReplyName", "Node information: names", 0, 2),
    reply!("ICMPv6NIReplyIPv6", "Node information: IPv6 addresses", 0, 3),
    reply!("ICMPv6NIReplyIPv4", "Node information: IPv4 addresses", 0, 4),
    reply!("ICMPv6NIReplyRefuse", "Node information: refused", 1, 0),
    reply!("ICMPv6NIReplyUnknown", "Node information: unknown type", 2, 0),
];

/// A query's code for its data: address, name, IPv4 address.
pub(super) fn query_code(data: Option<&Value>) -> u64 {
    match data {
        Some(Value::Text(text)) if text.parse::<Ipv6Addr>().is_ok() => 0,
        Some(Value::Text(text)) if text.parse::<Ipv4Addr>().is_ok() => 2,
        _ => 1,
    }
}

/// A name in the form of DNS; a name of one label ends with a second zero (RFC 4620, section 6.3).
fn name(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let labels: Vec<&[u8]> = text.split(|byte| *byte == b'.').collect();
    for label in &labels {
        out.push(u8::try_from(label.len()).ok()?);
        out.extend_from_slice(label);
    }
    out.push(0);
    if labels.len() == 1 {
        out.push(0);
    }
    Some(())
}

pub(super) fn write_query(value: &Value, out: &mut Vec<u8>) -> Option<()> {
    match value {
        Value::Text(text) => match (text.parse::<Ipv6Addr>(), text.parse::<Ipv4Addr>()) {
            (Ok(address), _) => out.extend(address.octets()),
            (_, Ok(address)) => out.extend(address.octets()),
            _ => name(text.as_bytes(), out)?,
        },
        // Bytes that end with 0 are a name in the form of DNS.
        Value::Bytes(bytes) if bytes.is_empty() || bytes.last() == Some(&0) => out.extend(bytes),
        Value::Bytes(bytes) => name(bytes, out)?,
        _ => {}
    }
    Some(())
}

pub(super) fn read_query(code: usize, data: &[u8]) -> Value {
    match (code, data.len()) {
        (0, 16) => Value::Text(Ipv6Addr::from(<[u8; 16]>::try_from(data).unwrap_or_default()).to_string()),
        (2, 4) => Value::Text(Ipv4Addr::from(<[u8; 4]>::try_from(data).unwrap_or_default()).to_string()),
        _ => Value::Bytes(data.to_vec()),
    }
}

/// Writes the data of a reply: bytes, names with one TTL, or addresses with a TTL each. A tuple with the type of
/// information and the data is that of another type.
pub(super) fn write_reply(qtype: usize, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    let (qtype, value) = match value {
        Value::Tuple(pair) => match &pair[..] {
            [Value::Uint(qtype), data] => (usize::try_from(*qtype).ok()?, data),
            _ => (qtype, value),
        },
        _ => (qtype, value),
    };
    let one = std::slice::from_ref(value);
    let values: &[Value] = match value {
        Value::List(values) => values,
        Value::Bytes(bytes) if bytes.is_empty() => &[],
        _ => one,
    };
    let ttl = |value: &Value| value.uint(u32::MAX.into()).ok().map(|ttl| (ttl as u32).to_be_bytes());
    let (head, values) = match (qtype, values) {
        (2, []) => (None, values),
        (2, [first @ Value::Uint(_), names @ ..]) => (ttl(first), names),
        (2, names) => (Some([0; 4]), names),
        _ => (None, values),
    };
    out.extend(head.into_iter().flatten());
    for value in values {
        match (qtype, value) {
            // Whatever the type: malformed is legal.
            (_, Value::Tuple(pair)) => {
                let [seconds, address] = &pair[..] else { return None };
                out.extend(ttl(seconds)?);
                out.extend(encode::octets(address));
            }
            (2, text) => {
                let text = text.bytes().ok()?;
                if text.last() == Some(&0) {
                    out.extend(text);
                } else {
                    name(&text, out)?;
                }
            }
            (3 | 4, Value::Text(text)) => {
                text.parse::<std::net::IpAddr>().ok()?;
                out.extend([0; 4]);
                out.extend(encode::octets(value));
            }
            (_, other) => out.extend(other.bytes().ok()?),
        }
    }
    Some(())
}

pub(super) fn read_reply(code: usize, qtype: usize, data: &[u8]) -> Value {
    let size = match (code, qtype) {
        (0, 3) => 16,
        (0, 4) => 4,
        _ => 0,
    };
    if size == 0 || data.is_empty() || !data.len().is_multiple_of(4 + size) {
        // As data of no type, the bytes are kept as they are.
        let bytes = Value::Bytes(data.to_vec());
        return if data.is_empty() || matches!(qtype, 0) { bytes } else { Value::Tuple(vec![Value::Uint(0), bytes]) };
    }
    let entry = |chunk: &[u8]| {
        let seconds = chunk[..4].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let address = match size {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(&chunk[4..]).unwrap_or_default()).to_string(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(&chunk[4..]).unwrap_or_default()).to_string(),
        };
        Value::Tuple(vec![Value::Uint(seconds), Value::Text(address)])
    };
    Value::List(data.chunks(4 + size).map(entry).collect())
}
