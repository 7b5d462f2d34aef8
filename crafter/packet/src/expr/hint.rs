//! Advice for errors: what a text probably means.

use std::net::IpAddr;

use super::{
    operator::Operator,
    scan,
    syntax::{Node, SuffixKind, Tree},
};
use crate::layer::{Kind, Mac};

/// Functions of `crafter shell` that users of Scapy write into an expression.
const SHELL_FUNCTIONS: [&str; 22] = [
    "print",
    "sr1",
    "sr",
    "send",
    "sniff",
    "srp1",
    "srp",
    "sendp",
    "show",
    "summary",
    "hexdump",
    "ls",
    "len",
    "raw",
    "bytes",
    "recompute",
    "fuzz",
    "rdpcap",
    "wrpcap",
    "hex",
    "haslayer",
    "answers",
];

/// Names in Scapy and Python that have no counterpart of this name, with what to write instead.
const IDIOMS: [(&[&str], &str); 9] = [
    (&["Net", "Net6"], "a prefix is a text: \"192.0.2.0/24\""),
    (&["range", "RandNum", "xrange"], "a range is (first, last), both included: (1, 1024)"),
    (&["RandShort", "RandInt"], "an unset source port is a free one; `crafter shell` has random numbers"),
    (&["RandIP", "RandIP6", "RandMAC", "RandString", "RandBin"], "`fuzz` of `crafter shell` sets random values"),
    (&["conf"], "options replace conf: --interface, --timeout, --source"),
    (&["import", "from"], "nothing is imported: layers and functions are built in"),
    (&["for", "while", "if", "def", "lambda"], "there are no loops: a list, range or prefix makes a set of packets"),
    (&["get_if_hwaddr", "getmacbyip", "get_if_addr"], "an unset address is filled in"),
    (&["lsc", "explore"], "`ls` lists the layers, help() of the shell its functions"),
];

/// What to write here instead of a name of Scapy or Python; `None` for other names.
pub fn idiom(name: &str) -> Option<&'static str> {
    IDIOMS.iter().find(|(names, _)| names.contains(&name)).map(|(_, advice)| *advice)
}

/// The message for a name that an expression without variables does not know; `reason` is that of the layers.
pub(super) fn unknown(name: &str, reason: String) -> String {
    match idiom(name) {
        Some(advice) => format!("there is no layer '{name}'; {advice}"),
        None if SHELL_FUNCTIONS.contains(&name) => {
            format!("there is no layer '{name}'; it is a function of `crafter shell`, and this is only an expression")
        }
        None => reason,
    }
}

/// A more specific error for an unexpected character at byte offset `at`: the byte offset of its cause, and the
/// message. `is_expression`: the text is a whole expression, not a statement of the shell.
pub(super) fn of_unexpected(text: &str, at: usize, is_expression: bool) -> Option<(usize, String)> {
    let (before, rest) = text.split_at_checked(at)?;
    if let ("", Some(quote)) = (rest, scan::open_quote(text)) {
        return Some((quote, "the quote is not closed".to_owned()));
    }
    let address = unquoted_address(before, rest).map(|(at, reason)| {
        // Within double quotes, a shell removes the quotes of the expression.
        let advice = if is_expression { "; in a shell, single quotes around the expression keep them" } else { "" };
        (at, reason + advice)
    });
    address.or_else(|| {
        let name: &str = &rest[..rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())];
        let after_name = rest[name.len()..].trim_start();
        let last = before.trim_end().chars().last();
        let message = match (last, rest.chars().next()?) {
            (Some(')' | ']'), _) if Kind::named(name).is_ok() => format!("'/' is missing before {name}"),
            (Some(')'), '"' | '\'') => "'/' is missing before the text".to_owned(),
            (Some(last), _)
                if !"(,".contains(last)
                    && !name.is_empty()
                    && scan::innermost(before).is_some()
                    && after_name.starts_with('=')
                    && !after_name.starts_with("==") =>
            {
                format!("',' is missing before {name}")
            }
            (Some(last), ':') if is_word(last) && scan::innermost(before).is_some() => {
                "a value follows '=', not ':'".to_owned()
            }
            (_, '=') if is_expression && !rest.starts_with("==") && scan::innermost(before).is_none() => {
                "only `crafter shell` has variables; expected only the packets".to_owned()
            }
            _ => {
                let first = text.split_whitespace().next()?;
                let advice = idiom(first).filter(|_| before.trim_end() == first)?;
                return Some((before.find(first)?, format!("unexpected '{first}'; {advice}")));
            }
        };
        Some((at, message))
    })
}

/// An address or a name with dots that lacks its quotes, around the end of `before`.
fn unquoted_address(before: &str, rest: &str) -> Option<(usize, String)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '_' | '-');
    let begin = before.trim_end_matches(is_part).len();
    let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    let word = format!("{}{}", &before[begin..], &rest[..end]);
    let is_dotted = word.split('.').count() == 4 && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    if word.parse::<IpAddr>().is_ok() || word.parse::<Mac>().is_ok() || is_dotted {
        let digits: &str = rest[end..].strip_prefix('/').unwrap_or_default();
        let digits = &digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())];
        let prefix = if digits.is_empty() { String::new() } else { format!("/{digits}") };
        return Some((begin, format!("an address needs quotes: \"{word}{prefix}\"")));
    }
    // A host name, such as 3.example.org.
    let first = word.split('.').next().unwrap_or_default();
    let has_letter = |text: &str| text.contains(|c: char| c.is_ascii_alphabetic());
    let dots = word.matches('.').count();
    let is_name = first.starts_with(|c: char| c.is_ascii_digit())
        && (dots > 0 && has_letter(first) && !first.starts_with("0x") || dots > 1 && has_letter(&word));
    is_name.then(|| (begin, format!("a name needs quotes: \"{word}\"")))
}

fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// The text of a value that is only a name, or names with dots: a text without its quotes, unless the first is known.
/// Returns that first name, and the text.
pub(super) fn bare(node: &Node) -> Option<(&str, String)> {
    match &node.tree {
        Tree::Name(name) => Some((name, name.clone())),
        Tree::Chain(first, suffixes) => {
            let Tree::Name(name) = &first.tree else { return None };
            let parts = suffixes.iter().map(|suffix| match &suffix.kind {
                SuffixKind::Attribute(part) => Some(part.as_str()),
                _ => None,
            });
            let parts: Option<Vec<&str>> = parts.collect();
            Some((name, format!("{name}.{}", parts?.join("."))))
        }
        _ => None,
    }
}

/// Advice for a value such as `80-90`, which is a difference and not a range.
pub(super) fn of_difference(node: &Node) -> Option<String> {
    let Tree::Operation(operands, operators) = &node.tree else { return None };
    match (&operands[..], &operators[..]) {
        (
            [Node { tree: Tree::Number(first), .. }, Node { tree: Tree::Number(last), .. }],
            [(_, Operator::Subtract)],
        ) if first < last => Some(format!("; a range is ({first}, {last})")),
        _ => None,
    }
}
