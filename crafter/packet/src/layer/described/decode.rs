//! Reads described layers. What a layer reads, it writes again: bytes for which that is not so are not such a layer.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Described, Entry, Family, Form, Of, dns_rdata, edns, node_information};
use crate::layer::{Layer as _, Mac, Value, dns_record, table::get_bits, value::FieldInfo};

/// Nesting depth of lists, which bounds the work.
const MAX_DEPTH: u8 = 3;

impl Described {
    /// The layer at the start of `bytes`, and the length of its header.
    pub(super) fn decode(entry: Entry, bytes: &[u8]) -> Option<(Self, usize)> {
        Self::decode_at(entry, bytes, 0)
    }

    fn decode_at(entry: Entry, bytes: &[u8], depth: u8) -> Option<(Self, usize)> {
        let mut layer = Self::new(entry);
        let fields = entry.description().info.fields;
        let (mut bit, mut end) = (0, None);
        for (index, field) in fields.iter().enumerate() {
            let form = match field.form {
                Form::If(name, form) if layer.number(name).unwrap_or(0) != 0 => *form,
                Form::If(..) | Form::Switch => continue,
                form => form,
            };
            if field.bits > 0 && !matches!(form, Form::Fixed | Form::Mac | Form::Ipv4 | Form::Ipv6 | Form::Leading(_)) {
                let last = (bit + field.bits).div_ceil(8);
                let number = get_bits(bytes.get(..last)?, bit, field.bits);
                bit += field.bits;
                layer.values[index] = Some(Value::Uint(number));
                if let Form::Length(of @ (Of::Header | Of::Behind), unit, add) = form {
                    let units = usize::try_from(number).ok()?.checked_add_signed(-isize::from(add))?;
                    let length = units.checked_mul(unit.into())?;
                    end = Some(if matches!(of, Of::Behind) { bit.div_ceil(8).checked_add(length)? } else { length });
                }
                continue;
            }
            let at = bit / 8;
            let rest = bytes.get(at..end.unwrap_or(bytes.len()).min(bytes.len()))?;
            let data = rest.get(..layer.size(fields, field, form, rest)?)?;
            layer.values[index] = Some(layer.read(form, data, depth)?);
            bit += data.len() * 8;
        }
        let header = bit.div_ceil(8);
        if end.is_some_and(|end| end != header) {
            return None;
        }
        let exact = layer.bytes().ok()? == bytes.get(..header)?;
        if !exact && let Some((at, _)) = layer.info().field("autopad") {
            // Options that their sender did not align.
            layer.values[at] = Some(Value::Uint(0));
            return (layer.bytes().ok()? == bytes[..header]).then_some((layer, header));
        }
        exact.then_some((layer, header))
    }

    /// The number of bytes of a field.
    fn size(&self, fields: &[FieldInfo], field: &FieldInfo, form: Form, rest: &[u8]) -> Option<usize> {
        match form {
            Form::Fixed => return Some(field.bits / 8),
            Form::Mac => return Some(6),
            Form::Ipv4 => return Some(4),
            Form::Ipv6 => return Some(16),
            Form::Sized(name) => return self.number(name),
            Form::Leading(size) => return Some(size.into()),
            Form::Network(name) => return Some(self.number(name)?.div_ceil(8)),
            Form::Name => return dns_record::name_length(rest),
            _ => {}
        }
        for length in fields {
            match length.form {
                Form::Length(Of::Field(name), unit, add) if name == field.name => {
                    let units = self.number(length.name)?.checked_add_signed(-isize::from(add))?;
                    return units.checked_mul(unit.into());
                }
                Form::Count(name, add) if name == field.name => {
                    let count = self.number(length.name)?.checked_add_signed(-isize::from(add))?;
                    return match form {
                        Form::Ipv4s => count.checked_mul(4),
                        Form::Ipv6s => count.checked_mul(16),
                        Form::List(family) => {
                            let mut at = 0;
                            for _ in 0..count {
                                let rest = rest.get(at..)?;
                                at += Self::decode_at(Self::element_of(family, rest)?, rest, MAX_DEPTH)?.1;
                            }
                            Some(at)
                        }
                        _ => None,
                    };
                }
                _ => {}
            }
        }
        Some(rest.len())
    }

    fn read(&self, form: Form, data: &[u8], depth: u8) -> Option<Value> {
        let v4 = |octets: &[u8]| Some(Value::Text(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).to_string()));
        let v6 = |octets: &[u8]| Some(Value::Text(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).to_string()));
        let filled = |octets: &[u8]| {
            let mut all = octets.to_vec();
            all.resize(16, 0);
            v6(&all)
        };
        Some(match form {
            Form::Mac => Value::Text(Mac(data.try_into().ok()?).to_string()),
            Form::Ipv4 => v4(data)?,
            Form::Ipv6 => v6(data)?,
            Form::Leading(_) | Form::Prefix => filled(data)?,
            Form::Network(_) => match self.number("family")? {
                1 if data.len() <= 4 => {
                    let mut all = data.to_vec();
                    all.resize(4, 0);
                    v4(&all)?
                }
                2 if data.len() <= 16 => filled(data)?,
                _ => return None,
            },
            Form::Ipv4s if data.len().is_multiple_of(4) => Value::List(data.chunks(4).map(v4).collect::<Option<_>>()?),
            Form::Ipv6s if data.len().is_multiple_of(16) => {
                Value::List(data.chunks(16).map(v6).collect::<Option<_>>()?)
            }
            Form::Name => dns_record::wire_value(data),
            Form::Names => Value::List(names(data)?),
            Form::Numbers8 => Value::List(data.iter().map(|byte| Value::Uint((*byte).into())).collect()),
            Form::TypeBitmap => Value::List(dns_rdata::read_bitmap(data)),
            Form::RecordData => dns_rdata::read(self, data),
            Form::ParamValue => edns::read_parameter(self, data),
            Form::Query => node_information::read_query(self.number("code")?, data),
            Form::Reply => node_information::read_reply(self.number("code")?, self.number("qtype")?, data),
            Form::Options(family, _) | Form::List(family) => Value::List(elements(family, data, depth)?),
            Form::Ipv4s | Form::Ipv6s => return None,
            _ => Value::Bytes(data.to_vec()),
        })
    }
}

fn elements(family: Family, mut data: &[u8], depth: u8) -> Option<Vec<Value>> {
    let mut elements = Vec::new();
    while !data.is_empty() {
        let read = Described::element_of(family, data)
            .filter(|_| depth < MAX_DEPTH)
            .and_then(|entry| Described::decode_at(entry, data, depth + 1));
        match read {
            Some((layer, length)) if length > 0 => {
                elements.push(layer.to_record());
                data = data.get(length..)?;
            }
            _ => {
                elements.push(Value::Bytes(data.to_vec()));
                break;
            }
        }
    }
    Some(elements)
}

/// Names, with zeros after the last.
fn names(mut data: &[u8]) -> Option<Vec<Value>> {
    let mut names = Vec::new();
    while data.iter().any(|byte| *byte > 0) {
        let mut name: Vec<&[u8]> = Vec::new();
        loop {
            let (length, rest) = data.split_first()?;
            let (label, rest) = rest.split_at_checked(usize::from(*length))?;
            data = rest;
            if label.is_empty() {
                break;
            }
            name.push(label);
        }
        let name = name.join(&b'.');
        names.push(String::from_utf8(name).map_or_else(|error| Value::Bytes(error.into_bytes()), Value::Text));
    }
    Some(names)
}
