//! Completes an input line.

use std::collections::BTreeMap;

use super::signature::{self, FUNCTIONS};
use crate::{
    expr::{
        access::PAIR,
        object::{Items, Object},
        scan,
    },
    layer::{Kind, Layer as _},
};

/// Names for completion; a copy, so that another thread can use it.
#[derive(Debug, Clone, Default)]
pub struct Names {
    variables: Vec<(String, Shape)>,
}

/// Attributes of a value.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    /// A packet of these layers.
    Packet(Vec<Kind>),
    Pair(Box<Shape>),
    /// A list whose elements are like the first one.
    List(Box<Shape>),
    /// Elements of these shapes.
    Tuple(Vec<Shape>),
    Other,
}

/// Elements of a tuple to keep.
const MAX_ELEMENTS: usize = 8;
/// Depth of an expression to follow.
const MAX_DEPTH: u8 = 16;

impl Shape {
    fn of(value: &Object, depth: u8) -> Self {
        if depth == 0 {
            return Self::Other;
        }
        let of = |value: &Object| Self::of(value, depth - 1);
        let first = |items: &Items| items.items().first().map(of).unwrap_or(Self::Other);
        match value {
            Object::Packets(packets) => {
                Self::Packet(packets.template().layers().iter().map(|layer| layer.kind()).collect())
            }
            Object::Layer(kind) => Self::Packet(vec![*kind]),
            Object::Pair(pair) => Self::Pair(Box::new(of(&pair.reply.clone().into()))),
            Object::List(items) => Self::List(Box::new(first(items))),
            Object::Tuple(items) => Self::Tuple(items.items().iter().take(MAX_ELEMENTS).map(of).collect()),
            _ => Self::Other,
        }
    }
}

impl Names {
    pub(super) fn new(variables: &BTreeMap<String, Object>) -> Self {
        Self { variables: variables.iter().map(|(name, value)| (name.clone(), Shape::of(value, 4))).collect() }
    }

    /// Completes the word at the end of `before`. Returns its byte offset and the candidates to replace it.
    pub fn complete(&self, before: &str) -> (usize, Vec<String>) {
        let (head, word) = split_word(before);
        let start = head.len();
        if !scan::is_code_at_end(before) || word.starts_with(|char: char| char.is_ascii_digit()) {
            return (start, Vec::new());
        }
        let mut found = self.candidates(head);
        found.retain(|candidate| candidate.starts_with(word));
        found.sort_unstable();
        found.dedup();
        (start, found)
    }

    fn candidates(&self, head: &str) -> Vec<String> {
        let trimmed = head.trim_end();
        if let Some(receiver) = trimmed.strip_suffix('.') {
            return methods(self.shape(receiver, MAX_DEPTH));
        }
        let Some(open) = scan::innermost(head) else { return self.anything() };
        let (outside, inside) = (&head[..open], &head[open + 1..]);
        if head[open..].starts_with('[') {
            // After a value, the bracket is an index.
            return match self.shape(outside, MAX_DEPTH) {
                Shape::Packet(layers) => layers.iter().map(|kind| kind.name().to_owned()).collect(),
                _ => self.anything(),
            };
        }
        let (_, name) = split_word(outside);
        let is_argument = trimmed.ends_with(['(', ',']);
        if let Ok(kind) = Kind::named(name) {
            let layer = kind.layer();
            let fields = layer.info().fields;
            if is_argument {
                let given = |field: &str| {
                    inside.split([',', '(']).any(|part| part.split('=').next().is_some_and(|name| name.trim() == field))
                };
                return fields.iter().filter(|f| !given(f.name)).map(|field| format!("{}=", field.name)).collect();
            }
            let last = inside.rsplit(',').next().and_then(|part| part.trim().strip_suffix('='));
            let field = last.and_then(|name| layer.info().field(name.trim()));
            let values = field.map_or(&[][..], |(_, field)| field.names);
            let mut found = self.anything();
            found.extend(values.iter().map(|(_, name)| format!("\"{name}\"")));
            return found;
        }
        let mut found = self.anything();
        if let (Some(function), true) = (signature::named(name), is_argument) {
            let parameters = function.parameters().filter(|(_, optional)| *optional);
            found.extend(parameters.map(|(name, _)| format!("{name}=")));
        }
        found
    }

    /// Variables, functions and layers.
    fn anything(&self) -> Vec<String> {
        let variables = self.variables.iter().map(|(name, _)| name.clone());
        let functions = FUNCTIONS.iter().map(|function| match function.parameters {
            "" => format!("{}()", function.name),
            _ => format!("{}(", function.name),
        });
        let layers = Kind::ALL.iter().map(|kind| format!("{}(", kind.name()));
        let values = ["None", "True", "False"].map(str::to_owned);
        variables.chain(functions).chain(layers).chain(values).collect()
    }

    /// Shape of the value at the end of `text`.
    fn shape(&self, text: &str, depth: u8) -> Shape {
        let Some(depth) = depth.checked_sub(1) else { return Shape::Other };
        let text = text.trim_end();
        if text.ends_with([']', ')']) {
            // Without the last bracket, the one that it closes is open.
            let inside = &text[..text.len() - 1];
            let Some(open) = scan::innermost(inside) else { return Shape::Other };
            let (outside, inside) = (&text[..open], inside[open + 1..].trim());
            if text.ends_with(']') {
                let at = inside.parse::<usize>().ok();
                return match (
                    self.shape(outside, depth),
                    Kind::named(inside.split(':').next().unwrap_or_default().trim()),
                ) {
                    (Shape::Packet(layers), Ok(kind)) => {
                        Shape::Packet(layers.into_iter().skip_while(|layer| *layer != kind).collect())
                    }
                    (packet @ Shape::Packet(_), _) => packet,
                    (Shape::List(element), _) if at.is_some() => *element,
                    (Shape::Tuple(elements), _) => {
                        at.and_then(|at| elements.into_iter().nth(at)).unwrap_or(Shape::Other)
                    }
                    (Shape::Pair(reply), _) if at == Some(1) => *reply,
                    _ => Shape::Other,
                };
            }
            let (_, name) = split_word(outside);
            return Kind::named(name).map_or(Shape::Other, |kind| Shape::Packet(vec![kind]));
        }
        let (head, name) = split_word(text);
        match head.trim_end().strip_suffix('.') {
            Some(receiver) => match (self.shape(receiver, depth), name) {
                (Shape::Pair(reply), "reply" | "answer" | "request" | "query") => *reply,
                (Shape::Packet(layers), "payload") => Shape::Packet(layers.into_iter().skip(1).collect()),
                _ => Shape::Other,
            },
            None => match self.variables.iter().find(|(known, _)| known == name) {
                Some((_, shape)) => shape.clone(),
                None => Kind::named(name).map_or(Shape::Other, |kind| Shape::Packet(vec![kind])),
            },
        }
    }
}

/// Splits the name at the end of a text off; it may be empty.
fn split_word(text: &str) -> (&str, &str) {
    text.split_at(text.trim_end_matches(|char: char| char.is_ascii_alphanumeric() || char == '_').len())
}

/// Fields and functions of a value.
fn methods(shape: Shape) -> Vec<String> {
    let functions = |names: &[&str]| {
        let of = |name: &&str| signature::named(name).is_some();
        names.iter().filter(|name| of(name)).map(|name| format!("{name}(")).collect::<Vec<_>>()
    };
    match shape {
        Shape::Packet(layers) => {
            let layers = layers.iter().map(|kind| kind.layer());
            let mut found: Vec<String> =
                layers.flat_map(|layer| layer.info().fields.iter().map(|field| field.name.to_owned())).collect();
            found.extend(functions(&["show", "summary", "hexdump", "answers", "haslayer", "fuzz", "recompute"]));
            found.push("payload".to_owned());
            found
        }
        Shape::Pair(_) => PAIR.map(str::to_owned).into(),
        Shape::List(_) | Shape::Tuple(_) => functions(&["show", "summary", "hexdump", "len"]),
        Shape::Other => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Ip, Tcp};

    fn names() -> Names {
        let packet = Object::from(Ip::to("192.0.2.1") / Tcp::to(80));
        Names::new(&[("p".to_owned(), packet), ("port".to_owned(), Object::Number(80))].into())
    }

    #[track_caller]
    fn completes(text: &str, expected: &[&str]) {
        let (start, found) = names().complete(text);
        let word: String = text[start..].into();
        assert!(found.iter().all(|candidate| candidate.starts_with(&word)), "{found:?}");
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn layers_functions_and_variables_are_completed() {
        completes("sr", &["sr(", "sr1(", "srp(", "srp1("]);
        completes("x = TC", &["TCP(", "TCPAOValue(", "TCPquote("]);
        completes("po", &["port"]);
        completes("sr1(IP(dst=\"192.0.2.1\")/UD", &["UDP("]);
        completes("x = \"sr", &[]);
        completes("# sr", &[]);
        completes("1", &[]);
    }

    #[test]
    fn fields_and_arguments_are_completed() {
        completes("IP(tt", &["ttl="]);
        completes("IP(ttl=5, tt", &[]);
        completes("TCP(dport=po", &["port"]);
        completes("IP(proto=ud", &[]);
        assert!(names().complete("IP(proto=").1.contains(&"\"udp\"".to_owned()));
        completes("p[TCP].dp", &["dport"]);
        completes("p.tt", &["ttl"]);
        completes("p.dpo", &["dport"]);
        completes("p.payload.tt", &[]);
        completes("p[T", &["TCP"]);
        completes("sr1(p, tim", &["timeout="]);
        completes("p.summ", &["summary("]);
        completes("TCP().fla", &["flags"]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(p|TCP|\\.|[(),=/\\[\\]\"' ]|0|\\PC){0,20}") {
            let (start, _) = names().complete(&text);
            proptest::prop_assert!(text.is_char_boundary(start));
        }
    }
}
