//! Questions and resource records of DNS messages.

use std::{fmt::Write as _, net::IpAddr};

use hickory_proto::{
    rr::{Name, RData, RecordType, rdata::NULL},
    serialize::binary::{BinDecodable as _, BinDecoder, BinEncodable, BinEncoder, Restrict},
};

use super::{
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

fn name_from(value: &Value) -> Result<Name, String> {
    match value {
        Value::Bytes(bytes) => Name::from_bytes(bytes).map_err(|e| e.to_string()),
        other => name(other.text()?),
    }
}

/// Record data in zone file format if that is lossless, else as bytes.
fn data_value(rdata: &RData) -> Value {
    let mut text = String::new();
    // Formatting data without a zone file format, such as that of OPT, fails.
    let written = write!(text, "{rdata}").is_ok();
    match RData::try_from_str(rdata.record_type(), &text) {
        Ok(again) if written && again.to_bytes().ok() == rdata.to_bytes().ok() => Value::Text(text),
        _ => Value::Bytes(rdata.to_bytes().unwrap_or_default()),
    }
}

fn data_from(kind: u16, value: &Value) -> Result<RData, String> {
    match value {
        Value::Text(text) => RData::try_from_str(kind.into(), text)
            .map_err(|e| format!("'{text}' is not data of type {}: {e}", type_name(kind))),
        other => {
            let bytes = other.bytes()?;
            let length = u16::try_from(bytes.len()).map_err(|_| "the record data is too long".to_owned())?;
            let read = RData::read(&mut BinDecoder::new(&bytes), kind.into(), Restrict::new(length));
            let exact = read.ok().filter(|rdata| rdata.to_bytes().is_ok_and(|again| again == bytes));
            Ok(exact.unwrap_or_else(|| RData::Unknown { code: kind.into(), rdata: NULL::with(bytes) }))
        }
    }
}

fn type_value(number: u16) -> Value {
    let text = type_name(number);
    // Some names are not record types.
    match text.parse::<RecordType>() {
        Ok(again) if u16::from(again) == number => Value::Text(text),
        _ => Value::Uint(number.into()),
    }
}

fn type_from(value: &Value) -> Result<u16, String> {
    match value {
        Value::Text(text) => {
            let kind = text.to_ascii_uppercase().parse::<RecordType>();
            kind.map(u16::from).map_err(|_| format!("'{text}' is not a record type; e.g. A, AAAA, MX, TXT or a number"))
        }
        other => Ok(other.uint(0xffff)? as u16),
    }
}

fn class_from(value: &Value) -> Result<u16, String> {
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
        let fields = [
            ("qname", name_value(&self.qname)),
            ("qtype", type_value(self.qtype)),
            ("qclass", Value::Uint(self.qclass.into())),
        ];
        Value::Record("DNSQR".to_owned(), fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let fields = fields(value, "DNSQR", &["qname", "qtype", "qclass"])?;
        let get = |name| field(fields, name);
        Ok(Self {
            qname: get("qname").map_or_else(|| name("www.example.com."), name_from)?,
            qtype: get("qtype").map_or(Ok(1), type_from)?,
            qclass: get("qclass").map_or(Ok(1), class_from)?,
        })
    }
}

impl Element for Record {
    fn to_value(&self) -> Value {
        let fields = [
            ("rrname", name_value(&self.rrname)),
            ("type", type_value(self.rdata.record_type().into())),
            ("rclass", Value::Uint(self.rclass.into())),
            ("ttl", Value::Uint(self.ttl.into())),
            ("rdata", data_value(&self.rdata)),
        ];
        Value::Record("DNSRR".to_owned(), fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let fields = fields(value, "DNSRR", &["rrname", "type", "rclass", "ttl", "rdata"])?;
        let get = |name| field(fields, name);
        let kind = get("type").map_or(Ok(1), type_from)?;
        Ok(Self {
            rrname: get("rrname").map_or_else(|| name("."), name_from)?,
            rclass: get("rclass").map_or(Ok(1), class_from)?,
            ttl: get("ttl").map_or(Ok(0), |ttl| ttl.uint(u32::MAX.into()).map(|ttl| ttl as u32))?,
            rdata: data_from(kind, get("rdata").unwrap_or(&Value::Bytes(Vec::new())))?,
        })
    }
}
