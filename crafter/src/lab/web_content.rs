//! The bytes that `/bytes/N` serves: the same in every run, cheap to generate, and without repetitions, so that data at
//! a wrong offset is detected.

use std::{cell::RefCell, fmt::Write as _, mem, sync::OnceLock};

use hyper::body::Bytes;
use sha2::{Digest, Sha256};

/// Bytes after which the key changes.
const BLOCK: u64 = 1 << 20;
/// Bytes per piece; a block is a whole number of pieces.
const PIECE: u64 = 128 << 10;
const WORDS: usize = (BLOCK / 8) as usize;

/// The output function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn first_block() -> &'static [u64] {
    static WORDS_OF_BLOCK: OnceLock<Vec<u64>> = OnceLock::new();
    WORDS_OF_BLOCK.get_or_init(|| (1..=WORDS as u64).map(mix).collect())
}

/// The first `length` bytes of the lab's content, in pieces of at most 128 KiB.
///
/// Word `w` (8 bytes, little-endian) of block `b` (1 MiB) is `mix(w + 1) ^ mix(-b)`:
/// one XOR per word, over memory that stays in the cache.
#[derive(Debug, Clone)]
pub struct Content {
    position: u64,
    length: u64,
}

impl Content {
    /// The first `length` bytes.
    pub fn new(length: u64) -> Self {
        Self { position: 0, length }
    }

    /// Bytes not returned yet.
    pub fn remaining(&self) -> u64 {
        self.length - self.position
    }
}

impl Iterator for Content {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        // Pieces start at multiples of PIECE, so none crosses a block's end.
        let size = self.remaining().min(PIECE) as usize;
        if size == 0 {
            return None;
        }
        let key = mix((self.position / BLOCK).wrapping_neg());
        let first = (self.position % BLOCK / 8) as usize;
        let mut piece = Piece::new(size);
        let used = &mut piece.buffer[..size.next_multiple_of(8)];
        for (bytes, word) in used.as_chunks_mut::<8>().0.iter_mut().zip(&first_block()[first..]) {
            *bytes = (word ^ key).to_le_bytes();
        }
        self.position += size as u64;
        Some(Bytes::from_owner(piece))
    }
}

thread_local! {
    /// Buffers to reuse. Otherwise the allocator returns the memory to the kernel, with a page fault for every 4 KiB
    /// served.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers kept by each thread, 2 MiB in all.
const SPARES: usize = 16;

/// A buffer of [`PIECE`] bytes with `length` of them in use.
struct Piece {
    buffer: Vec<u8>,
    length: usize,
}

impl Piece {
    fn new(length: usize) -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        Self { buffer: spare.unwrap_or_else(|| vec![0; PIECE as usize]), length }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let buffer = mem::take(&mut self.buffer);
        // Fails only while the thread ends; then the buffer is freed.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARES {
                spare.push(buffer);
            }
        });
    }
}

/// SHA-256 of the first `length` bytes, in lower-case hexadecimal.
pub fn sha256(length: u64) -> String {
    let mut hasher = Sha256::new();
    Content::new(length).for_each(|piece| hasher.update(&piece));
    hasher.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Parses a size in bytes: digits, with an optional suffix K, M or G for powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: u64) -> Vec<u8> {
        Content::new(length).flatten().collect()
    }

    #[test]
    fn content_of_each_length_is_a_prefix_of_longer_content() {
        let long = bytes(3 * BLOCK + 4321);
        assert_eq!(long.len() as u64, 3 * BLOCK + 4321);
        for length in [0, 1, 7, 8, 9, PIECE - 1, PIECE, PIECE + 1, BLOCK, BLOCK + 13] {
            assert_eq!(bytes(length), long[..length as usize], "{length} bytes");
        }
    }

    #[test]
    fn content_has_no_repeated_words() {
        let content = bytes(4 * BLOCK);
        let mut words: Vec<_> = content.as_chunks::<8>().0.to_vec();
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all, "8-byte words that occur twice in 4 MiB");
    }

    #[test]
    fn content_matches_an_independent_implementation() {
        // From an implementation in Python, hashed by hashlib.
        assert_eq!(sha256(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(sha256(3 * BLOCK + 4321), "86ed6a2ba61f9c9667fb4308d636b10f801bd75aee75b8a1f5f1575583a7202c");
    }

    #[test]
    fn sizes_are_parsed() {
        for (text, size) in [("0", 0), ("1", 1), ("5K", 5 << 10), ("100M", 100 << 20), ("2g", 2 << 30)] {
            assert_eq!(parse_size(text), Some(size), "{text}");
        }
        for text in ["", "K", "-1", "+1", "1T", "1.5M", "99999999999G", "é"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
