//! The part of DNS (RFC 1035) that a crafted query needs.

/// Record types.
pub const A: u16 = 1;
/// See [`A`].
pub const TXT: u16 = 16;
/// See [`A`].
pub const AAAA: u16 = 28;

/// A query with recursion desired; `edns` adds an OPT record with that UDP payload size in bytes (RFC 6891).
pub fn query(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, u16::from(edns.is_some())] {
        bytes.extend(word.to_be_bytes());
    }
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    for word in [kind, 1] {
        bytes.extend(word.to_be_bytes());
    }
    if let Some(size) = edns {
        bytes.extend([0, 0, 41]);
        bytes.extend(size.to_be_bytes());
        bytes.extend([0; 6]);
    }
    bytes
}

/// The fields of an answer that the tests check.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The id of the query.
    pub id: u16,
    /// The TC flag: the answer was truncated to fit.
    pub truncated: bool,
    /// The response code.
    pub code: u8,
    /// The data of the records in the answer section, undecoded.
    pub data: Vec<Vec<u8>>,
}

/// Parses an answer; `None` if it is incomplete or not a response.
pub fn read(bytes: &[u8]) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let flags = word(2)?;
    let mut at = 12;
    for _ in 0..word(4)? {
        at = skip_name(bytes, at)? + 4;
    }
    let mut data = Vec::new();
    for _ in 0..word(6)? {
        at = skip_name(bytes, at)?;
        let length = usize::from(word(at + 8)?);
        data.push(bytes.get(at + 10..at + 10 + length)?.to_vec());
        at += 10 + length;
    }
    (flags & 0x8000 != 0).then_some(Answer {
        id: word(0)?,
        truncated: flags & 0x0200 != 0,
        code: flags as u8 & 0xf,
        data,
    })
}

fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
