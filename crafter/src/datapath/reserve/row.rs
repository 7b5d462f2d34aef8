//! Searches consecutive free ports. A row is `count` consecutive ports. Pure: the caller passes the function that binds
//! a port.
//!
//! A row is tried from its last port down. No row that contains a taken port is possible, so the next row begins after
//! that port, with the ports above it that are bound already. A taken port is tried once, and a free port is bound at
//! most twice: once in the part of the range above the random start, once in the part below it.

use std::{collections::BTreeSet, io, ops::RangeInclusive};

use super::DYNAMIC;

/// A search that is done in turns.
#[derive(Debug)]
pub(crate) struct RowSearch<H> {
    count: usize,
    /// The ranges still to be searched, the next one last. A row is within one of them.
    spans: Vec<RangeInclusive<u16>>,
    /// The first port of the row that is tried.
    first: usize,
    /// The bound ports at the beginning of the row, from `first` up.
    lower: Vec<H>,
    /// The bound ports at the end of the row, from its last one down.
    upper: Vec<H>,
    /// Bound ports that are in no possible row; to be closed.
    unused: Vec<H>,
    taken: BTreeSet<u16>,
    tried: u64,
    /// Whether exactly one row is requested; it is tried from its first port up.
    is_exact: bool,
}

/// The result of a turn.
#[derive(Debug)]
pub(crate) enum Turn<H> {
    /// The turn is over; the search continues in the next one.
    More,
    /// The first port of the row, and its bound ports in ascending order.
    Found(u16, Vec<H>),
    /// No row is free. For an exact row: its first port that is taken.
    None(Option<u16>),
    /// A port could not be bound for another reason.
    Failed(u16, io::Error),
}

impl<H> RowSearch<H> {
    /// Searches this row only.
    pub(crate) fn exact(row: RangeInclusive<u16>) -> Self {
        Self::new(vec![row.clone()], row.len(), true)
    }

    /// Searches `count` consecutive ports in `ranges`, beginning at a random port (RFC 6056, section 3.3.1); in the
    /// dynamic ports only if those have `count` consecutive ones. `None` if no range has `count` ports.
    pub(crate) fn free(ranges: &[RangeInclusive<u16>], count: u16, random: u32) -> Option<Self> {
        let (ranges, at, first) = place(ranges, count.max(1), random)?;
        let (range, start) = (ranges[at].clone(), *ranges[at].start());
        let mut spans = vec![first..=*range.end()];
        spans.extend(ranges[at + 1..].iter().chain(&ranges[..at]).cloned());
        if first > start {
            // Rows that begin before `first` may reach beyond it.
            spans.push(start..=(first - 1).saturating_add(count.max(1) - 1).min(*range.end()));
        }
        spans.reverse();
        Some(Self::new(spans, count.max(1).into(), false))
    }

    fn new(spans: Vec<RangeInclusive<u16>>, count: usize, is_exact: bool) -> Self {
        let first = spans.last().map_or(0, |span| usize::from(*span.start()));
        let (lower, upper, unused) = (Vec::new(), Vec::new(), Vec::new());
        Self { count, spans, first, lower, upper, unused, taken: BTreeSet::new(), tried: 0, is_exact }
    }

    /// The number of attempts to bind a port so far.
    pub(crate) fn tried(&self) -> u64 {
        self.tried
    }

    /// The number of ports found taken so far.
    pub(crate) fn taken(&self) -> usize {
        self.taken.len()
    }

    /// Takes the bound ports that are in no possible row, to close them.
    pub(crate) fn take_unused(&mut self) -> Vec<H> {
        std::mem::take(&mut self.unused)
    }

    /// Keeps what [`take_unused`](Self::take_unused) returned.
    pub(crate) fn keep_unused(&mut self, unused: Vec<H>) {
        self.unused = unused;
    }

    /// The number of ports of the row.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Everything that is still bound.
    pub(crate) fn take_all(&mut self) -> Vec<H> {
        let mut all = self.take_unused();
        all.append(&mut self.lower);
        all.append(&mut self.upper);
        all
    }

    /// Searches until `is_over`, which is asked after each attempt. `bind` fails with
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if the port is taken.
    pub(crate) fn turn(
        &mut self,
        mut bind: impl FnMut(u16) -> io::Result<H>,
        mut is_over: impl FnMut() -> bool,
    ) -> Turn<H> {
        loop {
            let Some(end) = self.spans.last().map(|span| usize::from(*span.end())) else { return Turn::None(None) };
            if self.first + self.count - 1 > end {
                self.spans.pop();
                self.restart(self.spans.last().map_or(0, |span| usize::from(*span.start())), 0);
                continue;
            }
            if self.lower.len() + self.upper.len() == self.count {
                let mut row = std::mem::take(&mut self.lower);
                row.extend(self.upper.drain(..).rev());
                return Turn::Found(self.first as u16, row);
            }
            let port = match self.is_exact {
                true => self.first + self.lower.len(),
                false => self.first + self.count - 1 - self.upper.len(),
            } as u16;
            if self.taken.contains(&port) {
                self.continue_after(port);
                continue;
            }
            self.tried += 1;
            match bind(port) {
                Ok(held) if self.is_exact => self.lower.push(held),
                Ok(held) => self.upper.push(held),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    self.taken.insert(port);
                    if self.is_exact {
                        return Turn::None(Some(port));
                    }
                    self.continue_after(port);
                }
                Err(error) => return Turn::Failed(port, error),
            }
            if is_over() && self.lower.len() + self.upper.len() < self.count {
                return Turn::More;
            }
        }
    }

    /// Continues with the row that begins after `port`, which is taken; the ports above it in the current row are
    /// bound.
    fn continue_after(&mut self, port: u16) {
        self.restart(usize::from(port) + 1, self.upper.len());
    }

    /// Continues with the row at `first`; the uppermost `kept` ports of the current row are its beginning.
    fn restart(&mut self, first: usize, kept: usize) {
        self.unused.append(&mut self.lower);
        self.unused.extend(self.upper.drain(kept..));
        self.upper.reverse();
        self.lower = std::mem::take(&mut self.upper);
        self.first = first;
    }
}

/// Chooses a row uniformly at random. Returns the ranges that have `count` consecutive ports (dynamic ones only, if
/// there are any), the index of the row's range, and the row's first port.
fn place(ranges: &[RangeInclusive<u16>], count: u16, random: u32) -> Option<(Vec<RangeInclusive<u16>>, usize, u16)> {
    let within = |bounds: &RangeInclusive<u16>| -> Vec<RangeInclusive<u16>> {
        let cut = ranges.iter().map(|range| *range.start().max(bounds.start())..=*range.end().min(bounds.end()));
        cut.filter(|range| range.len() >= usize::from(count)).collect()
    };
    let mut ranges = within(&DYNAMIC);
    if ranges.is_empty() {
        ranges = within(&(0..=u16::MAX));
    }
    let rows = |range: &RangeInclusive<u16>| range.len() as u32 - u32::from(count) + 1;
    let mut place = random.checked_rem(ranges.iter().map(rows).sum())?;
    let at = ranges.iter().position(|range| match place.checked_sub(rows(range)) {
        None => true,
        Some(rest) => {
            place = rest;
            false
        }
    })?;
    let first = ranges[at].start() + place as u16;
    Some((ranges, at, first))
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap};

    use super::*;

    /// A host whose sockets are counted.
    #[derive(Default)]
    struct Host {
        taken: BTreeSet<u16>,
        attempts: RefCell<BTreeMap<u16, u32>>,
    }

    impl Host {
        fn with(taken: impl IntoIterator<Item = u16>) -> Self {
            Self { taken: taken.into_iter().collect(), ..Self::default() }
        }

        fn bind(&self, port: u16) -> io::Result<u16> {
            *self.attempts.borrow_mut().entry(port).or_default() += 1;
            if self.taken.contains(&port) { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(port) }
        }

        fn attempts(&self) -> u32 {
            self.attempts.borrow().values().sum()
        }

        /// Searches to the end, `most` attempts a turn; asserts that no turn makes more. The first port, if a row was
        /// found, and the number of turns.
        fn search(&self, search: &mut RowSearch<u16>, most: u32) -> (Option<u16>, u32) {
            for turns in 1.. {
                let (mut made, before) = (0, self.attempts());
                let turn = search.turn(
                    |port| self.bind(port),
                    || {
                        made += 1;
                        made >= most
                    },
                );
                assert!(self.attempts() - before <= most, "{} attempts in a turn", self.attempts() - before);
                match turn {
                    Turn::More => {}
                    Turn::Found(first, row) => {
                        let expected: Vec<u16> = (0..search.count).map(|at| first + at as u16).collect();
                        assert_eq!(row, expected);
                        return (Some(first), turns);
                    }
                    Turn::None(_) => return (None, turns),
                    Turn::Failed(port, error) => panic!("{port}: {error}"),
                }
            }
            unreachable!()
        }
    }

    /// Plain sockets at equal distances over the dynamic ports, so that no gap has 1,024 ports.
    fn spread(sockets: u16) -> Host {
        let distance = 16_384 / u32::from(sockets + 1);
        Host::with((1..=sockets).map(|at| (49_152 + u32::from(at) * distance) as u16))
    }

    #[test]
    fn taken_ports_are_tried_once_and_the_search_ends() {
        for sockets in 17..=64 {
            for random in [0, 1, 7_000, 15_360, u32::MAX] {
                let host = spread(sockets);
                let mut search = RowSearch::free(&[1024..=65_535], 1024, random).unwrap();
                // The last gap may be longer than the others by what is left of the division.
                if let (Some(first), _) = host.search(&mut search, 64) {
                    panic!("{sockets} sockets, row at {first}");
                }
                assert!(host.taken.iter().all(|port| host.attempts.borrow().get(port).is_none_or(|made| *made == 1)));
                // Each port from the random start to the end of the range, and from its beginning to the end of the
                // last row that begins below the start.
                assert!(host.attempts() <= 16_384 + 1023, "{sockets}: {}", host.attempts());
                assert_eq!(search.tried(), u64::from(host.attempts()));
            }
        }
    }

    #[test]
    fn ports_bound_above_a_conflict_are_kept() {
        let host = Host::with([50_005]);
        let mut search = RowSearch::free(&[50_000..=50_019], 10, 0).unwrap();
        assert_eq!(host.search(&mut search, u32::MAX).0, Some(50_006));
        // 50,009 to 50,005, then 50,015 to 50,010.
        assert_eq!(host.attempts(), 11);
        assert!(search.take_all().is_empty());
    }

    #[test]
    fn only_free_range_is_found_from_every_start() {
        for random in 0..200 {
            let host = Host::with((50_000..50_100).filter(|port| !(50_040..50_050).contains(port)));
            let mut search = RowSearch::free(&[50_000..=50_099], 10, random).unwrap();
            assert_eq!(host.search(&mut search, 3).0, Some(50_040), "from {random}");
            assert!(host.attempts.borrow().iter().all(|(port, made)| *made == 1 || !host.taken.contains(port)));
        }
    }

    #[test]
    fn turn_stops_after_the_allowed_attempts() {
        let host = spread(32);
        let mut search = RowSearch::free(&[1024..=65_535], 1024, 0).unwrap();
        let (found, turns) = host.search(&mut search, 10);
        assert_eq!((found, turns >= host.attempts() / 10), (None, true));
    }

    #[test]
    fn exact_range_fails_at_its_first_taken_port() {
        let host = Host::with([6002, 6003]);
        let mut search = RowSearch::exact(6000..=6005);
        let Turn::None(Some(6002)) = search.turn(|port| host.bind(port), || false) else { panic!() };
        assert_eq!((host.attempts(), search.take_all()), (3, vec![6000, 6001]));
    }

    #[test]
    fn dynamic_ports_are_preferred_and_every_start_is_possible() {
        let allowed = [100..=103, 50_000..=50_001, 60_000..=60_003];
        let first = |allowed: &[RangeInclusive<u16>], count, random| {
            let mut search = RowSearch::free(allowed, count, random)?;
            Host::default().search(&mut search, u32::MAX).0
        };
        let placed: Vec<_> = (0..4).map(|random| first(&allowed, 2, random).unwrap()).collect();
        assert_eq!(placed, [50_000, 60_000, 60_001, 60_002]);
        // No dynamic port is allowed, or too few consecutive ones.
        let placed: Vec<_> = (0..2).map(|random| first(&allowed[..1], 3, random).unwrap()).collect();
        assert_eq!(placed, [100, 101]);
        assert_eq!(first(&allowed, 5, 7), None);
        assert_eq!(first(&[], 1, 7), None);
        assert_eq!(first(&[65_535..=65_535], 1, 7), Some(65_535));
    }
}
