//! Expressions that stand for one packet or many.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::syntax::{self, Argument, Call, Node, Tree, error_at};
use crate::{
    error::{Error, Result},
    layer::{FieldInfo, FieldKind, Kind, Layer as _, Packet, Value},
};

/// The packets that an expression stands for: the product of all its sets.
#[derive(Debug, Clone)]
pub struct PacketSet {
    template: Packet,
    choices: Vec<Choice>,
}

/// A field with more than one value.
#[derive(Debug, Clone)]
struct Choice {
    layer: usize,
    field: usize,
    spans: Vec<Span>,
}

/// Values one after the other.
#[derive(Debug, Clone)]
enum Span {
    One(Value),
    Range(u64, u64),
    Ipv4(u32, u64),
    Ipv6(u128, u128),
}

impl Span {
    fn len(&self) -> u128 {
        match self {
            Self::One(_) => 1,
            Self::Range(first, last) => u128::from(last - first) + 1,
            Self::Ipv4(_, count) => (*count).into(),
            Self::Ipv6(_, count) => *count,
        }
    }

    /// The value at a place below [`len`](Self::len).
    fn get(&self, index: u128) -> Value {
        match self {
            Self::One(value) => value.clone(),
            Self::Range(first, _) => Value::Uint(first.wrapping_add(index as u64)),
            Self::Ipv4(first, _) => Value::Text(Ipv4Addr::from(first.wrapping_add(index as u32)).to_string()),
            Self::Ipv6(first, _) => Value::Text(Ipv6Addr::from(first.wrapping_add(index)).to_string()),
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

impl PacketSet {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the column and what would fit.
    pub fn parse(text: &str) -> Result<Self> {
        let mut set = Self { template: Packet::new(), choices: Vec::new() };
        for call in syntax::parse(text)? {
            set.layer(text, &call)?;
        }
        Ok(set)
    }

    /// How many packets there are; at most `u128::MAX` is told.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u128 {
        self.choices.iter().map(Choice::len).fold(1, u128::saturating_mul)
    }

    /// The packets, one made after the other.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are more than `limit`.
    pub fn packets(&self, limit: u128) -> Result<Packets<'_>> {
        let length = self.len();
        if length > limit {
            return Err(Error::invalid(
                "expression",
                format_args!("it stands for {length} packets, at most {limit} are allowed"),
            ));
        }
        Ok(Packets { set: self, next: 0, length })
    }

    /// The one packet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are more.
    pub fn single(&self) -> Result<Packet> {
        match self.len() {
            1 => Ok(self.get(0)),
            length => Err(Error::invalid("expression", format_args!("one packet is needed, it stands for {length}"))),
        }
    }

    /// The packet at a place below [`len`](Self::len), the first set varying slowest.
    fn get(&self, mut index: u128) -> Packet {
        let mut packet = self.template.clone();
        for choice in self.choices.iter().rev() {
            let length = choice.len();
            let value = choice.get(index % length);
            index /= length;
            if let Some(layer) = packet.layers_mut().get_mut(choice.layer) {
                // Values were tried when the expression was read.
                let _ = layer.set_value(choice.field, &value);
            }
        }
        packet
    }

    fn layer(&mut self, text: &str, call: &Call) -> Result<()> {
        let kind = Kind::named(&call.name).map_err(|reason| error_at(text, call.at, reason))?;
        let mut layer = kind.layer();
        let info = layer.info();
        let mut given = vec![false; info.fields.len()];
        for argument in &call.arguments {
            let (index, field) = match &argument.name {
                Some(name) => info.field(name).ok_or_else(|| error_at(text, argument.at, info.unknown(name)))?,
                None => match info.fields {
                    [only] => (0, only),
                    _ => return Err(unnamed(text, argument, info.name)),
                },
            };
            if std::mem::replace(&mut given[index], true) {
                return Err(error_at(text, argument.at, format_args!("{} is given twice", field.name)));
            }
            let spans = spans(text, &argument.value, field)?;
            // The ends of a range stand for what lies between.
            for span in &spans {
                for at in [0, span.len() - 1] {
                    let fits = layer.set_value(index, &span.get(at));
                    fits.map_err(|reason| {
                        error_at(text, argument.value.at, format_args!("{}.{}: {reason}", info.name, field.name))
                    })?;
                }
            }
            if !matches!(spans[..], [Span::One(_)]) {
                self.choices.push(Choice { layer: self.template.layers().len(), field: index, spans });
            }
        }
        self.template.push(layer);
        Ok(())
    }
}

fn unnamed(text: &str, argument: &Argument, layer: &str) -> Error {
    error_at(text, argument.at, format_args!("{layer} has more fields than one: say which, as in field=value"))
}

/// The values that a field is given.
fn spans(text: &str, node: &Node, field: &FieldInfo) -> Result<Vec<Span>> {
    match &node.tree {
        Tree::List(nodes) if field.kind != FieldKind::List => {
            if nodes.is_empty() {
                return Err(error_at(text, node.at, "the list is empty: no packet at all"));
            }
            nodes.iter().map(|node| span(text, node, field)).collect()
        }
        _ => Ok(vec![span(text, node, field)?]),
    }
}

fn span(text: &str, node: &Node, field: &FieldInfo) -> Result<Span> {
    match (&node.tree, field.kind) {
        (Tree::Tuple(ends), FieldKind::Uint | FieldKind::Flags) => match ends[..] {
            [Node { tree: Tree::Uint(first), .. }, Node { tree: Tree::Uint(last), .. }] if first <= last => {
                Ok(Span::Range(first, last))
            }
            _ => Err(error_at(text, node.at, "a range is two numbers, the smaller one first")),
        },
        (Tree::Text(address), FieldKind::Ipv4) if address.contains('/') => {
            let (address, bits) = prefix::<Ipv4Addr>(text, node, address, 32)?;
            let count = 1_u64 << (32 - bits);
            Ok(Span::Ipv4((u64::from(u32::from(address)) & !(count - 1)) as u32, count))
        }
        (Tree::Text(address), FieldKind::Ipv6) if address.contains('/') => {
            let (address, bits) = prefix::<Ipv6Addr>(text, node, address, 128)?;
            let count = 1_u128.checked_shl(128 - bits).unwrap_or(u128::MAX);
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Ok(Span::Ipv6(u128::from(address) & mask, count))
        }
        _ => Ok(Span::One(value(text, node)?)),
    }
}

fn prefix<T: FromStr>(text: &str, node: &Node, address: &str, most: u32) -> Result<(T, u32)> {
    let parts = address.split_once('/').and_then(|(address, bits)| Some((address.parse().ok()?, bits.parse().ok()?)));
    parts.filter(|(_, bits)| *bits <= most).ok_or_else(|| {
        error_at(
            text,
            node.at,
            format_args!("'{address}' is no prefix: an address, '/' and a length up to {most} are needed"),
        )
    })
}

fn value(text: &str, node: &Node) -> Result<Value> {
    let values = |nodes: &[Node]| nodes.iter().map(|node| value(text, node)).collect::<Result<Vec<_>>>();
    Ok(match &node.tree {
        Tree::None => Value::None,
        Tree::Uint(number) => Value::Uint(*number),
        Tree::Text(text) => Value::Text(text.clone()),
        Tree::Bytes(bytes) => Value::Bytes(bytes.clone()),
        Tree::List(nodes) => Value::List(values(nodes)?),
        Tree::Tuple(nodes) => Value::Tuple(values(nodes)?),
        Tree::Record(call) => {
            let field = |argument: &Argument| match &argument.name {
                Some(name) => Ok((name.clone(), value(text, &argument.value)?)),
                None => Err(unnamed(text, argument, &call.name)),
            };
            Value::Record(call.name.clone(), call.arguments.iter().map(field).collect::<Result<_>>()?)
        }
    })
}

/// The packets of a [`PacketSet`].
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

    /// Reads the text form of one packet; see [`expr`](crate::expr).
    fn from_str(text: &str) -> Result<Self> {
        PacketSet::parse(text)?.single()
    }
}

#[cfg(test)]
mod tests;
