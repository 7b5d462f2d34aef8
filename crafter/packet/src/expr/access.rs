//! Attribute access, indexing and slicing.

use std::sync::Arc;

use super::{
    PacketSet,
    object::{Items, Object, Pair},
};
use crate::layer::{AnyLayer, FieldKind, Kind, Layer as _, Packet, Value, get_bits, nearest};

/// `object.name`
///
/// # Errors
/// An error message: there is no such part.
pub fn attribute(object: &Object, name: &str) -> Result<Object, String> {
    match object {
        Object::Packets(packets) => {
            let packet = one(packets)?;
            match (name, find(&packet, name)) {
                (_, Ok((layer, index))) => Ok(field(&packet.layers()[layer], index)),
                ("time", _) => Ok(packets.time().map_or(Object::None, |time| Object::Decimal(time.as_secs_f64()))),
                ("payload", _) => Ok(Object::Packets(packets.layers_from(1).into())),
                (_, Err(reason)) => Err(reason),
            }
        }
        Object::Pair(pair) => of_pair(pair, name),
        Object::Layer(kind) => attribute(&Packet::from(kind.layer()).into(), name),
        Object::Record(record, fields) => match fields.iter().find(|(field, _)| field == name) {
            Some((_, value)) => Ok(value.into()),
            None => {
                Err(format!("{record} has no field '{name}'{}", nearest(name, fields.iter().map(|f| f.0.as_str()))))
            }
        },
        other => Err(format!("{} has no '.{name}'", other.is())),
    }
}

/// Attributes of a pair.
pub const PAIR: [&str; 4] = ["request", "reply", "rtt", "time"];

fn of_pair(pair: &Pair, name: &str) -> Result<Object, String> {
    Ok(match name {
        // Including the names in Scapy.
        "request" | "query" => pair.request.clone().into(),
        "reply" | "answer" => pair.received().into(),
        "rtt" => Object::Decimal(pair.rtt.as_secs_f64()),
        "time" => Object::Decimal(pair.time.as_secs_f64()),
        _ => return Err(format!("a pair has no '.{name}'{}", nearest(name, PAIR.into_iter()))),
    })
}

/// The packet of a set that has exactly one.
///
/// # Errors
/// An error message, if the set is empty or has several packets.
pub fn one(packets: &PacketSet) -> Result<Packet, String> {
    match packets.len() {
        1 => packets.single().map_err(|error| error.to_string()),
        length => Err(format!("expected one packet, got a set of {length}; use [0] for the first")),
    }
}

/// Finds the first layer that has a field: indices of layer and field.
pub fn find(packet: &Packet, name: &str) -> Result<(usize, usize), String> {
    let mut layers = packet.layers().iter().enumerate();
    let found = layers.find_map(|(at, layer)| Some((at, layer.info().field(name)?.0)));
    found.ok_or_else(|| match packet.layers() {
        [] => "the packet has no layers, hence no fields".to_owned(),
        [layer] => layer.info().unknown(name),
        layers => {
            let known = layers.iter().flat_map(|layer| layer.info().fields.iter().map(|field| field.name));
            let mut known: Vec<&str> = known.collect();
            known.sort_unstable();
            known.dedup();
            format!("no layer of the packet has a field '{name}'{}", nearest(name, known.into_iter()))
        }
    })
}

/// The value of a field, else its default; `None` if it is computed.
fn field(layer: &AnyLayer, index: usize) -> Object {
    let info = &layer.info().fields[index];
    let value = layer.value(index).or_else(|| info.default.map(|default| default()));
    match value {
        None => Object::None,
        Some(Value::Uint(number)) if is_sequence(layer, info.name) => Object::Sequence(number as u32),
        Some(Value::Text(text)) if info.kind == FieldKind::Flags => Object::Flags(flags(layer, index), text),
        Some(Value::Uint(number)) if info.kind == FieldKind::Flags => Object::Flags(number, String::new()),
        Some(value) => (&value).into(),
    }
}

fn is_sequence(layer: &AnyLayer, field: &str) -> bool {
    matches!(layer, AnyLayer::Tcp(_) | AnyLayer::TcpError(_)) && matches!(field, "seq" | "ack")
}

/// The bits of a flags field that is given by names.
fn flags(layer: &AnyLayer, index: usize) -> u64 {
    let info = &layer.info().fields[index];
    // Builds a layer with only the flags and reads their bits.
    let mut alone = layer.kind().layer();
    if let Some(value) = layer.value(index) {
        // The value is valid, because the field had it.
        let _ = alone.set_value(index, &value);
    }
    let bytes = Packet::from(alone).build().unwrap_or_default();
    match info.offset {
        Some(offset) if bytes.len() * 8 >= offset + info.bits && info.bits > 0 => get_bits(&bytes, offset, info.bits),
        _ => 0,
    }
}

/// `object[index]`
///
/// # Errors
/// An error message: there is no such part.
pub fn index(object: &Object, index: &Object) -> Result<Object, String> {
    match (object, index) {
        (Object::Packets(packets), Object::Layer(_) | Object::Text(_)) => {
            Ok(Object::Packets(packets.layers_from(layer(packets.template(), index, 1)?).into()))
        }
        (Object::Packets(packets), _) => {
            let at = place(index, packets.len(), "packet")?;
            Ok(if packets.len() == 1 { object.clone() } else { packets.get(at).into() })
        }
        (Object::Pair(pair), _) => match place(index, 2, "part")? {
            0 => Ok(pair.request.clone().into()),
            _ => Ok(pair.received().into()),
        },
        (Object::List(items) | Object::Tuple(items), _) => {
            let items = items.items();
            Ok(items[place(index, items.len() as u128, "element")? as usize].clone())
        }
        (Object::Bytes(bytes), _) => {
            Ok(Object::Number(bytes[place(index, bytes.len() as u128, "byte")? as usize].into()))
        }
        (Object::Text(text) | Object::Report(text), _) => {
            let at = place(index, text.chars().count() as u128, "character")?;
            Ok(Object::Text(text.chars().skip(at as usize).take(1).collect()))
        }
        (other, _) => Err(format!("{} cannot be indexed", other.is())),
    }
}

/// Index of the `count`-th layer of a kind in a packet, counted from 1.
pub fn layer(packet: &Packet, index: &Object, count: i128) -> Result<usize, String> {
    let kind = match index {
        Object::Layer(kind) => *kind,
        Object::Text(name) => Kind::named(name)?,
        other => return Err(format!("expected a layer, got {}", other.is())),
    };
    let mut places = packet.layers().iter().enumerate().filter(|(_, layer)| layer.kind() == kind);
    let found = usize::try_from(count - 1).ok().and_then(|skip| places.nth(skip));
    found.map(|(at, _)| at).ok_or_else(|| {
        let stack: Vec<&str> = packet.layers().iter().map(|layer| layer.info().name).collect();
        format!("the packet has no such layer {}: it is {}", kind.name(), stack.join("/"))
    })
}

/// Resolves an index; a negative index counts from the end.
fn place(index: &Object, length: u128, what: &str) -> Result<u128, String> {
    let number = index.number().ok_or_else(|| format!("expected a number in [], got {}", index.is()))?;
    let at = if number < 0 { number.saturating_add_unsigned(length) } else { number };
    u128::try_from(at).ok().filter(|at| *at < length).ok_or_else(|| match length {
        0 => format!("there is no {what} at all"),
        _ => format!("there is no {what} {number}: there are {length}, counted from 0"),
    })
}

/// `object[from:to]`; for a packet, `packet[IP:2]` begins with its second IP layer.
///
/// # Errors
/// An error message: there is no such part.
pub fn slice(object: &Object, from: Option<&Object>, to: Option<&Object>) -> Result<Object, String> {
    if let (Object::Packets(packets), Some(kind @ (Object::Layer(_) | Object::Text(_)))) = (object, from) {
        let count = to.map_or(Some(1), Object::number).ok_or("the number of the layer is needed after ':'")?;
        return Ok(Object::Packets(packets.layers_from(layer(packets.template(), kind, count)?).into()));
    }
    let range = |length: usize| {
        let bound = |bound: Option<&Object>, default: usize| match bound {
            None | Some(Object::None) => Ok(default),
            Some(object) => {
                let number = object.number().ok_or_else(|| format!("expected a number in [], got {}", object.is()))?;
                let number = if number < 0 { number.saturating_add(length as i128) } else { number };
                Ok::<_, String>(number.clamp(0, length as i128) as usize)
            }
        };
        let (from, to) = (bound(from, 0)?, bound(to, length)?);
        Ok::<_, String>(from..to.max(from))
    };
    Ok(match object {
        Object::List(items) => Object::List(Items::new(items.items()[range(items.items().len())?].to_vec())?),
        Object::Tuple(items) => Object::Tuple(Items::new(items.items()[range(items.items().len())?].to_vec())?),
        Object::Bytes(bytes) => Object::Bytes(bytes[range(bytes.len())?].to_vec()),
        Object::Text(text) | Object::Report(text) => {
            let chars: Vec<char> = text.chars().collect();
            Object::Text(chars[range(chars.len())?].iter().collect())
        }
        other => return Err(format!("{} cannot be indexed", other.is())),
    })
}

/// The packets of a value, mutable.
pub fn packets_mut(object: &mut Object) -> Option<&mut PacketSet> {
    match object {
        Object::Packets(packets) => Some(Arc::make_mut(packets)),
        _ => None,
    }
}
