//! Sets of packets.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use super::{
    evaluate,
    object::{Items, Object},
    resolve::{NoNames, Resolve},
    syntax,
};
use crate::{
    error::{Error, Result},
    layer::{AnyLayer, FieldInfo, FieldKind, Layer as _, Packet, Value},
};

/// The packets that an expression denotes: the product of all alternatives.
#[derive(Debug, Clone, Default)]
pub struct PacketSet {
    template: Packet,
    choices: Vec<Choice>,
    /// Wall-clock time of reception since 1970.
    time: Option<Duration>,
}

impl PartialEq for PacketSet {
    /// Compares the content, not the time of reception.
    fn eq(&self, other: &Self) -> bool {
        (&self.template, &self.choices) == (&other.template, &other.choices)
    }
}

impl Eq for PacketSet {}

/// A field with several values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice {
    layer: usize,
    field: usize,
    spans: Vec<Span>,
}

/// Alternatives of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    One(Value),
    Range(u64, u64),
    Ipv4(u32, u64),
    Ipv6(u128, u128),
    /// IPv4 addresses by ranges of each byte.
    Octets([(u8, u8); 4]),
}

impl Span {
    fn len(&self) -> u128 {
        match self {
            Self::One(_) => 1,
            Self::Range(first, last) => u128::from(last - first) + 1,
            Self::Ipv4(_, count) => (*count).into(),
            Self::Ipv6(_, count) => *count,
            Self::Octets(ranges) => ranges.iter().map(|(first, last)| u128::from(last - first) + 1).product(),
        }
    }

    /// The value at an index below [`len`](Self::len).
    fn get(&self, index: u128) -> Value {
        match self {
            Self::One(value) => value.clone(),
            Self::Range(first, _) => Value::Uint(first.wrapping_add(index as u64)),
            Self::Ipv4(first, _) => Value::Text(Ipv4Addr::from(first.wrapping_add(index as u32)).to_string()),
            Self::Ipv6(first, _) => Value::Text(Ipv6Addr::from(first.wrapping_add(index)).to_string()),
            Self::Octets(ranges) => {
                let (mut octets, mut rest) = ([0; 4], index);
                for (octet, (first, last)) in octets.iter_mut().zip(ranges).rev() {
                    let count = u128::from(last - first) + 1;
                    *octet = first + (rest % count) as u8;
                    rest /= count;
                }
                Value::Text(Ipv4Addr::from(octets).to_string())
            }
        }
    }
}

impl Choice {
    fn len(&self) -> u128 {
        self.spans.iter().map(Span::len).fold(0, u128::saturating_add)
    }

    fn get(&self, mut index: u128) -> Value {
        for span in &self.spans {
            match span.len() {
                length if index < length => return span.get(index),
                length => index -= length,
            }
        }
        Value::None
    }
}

/// Maximum number of layers of a packet.
const MAX_LAYERS: usize = 1 << 16;

impl PacketSet {
    /// Parses an expression.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the column and what is expected there.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, &NoNames)
    }

    /// Parses an expression in which `src` and `dst` of IP and IPv6 may be host names, which `resolver` resolves during
    /// parsing.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the column and what is expected there.
    pub fn parse_with(text: &str, resolver: &dyn Resolve) -> Result<Self> {
        let node = syntax::expression(text).map_err(|fault| fault.in_expression(text))?;
        evaluate::packets(&node, resolver).map_err(|fault| fault.in_expression(text))
    }

    /// The number of packets, saturating at `u128::MAX`.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u128 {
        self.choices.iter().map(Choice::len).fold(1, u128::saturating_mul)
    }

    /// Iterates over the packets, created one by one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are more than `limit` packets.
    pub fn packets(&self, limit: u128) -> Result<Packets<'_>> {
        let length = self.len();
        if length > limit {
            return Err(Error::invalid(
                "expression",
                format_args!("it is a set of {length} packets, at most {limit} are allowed"),
            ));
        }
        Ok(Packets { set: self, next: 0, length })
    }

    /// The packet of a set of one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are several.
    pub fn single(&self) -> Result<Packet> {
        match self.len() {
            1 => Ok(self.get(0)),
            length => Err(Error::invalid("expression", format_args!("expected one packet, got a set of {length}"))),
        }
    }

    /// The packet at an index below [`len`](Self::len); the first field with alternatives varies slowest.
    pub fn get(&self, mut index: u128) -> Packet {
        let mut packet = self.template.clone();
        for choice in self.choices.iter().rev() {
            let length = choice.len();
            let value = choice.get(index % length);
            index /= length;
            if let Some(layer) = packet.layers_mut().get_mut(choice.layer) {
                // The values were validated during parsing.
                let _ = layer.set_value(choice.field, &value);
            }
        }
        packet
    }

    /// A received packet; `time` is wall-clock time since 1970.
    pub fn received(packet: Packet, time: Option<Duration>) -> Self {
        Self { time, ..packet.into() }
    }

    /// Wall-clock time of reception since 1970, if it was received.
    pub fn time(&self) -> Option<Duration> {
        self.time
    }

    /// The layers, with one of the values where there are alternatives.
    pub fn template(&self) -> &Packet {
        &self.template
    }

    /// Appends the layers of other packets.
    ///
    /// # Errors
    /// An error message, if there are too many layers.
    pub fn stack(&mut self, above: &Self) -> Result<(), String> {
        let below = self.template.layers().len();
        if below + above.template.layers().len() > MAX_LAYERS {
            return Err(format!("a packet has at most {MAX_LAYERS} layers"));
        }
        self.time = None;
        self.template.layers_mut().extend_from_slice(above.template.layers());
        self.choices
            .extend(above.choices.iter().map(|choice| Choice { layer: choice.layer + below, ..choice.clone() }));
        Ok(())
    }

    /// The packets from a layer on.
    pub fn layers_from(&self, layer: usize) -> Self {
        let mut template = Packet::new();
        template.layers_mut().extend_from_slice(self.template.layers().get(layer..).unwrap_or_default());
        let above = self.choices.iter().filter(|choice| choice.layer >= layer);
        let choices = above.map(|choice| Choice { layer: choice.layer - layer, ..choice.clone() }).collect();
        Self { template, choices, time: self.time }
    }

    /// Sets the values of a field.
    ///
    /// # Errors
    /// An error message with the field, if a value does not fit.
    pub fn assign(&mut self, at: usize, index: usize, spans: Vec<Span>) -> Result<(), String> {
        let Some(layer) = self.template.layers_mut().get_mut(at) else {
            return Err("there is no such layer".to_owned());
        };
        let (info, mut changed) = (layer.info(), layer.clone());
        // If both ends of a range are valid, all values between them are.
        for span in &spans {
            for place in [0, span.len() - 1] {
                let fits = changed.set_value(index, &span.get(place));
                fits.map_err(|reason| format!("{}.{}: {reason}", info.name, info.fields[index].name))?;
            }
        }
        *layer = changed;
        self.choices.retain(|choice| (choice.layer, choice.field) != (at, index));
        if !matches!(spans[..], [Span::One(_)]) {
            // As if it were the last field written in its layer.
            let place = self.choices.partition_point(|choice| choice.layer <= at);
            self.choices.insert(place, Choice { layer: at, field: index, spans });
        }
        Ok(())
    }
}

impl From<Packet> for PacketSet {
    fn from(template: Packet) -> Self {
        Self { template, choices: Vec::new(), time: None }
    }
}

impl From<AnyLayer> for PacketSet {
    fn from(layer: AnyLayer) -> Self {
        Packet::from(layer).into()
    }
}

/// Converts the value of a field: one value, a range or a prefix. A [host name](host) is converted by [`host_span`].
///
/// # Errors
/// An error message, with the field unless it is about the notation.
pub(super) fn span(object: &Object, layer: &AnyLayer, field: &FieldInfo) -> Result<Span, String> {
    match (object, field.kind) {
        // As in Scapy: no question, not the default one.
        (Object::None, FieldKind::List) if field.name == "qd" => Ok(Span::One(Value::List(Vec::new()))),
        // The complement of flags, such as ~0x02.
        (Object::Number(number @ ..0), FieldKind::Flags) if *number >= -1 - i128::from(field.max()) => {
            Ok(Span::One(Value::Uint(*number as u64 & field.max())))
        }
        (Object::Tuple(ends), FieldKind::Uint | FieldKind::Flags) => match ends.items() {
            [first, last] => {
                let ends = first.number().zip(last.number()).and_then(|(first, last)| {
                    Some((u64::try_from(first).ok()?, u64::try_from(last).ok()?)).filter(|(first, last)| first <= last)
                });
                ends.map(|(first, last)| Span::Range(first, last))
            }
            _ => None,
        }
        .ok_or_else(|| "a range is two numbers, the smaller one first".to_owned()),
        (Object::Text(address), FieldKind::Ipv4) if address.contains('/') => {
            let (address, bits) = prefix::<Ipv4Addr>(address, 32)?;
            let count = 1_u64 << (32 - bits);
            Ok(Span::Ipv4((u64::from(u32::from(address)) & !(count - 1)) as u32, count))
        }
        (Object::Tuple(ends), FieldKind::Ipv4) => {
            let (first, last) = ends_of::<Ipv4Addr>(ends)?;
            Ok(Span::Ipv4(first.into(), u64::from(u32::from(last) - u32::from(first)) + 1))
        }
        (Object::Tuple(ends), FieldKind::Ipv6) => {
            let (first, last) = ends_of::<Ipv6Addr>(ends)?;
            Ok(Span::Ipv6(first.into(), (u128::from(last) - u128::from(first)).saturating_add(1)))
        }
        (Object::Text(address), FieldKind::Ipv4) if octets(address).is_some() => {
            octets(address).map(Span::Octets).ok_or_else(String::new)
        }
        (Object::Text(address), FieldKind::Ipv6) if address.contains('/') => {
            let (address, bits) = prefix::<Ipv6Addr>(address, 128)?;
            let count = 1_u128.checked_shl(128 - bits).unwrap_or(u128::MAX);
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Ok(Span::Ipv6(u128::from(address) & mask, count))
        }
        _ => Ok(Span::One(object.to_value(field.kind == FieldKind::List).map_err(|reason| of(layer, field, reason))?)),
    }
}

/// The host name that is the value of a field, if the field accepts one and the value is neither an address nor a prefix.
pub(super) fn host<'o>(object: &'o Object, layer: &AnyLayer, field: &FieldInfo) -> Option<&'o str> {
    let is_accepted = matches!(layer, AnyLayer::Ip(_) | AnyLayer::Ipv6(_)) && matches!(field.name, "src" | "dst");
    match object {
        Object::Text(name) if is_accepted && !name.contains('/') && name.parse::<IpAddr>().is_err() => Some(name),
        _ => None,
    }
}

/// Converts a host name to the address that was found, in the form of [`Resolve::resolve`].
///
/// # Errors
/// An error message with the field: that of the resolver, or that no address has the field's IP version.
pub(super) fn host_span(
    name: &str,
    found: Result<Option<Vec<IpAddr>>, String>,
    layer: &AnyLayer,
    field: &FieldInfo,
) -> Result<Span, String> {
    let found = found.map_err(|reason| of(layer, field, reason))?;
    let of_family = |address: &&IpAddr| address.is_ipv4() == (field.kind == FieldKind::Ipv4);
    match (found.as_deref(), found.iter().flatten().find(of_family)) {
        (_, Some(address)) => Ok(Span::One(Value::Text(address.to_string()))),
        (Some(_), None) => {
            let family = if field.kind == FieldKind::Ipv4 { "IPv4" } else { "IPv6" };
            Err(of(layer, field, format!("'{name}' has no {family} address")))
        }
        // The field rejects it as an address.
        (None, None) => Ok(Span::One(Value::Text(name.to_owned()))),
    }
}

/// An error message with the field.
fn of(layer: &AnyLayer, field: &FieldInfo, reason: String) -> String {
    format!("{}.{}: {reason}", layer.info().name, field.name)
}

/// The first and the last address of a range.
fn ends_of<T: FromStr + Ord>(ends: &Items) -> Result<(T, T), String> {
    let parsed = |end: &Object| end.text().and_then(|text| text.parse::<T>().ok());
    let ends = match ends.items() {
        [first, last] => parsed(first).zip(parsed(last)).filter(|(first, last)| first <= last),
        _ => None,
    };
    ends.ok_or_else(|| "a range is two addresses, the smaller one first".to_owned())
}

/// Ranges of the bytes of addresses: `192.0.2.1-5`, `192.0.2.*`.
fn octets(text: &str) -> Option<[(u8, u8); 4]> {
    if !text.contains(['-', '*']) {
        return None;
    }
    let range = |part: &str| match part.split_once('-') {
        _ if part == "*" => Some((0, 255)),
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)).filter(|(first, last)| first <= last),
        None => part.parse().ok().map(|octet| (octet, octet)),
    };
    text.split('.').map(range).collect::<Option<Vec<_>>>()?.try_into().ok()
}

fn prefix<T: FromStr>(address: &str, most: u32) -> Result<(T, u32), String> {
    let parts = address.split_once('/').and_then(|(address, bits)| Some((address.parse().ok()?, bits.parse().ok()?)));
    parts
        .filter(|(_, bits)| *bits <= most)
        .ok_or_else(|| format!("'{address}' is not a prefix: an address, '/' and a length up to {most} are needed"))
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(value) => write!(f, "{value}"),
            Self::Range(first, last) => write!(f, "({first}, {last})"),
            Self::Octets(ranges) => {
                f.write_str("\"")?;
                for (at, range) in ranges.iter().enumerate() {
                    f.write_str(if at > 0 { "." } else { "" })?;
                    match range {
                        (0, 255) => f.write_str("*")?,
                        (first, last) if first == last => write!(f, "{first}")?,
                        (first, last) => write!(f, "{first}-{last}")?,
                    }
                }
                f.write_str("\"")
            }
            Self::Ipv4(first, count) if !count.is_power_of_two() || !u64::from(*first).is_multiple_of(*count) => {
                let last = u64::from(*first) + count - 1;
                write!(f, "(\"{}\", \"{}\")", Ipv4Addr::from(*first), Ipv4Addr::from(last as u32))
            }
            Self::Ipv6(first, count) if *count < u128::MAX && (!count.is_power_of_two() || first % count > 0) => {
                let last = first.saturating_add(count - 1);
                write!(f, "(\"{}\", \"{}\")", Ipv6Addr::from(*first), Ipv6Addr::from(last))
            }
            Self::Ipv4(first, count) => write!(f, "\"{}/{}\"", Ipv4Addr::from(*first), 32 - count.ilog2()),
            // All 2^128 addresses: the count saturates.
            Self::Ipv6(first, u128::MAX) => write!(f, "\"{}/0\"", Ipv6Addr::from(*first)),
            Self::Ipv6(first, count) => write!(f, "\"{}/{}\"", Ipv6Addr::from(*first), 128 - count.ilog2()),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spans[..] {
            [span @ (Span::Range(..) | Span::Ipv4(..) | Span::Ipv6(..) | Span::Octets(_))] => write!(f, "{span}"),
            spans => {
                for (i, span) in spans.iter().enumerate() {
                    write!(f, "{}{span}", if i > 0 { ", " } else { "[" })?;
                }
                f.write_str("]")
            }
        }
    }
}

impl fmt::Display for PacketSet {
    /// The text form, which parses to the same set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, layer) in self.template.layers().iter().enumerate() {
            let info = layer.info();
            write!(f, "{}{}(", if at > 0 { "/" } else { "" }, info.name)?;
            let choices: Vec<&Choice> = self.choices.iter().filter(|choice| choice.layer == at).collect();
            // Fields in wire order, unless that changes the order of the packets.
            let in_order = choices.is_sorted_by_key(|choice| choice.field);
            let mut comma = "";
            for (index, field) in info.fields.iter().enumerate() {
                match choices.iter().find(|choice| choice.field == index) {
                    Some(choice) if in_order => write!(f, "{comma}{}={choice}", field.name)?,
                    Some(_) => continue,
                    None => match layer.value(index) {
                        Some(value) => write!(f, "{comma}{}={value}", field.name)?,
                        None => continue,
                    },
                }
                comma = ", ";
            }
            for choice in choices.iter().filter(|_| !in_order) {
                write!(f, "{comma}{}={choice}", info.fields[choice.field].name)?;
                comma = ", ";
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// Iterator over the packets of a [`PacketSet`].
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    set: &'a PacketSet,
    next: u128,
    length: u128,
}

impl Iterator for Packets<'_> {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        (self.next < self.length).then(|| {
            self.next += 1;
            self.set.get(self.next - 1)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.length - self.next);
        (*left.as_ref().unwrap_or(&usize::MAX), left.ok())
    }
}

impl FromStr for Packet {
    type Err = Error;

    /// Parses the text form of one packet; see [`expr`](crate::expr).
    fn from_str(text: &str) -> Result<Self> {
        PacketSet::parse(text)?.single()
    }
}

#[cfg(test)]
mod tests;
