//! The grammar: text to a tree that knows its columns.

use winnow::{
    LocatingSlice, ModalResult, Parser,
    ascii::multispace0,
    combinator::{alt, cut_err, dispatch, empty, fail, opt, peek, preceded, repeat, separated, terminated},
    error::{StrContext, StrContextValue},
    token::{any, none_of, one_of, take_while},
};

use crate::error::{Error, Result};

type Input<'a> = LocatingSlice<&'a str>;

/// `NAME(argument, ...)`, or a literal that stands for `Raw`.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub at: usize,
    pub name: String,
    pub arguments: Vec<Argument>,
}

/// `name=value` or a value alone.
#[derive(Debug, Clone)]
pub(super) struct Argument {
    pub at: usize,
    pub name: Option<String>,
    pub value: Node,
}

/// A value and where it begins, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub at: usize,
    pub tree: Tree,
}

#[derive(Debug, Clone)]
pub(super) enum Tree {
    None,
    Uint(u64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Node>),
    Tuple(Vec<Node>),
    Record(Call),
}

/// Brackets nested deeper than this have no meaning.
const MAX_DEPTH: usize = 32;

/// An error at a byte of the text.
pub(super) fn error_at(text: &str, at: usize, reason: impl std::fmt::Display) -> Error {
    let column = text.get(..at).map_or(text.len(), |before| before.chars().count()) + 1;
    Error::invalid(format!("expression, column {column}"), reason)
}

/// Reads an expression.
pub(super) fn parse(text: &str) -> Result<Vec<Call>> {
    check_depth(text)?;
    let mut expression = terminated(separated(1.., layer, slash), (multispace0, end));
    expression.parse(Input::new(text)).map_err(|error| {
        // The innermost context; those around it say what the whole is.
        let expected = error.inner().context().find_map(|context| match context {
            StrContext::Expected(expected) => Some(expected.to_string()),
            _ => None,
        });
        let rest = &text[error.offset()..];
        let found = match rest.chars().next() {
            Some(char) => format!("'{char}'"),
            None => "the end".to_owned(),
        };
        let reason = match expected {
            None => format!("{found} makes no sense here"),
            Some(expected) => format!("{found} makes no sense here; {expected} is needed"),
        };
        error_at(text, error.offset(), reason)
    })
}

/// Refuses brackets nested so deep that reading them would exhaust the stack.
fn check_depth(text: &str) -> Result<()> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, char) in text.char_indices() {
        match (quote, char) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if open == char => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(char),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(error_at(text, at, format_args!("more than {MAX_DEPTH} brackets inside each other")));
        }
    }
    Ok(())
}

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

fn end(input: &mut Input<'_>) -> ModalResult<()> {
    cut_err(winnow::combinator::eof).context(expected("'/' with another layer, or the end")).void().parse_next(input)
}

fn slash(input: &mut Input<'_>) -> ModalResult<()> {
    // What follows a slash must be a layer.
    (multispace0, '/', multispace0, cut_err(peek(one_of(|char: char| is_name(char) || matches!(char, '"' | '\'')))))
        .context(expected("a layer"))
        .void()
        .parse_next(input)
}

fn token<'a>(char: char) -> impl Parser<Input<'a>, (), winnow::error::ErrMode<winnow::error::ContextError>> {
    (multispace0, char, multispace0).void()
}

fn is_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

fn name(input: &mut Input<'_>) -> ModalResult<String> {
    (one_of(|char: char| char.is_ascii_alphabetic() || char == '_'), take_while(0.., is_name))
        .take()
        .map(str::to_owned)
        .parse_next(input)
}

fn layer(input: &mut Input<'_>) -> ModalResult<Call> {
    preceded(multispace0, alt((literal_layer, call)))
        .context(expected("a layer, such as IP(dst=\"192.0.2.1\")"))
        .parse_next(input)
}

fn literal_layer(input: &mut Input<'_>) -> ModalResult<Call> {
    alt((bytes, text))
        .with_span()
        .map(|(tree, span)| {
            let value = Node { at: span.start, tree };
            Call {
                at: span.start,
                name: "Raw".to_owned(),
                arguments: vec![Argument { at: span.start, name: None, value }],
            }
        })
        .parse_next(input)
}

fn call(input: &mut Input<'_>) -> ModalResult<Call> {
    (name.with_span(), opt(arguments))
        .map(|((name, span), arguments)| Call { at: span.start, name, arguments: arguments.unwrap_or_default() })
        .parse_next(input)
}

fn arguments(input: &mut Input<'_>) -> ModalResult<Vec<Argument>> {
    let list = terminated(separated(0.., argument, token(',')), opt(token(',')));
    let close = cut_err((multispace0, ')')).context(expected("')', or ',' with another field,"));
    (multispace0, '(', multispace0, list, close).map(|(_, _, _, list, _)| list).parse_next(input)
}

fn argument(input: &mut Input<'_>) -> ModalResult<Argument> {
    let (name, span) = opt(terminated(name, token('='))).with_span().parse_next(input)?;
    // After `name=` there is no way back.
    let value = if name.is_some() { cut_err(value).parse_next(input)? } else { value.parse_next(input)? };
    Ok(Argument { at: if name.is_some() { span.start } else { value.at }, name, value })
}

fn value(input: &mut Input<'_>) -> ModalResult<Node> {
    let tree = dispatch! { peek(any);
        '0'..='9' => number,
        '[' => sequence('[', ']').map(|(nodes, _)| Tree::List(nodes)),
        '(' => sequence('(', ')').map(|(mut nodes, comma)| match nodes.len() {
            // Brackets around one value mean nothing.
            1 if !comma => nodes.remove(0).tree,
            _ => Tree::Tuple(nodes),
        }),
        '"' | '\'' => text,
        'b' => alt((bytes, word)),
        _ => word,
    };
    tree.with_span().map(|(tree, span)| Node { at: span.start, tree }).context(expected("a value")).parse_next(input)
}

fn sequence<'a>(
    open: char,
    close: char,
) -> impl Parser<Input<'a>, (Vec<Node>, bool), winnow::error::ErrMode<winnow::error::ContextError>> {
    let end = cut_err((multispace0, close)).context(expected("',' or the closing bracket"));
    (open, multispace0, separated(0.., value, token(',')), opt(token(',')), end)
        .map(|(_, _, nodes, comma, _)| (nodes, comma.is_some()))
}

fn word(input: &mut Input<'_>) -> ModalResult<Tree> {
    call.map(|call| match (call.name.as_str(), call.arguments.is_empty()) {
        ("None", true) => Tree::None,
        ("True", true) => Tree::Uint(1),
        ("False", true) => Tree::Uint(0),
        _ => Tree::Record(call),
    })
    .parse_next(input)
}

fn number(input: &mut Input<'_>) -> ModalResult<Tree> {
    let digits = take_while(1.., is_name).verify_map(|digits: &str| {
        let digits = digits.replace('_', "");
        let parsed = match digits.get(..2) {
            Some("0x" | "0X") => u64::from_str_radix(&digits[2..], 16),
            Some("0b" | "0B") => u64::from_str_radix(&digits[2..], 2),
            Some("0o" | "0O") => u64::from_str_radix(&digits[2..], 8),
            _ => digits.parse(),
        };
        parsed.ok()
    });
    cut_err(digits).map(Tree::Uint).context(expected("a number below 2^64 (a text stands in quotes)")).parse_next(input)
}

fn text(input: &mut Input<'_>) -> ModalResult<Tree> {
    quoted.map(|chars| Tree::Text(chars.into_iter().map(|(char, _)| char).collect())).parse_next(input)
}

fn bytes(input: &mut Input<'_>) -> ModalResult<Tree> {
    preceded('b', quoted)
        .map(|chars| {
            let mut bytes = Vec::with_capacity(chars.len());
            for (char, is_byte) in chars {
                if is_byte {
                    bytes.push(char as u32 as u8);
                } else {
                    bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
            Tree::Bytes(bytes)
        })
        .parse_next(input)
}

/// The characters between quotes, and whether each was written as a byte, `\xff`.
fn quoted(input: &mut Input<'_>) -> ModalResult<Vec<(char, bool)>> {
    let quote = one_of(['"', '\'']).parse_next(input)?;
    let char = alt((
        preceded('\\', cut_err((peek(one_of(['n', 'r', 't', '0', '\\', '"', '\'', 'x', 'u'])), escape)))
            .map(|(_, char)| char)
            .context(expected("an escape: \\n \\r \\t \\0 \\\\ \\\" \\' \\xff \\u263a")),
        none_of([quote, '\\']).map(|char| (char, false)),
    ));
    let chars = repeat(0.., char).parse_next(input)?;
    cut_err(quote).context(expected("the closing quote")).parse_next(input)?;
    Ok(chars)
}

fn escape(input: &mut Input<'_>) -> ModalResult<(char, bool)> {
    let hex = |count: usize| {
        take_while(count, |char: char| char.is_ascii_hexdigit())
            .verify_map(|digits| u32::from_str_radix(digits, 16).ok().and_then(char::from_u32))
    };
    dispatch! { any;
        'n' => empty.value(('\n', false)),
        'r' => empty.value(('\r', false)),
        't' => empty.value(('\t', false)),
        '0' => empty.value(('\0', false)),
        '\\' => empty.value(('\\', false)),
        '"' => empty.value(('"', false)),
        '\'' => empty.value(('\'', false)),
        'x' => hex(2).map(|char| (char, true)),
        'u' => hex(4).map(|char| (char, false)),
        _ => fail,
    }
    .parse_next(input)
}
