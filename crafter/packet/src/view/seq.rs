//! TCP sequence numbers and their arithmetic (RFC 9293, section 3.4).

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// A sequence or acknowledgment number, in host byte order.
///
/// Sequence numbers wrap at 2^32. Their order is defined only if they are less than 2^31 apart, as all numbers in use
/// on a connection are (RFC 7323, section 2.3). Therefore the type has [`before`](Self::before) and
/// [`after`](Self::after) instead of `<` and `>`.
///
/// ```
/// use crafter_packet::view::Seq;
///
/// let last = Seq(u32::MAX);
/// assert!(last.before(last + 1) && (last + 1).after(last));
/// assert_eq!((last + 10).distance_from(last), 10);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(
    /// The number as in the header.
    pub u32,
);

impl Seq {
    /// Whether this number precedes `other`.
    pub const fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether this number follows `other`.
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// Distance from `earlier` to this number, modulo 2^32.
    pub const fn distance_from(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The header field, in network byte order.
    pub const fn to_be_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl Add<u32> for Seq {
    type Output = Self;
    fn add(self, length: u32) -> Self {
        Self(self.0.wrapping_add(length))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, length: u32) {
        *self = *self + length;
    }
}

impl Sub<u32> for Seq {
    type Output = Self;
    fn sub(self, length: u32) -> Self {
        Self(self.0.wrapping_sub(length))
    }
}

/// The number in decimal, as tcpdump prints it.
impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HALF: u32 = 1 << 31;

    proptest! {
        #[test]
        fn sum_follows_its_start(start in any::<u32>(), length in 1..HALF) {
            let (start, end) = (Seq(start), Seq(start) + length);
            prop_assert!(start.before(end) && end.after(start));
            prop_assert!(!end.before(start) && !start.after(end));
            prop_assert_eq!(end.distance_from(start), length);
            prop_assert_eq!(end - length, start);
        }

        #[test]
        fn order_is_invariant_under_shift(a in any::<u32>(), b in any::<u32>(), by in any::<u32>()) {
            let moved = (Seq(a) + by, Seq(b) + by);
            prop_assert_eq!(Seq(a).before(Seq(b)), moved.0.before(moved.1));
            prop_assert_eq!(Seq(a).distance_from(Seq(b)), moved.0.distance_from(moved.1));
        }

        /// Without a wrap the order is that of the integers.
        #[test]
        fn order_without_wrap_is_that_of_integers(a in 0..HALF, b in 0..HALF) {
            prop_assert_eq!(Seq(a).before(Seq(b)), a < b);
            prop_assert_eq!(Seq(a).after(Seq(b)), a > b);
        }

        #[test]
        fn order_is_transitive_within_half_the_space(start in any::<u32>(), x in 1..HALF / 2, y in 1..HALF / 2) {
            let (first, second) = (Seq(start), Seq(start) + x);
            let mut third = second;
            third += y;
            prop_assert!(first.before(second) && second.before(third) && first.before(third));
        }
    }

    #[test]
    fn equal_numbers_are_unordered() {
        for number in [0, 1, HALF, u32::MAX].map(Seq) {
            assert!(!number.before(number) && !number.after(number));
            assert_eq!(number.distance_from(number), 0);
        }
        assert_eq!(Seq(u32::MAX) + 1, Seq(0));
        assert_eq!(Seq(0) - 1, Seq(u32::MAX));
        assert_eq!((Seq(258).to_string(), Seq(258).to_be_bytes()), ("258".to_owned(), [0, 0, 1, 2]));
    }
}
