//! TCP options (RFC 9293, 3.1).

use std::fmt;

/// Kind of the end of the list, a single byte.
pub const END: u8 = 0;
/// Kind of padding between options, a single byte.
pub const NOP: u8 = 1;
/// Kind of the maximum segment size.
pub const MSS: u8 = 2;
/// Kind of the window's shift.
pub const WINDOW_SCALE: u8 = 3;
/// Kind of the permission for selective acknowledgments.
pub const SACK_PERMITTED: u8 = 4;
/// Kind of selective acknowledgments.
pub const SACK: u8 = 5;
/// Kind of timestamps.
pub const TIMESTAMPS: u8 = 8;
/// Length of the timestamps option, kind and length counted (RFC 7323, section 3.2).
pub const TIMESTAMPS_LENGTH: u8 = 10;
/// Kind of the TCP Fast Open cookie (RFC 7413).
const FAST_OPEN: u8 = 34;

/// One TCP option; whatever has no type of its own, or is malformed, stays raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcpOption {
    /// Padding between options.
    Nop,
    /// Maximum segment size, in bytes of payload (RFC 9293, 3.7.1).
    Mss(u16),
    /// Shift of the window field (RFC 7323).
    WindowScale(u8),
    /// Selective acknowledgments are welcome (RFC 2018).
    SackPermitted,
    /// Blocks received out of order, each `[left, right)` in sequence space (RFC 2018).
    Sack(Vec<(u32, u32)>),
    /// Timestamps (RFC 7323).
    Timestamps {
        /// TSval.
        value: u32,
        /// TSecr.
        echo: u32,
    },
    /// Any other kind with a sound length.
    Other {
        /// The kind.
        kind: u8,
        /// What follows kind and length.
        data: Vec<u8>,
    },
    /// The rest of the option bytes, where they are no list of options: a length below 2 or
    /// past the end, or something behind the end-of-list marker.
    Raw(Vec<u8>),
}

impl TcpOption {
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nop => out.push(NOP),
            Self::Mss(mss) => {
                out.extend([MSS, 4]);
                out.extend(mss.to_be_bytes());
            }
            Self::WindowScale(shift) => out.extend([WINDOW_SCALE, 3, *shift]),
            Self::SackPermitted => out.extend([SACK_PERMITTED, 2]),
            Self::Sack(blocks) => {
                out.extend([SACK, (2 + 8 * blocks.len()) as u8]);
                for (left, right) in blocks {
                    out.extend(left.to_be_bytes());
                    out.extend(right.to_be_bytes());
                }
            }
            Self::Timestamps { value, echo } => {
                out.extend([TIMESTAMPS, TIMESTAMPS_LENGTH]);
                out.extend(value.to_be_bytes());
                out.extend(echo.to_be_bytes());
            }
            Self::Other { kind, data } => {
                out.extend([*kind, (2 + data.len()) as u8]);
                out.extend(data);
            }
            Self::Raw(bytes) => out.extend(bytes),
        }
    }

    /// Reads the option bytes of a header. The end of the list and zeros behind it are padding and not returned.
    pub fn parse_all(bytes: &[u8]) -> Vec<Self> {
        let mut options = Vec::new();
        let mut rest = bytes;
        while let Some(&kind) = rest.first() {
            let length = match kind {
                END if rest.iter().all(|byte| *byte == 0) => break,
                NOP => 1,
                END => 0,
                _ => usize::from(rest.get(1).copied().unwrap_or(0)),
            };
            if kind == END || length == 0 || length > rest.len() || (kind != NOP && length < 2) {
                options.push(Self::Raw(rest.to_vec()));
                break;
            }
            let (option, behind) = rest.split_at(length);
            rest = behind;
            options.push(Self::parse_one(kind, option.get(2..).unwrap_or_default()));
        }
        options
    }

    fn parse_one(kind: u8, data: &[u8]) -> Self {
        let word = |at: usize| u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        match (kind, data.len()) {
            (NOP, _) => Self::Nop,
            (MSS, 2) => Self::Mss(u16::from_be_bytes([data[0], data[1]])),
            (WINDOW_SCALE, 1) => Self::WindowScale(data[0]),
            (SACK_PERMITTED, 0) => Self::SackPermitted,
            (SACK, length) if length > 0 && length % 8 == 0 => {
                Self::Sack((0..length).step_by(8).map(|at| (word(at), word(at + 4))).collect())
            }
            (TIMESTAMPS, 8) => Self::Timestamps { value: word(0), echo: word(4) },
            _ => Self::Other { kind, data: data.to_vec() },
        }
    }
}

/// As tcpdump prints them.
impl fmt::Display for TcpOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nop => f.write_str("nop"),
            Self::Mss(mss) => write!(f, "mss {mss}"),
            Self::WindowScale(shift) => write!(f, "wscale {shift}"),
            Self::SackPermitted => f.write_str("sackOK"),
            Self::Sack(blocks) => {
                write!(f, "sack {} ", blocks.len())?;
                blocks.iter().try_for_each(|(left, right)| write!(f, "{{{left}:{right}}}"))
            }
            Self::Timestamps { value, echo } => write!(f, "TS val {value} ecr {echo}"),
            Self::Other { kind: FAST_OPEN, data } if data.is_empty() => f.write_str("tfo  cookiereq"),
            Self::Other { kind: FAST_OPEN, data } => {
                f.write_str("tfo  cookie ")?;
                hex(f, data)
            }
            Self::Other { kind, data } => {
                write!(f, "unknown-{kind}")?;
                if !data.is_empty() {
                    f.write_str(" 0x")?;
                    hex(f, data)?;
                }
                Ok(())
            }
            Self::Raw(bytes) => {
                f.write_str("[bad opt] 0x")?;
                hex(f, bytes)
            }
        }
    }
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_stay_raw() {
        let parse = TcpOption::parse_all;
        assert_eq!(parse(&[1, 1, 0, 0]), [TcpOption::Nop, TcpOption::Nop]);
        assert_eq!(parse(&[2, 1]), [TcpOption::Raw(vec![2, 1])]);
        assert_eq!(parse(&[3]), [TcpOption::Raw(vec![3])]);
        assert_eq!(parse(&[1, 8, 10, 0]), [TcpOption::Nop, TcpOption::Raw(vec![8, 10, 0])]);
        assert_eq!(parse(&[0, 0, 5]), [TcpOption::Raw(vec![0, 0, 5])]);
        // A known kind of a wrong, yet sound, length.
        assert_eq!(parse(&[2, 3, 9]), [TcpOption::Other { kind: 2, data: vec![9] }]);
    }
}
