//! Lists of options as TCP and IPv4 headers have them (RFC 9293, section 3.1; RFC 791, section 3.1): a kind of one byte,
//! the length of the whole option, which counts kind and length too, and data. Kinds 0 and 1 are a single byte.

use std::fmt;

/// Kind of the end of the list, a single byte.
pub const END: u8 = 0;
/// Kind of padding between options, a single byte.
pub const NOP: u8 = 1;
/// Kind of the maximum segment size (RFC 9293, section 3.7.1).
pub const MSS: u8 = 2;
/// Kind of the window scale (RFC 7323, section 2.2).
pub const WINDOW_SCALE: u8 = 3;
/// Kind of SACK-permitted (RFC 2018, section 2).
pub const SACK_PERMITTED: u8 = 4;
/// Kind of selective acknowledgments (RFC 2018, section 3).
pub const SACK: u8 = 5;
/// Kind of timestamps (RFC 7323, section 3.2).
pub const TIMESTAMPS: u8 = 8;
/// Length of the timestamps option in bytes, kind and length included (RFC 7323, section 3.2).
pub const TIMESTAMPS_LENGTH: u8 = 10;
/// Kind of the MD5 signature (RFC 2385).
pub const MD5: u8 = 19;
/// Kind of the user timeout (RFC 5482).
pub const USER_TIMEOUT: u8 = 28;
/// Kind of the TCP Fast Open cookie (RFC 7413).
pub const FAST_OPEN: u8 = 34;

/// One item of an option list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListItem<'a> {
    /// The end of the list; only [`Rest`](Self::Rest) can follow.
    End,
    /// Padding.
    Nop,
    /// An option whose length is sound.
    Option {
        /// The kind; not 0 or 1.
        kind: u8,
        /// The bytes after kind and length.
        data: &'a [u8],
    },
    /// Bytes that are not options: those after the end of the list, or from a length on that is below 2 or exceeds the
    /// list.
    Rest(&'a [u8]),
}

/// Iterates over the items of an option list. Together the items cover every byte.
#[derive(Debug, Clone)]
pub struct OptionList<'a> {
    remaining: &'a [u8],
    has_ended: bool,
}

impl<'a> OptionList<'a> {
    /// The list in these bytes, which begin after the fixed header.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { remaining: bytes, has_ended: false }
    }

    /// The bytes that no item has covered yet.
    pub const fn remaining(&self) -> &'a [u8] {
        self.remaining
    }
}

impl<'a> Iterator for OptionList<'a> {
    type Item = ListItem<'a>;

    #[inline]
    fn next(&mut self) -> Option<ListItem<'a>> {
        let (item, remaining) = match self.remaining {
            [] => return None,
            rest if self.has_ended => (ListItem::Rest(rest), &[][..]),
            [END, rest @ ..] => {
                self.has_ended = true;
                (ListItem::End, rest)
            }
            [NOP, rest @ ..] => (ListItem::Nop, rest),
            [kind, length, ..] if *length >= 2 && usize::from(*length) <= self.remaining.len() => {
                let (option, rest) = self.remaining.split_at(usize::from(*length));
                (ListItem::Option { kind: *kind, data: &option[2..] }, rest)
            }
            rest => (ListItem::Rest(rest), &[][..]),
        };
        self.remaining = remaining;
        Some(item)
    }
}

/// Writes the TCP options in `bytes` as tcpdump prints them, with a comma between them; nothing for padding at the end.
pub(super) fn write_tcp(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    let mut list = OptionList::new(bytes);
    let mut comma = "";
    loop {
        let all = list.remaining();
        let Some(item) = list.next() else { return Ok(()) };
        if item == ListItem::End && all.iter().all(|byte| *byte == END) {
            return Ok(());
        }
        f.write_str(comma)?;
        comma = ",";
        match item {
            ListItem::Nop => f.write_str("nop")?,
            ListItem::Option { kind, data } => write_option(f, kind, data)?,
            ListItem::End | ListItem::Rest(_) => {
                f.write_str("[bad opt] 0x")?;
                return hex(f, all);
            }
        }
    }
}

fn write_option(f: &mut fmt::Formatter<'_>, kind: u8, data: &[u8]) -> fmt::Result {
    let word = |bytes: &[u8]| bytes.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
    match (kind, data) {
        (MSS, [_, _]) => write!(f, "mss {}", word(data)),
        (WINDOW_SCALE, [shift]) => write!(f, "wscale {shift}"),
        (SACK_PERMITTED, []) => f.write_str("sackOK"),
        (SACK, [_, ..]) if data.len().is_multiple_of(8) => {
            let (blocks, _) = data.as_chunks::<8>();
            write!(f, "sack {} ", blocks.len())?;
            blocks.iter().try_for_each(|block| write!(f, "{{{}:{}}}", word(&block[..4]), word(&block[4..])))
        }
        (TIMESTAMPS, data) if data.len() == 8 => write!(f, "TS val {} ecr {}", word(&data[..4]), word(&data[4..])),
        (FAST_OPEN, []) => f.write_str("tfo  cookiereq"),
        (FAST_OPEN, cookie) => {
            f.write_str("tfo  cookie ")?;
            hex(f, cookie)
        }
        (kind, []) => write!(f, "unknown-{kind}"),
        (kind, data) => {
            write!(f, "unknown-{kind} 0x")?;
            hex(f, data)
        }
    }
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Printed<'a>(&'a [u8]);

    impl fmt::Display for Printed<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_tcp(f, self.0)
        }
    }

    #[test]
    fn malformed_options_are_rest() {
        let items = |bytes| OptionList::new(bytes).collect::<Vec<_>>();
        assert_eq!(items(&[1, 1, 0]), [ListItem::Nop, ListItem::Nop, ListItem::End]);
        assert_eq!(items(&[2, 1]), [ListItem::Rest(&[2, 1])]);
        assert_eq!(items(&[3]), [ListItem::Rest(&[3])]);
        assert_eq!(items(&[1, 8, 10, 0]), [ListItem::Nop, ListItem::Rest(&[8, 10, 0])]);
        assert_eq!(items(&[0, 0, 5]), [ListItem::End, ListItem::Rest(&[0, 5])]);
        // A known kind of a wrong, yet sound, length.
        assert_eq!(items(&[2, 3, 9]), [ListItem::Option { kind: 2, data: &[9] }]);
    }

    #[test]
    fn malformed_options_print_as_bytes() {
        let printed = |bytes| Printed(bytes).to_string();
        assert_eq!(printed(&[1, 1, 0, 0]), "nop,nop");
        assert_eq!(printed(&[2, 1]), "[bad opt] 0x0201");
        assert_eq!(printed(&[1, 0, 0, 5]), "nop,[bad opt] 0x000005");
        assert_eq!(printed(&[2, 3, 9, 0]), "unknown-2 0x09");
        assert_eq!(printed(&[8, 10, 0, 0, 0, 1, 0, 0, 1, 0, 34, 2]), "TS val 1 ecr 256,tfo  cookiereq");
    }
}
