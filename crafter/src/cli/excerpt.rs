//! The line of an error with a mark below its place.

use std::borrow::Cow;

use anstyle::Style;
use crafter::packet::Excerpt;
use unicode_width::UnicodeWidthChar as _;

use super::style::Paint;

/// Columns before the line.
const INDENT: usize = 2;
/// Distance of tab stops, in columns.
const TAB: usize = 4;
/// Mark for what is cut off.
const CUT: &str = "...";
/// Width in columns if the output is not a terminal.
const DEFAULT_COLUMNS: usize = 120;
/// Columns below which a line is not cut further.
const MIN_COLUMNS: usize = 24;

/// A character as it is printed.
struct Cell<'t> {
    text: Cow<'t, str>,
    width: usize,
    at: usize,
}

/// The line and the mark, two lines of at most `columns`; nothing for an empty line. A longer line is cut around the
/// place. Tabs become spaces, and characters that could control the terminal question marks.
pub fn render(excerpt: &Excerpt, number: bool, columns: Option<usize>, paint: Paint, style: Style) -> String {
    if excerpt.line.is_empty() {
        return String::new();
    }
    let gutter = if number { format!("{} | ", excerpt.number) } else { String::new() };
    let room = columns.unwrap_or(DEFAULT_COLUMNS).max(MIN_COLUMNS) - INDENT;
    let room = room.saturating_sub(gutter.len()).max(MIN_COLUMNS / 2);
    let cells = cells(&excerpt.line);
    let from = cells.partition_point(|cell| cell.at < excerpt.at);
    let length = length(&excerpt.line[excerpt.at..]);
    let to = cells.partition_point(|cell| cell.at < excerpt.at + length).max(from);
    let (first, last) = window(&cells, from, to, room);
    let shown = &cells[first..last];
    let lead = if first > 0 { CUT } else { "" };
    let tail = if last < cells.len() { CUT } else { "" };
    let text: String = shown.iter().map(|cell| cell.text.as_ref()).collect();
    let width = |cells: &[Cell<'_>]| cells.iter().map(|cell| cell.width).sum::<usize>();
    let before = INDENT + gutter.len() + lead.len() + width(&cells[first..from]);
    let marks = width(&cells[from..to.min(last)]).max(1);
    let text = format!("{lead}{text}{tail}");
    let mark = paint.styled(style, "^".repeat(marks));
    format!("{:INDENT$}{gutter}{}\n{:before$}{mark}\n", "", text.trim_end(), "")
}

/// The characters of a line.
fn cells(line: &str) -> Vec<Cell<'_>> {
    let mut column = 0;
    let cell = |(at, char): (usize, char)| {
        let (text, width) = match char {
            '\t' => {
                let width = TAB - column % TAB;
                (Cow::Owned(" ".repeat(width)), width)
            }
            char if is_invisible(char) => (Cow::Borrowed("?"), 1),
            char => (Cow::Borrowed(&line[at..at + char.len_utf8()]), char.width().unwrap_or(0)),
        };
        column += width;
        Cell { text, width, at }
    };
    line.char_indices().map(cell).collect()
}

/// Whether a character could control the terminal, or change the order of what follows.
fn is_invisible(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Bytes of the word, address or quoted text that a text begins with, else of its first character.
fn length(text: &str) -> usize {
    if let Some(quote @ ('"' | '\'')) = text.chars().next() {
        return text[1..].find(quote).map_or(1, |end| end + 2);
    }
    // An attribute, `.name`.
    if let Some(name) = text.strip_prefix('.').filter(|name| name.starts_with(|char: char| char.is_ascii_alphabetic()))
    {
        return 1 + length(name);
    }
    let is_word = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | ':' | '-');
    let word = text.find(|char| !is_word(char)).unwrap_or(text.len());
    if text.starts_with(|char: char| char.is_ascii_alphanumeric() || char == '_') {
        return text[..word].trim_end_matches(['.', ':', '-']).len();
    }
    text.chars().next().map_or(0, char::len_utf8)
}

/// The cells to show: those around `from..to` that fit into `room` columns with the marks of what is cut off.
fn window(cells: &[Cell<'_>], from: usize, to: usize, room: usize) -> (usize, usize) {
    if cells.iter().map(|cell| cell.width).sum::<usize>() <= room {
        return (0, cells.len());
    }
    let room = room.saturating_sub(2 * CUT.len());
    // First the place of the error, then cells before it up to half of the room, then cells after it, then further
    // cells before it.
    let (mut first, mut last, mut used) = (from, from, 0);
    while last < to && used + cells[last].width <= room {
        used += cells[last].width;
        last += 1;
    }
    for (limit, forward) in [(room.saturating_sub(used) / 2 + used, false), (room, true), (room, false)] {
        while let Some(next) =
            if forward { Some(last).filter(|next| *next < cells.len()) } else { first.checked_sub(1) }
            && used + cells[next].width <= limit
        {
            used += cells[next].width;
            if forward { last += 1 } else { first -= 1 }
        }
    }
    // A combining character belongs to the character before it.
    while first > 0 && first < from && cells[first].width == 0 {
        first += 1;
    }
    while last < cells.len() && cells[last].width == 0 {
        last += 1;
    }
    (first, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_width::UnicodeWidthStr as _;

    fn drawn(text: &str, at: usize, columns: usize) -> String {
        render(&Excerpt::new(text, at), false, Some(columns), Paint::PLAIN, Style::new())
    }

    #[test]
    fn mark_is_below_the_place() {
        assert_eq!(drawn("IP()/TCP(dprt=80)", 9, 80), "  IP()/TCP(dprt=80)\n           ^^^^\n");
        assert_eq!(drawn("IP(dst=192.0.2.1)", 7, 80), "  IP(dst=192.0.2.1)\n         ^^^^^^^^^\n");
        assert_eq!(drawn("Raw(\"abc)", 4, 80), "  Raw(\"abc)\n      ^\n");
        assert_eq!(drawn("IP(", 3, 80), "  IP(\n     ^\n", "at the end");
        assert_eq!(drawn("IP(ttl=\"x\")", 7, 80), "  IP(ttl=\"x\")\n         ^^^\n");
        assert_eq!(drawn("p.tll", 1, 80), "  p.tll\n   ^^^^\n");
        assert_eq!(drawn("", 0, 80), "");
        assert_eq!(drawn("a = 1\nb = tll\n", 10, 80), "  b = tll\n      ^^^\n");
    }

    #[test]
    fn tabs_wide_and_combining_characters_are_counted_by_columns() {
        assert_eq!(drawn("\tx\ty", 1, 80), "      x   y\n      ^\n");
        assert_eq!(drawn("\tx\ty", 3, 80), "      x   y\n          ^\n");
        // Two columns each.
        assert_eq!(drawn("\"\u{6f22}\u{5b57}\" x", 9, 80), "  \"\u{6f22}\u{5b57}\" x\n         ^\n");
        assert_eq!(drawn("\u{6f22}", 0, 80), "  \u{6f22}\n  ^^\n");
        // No column of its own.
        assert_eq!(drawn("\"e\u{301}\" x", 6, 80), "  \"e\u{301}\" x\n      ^\n");
        assert_eq!(drawn("e\u{301}", 1, 80), "  e\u{301}\n   ^\n");
        // What could control the terminal.
        assert_eq!(drawn("\u{1b}[2J\u{202e}x", 7, 80), "  ?[2J?x\n       ^\n");
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let line = format!("{}here{}", "a ".repeat(500), " b".repeat(500));
        let lines = |at, columns| {
            let text = drawn(&line, at, columns);
            let (line, mark) = text.split_once('\n').unwrap();
            (line.to_owned(), mark.trim_end().to_owned())
        };
        let (shown, mark) = lines(1000, 40);
        assert_eq!(shown.len(), 40);
        assert!(shown.starts_with("  ...") && shown.ends_with("..."), "{shown}");
        assert_eq!(&shown[mark.find('^').unwrap()..mark.len()], "here");
        let (shown, mark) = lines(0, 40);
        assert!(shown.starts_with("  a a") && shown.ends_with("..."), "{shown}");
        assert_eq!(mark, "  ^");
        let (shown, mark) = lines(line.len(), 40);
        assert!(shown.starts_with("  ...") && shown.ends_with("b b"), "{shown}");
        assert_eq!(mark.len(), shown.len() + 1, "behind the last character");
    }

    #[test]
    fn every_place_of_every_line_fits_every_width() {
        for line in [
            "IP(dst=\"\u{6f22}\u{5b57}e\u{301}\u{301}\t\")/TCP(dport=80, flags=\"S\")/\"\u{1f600}\t\t\"",
            "\u{301}",
            "\t",
        ] {
            let long = line.repeat(9);
            for columns in (0..=80).chain([200]) {
                for (at, _) in long.char_indices().chain([(long.len(), ' ')]) {
                    let text = drawn(&long, at, columns);
                    let (shown, mark) = text.split_once('\n').unwrap();
                    // One column more: the mark may be after the last character.
                    assert!(shown.width() <= columns.max(MIN_COLUMNS), "{columns}: {text}");
                    assert!(mark.trim_end().len() <= columns.max(MIN_COLUMNS) + 1, "{columns}: {text}");
                    assert!(mark.contains('^'), "{columns}: {text}");
                }
            }
        }
    }

    #[test]
    fn number_of_the_line() {
        let excerpt = Excerpt::new("[[rule]]\nusers = 1\n", 9);
        let text = render(&excerpt, true, Some(80), Paint::PLAIN, Style::new());
        assert_eq!(text, "  2 | users = 1\n      ^^^^^\n");
    }
}
