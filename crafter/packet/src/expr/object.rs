//! Values of expressions: numbers, strings, packets, and their replies.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use serde_json::json;

use super::PacketSet;
use crate::layer::{Kind, Layer as _, Packet, Value};

/// Maximum nesting depth of lists and tuples.
const MAX_DEPTH: u8 = 64;
/// Maximum number of elements of a list, nested ones included, and of bytes of a string.
pub(super) const MAX_LENGTH: usize = 1 << 24;
/// Maximum length of the text form of a value, in characters.
const MAX_PRINTED: usize = 1 << 20;

/// Evaluates an expression.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Object {
    /// `None`; as the value of a field: unset.
    None,
    /// `True` or `False`; as a number 1 or 0.
    Bool(bool),
    /// A whole number.
    Number(i128),
    /// A TCP sequence number read from a packet: sums and differences are modulo 2^32 (RFC 9293, section 3.4).
    Sequence(u32),
    /// Flags read from a packet: bits and names.
    Flags(u64, String),
    /// A floating-point number, such as seconds.
    Decimal(f64),
    /// A string.
    Text(String),
    /// A string that is printed without quotes.
    Report(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// `[a, b]`
    List(Items),
    /// `(a, b)`
    Tuple(Items),
    /// `NAME(field=value)`: a record, such as DNS has them.
    Record(String, Vec<(String, Value)>),
    /// The name of a layer.
    Layer(Kind),
    /// The name of a function.
    Function(&'static str),
    /// One or more packets.
    Packets(Arc<PacketSet>),
    /// A sent packet and its reply.
    Pair(Arc<Pair>),
}

/// The elements of a list or tuple.
#[derive(Debug, Clone, PartialEq)]
pub struct Items {
    title: Option<&'static str>,
    depth: u8,
    /// Number of elements, nested ones included.
    total: usize,
    items: Arc<Vec<Object>>,
}

impl Items {
    /// # Errors
    /// An error message, if there are too many or they are nested too deep.
    pub fn new(items: Vec<Object>) -> Result<Self, String> {
        let (mut depth, mut total) = (1, items.len());
        for item in &items {
            if let Object::List(items) | Object::Tuple(items) = item {
                depth = depth.max(items.depth + 1);
                total += items.total;
            }
        }
        match () {
            () if depth > MAX_DEPTH => Err(format!("lists are nested more than {MAX_DEPTH} deep")),
            () if total > MAX_LENGTH => Err(format!("a list has at most {MAX_LENGTH} elements, nested ones included")),
            () => Ok(Self { title: None, depth, total, items: items.into() }),
        }
    }

    /// Packets or pairs of one result; printed as the title and their counts.
    pub fn titled(title: &'static str, items: Vec<Object>) -> Self {
        Self { title: Some(title), depth: 1, total: items.len(), items: items.into() }
    }

    /// The elements.
    pub fn items(&self) -> &[Object] {
        &self.items
    }
}

/// A received packet with its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The packet as received.
    pub packet: Packet,
    /// Wall-clock time since 1970, if known.
    pub time: Option<Duration>,
}

/// A sent packet and its reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The packet as sent, all fields set.
    pub request: Packet,
    /// The packet as received.
    pub reply: Packet,
    /// Round-trip time.
    pub rtt: Duration,
    /// Wall-clock time of the reply since 1970.
    pub time: Duration,
}

impl Pair {
    /// The reply with its time.
    pub fn received(&self) -> Received {
        Received { packet: self.reply.clone(), time: Some(self.time) }
    }
}

impl From<Packet> for Object {
    fn from(packet: Packet) -> Self {
        Self::Packets(Arc::new(packet.into()))
    }
}

impl From<Received> for Object {
    fn from(Received { packet, time }: Received) -> Self {
        Self::Packets(Arc::new(PacketSet::received(packet, time)))
    }
}

impl From<&str> for Object {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&Value> for Object {
    fn from(value: &Value) -> Self {
        let items = |values: &[Value]| {
            let items: Vec<Self> = values.iter().map(Self::from).collect();
            // The value of a field is within the limits; the fallback only avoids a panic.
            Items::new(items).unwrap_or_else(|_| Items::titled("values", Vec::new()))
        };
        match value {
            Value::None => Self::None,
            Value::Uint(number) => Self::Number((*number).into()),
            Value::Text(text) => Self::Text(text.clone()),
            Value::Bytes(bytes) => Self::Bytes(bytes.clone()),
            Value::List(values) => Self::List(items(values)),
            Value::Tuple(values) => Self::Tuple(items(values)),
            Value::Record(name, fields) => Self::Record(name.clone(), fields.clone()),
        }
    }
}

impl Object {
    /// The type of the value, for error messages.
    pub fn is(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Number(_) | Self::Sequence(_) => "a number",
            Self::Flags(..) => "flags",
            Self::Decimal(_) => "a number with decimals",
            Self::Text(_) | Self::Report(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Record(..) => "a record",
            Self::Layer(_) => "a layer",
            Self::Function(_) => "a function",
            Self::Packets(_) => "a packet",
            Self::Pair(_) => "a pair",
        }
    }

    /// The value as a whole number, if it is one.
    pub fn number(&self) -> Option<i128> {
        Some(match self {
            Self::Bool(bool) => i128::from(*bool),
            Self::Number(number) => *number,
            Self::Sequence(number) => i128::from(*number),
            Self::Flags(bits, _) => i128::from(*bits),
            _ => return None,
        })
    }

    /// The value as a floating-point number, if it is a number.
    pub fn decimal(&self) -> Option<f64> {
        match self {
            Self::Decimal(number) => Some(*number),
            other => other.number().map(|number| number as f64),
        }
    }

    /// The value as a string, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Report(text) | Self::Flags(_, text) => Some(text),
            _ => None,
        }
    }

    /// The value as packets: layers, packets, strings and bytes.
    pub fn packets(&self) -> Option<Arc<PacketSet>> {
        Some(match self {
            Self::Layer(kind) => Arc::new(Packet::from(kind.layer()).into()),
            Self::Packets(packets) => packets.clone(),
            Self::Text(text) | Self::Report(text) => Arc::new(Packet::from(text.as_str()).into()),
            Self::Bytes(bytes) => Arc::new(Packet::from(bytes.as_slice()).into()),
            _ => return None,
        })
    }

    /// Converts to the value of a field; `in_list` if its elements are records or options.
    pub fn to_value(&self, in_list: bool) -> Result<Value, String> {
        let values =
            |items: &Items| items.items().iter().map(|item| item.to_value(in_list)).collect::<Result<Vec<_>, String>>();
        Ok(match self {
            Self::None => Value::None,
            Self::Flags(_, text) if !text.is_empty() => Value::Text(text.clone()),
            Self::Bool(_) | Self::Number(_) | Self::Sequence(_) | Self::Flags(..) => {
                let number = self.number().unwrap_or_default();
                Value::Uint(u64::try_from(number).map_err(|_| match number {
                    ..0 => format!("{number} does not fit: it is negative"),
                    _ => format!("{number} does not fit: it is too large"),
                })?)
            }
            Self::Text(text) | Self::Report(text) => Value::Text(text.clone()),
            Self::Bytes(bytes) => Value::Bytes(bytes.clone()),
            Self::List(items) => Value::List(values(items)?),
            Self::Tuple(items) => Value::Tuple(values(items)?),
            Self::Record(name, fields) => Value::Record(name.clone(), fields.clone()),
            Self::Layer(kind) => Value::Record(kind.name().to_owned(), Vec::new()),
            Self::Packets(packets) => {
                let packet = packets.single().map_err(|error| error.to_string())?;
                if let (true, [layer]) = (in_list, packet.layers()) {
                    // Some records, such as MPLS labels in ICMP errors, have the name of a layer.
                    let info = layer.info();
                    let set =
                        info.fields.iter().enumerate().filter_map(|(i, f)| Some((f.name.to_owned(), layer.value(i)?)));
                    return Ok(Value::Record(info.name.to_owned(), set.collect()));
                }
                Value::Bytes(packet.build().map_err(|error| error.to_string())?)
            }
            Self::Decimal(_) | Self::Function(_) | Self::Pair(_) => return Err(format!("{} does not fit", self.is())),
        })
    }

    /// The value as JSON. A packet is an object as printed by `crafter show --json`, a set of packets an array; bytes
    /// are hex digits.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if a packet cannot be built, or the set has more than a million
    /// packets.
    pub fn to_json(&self) -> crate::Result<serde_json::Value> {
        Ok(match self {
            Self::None => serde_json::Value::Null,
            Self::Bool(bool) => json!(bool),
            Self::Number(number) => match i64::try_from(*number) {
                Ok(number) => json!(number),
                // Larger numbers are not portable in JSON.
                Err(_) => json!(u64::try_from(*number).map_or_else(|_| json!(number.to_string()), |n| json!(n))),
            },
            Self::Sequence(number) => json!(number),
            Self::Decimal(number) => json!(number),
            Self::Flags(_, text) | Self::Text(text) | Self::Report(text) => json!(text),
            Self::Bytes(bytes) => json!(crate::layer::value::hex(bytes)),
            Self::List(items) | Self::Tuple(items) => {
                items.items().iter().map(Self::to_json).collect::<crate::Result<_>>()?
            }
            Self::Record(name, fields) => Value::Record(name.clone(), fields.clone()).to_json(),
            Self::Layer(kind) => json!(kind.name()),
            Self::Function(name) => json!(name),
            Self::Packets(packets) => match packets.len() {
                1 => packets.single()?.to_json()?,
                _ => packets.packets(super::LIMIT)?.map(|packet| packet.to_json()).collect::<crate::Result<_>>()?,
            },
            Self::Pair(pair) => json!({
                "request": pair.request.to_json()?,
                "reply": pair.reply.to_json()?,
                "rtt": pair.rtt.as_secs_f64(),
                "time": pair.time.as_secs_f64(),
            }),
        })
    }
}

/// Writes up to a limit of characters, then fails.
struct Limited<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    left: usize,
}

impl fmt::Write for Limited<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.left.checked_sub(text.len()) {
            Some(left) => self.left = left,
            None => return Err(fmt::Error),
        }
        self.out.write_str(text)
    }
}

impl fmt::Display for Object {
    /// The text form. That of packets, numbers, strings and lists parses to the same value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut limited = Limited { out: f, left: MAX_PRINTED };
        match self.write(&mut limited) {
            Err(_) if limited.left < MAX_PRINTED => f.write_str("..."),
            result => result,
        }
    }
}

impl Object {
    fn write(&self, f: &mut Limited<'_, '_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(bool) => f.write_str(if *bool { "True" } else { "False" }),
            Self::Number(number) => write!(f, "{number}"),
            Self::Sequence(number) => write!(f, "{number}"),
            Self::Decimal(number) => write!(f, "{number:?}"),
            Self::Flags(bits, text) if text.is_empty() && *bits > 0 => write!(f, "{bits}"),
            Self::Flags(_, text) | Self::Text(text) => write!(f, "{}", Value::Text(text.clone())),
            Self::Report(text) => f.write_str(text.trim_end()),
            Self::Bytes(bytes) => write!(f, "{}", Value::Bytes(bytes.clone())),
            Self::List(Items { title: Some(title), items, .. }) => {
                write!(f, "<{} {title}", items.len())?;
                for (i, (name, count)) in protocols(items).into_iter().enumerate() {
                    write!(f, "{}{count} {name}", if i > 0 { ", " } else { ": " })?;
                }
                f.write_str(">")
            }
            Self::List(items) => {
                f.write_str("[")?;
                commas(f, items.items())?;
                f.write_str("]")
            }
            Self::Tuple(items) => {
                f.write_str("(")?;
                commas(f, items.items())?;
                f.write_str(if items.items().len() == 1 { ",)" } else { ")" })
            }
            Self::Record(name, fields) => write!(f, "{}", Value::Record(name.clone(), fields.clone())),
            Self::Layer(kind) => f.write_str(kind.name()),
            Self::Function(name) => f.write_str(name),
            Self::Packets(packets) => write!(f, "{packets}"),
            Self::Pair(pair) => {
                let rtt = pair.rtt.as_secs_f64() * 1000.0;
                write!(f, "<{} -> {}, {rtt:.3} ms>", pair.request.summary(), pair.reply.summary())
            }
        }
    }
}

fn commas(f: &mut Limited<'_, '_>, items: &[Object]) -> fmt::Result {
    items.iter().enumerate().try_for_each(|(i, item)| {
        f.write_str(if i > 0 { ", " } else { "" })?;
        item.write(f)
    })
}

/// Number of packets per protocol, by their last layer that is a protocol.
fn protocols(items: &[Object]) -> Vec<(&'static str, usize)> {
    let mut counts: Vec<(&'static str, usize)> = Vec::new();
    for item in items {
        let name = match item {
            Object::Packets(packets) => packets.template().summary_name(),
            Object::Pair(pair) => pair.reply.summary_name(),
            _ => continue,
        };
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts
}

trait SummaryName {
    fn summary_name(&self) -> &'static str;
}

impl SummaryName for Packet {
    fn summary_name(&self) -> &'static str {
        let names = self.layers().iter().map(|layer| (layer.kind(), layer.info().name));
        // An ICMP error counts as ICMP, regardless of its quote.
        let of = |kinds: &[Kind]| names.clone().find(|(kind, _)| kinds.contains(kind)).map(|(_, name)| name);
        let last = || names.clone().map(|(_, name)| name).rfind(|name| !matches!(*name, "Raw" | "Padding"));
        of(&[Kind::Tcp, Kind::Udp, Kind::Icmp, Kind::Arp]).or_else(last).unwrap_or("Raw")
    }
}
