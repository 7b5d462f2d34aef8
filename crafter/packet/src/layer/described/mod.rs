//! Layers that are data: an entry of a table names the fields and their forms on the wire, and the code here builds,
//! parses and prints all of them. For protocols, options and records without rules of their own; a layer of the fast
//! path has a struct (`table.rs`).

use std::fmt;

use super::{AnyLayer, Kind, Layer, LayerInfo, Value, build::Building, table::FieldError, value::FieldInfo};

mod decode;
mod dns_rdata;
mod edns;
mod encode;
mod field;
mod form;
mod icmpv6;
mod ip_option;
mod ipv6_option;
mod link;
mod mobility;
mod mobility_option;
mod nd_option;
mod node_information;
mod other;
mod segment_routing;

pub(crate) use {
    encode::{gap, pad},
    form::{Form, Of},
    link::{BACKBONE, kind},
    mobility::MOBILITY,
};

/// What a described layer belongs to: what may follow it, and in which lists it may be an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// An ICMPv6 message.
    Icmpv6,
    /// An ICMPv6 message that neighbour discovery's options follow.
    NdMessage,
    /// An option of neighbour discovery.
    NdOption,
    /// A record of a multicast listener report.
    MldRecord,
    /// A message of Mobile IPv6.
    Mobility,
    /// An option of Mobile IPv6.
    MobilityOption,
    /// An option of the hop-by-hop and destination headers.
    Ipv6Option,
    /// The segment routing header, and what it lists.
    SegmentRouting,
    SegmentTlv,
    /// An option of IPv4.
    IpOption,
    /// The value of TCP's authentication option.
    TcpOption,
    /// A DNS question or record, an option of EDNS, a parameter of a service binding.
    DnsQuestion,
    DnsRecord,
    EdnsOption,
    SvcParam,
    /// Link layers.
    Dot3,
    Llc,
    Snap,
    Ethertype,
    Leaf,
}

/// An entry of a table.
pub(crate) struct Description {
    pub info: LayerInfo,
    pub family: Family,
    /// Where the layer begins in a list of options: a multiple of the first number, plus the second.
    pub align: (u8, u8),
}

impl Description {
    pub(crate) const fn new(
        name: &'static str,
        source: &'static str,
        doc: &'static str,
        family: Family,
        fields: &'static [FieldInfo],
    ) -> Self {
        Self { info: LayerInfo { name, source, doc, fields }, family, align: (0, 0) }
    }

    pub(crate) const fn aligned(self, multiple: u8, offset: u8) -> Self {
        Self { align: (multiple, offset), ..self }
    }
}

/// The tables.
const TABLES: &[&[Description]] = &[
    icmpv6::TABLE,
    node_information::TABLE,
    nd_option::TABLE,
    mobility::TABLE,
    mobility_option::TABLE,
    ipv6_option::TABLE,
    segment_routing::TABLE,
    ip_option::TABLE,
    dns_rdata::TABLE,
    edns::TABLE,
    link::TABLE,
    other::TABLE,
];

/// Number of described layers.
pub(crate) const COUNT: usize = {
    let (mut count, mut table) = (0, 0);
    while table < TABLES.len() {
        count += TABLES[table].len();
        table += 1;
    }
    count
};

static ENTRIES: [&Description; COUNT] = {
    let mut entries = [&TABLES[0][0]; COUNT];
    let (mut at, mut table) = (0, 0);
    while table < TABLES.len() {
        let mut entry = 0;
        while entry < TABLES[table].len() {
            entries[at] = &TABLES[table][entry];
            at += 1;
            entry += 1;
        }
        table += 1;
    }
    entries
};

/// A described layer's place in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry(u16);

impl Entry {
    pub(crate) const fn at(index: usize) -> Self {
        Self(index as u16)
    }

    /// The entry with a name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        ENTRIES.iter().position(|entry| entry.info.name == name).map(Self::at)
    }

    pub(crate) fn description(self) -> &'static Description {
        ENTRIES[usize::from(self.0)]
    }

    /// The first entry of a family whose field `name` has this default, such as an option's type.
    pub(crate) fn numbered(family: Family, name: &str, number: u64) -> Option<Self> {
        let is_number = |field: &FieldInfo| {
            field.name == name && field.default.is_some_and(|default| default() == Value::Uint(number))
        };
        ENTRIES.iter().position(|entry| entry.family == family && entry.info.fields.iter().any(is_number)).map(Self::at)
    }
}

/// A layer of a table, with the values of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    entry: Entry,
    values: Vec<Option<Value>>,
}

impl Described {
    /// A layer without set fields.
    pub(crate) fn new(entry: Entry) -> Self {
        Self { entry, values: vec![None; entry.description().info.fields.len()] }
    }

    /// The layer of a record `NAME(field=value)`.
    pub(crate) fn of_record(name: &str, fields: &[(String, Value)]) -> Result<Self, String> {
        let entry = Entry::named(name).ok_or_else(|| format!("{name} does not fit here"))?;
        let mut layer = Self::new(entry);
        for (field, value) in fields {
            let info = entry.description().info.field(field).ok_or_else(|| entry.description().info.unknown(field))?;
            layer.set_value(info.0, value).map_err(|reason| format!("{name}.{field}: {reason}"))?;
        }
        Ok(layer)
    }

    /// The layer as a record, with its set fields.
    pub(crate) fn to_record(&self) -> Value {
        let fields = self.info().fields.iter().zip(&self.values);
        let set = fields.filter_map(|(field, value)| Some((field.name.to_owned(), value.clone()?)));
        Value::Record(self.info().name.to_owned(), set.collect())
    }

    pub(crate) fn entry(&self) -> Entry {
        self.entry
    }

    pub(crate) fn family(&self) -> Family {
        self.entry.description().family
    }

    /// The set value of a field.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.values[self.info().field(name)?.0].as_ref()
    }

    /// The value of a field, or its default.
    pub(crate) fn get_or_default(&self, name: &str) -> Option<Value> {
        let (index, field) = self.info().field(name)?;
        self.values[index].clone().or_else(|| field.default.map(|default| default()))
    }

    /// The final destination of a segment routing header (RFC 8754, section 2), if it is not the destination yet.
    pub(crate) fn final_destination(&self) -> Option<std::net::Ipv6Addr> {
        match (self.get("segleft"), self.get_or_default("addresses")?) {
            (Some(Value::Uint(0)), _) => None,
            (_, Value::List(addresses)) => addresses.first()?.parsed("").ok(),
            _ => None,
        }
    }

    /// The bytes of the layer alone.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, FieldError> {
        let mut out = Vec::new();
        self.write(&mut out)?;
        Ok(out)
    }

    /// Unsets computed fields.
    pub(crate) fn recompute(&mut self) {
        for (field, value) in self.info().fields.iter().zip(&mut self.values) {
            if field.form.is_computed() {
                *value = None;
            }
        }
    }

    /// Parses a layer: length of the header, end of the payload, kind of the payload.
    pub(crate) fn parse(entry: Entry, bytes: &[u8], layers: &mut Vec<AnyLayer>) -> Option<(usize, usize, Kind)> {
        let (layer, header) = Self::decode(entry, bytes)?;
        let next = layer.next(bytes.get(header..)?);
        let end = match layer.family() {
            Family::Dot3 => layer.number("len").map_or(bytes.len(), |length| (header + length).min(bytes.len())),
            _ => bytes.len(),
        };
        layers.push(AnyLayer::Described(layer));
        Some((header, end, next))
    }

    fn number(&self, name: &str) -> Option<usize> {
        match self.get_or_default(name)? {
            Value::Uint(number) => usize::try_from(number).ok(),
            _ => None,
        }
    }

    /// The kind of the payload.
    fn next(&self, payload: &[u8]) -> Kind {
        let number = |name| self.number(name).unwrap_or(0);
        match self.family() {
            Family::NdMessage | Family::NdOption => super::nd_option::option(payload),
            Family::Mobility | Family::SegmentRouting => {
                super::ip::payload(u8::try_from(number("nh")).unwrap_or(59), payload)
            }
            Family::Dot3 => link::of_dot3(payload),
            Family::Llc => link::of_llc(number("dsap"), number("ssap"), number("ctrl")),
            Family::Snap => u16::try_from(number("code")).map_or(Kind::Raw, super::of_ethertype),
            Family::Ethertype => link::of_ethertype(self),
            _ => Kind::Raw,
        }
    }

    /// Appends the header.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        encode::layer(self, out)
    }

    /// Fills in what depends on other layers.
    pub(crate) fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        encode::finish(self, packet)
    }

    /// Writes the layer's part of the one-line summary.
    pub(crate) fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

impl Layer for Described {
    fn info(&self) -> &'static LayerInfo {
        &self.entry.description().info
    }

    fn value(&self, index: usize) -> Option<Value> {
        self.values.get(index)?.clone()
    }

    fn set_value(&mut self, index: usize, value: &Value) -> Result<(), String> {
        if let (Some(place), Some(field)) =
            (self.values.get_mut(index), self.entry.description().info.fields.get(index))
        {
            *place = if *value == Value::None { None } else { Some(form::canonical(field, value)?) };
        }
        Ok(())
    }
}

/// The kind of a message of Mobile IPv6.
pub(crate) fn mobility(bytes: &[u8]) -> Kind {
    let entry = bytes.get(2).and_then(|number| Entry::numbered(Family::Mobility, "mhtype", u64::from(*number)));
    entry.or_else(|| Entry::named("MIP6MH_Generic")).map_or(Kind::Raw, Kind::Described)
}

/// The kind of an ICMPv6 message that has no struct.
pub(crate) fn icmpv6(bytes: &[u8]) -> Kind {
    let [kind, code, _, _, rest @ ..] = bytes else { return Kind::Icmpv6Unknown };
    let qtype = super::protocol::be16(rest);
    let entry = match (kind, code, qtype) {
        // Version 2 has more fields (RFC 3810, section 8.1).
        (130, ..) if bytes.len() >= 28 => Entry::named("ICMPv6MLQuery2"),
        (139, _, Some(0)) => Entry::named("ICMPv6NIQueryNOOP"),
        (139, _, Some(2)) => Entry::named("ICMPv6NIQueryName"),
        (139, _, Some(3)) => Entry::named("ICMPv6NIQueryIPv6"),
        (139, _, Some(4)) => Entry::named("ICMPv6NIQueryIPv4"),
        (140, 0, Some(2)) => Entry::named("ICMPv6NIReplyName"),
        (140, 0, Some(3)) => Entry::named("ICMPv6NIReplyIPv6"),
        (140, 0, Some(4)) => Entry::named("ICMPv6NIReplyIPv4"),
        (140, 0, _) => Entry::named("ICMPv6NIReplyNOOP"),
        (140, 1, _) => Entry::named("ICMPv6NIReplyRefuse"),
        (140, ..) => Entry::named("ICMPv6NIReplyUnknown"),
        _ => Entry::numbered(Family::Icmpv6, "type", u64::from(*kind))
            .or_else(|| Entry::numbered(Family::NdMessage, "type", u64::from(*kind))),
    };
    entry.map_or(Kind::Icmpv6Unknown, Kind::Described)
}

/// The kind of an option of neighbour discovery that has no struct, if its length is that of its kind.
pub(crate) fn nd_option(bytes: &[u8]) -> Option<Kind> {
    let entry = Entry::numbered(Family::NdOption, "type", u64::from(*bytes.first()?))?;
    let (_, header) = Described::decode(entry, bytes)?;
    (header == usize::from(*bytes.get(1)?) * 8).then_some(Kind::Described(entry))
}

/// The bytes of an element of a list: a record of one of these families, or bytes.
pub(crate) fn element(value: &Value, families: &[Family], wanted: &str) -> Result<Vec<u8>, String> {
    match value {
        Value::Record(name, fields) => {
            let layer = Described::of_record(name, fields)?;
            if !families.contains(&layer.family()) {
                return Err(format!("{name} does not fit: {wanted} is needed"));
            }
            layer.bytes().map_err(|error| crate::Error::from(error).to_string())
        }
        other => other.bytes().map_err(|_| other.mismatch(wanted)),
    }
}

#[cfg(test)]
mod tests;
