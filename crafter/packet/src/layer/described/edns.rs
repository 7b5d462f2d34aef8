//! Options of EDNS, and parameters of service bindings.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Described, Description, Entry, Family, Form, encode,
    field::{bytes, d, field, fixed, header_length, laid_out, mac, uint, variable},
};
use crate::layer::{Value, value::FieldInfo};

macro_rules! option {
    ($name:literal, $source:literal, $doc:literal, $number:literal, $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::EdnsOption, &const {
            laid_out([uint("optcode", 16, d!($number), "Code"), LENGTH, $($field),*])
        })
    };
}

const LENGTH: FieldInfo = header_length("optlen", 16, 1, -4, "Length of the data in bytes");

/// Names of the keys of service parameters (RFC 9460, section 14.3.2).
const KEYS: &[(u64, &str)] = &[
    (0, "mandatory"),
    (1, "alpn"),
    (2, "no-default-alpn"),
    (3, "port"),
    (4, "ipv4hint"),
    (5, "ech"),
    (6, "ipv6hint"),
    (7, "dohpath"),
    (8, "ohttp"),
];

/// Names of the options.
const CODES: &[(u64, &str)] = &[
    (0, "Reserved"),
    (1, "LLQ"),
    (2, "UL"),
    (3, "NSID"),
    (4, "Owner"),
    (5, "DAU"),
    (6, "DHU"),
    (7, "N3U"),
    (8, "edns-client-subnet"),
    (10, "COOKIE"),
    (12, "Padding"),
    (15, "Extended DNS Error"),
];

/// Names of extended errors (RFC 8914, section 4).
const ERRORS: &[(u64, &str)] = &[
    (0, "Other"),
    (1, "Unsupported DNSKEY Algorithm"),
    (2, "Unsupported DS Digest Type"),
    (3, "Stale Answer"),
    (4, "Forged Answer"),
    (5, "DNSSEC Indeterminate"),
    (6, "DNSSEC Bogus"),
    (7, "Signature Expired"),
    (8, "Signature Not Yet Valid"),
    (9, "DNSKEY Missing"),
    (10, "RRSIGs Missing"),
    (11, "No Zone Key Bit Set"),
    (12, "NSEC Missing"),
    (13, "Cached Error"),
    (14, "Not Ready"),
    (15, "Blocked"),
    (16, "Censored"),
    (17, "Filtered"),
    (18, "Prohibited"),
    (19, "Stale NXDOMAIN Answer"),
    (20, "Not Authoritative"),
    (21, "Not Supported"),
    (22, "No Reachable Authority"),
    (23, "Network Error"),
    (24, "Invalid Data"),
];

/// Names of the algorithms of DNSSEC keys.
const ALGORITHMS: &[(u64, &str)] = &[
    (1, "RSA/MD5"),
    (2, "Diffie-Hellman"),
    (3, "DSA/SHA-1"),
    (5, "RSA/SHA-1"),
    (6, "DSA-NSEC3-SHA1"),
    (7, "RSASHA1-NSEC3-SHA1"),
    (8, "RSA/SHA-256"),
    (10, "RSA/SHA-512"),
    (12, "GOST R 34.10-2001"),
    (13, "ECDSA Curve P-256 with SHA-256"),
    (14, "ECDSA Curve P-384 with SHA-384"),
    (15, "Ed25519"),
    (16, "Ed448"),
];

/// Names of the digests of DNSSEC keys.
const DIGESTS: &[(u64, &str)] = &[(1, "SHA-1"), (2, "SHA-256"), (3, "GOST R 34.11-94"), (4, "SHA-384")];

macro_rules! algorithms {
    ($name:literal, $doc:literal, $number:literal, $names:expr) => {
        option!(
            $name,
            "RFC 6975, section 3",
            $doc,
            $number,
            super::field::named(variable("alg_code", Form::Numbers8, "The algorithms"), $names),
        )
    };
}

pub(super) const TABLE: &[Description] = &[
    Description::new(
        "EDNS0TLV",
        "RFC 6891, section 6.1.2",
        "EDNS option of any type",
        Family::EdnsOption,
        &const {
            laid_out([
                super::field::named(uint("optcode", 16, d!(0), "Code"), CODES),
                LENGTH,
                bytes("optdata", d!(""), "The data"),
            ])
        },
    ),
    option!(
        "EDNS0OWN",
        "draft-cheshire-edns0-owner-option-01",
        "EDNS option: owner",
        4,
        uint("v", 8, d!(0), "Version"),
        uint("s", 8, d!(0), "Sequence number"),
        mac("primary_mac", "Address"),
        bytes("rest", d!(""), "Address to wake up, and password"),
    ),
    algorithms!("EDNS0DAU", "EDNS option: algorithms understood", 5, ALGORITHMS),
    algorithms!("EDNS0DHU", "EDNS option: digests understood", 6, DIGESTS),
    algorithms!("EDNS0N3U", "EDNS option: NSEC3 hashes understood", 7, &[(1, "SHA-1")]),
    option!(
        "EDNS0ClientSubnet",
        "RFC 7871, section 6",
        "EDNS option: network of the client",
        8,
        field("family", Form::AddressFamily("address"), 16, None, "1: IPv4, 2: IPv6"),
        field("source_plen", Form::BitLength("address"), 8, None, "Length of the prefix in bits"),
        uint("scope_plen", 8, d!(0), "Length of the prefix of the answer"),
        field("address", Form::Network("source_plen"), 0, Some(d!("192.168.0.0")), "The prefix"),
    ),
    option!(
        "EDNS0COOKIE",
        "RFC 7873, section 4",
        "EDNS option: cookies",
        10,
        fixed("client_cookie", 8, d!(""), "Of the client"),
        bytes("server_cookie", d!(""), "Of the server"),
    ),
    option!("EDNS0PADDING", "RFC 7830, section 3", "EDNS option: padding", 12, bytes("padding", d!(""), "The bytes")),
    option!(
        "EDNS0ExtendedDNSError",
        "RFC 8914, section 2",
        "EDNS option: extended error",
        15,
        super::field::named(uint("info_code", 16, d!(0), "Which error"), ERRORS),
        bytes("extra_text", d!(""), "Text"),
    ),
    Description::new(
        "SvcParam",
        "RFC 9460, section 2.2",
        "Parameter of a service binding",
        Family::SvcParam,
        &const {
            laid_out([
                super::field::named(uint("key", 16, d!(0), "Key"), KEYS),
                header_length("len", 16, 1, -4, "Length of the value in bytes"),
                field("value", Form::ParamValue, 0, Some(|| Value::Bytes(Vec::new())), "The value, by the key"),
            ])
        },
    ),
];

/// The entry for an option that begins with these bytes.
pub(super) fn entry(bytes: &[u8]) -> Option<Entry> {
    let code = super::super::protocol::be16(bytes)?;
    let known = (code > 0).then(|| Entry::numbered(Family::EdnsOption, "optcode", code.into())).flatten();
    // What its own entry cannot read, any option can.
    known.filter(|entry| Described::decode(*entry, bytes).is_some()).or_else(|| Entry::named("EDNS0TLV"))
}

/// Writes the value of a service parameter by its key (RFC 9460, section 7).
pub(super) fn write_parameter(layer: &Described, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    let one = std::slice::from_ref(value);
    let values: &[Value] = match value {
        Value::List(values) => values,
        Value::Bytes(bytes) if bytes.is_empty() => &[],
        _ => one,
    };
    let key = layer.number("key").unwrap_or(0);
    if values.is_empty() && key == 3 && layer.get("value").is_none() {
        out.extend([0, 0]);
    }
    for value in values {
        match (key, value) {
            (_, Value::Tuple(raw)) => raw.iter().for_each(|bytes| out.extend(encode::bytes(bytes))),
            (0, Value::Text(name)) => {
                let (number, _) = KEYS.iter().find(|(_, known)| known.eq_ignore_ascii_case(name))?;
                out.extend((*number as u16).to_be_bytes());
            }
            (0 | 3, Value::Uint(number)) => out.extend(u16::try_from(*number).ok()?.to_be_bytes()),
            (1 | 2, text) => {
                let text = text.bytes().ok()?;
                out.push(u8::try_from(text.len()).ok()?);
                out.extend(text);
            }
            (4 | 6, Value::Text(_)) => out.extend(encode::octets(value)),
            (_, other) => out.extend(other.bytes().ok()?),
        }
    }
    Some(())
}

/// Reads the value of a service parameter; bytes that are not of the form of its key are a tuple of them.
pub(super) fn read_parameter(layer: &Described, data: &[u8]) -> Value {
    let key = layer.number("key").unwrap_or(usize::MAX);
    let numbers = || data.chunks(2).map(|two| Value::Uint(two.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))));
    let read = match key {
        0 if data.len().is_multiple_of(2) => Value::List(numbers().collect()),
        3 if data.len() == 2 => numbers().next().unwrap_or(Value::None),
        4 if data.len().is_multiple_of(4) => Value::List(
            data.as_chunks::<4>().0.iter().map(|octets| Value::Text(Ipv4Addr::from(*octets).to_string())).collect(),
        ),
        6 if data.len().is_multiple_of(16) => Value::List(
            data.as_chunks::<16>().0.iter().map(|octets| Value::Text(Ipv6Addr::from(*octets).to_string())).collect(),
        ),
        1 | 2 => match strings(data) {
            Some(strings) => Value::List(strings),
            None => Value::Tuple(vec![Value::Bytes(data.to_vec())]),
        },
        0 | 3 | 4 | 6 => Value::Tuple(vec![Value::Bytes(data.to_vec())]),
        _ => Value::Bytes(data.to_vec()),
    };
    if data.is_empty() { Value::Bytes(Vec::new()) } else { read }
}

fn strings(mut data: &[u8]) -> Option<Vec<Value>> {
    let mut strings = Vec::new();
    while let Some((length, rest)) = data.split_first() {
        let (text, rest) = rest.split_at_checked(usize::from(*length))?;
        strings.push(Value::Bytes(text.to_vec()));
        data = rest;
    }
    Some(strings)
}
