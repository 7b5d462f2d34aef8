//! Finds brackets, quotes and comments in a text, without parsing it.

use std::ops::Range;

use super::fault::Fault;

/// Maximum nesting depth of brackets.
const MAX_DEPTH: usize = 32;

/// Context of a character.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Code,
    Quoted,
    Comment,
}

/// Iterates over characters with byte offset, context, and number of open brackets after them.
fn scan(text: &str) -> impl Iterator<Item = (usize, char, Place, usize)> {
    let (mut depth, mut quote, mut escaped, mut comment) = (0_usize, None, false, false);
    text.char_indices().map(move |(at, char)| {
        let place = match (quote, char) {
            (Some(_), _) if escaped => {
                escaped = false;
                Place::Quoted
            }
            (Some(open), _) => {
                escaped = char == '\\';
                if char == open {
                    quote = None;
                }
                Place::Quoted
            }
            (None, '\n') => {
                comment = false;
                Place::Code
            }
            (None, _) if comment => Place::Comment,
            (None, '#') => {
                comment = true;
                Place::Comment
            }
            (None, '"' | '\'') => {
                quote = Some(char);
                Place::Quoted
            }
            (None, '(' | '[') => {
                depth += 1;
                Place::Code
            }
            (None, ')' | ']') => {
                depth = depth.saturating_sub(1);
                Place::Code
            }
            _ => Place::Code,
        };
        (at, char, place, depth)
    })
}

/// Rejects brackets nested so deeply that parsing would exhaust the stack.
pub(super) fn check_depth(text: &str) -> Result<(), Fault> {
    match scan(text).find(|(.., depth)| *depth > MAX_DEPTH) {
        Some((at, ..)) => Err(Fault::new(at, format_args!("brackets are nested more than {MAX_DEPTH} deep"))),
        None => Ok(()),
    }
}

/// Whether a bracket is open at the end, so that the text continues on the next line.
pub fn is_open(text: &str) -> bool {
    scan(text).last().is_some_and(|(_, _, place, depth)| depth > 0 && place != Place::Quoted)
}

/// Byte ranges of the statements, which `;` and line ends outside of brackets separate. Empty statements are skipped.
pub fn statements(text: &str) -> Result<Vec<Range<usize>>, Fault> {
    let (mut found, mut begin, mut says, mut before) = (Vec::new(), 0, false, Place::Code);
    let mut quote = 0;
    for (at, char, place, depth) in scan(text) {
        if place == Place::Quoted {
            if before != Place::Quoted {
                quote = at;
            }
            if char == '\n' {
                return Err(Fault::new(quote, "the quote is not closed on its line (write \\n for a new line)"));
            }
        }
        before = place;
        if place == Place::Code && depth == 0 && matches!(char, '\n' | ';') {
            if says {
                found.push(begin..at);
            }
            (begin, says) = (at + 1, false);
        } else {
            says |= place != Place::Comment && !char.is_whitespace();
        }
    }
    if says {
        found.push(begin..text.len());
    }
    Ok(found)
}

/// Byte offset of the quote that is open at the end of the text.
pub(super) fn open_quote(text: &str) -> Option<usize> {
    let (mut open, mut before) = (None, Place::Code);
    // The closing quote is within the quotes, too; what follows it is not.
    let longer = format!("{text} ");
    for (at, _, place, _) in scan(&longer) {
        if place == Place::Quoted && before != Place::Quoted {
            open = Some(at);
        }
        before = place;
    }
    open.filter(|_| before == Place::Quoted)
}

/// Whether the end of the text is neither in quotes nor in a comment.
pub fn is_code_at_end(text: &str) -> bool {
    // An appended character has the context of the end.
    let longer = format!("{text}x");
    scan(&longer).last().is_none_or(|(_, _, place, _)| place == Place::Code)
}

/// Byte offset of the innermost open bracket.
pub fn innermost(text: &str) -> Option<usize> {
    let mut open = Vec::new();
    for (at, char, place, _) in scan(text) {
        match char {
            '(' | '[' if place == Place::Code => open.push(at),
            ')' | ']' if place == Place::Code => drop(open.pop()),
            _ => {}
        }
    }
    open.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_with_lines_and_semicolons() {
        let text = "a = 1; b = \";#\" # c; d\n\n  # only this\nf(1,\n  2 # two )\n)\nlast";
        let parts: Vec<&str> = statements(text).unwrap().into_iter().map(|range| &text[range]).collect();
        assert_eq!(parts, ["a = 1", " b = \";#\" # c; d", "f(1,\n  2 # two )\n)", "last"]);
        assert_eq!(statements("a\nb = 'x\n'").unwrap_err().at, 6);
    }

    #[test]
    fn open_brackets() {
        assert!(is_open("f(1, [2"));
        assert!(is_open("f( # )"));
        for text in ["", "f(1)", "f('(')", "f(')", "f)"] {
            assert!(!is_open(text), "{text}");
        }
        assert_eq!(innermost("f([1], g(2), h(3"), Some(14));
        assert_eq!(innermost("f('(')"), None);
    }
}
