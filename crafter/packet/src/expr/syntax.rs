//! The grammar: parses text to a tree with positions.
//!
//! Only brackets nest. Operators and suffixes are in lists, so that a long text does not make a deep tree.

use std::ops::Range;

use winnow::{
    LocatingSlice, ModalResult, Parser,
    ascii::{line_ending, multispace1, till_line_ending},
    combinator::{alt, cut_err, dispatch, empty, eof, fail, not, opt, peek, preceded, repeat, separated, terminated},
    error::{StrContext, StrContextValue},
    stream::Stream as _,
    token::{any, none_of, one_of, take_while},
};

use super::{
    fault::Fault,
    hint,
    operator::{Operator, Sign},
    scan,
};

type Input<'a> = LocatingSlice<&'a str>;
type Failure = winnow::error::ErrMode<winnow::error::ContextError>;

/// A part of an expression with its position.
#[derive(Debug, Clone)]
pub struct Node {
    /// Byte offset of its beginning.
    pub at: usize,
    /// What it is.
    pub tree: Tree,
}

/// An expression.
#[derive(Debug, Clone)]
pub enum Tree {
    /// A whole number.
    Number(u64),
    /// A number with a decimal point.
    Decimal(f64),
    /// `"text"`
    Text(String),
    /// `b"bytes"`
    Bytes(Vec<u8>),
    /// `[element, element]`
    List(Vec<Node>),
    /// `(element, element)`
    Tuple(Vec<Node>),
    /// A variable, layer, function, record, or `None`, `True`, `False`.
    Name(String),
    /// A value and its suffixes, in order.
    Chain(Box<Node>, Vec<Suffix>),
    /// Unary operators, the last one first, and their operand.
    Signed(Vec<Sign>, Box<Node>),
    /// Operands, and the operators between them with byte offsets.
    Operation(Vec<Node>, Vec<(usize, Operator)>),
}

/// A suffix of a value.
#[derive(Debug, Clone)]
pub struct Suffix {
    /// Byte offset of its beginning.
    pub at: usize,
    /// The kind of suffix.
    pub kind: SuffixKind,
}

/// Kind of a suffix.
#[derive(Debug, Clone)]
pub enum SuffixKind {
    /// `.name`
    Attribute(String),
    /// `[index]`
    Index(Node),
    /// `[from:to]`
    Slice(Option<Node>, Option<Node>),
    /// `(arguments)`
    Call(Vec<Argument>),
}

/// An argument: `name=value`, or only a value.
#[derive(Debug, Clone)]
pub struct Argument {
    /// Byte offset of its beginning.
    pub at: usize,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its value.
    pub value: Node,
}

/// A statement of the shell.
#[derive(Debug, Clone)]
pub enum Statement {
    /// An expression, whose value is printed.
    Expression(Node),
    /// `target = value`, or `target, target = value`.
    Assignment(Vec<Node>, Node),
    /// `del target, target`
    Deletion(Vec<Node>),
}

const LAYER: &str = "a layer, such as IP(dst=\"192.0.2.1\")";
const VALUE: &str = "a value";

/// Parses a text that is a single expression.
pub(super) fn expression(text: &str) -> Result<Node, Fault> {
    scan::check_depth(text)?;
    let end = cut_err(eof).context(expected("'/' with another layer, or the end"));
    let whole = (space, operation(LAYER), space, end).map(|(_, node, ..)| node);
    read(whole, text, 0, true)
}

/// Parses a statement within a text. Offsets of nodes are relative to the statement, those of faults to the text.
pub fn statement(text: &str, range: Range<usize>) -> Result<Statement, Fault> {
    let slice = text.get(range.clone()).unwrap_or_default();
    scan::check_depth(slice).map_err(|fault| Fault { at: fault.at + range.start, ..fault })?;
    let several = || (separated(1.., operation(VALUE), token(',')), opt((space, ','))).with_span();
    let one = |(at, (nodes, comma)): (usize, (Vec<Node>, bool))| match <[Node; 1]>::try_from(nodes) {
        Ok([node]) if !comma => node,
        Ok(node) => Node { at, tree: Tree::Tuple(node.into()) },
        Err(nodes) => Node { at, tree: Tree::Tuple(nodes) },
    };
    let assigned = preceded((token('='), not('=')), cut_err(several()));
    let end = cut_err(eof).context(expected("an operator, or the end of the statement,"));
    let deleted = preceded(("del", not(one_of(is_name)), space), cut_err(several()));
    let deletion = deleted.map(|((targets, _), _): ((Vec<Node>, _), _)| Statement::Deletion(targets));
    let other = (several(), opt(assigned)).map(|((first, span), assigned)| match assigned {
        Some(((nodes, comma), span)) => {
            let (targets, _): (Vec<Node>, _) = first;
            Statement::Assignment(targets, one((span.start, (nodes, comma.is_some()))))
        }
        None => Statement::Expression(one((span.start, (first.0, first.1.is_some())))),
    });
    let whole = (space, alt((deletion, other)), space, end).map(|(_, statement, ..)| statement);
    read(whole, slice, range.start, false)
}

fn read<'a, T>(
    mut parser: impl Parser<Input<'a>, T, Failure>,
    text: &'a str,
    start: usize,
    is_expression: bool,
) -> Result<T, Fault> {
    parser.parse(Input::new(text)).map_err(|error| {
        if let Some((at, reason)) = hint::of_unexpected(text, error.offset(), is_expression) {
            return Fault::new(start + at, reason);
        }
        // The innermost context is the most specific.
        let expected = error.inner().context().find_map(|context| match context {
            StrContext::Expected(expected) => Some(expected.to_string()),
            _ => None,
        });
        let rest = &text[error.offset()..];
        let found = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => format!("'{quote}'"),
            Some(char) => format!("'{}'", char.escape_debug()),
            None => "end".to_owned(),
        };
        let reason = match expected {
            None => format!("unexpected {found}"),
            Some(expected) => format!("unexpected {found}; expected {expected}"),
        };
        Fault::new(start + error.offset(), reason)
    })
}

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

/// Skips white space, comments, and line ends after a backslash, as in Python.
fn space(input: &mut Input<'_>) -> ModalResult<()> {
    loop {
        match input.peek_token() {
            Some(' ' | '\t' | '\r' | '\n') => multispace1.void().parse_next(input)?,
            Some('#') => till_line_ending.void().parse_next(input)?,
            Some('\\') => {
                let continued = ('\\', take_while(0.., [' ', '\t']), line_ending).void();
                if opt(continued).parse_next(input)?.is_none() {
                    return Ok(());
                }
            }
            _ => return Ok(()),
        }
    }
}

fn token<'a>(char: char) -> impl Parser<Input<'a>, (), Failure> {
    (space, char, space).void()
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

/// Parses operands separated by operators; `what` describes the expected operand.
fn operation<'a>(what: &'static str) -> impl Parser<Input<'a>, Node, Failure> {
    move |input: &mut Input<'a>| {
        let first = operand(what).parse_next(input)?;
        let (mut nodes, mut operators) = (vec![first], Vec::new());
        while let Some((operator, span)) = opt(preceded(space, operator.with_span())).parse_next(input)? {
            let what = if operator == Operator::Stack { "a layer" } else { VALUE };
            // An operator must be followed by an operand.
            nodes.push(preceded(space, cut_err(operand(what))).parse_next(input)?);
            operators.push((span.start, operator));
        }
        Ok(match nodes.pop() {
            Some(only) if nodes.is_empty() => only,
            last => {
                nodes.extend(last);
                Node { at: nodes[0].at, tree: Tree::Operation(nodes, operators) }
            }
        })
    }
}

fn operator(input: &mut Input<'_>) -> ModalResult<Operator> {
    // Most often there is none.
    if !input.peek_token().is_some_and(|char| "/<>=!+-*%&|^i".contains(char)) {
        return fail.parse_next(input);
    }
    let word = terminated("in", not(one_of(is_name))).value(Operator::In);
    alt((
        alt((
            "//".value(Operator::Divide),
            "<<".value(Operator::Left),
            ">>".value(Operator::Right),
            "==".value(Operator::Equal),
            "!=".value(Operator::Unequal),
            "<=".value(Operator::AtMost),
            ">=".value(Operator::AtLeast),
            word,
        )),
        any.verify_map(|char| {
            Some(match char {
                '/' => Operator::Stack,
                '+' => Operator::Add,
                '-' => Operator::Subtract,
                '*' => Operator::Multiply,
                '%' => Operator::Remainder,
                '&' => Operator::And,
                '|' => Operator::Or,
                '^' => Operator::Xor,
                '<' => Operator::Less,
                '>' => Operator::More,
                _ => return None,
            })
        }),
    ))
    .parse_next(input)
}

fn operand<'a>(what: &'static str) -> impl Parser<Input<'a>, Node, Failure> {
    move |input: &mut Input<'a>| {
        let sign = alt(('-'.value(Sign::Minus), '~'.value(Sign::Invert), '+'.value(Sign::Plus)));
        let (signs, span): (Vec<Sign>, _) = repeat(0.., terminated(sign, space)).with_span().parse_next(input)?;
        let node =
            if signs.is_empty() { chain(what).parse_next(input)? } else { cut_err(chain(what)).parse_next(input)? };
        Ok(match signs.is_empty() {
            true => node,
            false => Node { at: span.start, tree: Tree::Signed(signs, Box::new(node)) },
        })
    }
}

fn chain<'a>(what: &'static str) -> impl Parser<Input<'a>, Node, Failure> {
    move |input: &mut Input<'a>| {
        let node = primary.context(expected(what)).parse_next(input)?;
        let mut suffixes = Vec::new();
        if !matches!(node.tree, Tree::Number(_) | Tree::Decimal(_)) {
            // Only names can be called.
            let mut is_named = matches!(node.tree, Tree::Name(_));
            while let Some(next) = opt(preceded(space, suffix(is_named))).parse_next(input)? {
                is_named = matches!(next.kind, SuffixKind::Attribute(_));
                suffixes.push(next);
            }
        }
        Ok(match suffixes.is_empty() {
            true => node,
            false => Node { at: node.at, tree: Tree::Chain(Box::new(node), suffixes) },
        })
    }
}

fn suffix<'a>(is_named: bool) -> impl Parser<Input<'a>, Suffix, Failure> {
    let kind = move |input: &mut Input<'a>| match peek(any).parse_next(input)? {
        '.' => (('.', space), name).map(|(_, name)| SuffixKind::Attribute(name)).parse_next(input),
        '[' => index.parse_next(input),
        '(' if is_named => arguments.map(SuffixKind::Call).parse_next(input),
        _ => fail.parse_next(input),
    };
    kind.with_span().map(|(kind, span): (SuffixKind, Range<usize>)| Suffix { at: span.start, kind })
}

fn index(input: &mut Input<'_>) -> ModalResult<SuffixKind> {
    let bound = || opt(operation(VALUE));
    let inner = (bound(), opt(preceded(token(':'), bound())));
    let close = cut_err((space, ']')).context(expected("the closing bracket"));
    (('[', space), inner, close)
        .verify_map(|(_, inner, _)| match inner {
            (Some(index), None) => Some(SuffixKind::Index(index)),
            (from, Some(to)) => Some(SuffixKind::Slice(from, to)),
            (None, None) => None,
        })
        .context(expected("an index or a layer in the brackets"))
        .parse_next(input)
}

fn arguments(input: &mut Input<'_>) -> ModalResult<Vec<Argument>> {
    let list = terminated(separated(0.., argument, token(',')), opt(token(',')));
    let close = cut_err((space, ')')).context(expected("')', or ',' with another field,"));
    ('(', space, list, close).map(|(_, _, list, _)| list).parse_next(input)
}

fn argument(input: &mut Input<'_>) -> ModalResult<Argument> {
    let named = terminated(name, (space, '=', not('='), space));
    let (name, span) = opt(named).with_span().parse_next(input)?;
    // After `name=` a value is required.
    let value = match name {
        Some(_) => cut_err(operation(VALUE)).parse_next(input)?,
        None => operation(VALUE).parse_next(input)?,
    };
    Ok(Argument { at: if name.is_some() { span.start } else { value.at }, name, value })
}

fn primary(input: &mut Input<'_>) -> ModalResult<Node> {
    let tree = dispatch! { peek(any);
        '0'..='9' => number,
        '[' => sequence('[', ']').map(|(nodes, _)| Tree::List(nodes)),
        '(' => sequence('(', ')').map(|(mut nodes, comma)| match nodes.len() {
            // Parentheses around a single value only group.
            1 if !comma => nodes.remove(0).tree,
            _ => Tree::Tuple(nodes),
        }),
        '"' | '\'' => text,
        'b' => alt((bytes, name.map(Tree::Name))),
        _ => name.map(Tree::Name),
    };
    tree.with_span().map(|(tree, span)| Node { at: span.start, tree }).parse_next(input)
}

fn sequence<'a>(open: char, close: char) -> impl Parser<Input<'a>, (Vec<Node>, bool), Failure> {
    let end = cut_err((space, close)).context(expected("',' or the closing bracket"));
    (open, space, separated(0.., operation(VALUE), token(',')), opt(token(',')), end)
        .map(|(_, _, nodes, comma, _)| (nodes, comma.is_some()))
}

fn number(input: &mut Input<'_>) -> ModalResult<Tree> {
    let fraction =
        (take_while(1.., '0'..='9'), '.', take_while(1.., '0'..='9'), not(one_of(|char| is_name(char) || char == '.')));
    let decimal = fraction.take().verify_map(|digits: &str| digits.parse().ok()).map(Tree::Decimal);
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
    let whole = cut_err(digits).map(Tree::Number).context(expected("a number below 2^64 (a text needs quotes)"));
    alt((decimal, whole)).parse_next(input)
}

fn text(input: &mut Input<'_>) -> ModalResult<Tree> {
    let mut text: String = quoted.parse_next(input)?.into_iter().map(|(char, _)| char).collect();
    // Adjacent texts are one, as in Python.
    while let Some(more) = opt(preceded(space, quoted)).parse_next(input)? {
        text.extend(more.into_iter().map(|(char, _)| char));
    }
    Ok(Tree::Text(text))
}

fn bytes(input: &mut Input<'_>) -> ModalResult<Tree> {
    let literal = || preceded('b', quoted);
    let mut chars = literal().parse_next(input)?;
    while let Some(more) = opt(preceded(space, literal())).parse_next(input)? {
        chars.extend(more);
    }
    let mut bytes = Vec::with_capacity(chars.len());
    for (char, is_byte) in chars {
        if is_byte {
            bytes.push(char as u32 as u8);
        } else {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Ok(Tree::Bytes(bytes))
}

/// Parses the characters between quotes, each with whether it is a byte escape (`\xff`).
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
