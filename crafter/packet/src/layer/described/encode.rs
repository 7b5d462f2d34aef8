//! Writes described layers.

use std::{net::IpAddr, ops::Range};

use smallvec::SmallVec;

use super::{Described, Entry, Family, Form, Of, dns_rdata, edns, link, node_information};
use crate::layer::{
    Layer as _, Mac, Value,
    build::Building,
    dns_record, ether, ip,
    ipv6::NO_NEXT_HEADER,
    table::{FieldError, put_bits},
    value::FieldInfo,
};

/// Where each field is in the header, in bits.
type Places = SmallVec<[Range<usize>; 24]>;

fn too_large(layer: &Described, field: &FieldInfo) -> FieldError {
    FieldError {
        layer: layer.info().name,
        field: field.name,
        bits: if field.bits > 0 { field.bits } else { 65_535 * 8 },
    }
}

fn uint(value: &Value) -> u64 {
    match value {
        Value::Uint(number) => *number,
        _ => 0,
    }
}

/// Appends the header of a layer: all fields, then the lengths and counts that are unset.
pub(super) fn layer(layer: &Described, out: &mut Vec<u8>) -> Result<(), FieldError> {
    let start = out.len();
    let mut places = Places::new();
    let mut bit = 0;
    for (index, field) in layer.info().fields.iter().enumerate() {
        let set = layer.value(index);
        let value = set.or_else(|| field.default.map(|default| default())).unwrap_or(Value::None);
        let begin = bit;
        let form = match field.form {
            Form::If(name, form) if layer.number(name).unwrap_or(0) != 0 => *form,
            Form::If(..) => Form::Switch,
            form => form,
        };
        match form {
            Form::Switch => {}
            _ if is_number(form) => {
                bit += field.bits;
                out.resize(start + bit.div_ceil(8), 0);
                if !put_bits(uint(&value), &mut out[start..], begin, field.bits) {
                    return Err(too_large(layer, field));
                }
            }
            _ => {
                let before = out.len();
                // Fields of whole bytes begin at a byte.
                variable(layer, form, field.bits / 8, &value, start, out).ok_or_else(|| too_large(layer, field))?;
                bit = (before - start) * 8 + (out.len() - before) * 8;
            }
        }
        places.push(begin..bit);
    }
    compute(layer, &places, start, out)
}

fn is_number(form: Form) -> bool {
    matches!(
        form,
        Form::Uint
            | Form::Flags(_)
            | Form::Length(..)
            | Form::Count(..)
            | Form::BitLength(_)
            | Form::Checksum(_)
            | Form::PayloadLength
            | Form::NextHeader
            | Form::NextEthertype
            | Form::DnsType
            | Form::DnsClass
            | Form::QueryCode
            | Form::NetflowVersion
            | Form::Records
            | Form::AddressFamily(_)
            | Form::Sap
            | Form::Control
    )
}

/// Writes unset lengths and counts.
fn compute(layer: &Described, places: &Places, start: usize, out: &mut [u8]) -> Result<(), FieldError> {
    let fields = layer.info().fields;
    let header = out.len() - start;
    for (index, field) in fields.iter().enumerate() {
        if layer.value(index).is_some() {
            continue;
        }
        let number = match field.form {
            Form::Length(of, unit, add) => {
                let length = match of {
                    Of::Header => header,
                    Of::Behind => header - places[index].end / 8,
                    Of::Field(name) => fields
                        .iter()
                        .position(|field| field.name == name)
                        .map_or(0, |at| (places[at].end - places[at].start) / 8),
                };
                (length / usize::from(unit)).saturating_add_signed(add.into())
            }
            Form::BitLength(name) => {
                fields.iter().position(|field| field.name == name).map_or(0, |at| places[at].end - places[at].start)
            }
            Form::Count(name, add) => match layer.get_or_default(name) {
                Some(Value::List(values)) => values.len().saturating_add_signed(add.into()),
                _ => 0,
            },
            Form::AddressFamily(name) => match layer.get(name) {
                Some(Value::Text(address)) if address.contains(':') => 2,
                _ => 1,
            },
            Form::QueryCode => node_information::query_code(layer.get("data")) as usize,
            _ => continue,
        };
        if !put_bits(number as u64, &mut out[start..], places[index].start, field.bits) {
            return Err(too_large(layer, field));
        }
    }
    Ok(())
}

/// Appends a field of whole bytes; `None` if the value is too long.
fn variable(layer: &Described, form: Form, size: usize, value: &Value, start: usize, out: &mut Vec<u8>) -> Option<()> {
    let begin = out.len();
    match form {
        Form::Fixed => {
            out.extend(bytes(value));
            out.resize(begin + size, 0);
        }
        Form::Bytes | Form::Sized(_) => out.extend(bytes(value)),
        Form::Numbers8 => out.extend(list(value).iter().map(|number| uint(number) as u8)),
        Form::Padded => {
            out.extend(bytes(value));
            let header = out.len() - start;
            out.resize(start + header.next_multiple_of(8), 0);
        }
        Form::Mac => out.extend(value.parsed::<Mac>("").map_or([0; 6], |mac| mac.0)),
        Form::Ipv4 | Form::Ipv6 => out.extend(octets(value)),
        Form::Leading(size) => out.extend_from_slice(&octets(value)[..usize::from(size)]),
        Form::Prefix => out.extend(prefix(layer, value)),
        Form::Network(name) => {
            out.extend(network(layer, value, name));
        }
        Form::Ipv4s | Form::Ipv6s => list(value).iter().for_each(|address| out.extend(octets(address))),
        Form::Name => out.extend(dns_record::wire_name(value).ok()?),
        Form::Names => {
            for name in list(value) {
                out.extend(labels(&bytes(name))?);
            }
            let length = out.len() - begin;
            out.resize(begin + length.next_multiple_of(8), 0);
        }
        Form::TypeBitmap => dns_rdata::write_bitmap(list(value), out),
        Form::RecordData => dns_rdata::write(layer, value, out)?,
        Form::ParamValue => edns::write_parameter(layer, value, out)?,
        Form::Query => node_information::write_query(value, out)?,
        Form::Reply => node_information::write_reply(layer.number("qtype").unwrap_or(0), value, out)?,
        Form::Options(_, at) => options(layer, list(value), usize::from(at), out)?,
        Form::List(family) => {
            for element in list(value) {
                out.extend(one(element)?.1);
            }
            if family == Family::SegmentTlv {
                let length = out.len() - start;
                pad(length.next_multiple_of(8) - length, 4, out);
            }
        }
        _ => {}
    }
    Some(())
}

pub(super) fn bytes(value: &Value) -> Vec<u8> {
    value.bytes().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.list().unwrap_or_default()
}

pub(super) fn octets(address: &Value) -> Vec<u8> {
    match address.parsed::<IpAddr>("") {
        Ok(IpAddr::V4(address)) => address.octets().into(),
        Ok(IpAddr::V6(address)) => address.octets().into(),
        Err(_) => Vec::new(),
    }
}

/// The bytes of the prefix in a route information option (RFC 4191, section 2.3).
fn prefix(layer: &Described, value: &Value) -> Vec<u8> {
    let mut octets = octets(value);
    match (layer.number("len"), layer.get("prefix")) {
        (None, None) | (Some(0 | 1), _) => octets.clear(),
        (None, Some(_)) => {}
        (Some(units), _) => octets.resize(units * 8 - 8, 0),
    }
    octets
}

/// The bytes of a prefix (RFC 7871, section 6): as many as its length needs, else those without zeros at the end.
fn network(layer: &Described, value: &Value, length: &str) -> Vec<u8> {
    let mut octets = octets(value);
    match layer.number(length) {
        Some(bits) => {
            octets.truncate(bits.div_ceil(8));
            if let (Some(last), rest @ 1..) = (octets.last_mut(), bits % 8) {
                *last &= 0xff << (8 - rest);
            }
        }
        None => {
            let end = octets.iter().rposition(|byte| *byte > 0).map_or(0, |last| last + 1);
            octets.truncate(end);
        }
    }
    octets
}

/// The labels of a name, as they are: also with empty ones.
fn labels(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for label in name.split(|byte| *byte == b'.') {
        out.push(u8::try_from(label.len()).ok()?);
        out.extend_from_slice(label);
    }
    if out.last() != Some(&0) {
        out.push(0);
    }
    Some(out)
}

/// The alignment and the bytes of an element of a list.
fn one(element: &Value) -> Option<((u8, u8), Vec<u8>)> {
    match element {
        Value::Record(name, fields) => {
            let layer = Described::of_record(name, fields).ok()?;
            Some((layer.entry().description().align, layer.bytes().ok()?))
        }
        other => Some(((0, 0), bytes(other))),
    }
}

/// The number of bytes of padding that an option needs at `at`.
pub(crate) fn gap(at: usize, (multiple, offset): (u8, u8)) -> usize {
    match usize::from(multiple) {
        0 => 0,
        multiple => (at.next_multiple_of(multiple) + usize::from(offset) - at) % multiple,
    }
}

/// Appends padding of this length: none, one byte, or an option of type `pad_n`.
pub(crate) fn pad(length: usize, pad_n: u8, out: &mut Vec<u8>) {
    match length {
        0 => {}
        1 => out.push(0),
        more => {
            out.extend([pad_n, (more - 2) as u8]);
            out.resize(out.len() + more - 2, 0);
        }
    }
}

/// Appends options, each aligned, and padding up to a multiple of 8 bytes.
fn options(layer: &Described, options: &[Value], at: usize, out: &mut Vec<u8>) -> Option<()> {
    let begin = out.len();
    let is_padded = layer.get("autopad") != Some(&Value::Uint(0));
    for option in options {
        let (align, bytes) = one(option)?;
        if is_padded {
            pad(gap(at + out.len() - begin, align), 1, out);
        }
        out.extend(bytes);
    }
    if is_padded {
        let length = at + out.len() - begin;
        pad(length.next_multiple_of(8) - length, 1, out);
    }
    Some(())
}

/// Fills in what depends on other layers.
pub(super) fn finish(layer: &Described, packet: &mut Building<'_>) -> Result<(), FieldError> {
    for (index, field) in layer.info().fields.iter().enumerate() {
        let Some(at) = field.offset.filter(|_| layer.value(index).is_none()).map(|offset| offset / 8) else { continue };
        match field.form {
            Form::Checksum(protocol) => {
                if let Some(value) = packet.checksum(Some(protocol)) {
                    packet.put16(at, value);
                }
            }
            Form::NextHeader => {
                let number = ip::protocol(packet.next()).unwrap_or(NO_NEXT_HEADER);
                if let Some(byte) = packet.bytes().get_mut(at) {
                    *byte = number;
                }
            }
            Form::Sap | Form::Control => {
                let next = packet.next().map(|next| next.info().name);
                let (point, control) = link::access_point(next);
                let number = if matches!(field.form, Form::Sap) { point } else { control };
                if let Some(byte) = packet.bytes().get_mut(at) {
                    *byte = number;
                }
            }
            Form::NetflowVersion => {
                let is_five = packet.next().is_some_and(|next| next.info().name == "NetflowHeaderV5");
                packet.put16(at, if is_five { 5 } else { 1 });
            }
            Form::Records => {
                // Each record has 48 bytes.
                let count = (packet.length() - packet.header()) / 48;
                packet.put16(at, u16::try_from(count).map_err(|_| too_large(layer, field))?);
            }
            Form::NextEthertype => {
                let number = ether::number(packet.next()).unwrap_or(0);
                packet.put16(at, number);
            }
            Form::PayloadLength => {
                let length = packet.length() - packet.header();
                packet.put16(at, u16::try_from(length).map_err(|_| too_large(layer, field))?);
            }
            _ => {}
        }
    }
    Ok(())
}

impl Described {
    /// The entry for an element of a list that begins with these bytes.
    pub(super) fn element_of(family: Family, bytes: &[u8]) -> Option<Entry> {
        let first = u64::from(*bytes.first()?);
        match family {
            Family::MobilityOption => match first {
                0 => Entry::named("Pad1"),
                1 => Entry::named("PadN"),
                _ => Entry::numbered(family, "otype", first).or_else(|| Entry::named("MIP6OptUnknown")),
            },
            Family::SegmentTlv => {
                Entry::numbered(family, "type", first).or_else(|| Entry::named("IPv6ExtHdrSegmentRoutingTLV"))
            }
            Family::MldRecord => Entry::named("ICMPv6MLDMultAddrRec"),
            Family::EdnsOption => edns::entry(bytes),
            Family::SvcParam => Entry::named("SvcParam"),
            _ => None,
        }
    }
}
