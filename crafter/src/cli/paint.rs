//! Colours in printed text: finds layers, addresses and marks in the text that crafter prints, so that what makes the
//! text needs to know nothing about colours.

use std::{fmt::Write as _, net::IpAddr, net::SocketAddr};

use crafter::{
    layer::{Kind, Mac},
    probe::{TargetReport, TargetState},
};

use super::style::{self, ADDRESS, DOUBTFUL, FAINT, HEADING, LAYER, Paint};

impl Paint {
    /// Packets: one line for each, or a line for each field.
    pub fn packets(self, text: &str) -> String {
        self.lines(text, |line, out| {
            if line.starts_with("###[ ") {
                out.push_str(&self.styled(LAYER, line));
            } else if let Some((name, value)) = field(line) {
                let (value, mark) = match ["  (default)", "  (computed)"].iter().find(|mark| value.ends_with(**mark)) {
                    Some(mark) => value.split_at(value.len() - mark.len()),
                    None => (value, ""),
                };
                out.push_str(name);
                self.words(value, false, out);
                if !mark.is_empty() {
                    out.push_str(&self.styled(FAINT, mark));
                }
            } else {
                self.words(line, true, out);
            }
        })
    }

    /// A table, or lines with addresses.
    pub fn table(self, text: &str) -> String {
        self.lines(text, |line, out| match is_heading(line) {
            true => out.push_str(&self.styled(HEADING, line)),
            false => self.words(line, false, out),
        })
    }

    /// A table of layers, whose names begin its lines.
    pub fn layers(self, text: &str) -> String {
        self.lines(text, |line, out| {
            let name = &line[..line.find(' ').unwrap_or(line.len())];
            match is_heading(line) {
                true => out.push_str(&self.styled(HEADING, line)),
                false if name.is_empty() => out.push_str(line),
                false => {
                    out.push_str(&self.styled(LAYER, name));
                    out.push_str(&line[name.len()..]);
                }
            }
        })
    }

    /// The verdict about a target: its state up to the reason, and addresses.
    pub fn verdict(self, verdict: &TargetReport) -> String {
        let text = verdict.text.as_str();
        // `192.0.2.1 is open: SYN-ACK`, `192.0.2.1: no answer within 2 s`
        let begin = [" is ", " was ", " answered", " no ", " got "].iter().filter_map(|verb| text.find(verb)).min();
        let Some(begin) = begin.map(|begin| begin + 1).filter(|_| self.is_on()) else { return self.table(text) };
        let end = text[begin..].find([':', ',']).or_else(|| text[begin..].find(" within ")).map(|end| begin + end);
        let end = end.unwrap_or(text.len());
        let mut out = String::new();
        self.words(&text[..begin], false, &mut out);
        out.push_str(&self.styled(style::of_state(verdict.state), &text[begin..end]));
        self.words(&text[end..], false, &mut out);
        out
    }

    /// Lines that begin with `ok`, `note` or `FAIL`.
    pub fn checks(self, text: &str) -> String {
        self.lines(&self.table(text), |line, out| {
            let styles = [("ok ", style::GOOD), ("note ", DOUBTFUL), ("FAIL ", style::BAD)];
            match styles.into_iter().find(|(word, _)| line.starts_with(word)) {
                Some((word, style)) => {
                    out.push_str(&self.styled(style, word.trim_end()));
                    out.push_str(&line[word.len() - 1..]);
                }
                None => out.push_str(line),
            }
        })
    }

    /// Lines with states and addresses: totals, and the map of a host's ports.
    pub fn states(self, text: &str) -> String {
        let text = self.table(text);
        if !self.is_on() {
            return text;
        }
        TargetState::ALL.into_iter().fold(text, |text, state| {
            let style = style::of_state(state);
            let words = match state {
                TargetState::NoAnswer => vec!["no answer".to_owned(), "without an answer".to_owned()],
                TargetState::Answered => vec!["with another answer".to_owned(), "answered".to_owned()],
                TargetState::Error => vec!["with an ICMP error".to_owned(), "  error  ".to_owned()],
                state => vec![state.to_string()],
            };
            // `answered` and `unanswered`, `open` and `half-open` do not occur together in these lines.
            words.iter().fold(text, |text, word| text.replace(word.as_str(), &self.styled(style, word)))
        })
    }

    fn lines(self, text: &str, mut each: impl FnMut(&str, &mut String)) -> String {
        if !self.is_on() {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len() * 2);
        for line in text.split_inclusive('\n') {
            let content = line.trim_end_matches('\n');
            each(content, &mut out);
            out.push_str(&line[content.len()..]);
        }
        out
    }

    /// Addresses and, where a packet begins or after `/`, layers.
    fn words(self, line: &str, with_layers: bool, out: &mut String) {
        let mut before = "";
        for part in line.split_inclusive(' ') {
            let word = part.trim_end_matches(' ');
            let is_place = matches!(before, "" | "/" | "==>") || is_clock(before);
            if with_layers && is_place && Kind::named(word).is_ok() {
                out.push_str(&self.styled(LAYER, word));
            } else if with_layers && before == "no" && word == "answer" {
                out.truncate(out.len() - "no ".len());
                out.push_str(&self.styled(DOUBTFUL, "no answer"));
            } else {
                let address = address(word);
                let (from, to) = address.map_or((0, 0), |range| (range.start, range.end));
                out.push_str(&word[..from]);
                if from < to {
                    out.push_str(&self.styled(ADDRESS, &word[from..to]));
                }
                out.push_str(&word[to..]);
            }
            out.push_str(&part[word.len()..]);
            if !word.is_empty() {
                before = word;
            }
        }
    }
}

/// A field of a layer: `  ttl             = ` and its value.
fn field(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_at_checked(line.find("= ")? + 2)?;
    let is_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | ' ');
    (line.starts_with("  ") && name[..name.len() - 2].chars().all(is_name)).then_some((name, value))
}

/// Whether a line is the heading of a table: several words in capital letters.
fn is_heading(line: &str) -> bool {
    let is_capital = |char: char| char.is_ascii_uppercase() || matches!(char, ' ' | '/' | '-' | '_' | '%' | '(' | ')');
    line.chars().all(is_capital) && line.split_whitespace().filter(|word| word.len() > 1).count() > 1
}

/// Whether a word is a time of the day.
fn is_clock(word: &str) -> bool {
    word.as_bytes().get(2) == Some(&b':') && word.bytes().all(|byte| byte.is_ascii_digit() || b":.".contains(&byte))
}

/// The address in a word, without the punctuation around it.
pub fn address(word: &str) -> Option<std::ops::Range<usize>> {
    if !word.bytes().any(|byte| matches!(byte, b'.' | b':')) {
        return None;
    }
    let begin = word.len() - word.trim_start_matches(['(', '[', '"', '<', '=']).len();
    // An IPv6 address may end with a colon and begin with a bracket.
    let ends = [word.len(), word.trim_end_matches([',', ';', ')', '"', ']', '>', '.']).len()];
    let ends = ends.into_iter().chain([word.trim_end_matches([',', ';', ')', '"', ']', '>', '.', ':']).len()]);
    let is_address = |text: &str| {
        let (address, length) = text.split_once('/').unwrap_or((text, "0"));
        length.parse::<u8>().is_ok() && address.parse::<IpAddr>().is_ok()
            || text.parse::<SocketAddr>().is_ok()
            || text.parse::<Mac>().is_ok()
    };
    ends.flat_map(|end| [(0, end), (begin, end)])
        .filter(|(begin, end)| begin < end)
        .find(|&(begin, end)| is_address(&word[begin..end]))
        .map(|(begin, end)| begin..end)
}

/// Fills lines for a terminal of `columns`: a line that is longer continues below the beginning of its last column, or
/// of its text. A word that is longer than the line stays whole.
pub fn fill(text: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return text.to_owned() };
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches('\n');
        if content.chars().count() <= columns {
            out.push_str(line);
            continue;
        }
        let begin = content.len() - content.trim_start().len();
        let last = content.rfind("  ").map_or(begin, |at| at + 2);
        let column = content[..last].chars().count();
        let indent = if column + 12 <= columns && column > begin { column } else { begin + 2 };
        let indent = if indent + 12 <= columns { indent } else { 0 };
        let mut width = 0;
        let mut is_first = true;
        for part in content.split_inclusive(' ') {
            let word = part.trim_end_matches(' ').chars().count();
            if !is_first && word > 0 && width + word > columns && width > indent {
                out.truncate(out.trim_end_matches(' ').len());
                // Writing to a String cannot fail.
                let _ = write!(out, "\n{:indent$}", "");
                width = indent;
            }
            is_first &= word == 0;
            out.push_str(part);
            width += part.chars().count();
        }
        out.push_str(&line[content.len()..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The styles of a text in brackets, for reading.
    fn marked(text: &str) -> String {
        use style::{BAD, GOOD};
        let styles =
            [(LAYER, "L"), (ADDRESS, "A"), (FAINT, "f"), (DOUBTFUL, "D"), (HEADING, "H"), (GOOD, "G"), (BAD, "B")];
        let marked = styles
            .iter()
            .fold(text.to_owned(), |text, (style, name)| text.replace(&style.to_string(), &format!("{name}<")));
        marked.replace(&LAYER.render_reset().to_string(), ">")
    }

    #[test]
    fn layers_and_addresses_of_packets() {
        let packets = |text: &str| marked(&Paint::COLOURED.packets(text));
        assert_eq!(
            packets("22:13:20.000001002 Ether / IP 192.0.2.1 > 192.0.2.2 / ICMP echo-request id 1\n"),
            "22:13:20.000001002 L<Ether> / L<IP> A<192.0.2.1> > A<192.0.2.2> / L<ICMP> echo-request id 1\n"
        );
        assert_eq!(
            packets("IP / TCP 192.0.2.1:5 > 192.0.2.2:80 S ==> no answer\n"),
            "L<IP> / L<TCP> A<192.0.2.1:5> > A<192.0.2.2:80> S ==> D<no answer>\n"
        );
        assert_eq!(
            packets("###[ IP ]###\n  dst             = \"192.0.2.1\"\n  len             = 46  (computed)\n\n"),
            "L<###[ IP ]###>\n  dst             = \"A<192.0.2.1>\"\n  len             = 46f<  (computed)>\n\n"
        );
        // The name of a layer is coloured only where a layer can be.
        assert_eq!(
            packets("IPv6 fe80:: > ff02::1 / Raw TCP a.b: 1.2"),
            "L<IPv6> A<fe80::> > A<ff02::1> / L<Raw> TCP a.b: 1.2"
        );
        assert_eq!(Paint::PLAIN.packets("IP 192.0.2.1"), "IP 192.0.2.1");
    }

    #[test]
    fn headings_and_addresses_of_tables() {
        let table = |text: &str| marked(&Paint::COLOURED.table(text));
        assert_eq!(
            table("PROTO  LOCAL ADDRESS\nTCP    192.0.2.1:80\n(02:00:00:00:00:01), [2001:db8::1]:53; 192.0.2.0/24\n"),
            "H<PROTO  LOCAL ADDRESS>\nTCP    A<192.0.2.1:80>\n(A<02:00:00:00:00:01>), A<[2001:db8::1]:53>; A<192.0.2.0/24>\n"
        );
    }

    #[test]
    fn states_of_verdicts_and_totals() {
        let verdict = |state, text: &str| {
            marked(&Paint::COLOURED.verdict(&TargetReport { state, from: None, text: text.to_owned() }))
        };
        assert_eq!(
            verdict(TargetState::Open, "192.0.2.1 port 80/tcp is open: SYN-ACK from 192.0.2.1 in 0.4 ms"),
            "A<192.0.2.1> port 80/tcp G<is open>: SYN-ACK from A<192.0.2.1> in 0.4 ms"
        );
        assert_eq!(
            verdict(TargetState::NoAnswer, "192.0.2.9: no answer within 2 s"),
            "A<192.0.2.9>: D<no answer> within 2 s"
        );
        assert_eq!(
            verdict(TargetState::Unreachable, "192.0.2.9 is unreachable: host unreachable"),
            "A<192.0.2.9> B<is unreachable>: host unreachable"
        );
        let states = |text: &str| marked(&Paint::COLOURED.states(text));
        assert_eq!(
            states("2 open, 997 closed, 1001 without an answer"),
            "2 G<open>, 997 B<closed>, 1001 D<without an answer>"
        );
        assert_eq!(
            states("192.0.2.1: 3 TCP ports\n  open          22\n  no answer     500\n"),
            "A<192.0.2.1>: 3 TCP ports\n  G<open>          22\n  D<no answer>     500\n"
        );
    }

    #[test]
    fn long_lines_continue_below_their_last_column() {
        let line = "FIELD  TYPE  WHAT\nttl    uint  time to live, in hops, decremented by each router\n";
        assert_eq!(
            fill(line, Some(40)),
            "FIELD  TYPE  WHAT\nttl    uint  time to live, in hops,\n             decremented by each router\n"
        );
        assert_eq!(fill(line, Some(200)), line);
        assert_eq!(fill(line, None), line);
        assert_eq!(
            fill("  closed        1-21, 23-79, 81-499, 501-1000\n", Some(40)),
            "  closed        1-21, 23-79, 81-499,\n                501-1000\n"
        );
        assert_eq!(fill("a sentence of six words, or more", Some(20)), "a sentence of six\n  words, or more");
        let word = "x".repeat(50);
        assert_eq!(fill(&word, Some(40)), word);
    }

    #[test]
    fn no_width_breaks_a_line() {
        let text =
            "FIELD  TYPE  WHAT\n  options  list  an option is ä name or kïnd with its value  (default)\n\n\u{301}\n";
        for columns in 0..=200 {
            let filled = fill(text, Some(columns));
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&filled), words(text), "{columns}");
            let is_wide = |line: &str| line.chars().count() > columns.max(20);
            assert!(!filled.lines().any(is_wide) || columns < 40, "{columns}: {filled}");
        }
    }
}
