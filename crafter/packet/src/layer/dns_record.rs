//! Questions and resource records of DNS messages.

use std::{fmt::Write as _, net::IpAddr};

use hickory_proto::{
    rr::{Name, RData, RecordType, rdata::NULL},
    serialize::binary::{BinDecodable as _, BinDecoder, BinEncodable, BinEncoder, Restrict},
};

use super::{
    described::{self, Family},
    value::nearest,
    value::{Element, Value},
};

/// A question (RFC 1035, section 4.1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The requested name.
    pub qname: Name,
    /// The requested type.
    pub qtype: u16,
    /// The class, 1 for the internet.
    pub qclass: u16,
}

/// A resource record (RFC 1035, section 4.1.3); also the OPT record of EDNS (RFC 6891), whose class is the sender's UDP
/// payload size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name of the record.
    pub rrname: Name,
    /// The class, 1 for the internet.
    pub rclass: u16,
    /// Time to live, in seconds.
    pub ttl: u32,
    /// Type and data.
    pub rdata: RData,
}

fn name(text: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(text).map_err(|e| format!("'{text}' is not a name: {e}"))?;
    name.set_fqdn(true);
    Ok(name)
}

/// A type's mnemonic, or `TYPE65534` (RFC 3597, section 5).
pub(crate) fn type_name(number: u16) -> String {
    match RecordType::from(number) {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

impl Question {
    /// A question of class Internet.
    ///
    /// # Errors
    /// Why the name is invalid.
    pub fn new(qname: &str, qtype: u16) -> Result<Self, String> {
        Ok(Self { qname: name(qname)?, qtype, qclass: 1 })
    }

    /// The name in text form.
    pub fn name(&self) -> String {
        self.qname.to_ascii()
    }

    pub(crate) fn read(decoder: &mut BinDecoder<'_>) -> Option<Self> {
        let qname = Name::read(decoder).ok()?;
        let mut number = || decoder.read_u16().ok().map(Restrict::unverified);
        Some(Self { qname, qtype: number()?, qclass: number()? })
    }
}

impl BinEncodable for Question {
    fn emit(&self, encoder: &mut BinEncoder<'_>) -> Result<(), hickory_proto::ProtoError> {
        self.qname.emit(encoder)?;
        encoder.emit_u16(self.qtype)?;
        encoder.emit_u16(self.qclass)
    }
}

impl Record {
    /// An A or AAAA record.
    ///
    /// # Errors
    /// Why the name is invalid.
    pub fn address(rrname: &str, ttl: u32, address: IpAddr) -> Result<Self, String> {
        Ok(Self { rrname: name(rrname)?, rclass: 1, ttl, rdata: address.into() })
    }

    pub(crate) fn read(decoder: &mut BinDecoder<'_>) -> Option<Self> {
        let rrname = Name::read(decoder).ok()?;
        let kind = decoder.read_u16().ok()?.unverified();
        let rclass = decoder.read_u16().ok()?.unverified();
        let ttl = decoder.read_u32().ok()?.unverified();
        let length = decoder.read_u16().ok()?;
        if usize::from(length.unverified()) > decoder.len() {
            return None;
        }
        let rdata = RData::read(decoder, kind.into(), length).ok()?;
        // hickory-proto may parse to another type, such as that for empty data, which would be lost.
        (u16::from(rdata.record_type()) == kind).then_some(Self { rrname, rclass, ttl, rdata })
    }
}

impl BinEncodable for Record {
    fn emit(&self, encoder: &mut BinEncoder<'_>) -> Result<(), hickory_proto::ProtoError> {
        self.rrname.emit(encoder)?;
        encoder.emit_u16(self.rdata.record_type().into())?;
        encoder.emit_u16(self.rclass)?;
        encoder.emit_u32(self.ttl)?;
        let place = encoder.place::<u16>()?;
        self.rdata.emit(encoder)?;
        let length = u16::try_from(encoder.len_since_place(&place)).map_err(|_| "the record data is too long")?;
        place.replace(encoder, length)
    }
}

fn name_value(name: &Name) -> Value {
    let text = name.to_ascii();
    match self::name(&text) {
        Ok(again) if again.eq_case(name) => Value::Text(text),
        _ => Value::Bytes(name.to_bytes().unwrap_or_default()),
    }
}

/// Record data as text, or in zone file format, if that is lossless; else as bytes.
fn data_value(rdata: &RData) -> Value {
    let kind = rdata.record_type().into();
    let bytes = rdata.to_bytes().unwrap_or_default();
    let is_same = |value: &Value| data_bytes(kind, value).is_ok_and(|again| again == bytes);
    let raw = || match Value::Bytes(bytes.clone()) {
        value if is_same(&value) => value,
        value => Value::Tuple(vec![value]),
    };
    if kind == TEXT {
        let texts = Value::List(texts(&bytes));
        return match &texts {
            _ if !is_same(&texts) => raw(),
            Value::List(one) if one.len() == 1 => one[0].clone(),
            _ => texts,
        };
    }
    let mut text = String::new();
    // Formatting data without a zone file format, such as that of OPT, fails.
    let written = write!(text, "{rdata}").is_ok();
    match Value::Text(text) {
        text if written && is_same(&text) => text,
        _ => raw(),
    }
}

/// The texts of a record, as far as they are well-formed.
fn texts(mut bytes: &[u8]) -> Vec<Value> {
    let mut texts = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (text, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        texts.push(match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Bytes(text.to_vec()),
        });
        bytes = rest;
    }
    texts
}

fn type_value(number: u16) -> Value {
    let text = type_name(number);
    // Some names are not record types.
    match text.parse::<RecordType>() {
        Ok(again) if u16::from(again) == number => Value::Text(text),
        _ => Value::Uint(number.into()),
    }
}

pub(crate) fn type_from(value: &Value) -> Result<u16, String> {
    match value {
        Value::Text(text) => {
            let kind = text.to_ascii_uppercase().parse::<RecordType>();
            kind.map(u16::from).map_err(|_| format!("'{text}' is not a record type; e.g. A, AAAA, MX, TXT or a number"))
        }
        other => Ok(other.uint(0xffff)? as u16),
    }
}

pub(crate) fn class_from(value: &Value) -> Result<u16, String> {
    match value {
        Value::Text(text) if text.eq_ignore_ascii_case("IN") => Ok(1),
        other => Ok(other.uint(0xffff)? as u16),
    }
}

/// The fields of a record with the name `wanted` and the fields `known`.
pub(crate) fn fields<'a>(value: &'a Value, wanted: &str, known: &[&str]) -> Result<&'a [(String, Value)], String> {
    match value {
        Value::Record(name, fields) if name == wanted => {
            let unknown = fields.iter().find(|(field, _)| !known.contains(&field.as_str()));
            match unknown {
                Some((field, _)) => {
                    Err(format!("{wanted} has no field '{field}'{}", nearest(field, known.iter().copied())))
                }
                None => Ok(fields),
            }
        }
        other => Err(other.mismatch(&format!("{wanted}(...)"))),
    }
}

/// The value of a field of a record, if it is set.
pub(crate) fn field<'a>(fields: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
    fields.iter().find(|(field, value)| field == name && *value != Value::None).map(|(_, value)| value)
}

impl Element for Question {
    fn to_value(&self) -> Value {
        let mut fields = vec![("qname", name_value(&self.qname)), ("qtype", type_value(self.qtype))];
        if self.qclass >> 15 > 0 {
            fields.push(("unicastresponse", Value::Uint(1)));
        }
        fields.push(("qclass", Value::Uint((self.qclass & 0x7fff).into())));
        Value::Record("DNSQR".to_owned(), fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let bytes = described::element(value, &[Family::DnsQuestion], "DNSQR(...)")?;
        let read = Self::read(&mut BinDecoder::new(&bytes));
        read.ok_or_else(|| "the question cannot be part of a message".to_owned())
    }
}

impl Element for Record {
    fn to_value(&self) -> Value {
        let kind = self.rdata.record_type().into();
        let mut fields = vec![("rrname", name_value(&self.rrname)), ("type", type_value(kind))];
        if self.rclass >> 15 > 0 {
            fields.push(("cacheflush", Value::Uint(1)));
        }
        fields.push(("rclass", Value::Uint((self.rclass & 0x7fff).into())));
        fields.push(("ttl", Value::Uint(self.ttl.into())));
        fields.push(("rdata", data_value(&self.rdata)));
        Value::Record("DNSRR".to_owned(), fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let bytes = described::element(value, &[Family::DnsRecord], "DNSRR(...)")?;
        let mut decoder = BinDecoder::new(&bytes);
        let invalid = || "the record cannot be part of a message: its lengths or its name are wrong".to_owned();
        let rrname = Name::read(&mut decoder).map_err(|_| invalid())?;
        let [a, b, c, d, e, f, g, h, i, j, data @ ..] = &bytes[decoder.index()..] else { return Err(invalid()) };
        if usize::from(u16::from_be_bytes([*i, *j])) != data.len() {
            return Err(invalid());
        }
        let kind = u16::from_be_bytes([*a, *b]);
        let (rclass, ttl) = (u16::from_be_bytes([*c, *d]), u32::from_be_bytes([*e, *f, *g, *h]));
        Ok(Self { rrname, rclass, ttl, rdata: exact_data(kind, data) })
    }
}

/// Types whose data is a name.
const NAMES: [u16; 6] = [2, 3, 4, 5, 12, 39];
const TEXT: u16 = 16;

/// The bytes of a record's data: an address, a name, texts, or other data in zone file format, by the type; bytes; a
/// tuple of bytes, which are kept for every type.
pub(crate) fn data_bytes(kind: u16, value: &Value) -> Result<Vec<u8>, String> {
    let texts = |values: &[Value]| {
        let mut out = Vec::new();
        for value in values {
            let bytes = value.bytes()?;
            let mut chunks: Vec<&[u8]> = bytes.chunks(255).collect();
            if chunks.is_empty() {
                chunks.push(&[]);
            }
            for chunk in chunks {
                out.push(chunk.len() as u8);
                out.extend_from_slice(chunk);
            }
        }
        Ok(out)
    };
    match (kind, value) {
        (_, Value::Tuple(parts)) => {
            parts.iter().map(Value::bytes).collect::<Result<Vec<_>, _>>().map(|parts| parts.concat())
        }
        (1, Value::Bytes(none)) if none.is_empty() => Ok(vec![0; 4]),
        (28, Value::Bytes(none)) if none.is_empty() => Ok(vec![0; 16]),
        (TEXT, Value::List(values)) => texts(values),
        (TEXT, one @ (Value::Text(_) | Value::Bytes(_))) => texts(std::slice::from_ref(one)),
        (kind, name @ (Value::Text(_) | Value::Bytes(_))) if NAMES.contains(&kind) => wire_name(name),
        (kind, Value::Text(text)) => RData::try_from_str(kind.into(), text)
            .and_then(|data| data.to_bytes().map_err(Into::into))
            .map_err(|e| format!("'{text}' is not data of type {}: {e}", type_name(kind))),
        (_, other) => other.bytes(),
    }
}

/// The value of a record's data: what gives the same bytes again.
pub(crate) fn bytes_value(kind: u16, data: &[u8]) -> Value {
    data_value(&exact_data(kind, data))
}

/// Data that is encoded to the same bytes again.
fn exact_data(kind: u16, data: &[u8]) -> RData {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    let read = RData::read(&mut BinDecoder::new(data), kind.into(), Restrict::new(length));
    let exact = read
        .ok()
        .filter(|rdata| u16::from(rdata.record_type()) == kind && rdata.to_bytes().is_ok_and(|again| again == data));
    exact.unwrap_or_else(|| RData::Unknown { code: kind.into(), rdata: NULL::with(data.to_vec()) })
}

/// A name in the form of messages. Bytes that end with 0 are in this form already; other bytes are text.
pub(crate) fn wire_name(value: &Value) -> Result<Vec<u8>, String> {
    let text = match value {
        Value::Bytes(bytes) if bytes.last() == Some(&0) => return Ok(bytes.clone()),
        Value::Bytes(bytes) => bytes.as_slice(),
        other => {
            let text = other.text()?;
            if let Ok(bytes) = name(text).and_then(|name| name.to_bytes().map_err(|e| e.to_string())) {
                return Ok(bytes);
            }
            text.as_bytes()
        }
    };
    let mut out = Vec::new();
    for label in text.split(|byte| *byte == b'.').filter(|label| !label.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| *length < 64);
        out.push(length.ok_or("a label of a name has at most 63 bytes")?);
        out.extend_from_slice(label);
    }
    out.push(0);
    Ok(out)
}

/// The value of a name in the form of messages: text if that is lossless.
pub(crate) fn wire_value(wire: &[u8]) -> Value {
    match Name::from_bytes(wire) {
        Ok(name) => match name_value(&name) {
            text @ Value::Text(_) if wire_name(&text).is_ok_and(|again| again == wire) => text,
            _ => Value::Bytes(wire.to_vec()),
        },
        Err(_) => Value::Bytes(wire.to_vec()),
    }
}

/// Length of the name at the start of `bytes`, if it has no pointers.
pub(crate) fn name_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}
