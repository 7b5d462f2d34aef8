//! Sets of ports.

use std::{fmt, ops::RangeInclusive};

/// A set of ports: sorted ranges that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Every port.
    pub fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// The union of `ranges`; a range that ends before it begins is empty.
    pub fn new(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        let mut sorted: Vec<(u16, u16)> =
            ranges.into_iter().filter(|range| !range.is_empty()).map(RangeInclusive::into_inner).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Whether the set contains `port`.
    pub fn contains(&self, port: u16) -> bool {
        self.contains_all(&(port..=port))
    }

    /// Whether the set contains all of `range`; `false` for an empty range.
    pub fn contains_all(&self, range: &RangeInclusive<u16>) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= *range.start());
        !range.is_empty() && after > 0 && self.0[after - 1].1 >= *range.end()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges in order.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        self.0.iter().map(|&(first, last)| first..=last)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            match first == last {
                true => write!(f, "{first}")?,
                false => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_a_list_of_ranges(
            ranges in proptest::collection::vec((0u16..50, 0u16..50), 0..8), port in 0u16..55, last in 0u16..55
        ) {
            let ports = Ports::new(ranges.iter().map(|&(a, b)| a..=b));
            let slow = |port: u16| ranges.iter().any(|&(a, b)| (a..=b).contains(&port));
            prop_assert_eq!(ports.contains(port), slow(port));
            prop_assert_eq!(ports.contains_all(&(port..=last)), port <= last && (port..=last).all(slow));
        }
    }

    #[test]
    fn both_ends_of_a_range_belong_to_it() {
        let ports = Ports::new([65535..=65535, 0..=0, 80..=81, 82..=90]);
        assert_eq!(ports.to_string(), "0, 80-90, 65535");
        assert!(ports.contains(0) && ports.contains(65535) && ports.contains(82) && !ports.contains(91));
        assert!(Ports::all().contains_all(&(0..=65535)) && !ports.contains_all(&(90..=91)));
    }
}
