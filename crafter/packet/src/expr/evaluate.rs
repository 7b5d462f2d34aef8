//! Evaluates the syntax tree.

use std::{net::IpAddr, sync::Arc};

use futures_util::future::{FutureExt as _, LocalBoxFuture};

use super::{
    PacketSet, access,
    fault::Fault,
    hint,
    object::{Items, Object},
    operator::Operator,
    resolve::Resolve,
    set::{self, Span},
    syntax::{Argument, Node, Suffix, SuffixKind, Tree},
};
use crate::error::Error;
use crate::layer::{AnyLayer, FieldInfo, FieldKind, Kind, Layer as _, Packet, Value};

/// Resolves the names in an expression.
pub trait Environment {
    /// The error type of its functions.
    type Error;
    /// Whether it may have variables.
    const HAS_VARIABLES: bool = true;

    /// The value of a variable.
    fn variable(&self, name: &str) -> Option<Object>;
    /// The function of that name.
    fn function(&self, name: &str) -> Option<&'static str>;
    /// The error message for an unknown name.
    fn unknown(&self, name: &str) -> String;
    /// Whether a known name is similar, so that an unknown one is probably misspelt.
    fn is_similar(&self, _name: &str) -> bool {
        false
    }
    /// Resolves a host name, as [`Resolve::resolve`] does. May wait for the network.
    fn resolve(&mut self, name: &str) -> impl Future<Output = Result<Option<Vec<IpAddr>>, String>>;
    /// Calls a function.
    fn call(&mut self, call: Called) -> impl Future<Output = Result<Object, Fault<Self::Error>>>;
}

/// A function call.
#[derive(Debug)]
pub struct Called {
    /// Byte offset of the call in the text.
    pub at: usize,
    /// Name of the function.
    pub name: String,
    /// The arguments; the object of a method call is the first.
    pub arguments: Vec<Given>,
}

/// An argument of a function.
#[derive(Debug)]
pub struct Given {
    /// Byte offset in the text.
    pub at: usize,
    /// Its name, for a keyword argument.
    pub name: Option<String>,
    /// Its value.
    pub value: Object,
}

/// No variables, no functions.
struct Nothing<'a>(&'a dyn Resolve);

impl Environment for Nothing<'_> {
    type Error = Error;
    const HAS_VARIABLES: bool = false;

    fn variable(&self, _: &str) -> Option<Object> {
        None
    }

    fn function(&self, _: &str) -> Option<&'static str> {
        None
    }

    fn unknown(&self, name: &str) -> String {
        match Kind::named(name) {
            Ok(_) => format!("{name} is a layer"),
            Err(reason) => hint::unknown(name, reason),
        }
    }

    async fn resolve(&mut self, name: &str) -> Result<Option<Vec<IpAddr>>, String> {
        self.0.resolve(name)
    }

    async fn call(&mut self, call: Called) -> Result<Object, Fault> {
        Err(Fault::new(call.at, self.unknown(&call.name)))
    }
}

/// Evaluates an expression without variables to packets.
pub(super) fn packets(node: &Node, resolver: &dyn Resolve) -> Result<PacketSet, Fault> {
    // Without functions the future is ready at once.
    let object = value(&mut Nothing(resolver), node).now_or_never();
    let object = object.unwrap_or_else(|| Err(Fault::new(node.at, "it cannot be evaluated at once")))?;
    let packets = object.packets();
    packets
        .map(Arc::unwrap_or_clone)
        .ok_or_else(|| Fault::new(node.at, format_args!("{} is not a packet", object.is())))
}

/// Evaluates an expression.
pub fn value<'a, E: Environment>(
    environment: &'a mut E,
    node: &'a Node,
) -> LocalBoxFuture<'a, Result<Object, Fault<E::Error>>> {
    evaluate(environment, node, false)
}

/// Like [`value`]; within a field, an unknown name is a record.
fn evaluate<'a, E: Environment>(
    environment: &'a mut E,
    node: &'a Node,
    in_field: bool,
) -> LocalBoxFuture<'a, Result<Object, Fault<E::Error>>> {
    let at = node.at;
    async move {
        let said = |reason: String| Fault::new(at, reason);
        Ok(match &node.tree {
            Tree::Number(number) => Object::Number((*number).into()),
            Tree::Decimal(number) => Object::Decimal(*number),
            Tree::Text(text) => Object::Text(text.clone()),
            Tree::Bytes(bytes) => Object::Bytes(bytes.clone()),
            Tree::List(nodes) => Object::List(Items::new(all(environment, nodes, in_field).await?).map_err(said)?),
            Tree::Tuple(nodes) => Object::Tuple(Items::new(all(environment, nodes, in_field).await?).map_err(said)?),
            Tree::Name(name) => match name.as_str() {
                "None" => Object::None,
                "True" => Object::Bool(true),
                "False" => Object::Bool(false),
                _ => match (environment.variable(name), Kind::named(name), environment.function(name)) {
                    (Some(value), ..) => value,
                    (_, Ok(kind), _) => Object::Layer(kind),
                    (.., Some(function)) => Object::Function(function),
                    _ if in_field => Object::Record(name.clone(), Vec::new()),
                    _ => return Err(said(environment.unknown(name))),
                },
            },
            Tree::Signed(signs, operand) => {
                let mut value = evaluate(environment, operand, false).await?;
                for sign in signs.iter().rev() {
                    value = sign.apply(&value).map_err(said)?;
                }
                value
            }
            Tree::Operation(nodes, operators) => {
                let values = all(environment, nodes, false).await?;
                operation(values, operators)?
            }
            Tree::Chain(first, suffixes) => chain(environment, first, suffixes, in_field).await?,
        })
    }
    .boxed_local()
}

async fn all<E: Environment>(
    environment: &mut E,
    nodes: &[Node],
    in_field: bool,
) -> Result<Vec<Object>, Fault<E::Error>> {
    let mut values = Vec::with_capacity(nodes.len());
    for node in nodes {
        values.push(evaluate(environment, node, in_field).await?);
    }
    Ok(values)
}

/// Applies operators by precedence, left to right.
fn operation<F>(values: Vec<Object>, operators: &[(usize, Operator)]) -> Result<Object, Fault<F>> {
    let mut values = values.into_iter();
    let (mut stack, mut pending): (Vec<Object>, Vec<(usize, Operator)>) = (values.next().into_iter().collect(), vec![]);
    let reduce = |stack: &mut Vec<Object>, (at, operator): (usize, Operator)| {
        let (right, left) = (stack.pop().unwrap_or(Object::None), stack.pop().unwrap_or(Object::None));
        stack.push(operator.apply(&left, &right).map_err(|reason| Fault::new(at, reason))?);
        Ok(())
    };
    for (next, value) in operators.iter().zip(values) {
        while let Some(last) = pending.pop_if(|(_, last)| last.strength() >= next.1.strength()) {
            reduce(&mut stack, last)?;
        }
        pending.push(*next);
        stack.push(value);
    }
    while let Some(last) = pending.pop() {
        reduce(&mut stack, last)?;
    }
    Ok(stack.pop().unwrap_or(Object::None))
}

async fn chain<E: Environment>(
    environment: &mut E,
    first: &Node,
    suffixes: &[Suffix],
    in_field: bool,
) -> Result<Object, Fault<E::Error>> {
    let (mut value, mut rest) = match (&first.tree, suffixes) {
        (Tree::Name(name), [Suffix { kind: SuffixKind::Call(arguments), .. }, rest @ ..]) => {
            (named_call(environment, first.at, name, arguments, in_field).await?, rest)
        }
        _ => (evaluate(environment, first, false).await?, suffixes),
    };
    while let [suffix, behind @ ..] = rest {
        let said = |reason| Fault::new(suffix.at, reason);
        (value, rest) = match (&suffix.kind, behind) {
            (SuffixKind::Attribute(name), [Suffix { kind: SuffixKind::Call(arguments), .. }, behind @ ..]) => {
                let mut arguments = given(environment, arguments).await?;
                arguments.insert(0, Given { at: suffix.at, name: None, value });
                let call = Called { at: suffix.at, name: name.clone(), arguments };
                (environment.call(call).await?, behind)
            }
            (SuffixKind::Attribute(name), _) => (access::attribute(&value, name).map_err(said)?, behind),
            (SuffixKind::Index(index), _) => {
                let index = evaluate(environment, index, false).await?;
                (access::index(&value, &index).map_err(said)?, behind)
            }
            (SuffixKind::Slice(from, to), _) => {
                let from = bound(environment, from.as_ref()).await?;
                let to = bound(environment, to.as_ref()).await?;
                (access::slice(&value, from.as_ref(), to.as_ref()).map_err(said)?, behind)
            }
            (SuffixKind::Call(_), _) => return Err(said(format!("{} cannot be called", value.is()))),
        };
    }
    Ok(value)
}

async fn bound<E: Environment>(environment: &mut E, node: Option<&Node>) -> Result<Option<Object>, Fault<E::Error>> {
    Ok(match node {
        Some(node) => Some(evaluate(environment, node, false).await?),
        None => None,
    })
}

async fn given<E: Environment>(environment: &mut E, arguments: &[Argument]) -> Result<Vec<Given>, Fault<E::Error>> {
    let mut given = Vec::with_capacity(arguments.len() + 1);
    for Argument { at, name, value } in arguments {
        given.push(Given { at: *at, name: name.clone(), value: evaluate(environment, value, false).await? });
    }
    Ok(given)
}

/// Evaluates `NAME(arguments)`: a layer, a function, or a record.
async fn named_call<E: Environment>(
    environment: &mut E,
    at: usize,
    name: &str,
    arguments: &[Argument],
    in_field: bool,
) -> Result<Object, Fault<E::Error>> {
    match Kind::named(name) {
        Ok(kind) => Ok(Object::Packets(layer(environment, kind, arguments).await?.into())),
        Err(_) if environment.function(name).is_some() => {
            let arguments = given(environment, arguments).await?;
            environment.call(Called { at, name: name.to_owned(), arguments }).await
        }
        Err(_) if in_field && hint::idiom(name).is_none() => record(environment, name, arguments).await,
        Err(_) => Err(Fault::new(at, environment.unknown(name))),
    }
}

async fn record<E: Environment>(
    environment: &mut E,
    name: &str,
    arguments: &[Argument],
) -> Result<Object, Fault<E::Error>> {
    let mut fields: Vec<(String, Value)> = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let field = argument.name.as_ref().ok_or_else(|| unnamed(argument, name))?;
        if let Some((unknown, text)) = unknown_text(environment, &argument.value) {
            let advice = format_args!("there is no name '{unknown}'; a text needs quotes: {field}=\"{text}\"");
            return Err(Fault::new(argument.value.at, advice));
        }
        let value = evaluate(environment, &argument.value, true).await?;
        let value = value.to_value(false).map_err(|reason| Fault::new(argument.value.at, reason))?;
        fields.push((field.clone(), value));
    }
    Ok(Object::Record(name.to_owned(), fields))
}

fn unnamed<F>(argument: &Argument, layer: &str) -> Fault<F> {
    Fault::new(argument.at, format_args!("{layer} has more fields than one: say which, as in field=value"))
}

async fn layer<E: Environment>(
    environment: &mut E,
    kind: Kind,
    arguments: &[Argument],
) -> Result<PacketSet, Fault<E::Error>> {
    let layer = kind.layer();
    let info = layer.info();
    let mut set = PacketSet::from(layer.clone());
    let mut seen = vec![false; info.fields.len()];
    for argument in arguments {
        let (index, field) = match &argument.name {
            Some(name) => info.field(name).ok_or_else(|| Fault::new(argument.at, info.unknown(name)))?,
            None => match info.fields {
                [only] if only.kind == FieldKind::Bytes => (0, only),
                _ => {
                    // Bytes are parsed as a packet, as in Ether(b"...").
                    return match (evaluate(environment, &argument.value, false).await?, arguments) {
                        (Object::Bytes(bytes), [_]) => Ok(Packet::parse(kind, &bytes).into()),
                        _ => Err(unnamed(argument, info.name)),
                    };
                }
            },
        };
        if std::mem::replace(&mut seen[index], true) {
            return Err(Fault::new(argument.at, format_args!("{} is given twice", field.name)));
        }
        let spans = spans(environment, &argument.value, &layer, field).await?;
        set.assign(0, index, spans).map_err(|reason| Fault::new(argument.value.at, reason))?;
    }
    Ok(set)
}

/// A value that is an unknown name, probably a text without its quotes: the name, and the text.
fn unknown_text<'n, E: Environment>(environment: &E, node: &'n Node) -> Option<(&'n str, String)> {
    let (name, text) = hint::bare(node)?;
    let is_known = matches!(name, "None" | "True" | "False")
        || environment.variable(name).is_some()
        || environment.function(name).is_some()
        || Kind::named(name).is_ok()
        || environment.is_similar(name)
        || hint::idiom(name).is_some();
    (!is_known).then_some((name, text))
}

/// Rejects a value that is a text without its quotes.
fn check_quotes<E: Environment>(
    environment: &E,
    node: &Node,
    layer: &AnyLayer,
    field: &FieldInfo,
) -> Result<(), Fault<E::Error>> {
    if field.kind == FieldKind::List {
        return Ok(());
    }
    let Some((unknown, text)) = unknown_text(environment, node) else { return Ok(()) };
    let name = field.name;
    Err(Fault::new(
        node.at,
        match field.kind {
            FieldKind::Uint if field.names.is_empty() => match E::HAS_VARIABLES {
                true => environment.unknown(unknown),
                false => format!("{}.{name}: '{text}' is not a number", layer.info().name),
            },
            _ => format!("there is no name '{unknown}'; a text needs quotes: {name}=\"{text}\""),
        },
    ))
}

/// Evaluates the values for a field.
pub async fn spans<E: Environment>(
    environment: &mut E,
    node: &Node,
    layer: &AnyLayer,
    field: &FieldInfo,
) -> Result<Vec<Span>, Fault<E::Error>> {
    let empty = || Fault::new(node.at, "the list is empty");
    // Literal elements have their own positions for errors.
    if let (Tree::List(nodes), true) = (&node.tree, field.kind != FieldKind::List) {
        let mut spans = Vec::with_capacity(nodes.len());
        for node in nodes {
            spans.push(one(environment, node, layer, field).await?);
        }
        return if spans.is_empty() { Err(empty()) } else { Ok(spans) };
    }
    check_quotes(environment, node, layer, field)?;
    let object = evaluate(environment, node, true).await?;
    let items = match &object {
        Object::List(items) if field.kind != FieldKind::List && items.items().is_empty() => return Err(empty()),
        // Elements of a list field are not lists: a list of lists is a list of alternatives.
        Object::List(items) if field.kind != FieldKind::List || is_lists(items) => items.items(),
        _ => return Ok(vec![fitted(environment, node, object, layer, field).await?]),
    };
    let mut spans = Vec::with_capacity(items.len());
    for item in items {
        spans.push(span(environment, item, layer, field).await.map_err(|reason| Fault::new(node.at, reason))?);
    }
    Ok(spans)
}

/// Converts the value of a field; a host name is resolved.
async fn span<E: Environment>(
    environment: &mut E,
    object: &Object,
    layer: &AnyLayer,
    field: &FieldInfo,
) -> Result<Span, String> {
    match set::host(object, layer, field) {
        Some(name) => set::host_span(name, environment.resolve(name).await, layer, field),
        None => set::span(object, layer, field),
    }
}

fn is_lists(items: &Items) -> bool {
    !items.items().is_empty() && items.items().iter().all(|item| matches!(item, Object::List(_)))
}

async fn one<E: Environment>(
    environment: &mut E,
    node: &Node,
    layer: &AnyLayer,
    field: &FieldInfo,
) -> Result<Span, Fault<E::Error>> {
    check_quotes(environment, node, layer, field)?;
    let object = evaluate(environment, node, true).await?;
    fitted(environment, node, object, layer, field).await
}

async fn fitted<E: Environment>(
    environment: &mut E,
    node: &Node,
    object: Object,
    layer: &AnyLayer,
    field: &FieldInfo,
) -> Result<Span, Fault<E::Error>> {
    // An unknown name is more likely a typing error than a record.
    if let (Object::Record(name, _), true) = (&object, field.kind != FieldKind::List) {
        return Err(Fault::new(node.at, environment.unknown(name)));
    }
    let fits = span(environment, &object, layer, field).await;
    fits.map_err(|reason| Fault::new(node.at, reason + &hint::of_difference(node).unwrap_or_default()))
}
